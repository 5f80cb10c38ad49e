//! W6: the state that a watch tells first, and what comes after it, are the truth.

mod harness;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use harness::{
    Client, Redis, Watching, World,
    client::*,
    eventually,
    listing::{half_of_the_list, made_for_a_cursor, rest_of_the_list},
};
use sessiond::session::SessionId;
use sessiond_client::v1::{
    CreateSessionRequest, EventType, ListSessionsRequest, ResyncReason, Session, SessionEvent, UpdateSessionRequest,
    WatchRequest, watch_response::Control,
};

fn with_state() -> WatchRequest {
    WatchRequest { initial_state: true, ..whole_namespace() }
}

/// What a client holds that does as it is told.
#[derive(Default, Debug)]
struct Held(BTreeMap<String, Session>);

impl Held {
    fn take(&mut self, events: impl IntoIterator<Item = SessionEvent>) {
        for event in events {
            match event.r#type() {
                EventType::Ended | EventType::Left => drop(self.0.remove(&event.id)),
                _ => drop(self.0.insert(event.id, event.session.unwrap())),
            }
        }
    }

    /// Takes what comes until the state is complete.
    async fn take_state(&mut self, watching: &mut Watching) {
        loop {
            let response = watching.response().await.unwrap().expect("the watch is open");
            self.take(response.events);
            match response.control {
                Some(Control::Synced(_)) => return,
                Some(Control::Resync(_)) => self.0.clear(),
                _ => {}
            }
        }
    }

    /// Ids and revisions.
    fn revisions(&self) -> BTreeSet<(String, i64)> {
        self.0.values().map(|session| (session.id.clone(), session.revision)).collect()
    }
}

async fn revisions_in_redis(client: &Client) -> BTreeSet<(String, i64)> {
    let (mut all, mut page_token) = (BTreeSet::new(), String::new());
    loop {
        let request = ListSessionsRequest { namespace: client.namespace.clone(), page_token, ..Default::default() };
        let page = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
        all.extend(page.sessions.into_iter().map(|session| (session.id, session.revision)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

fn ids(events: &[SessionEvent]) -> Vec<&str> {
    events.iter().map(|event| &event.id[..]).collect()
}

#[tokio::test]
async fn what_lives_is_told_before_anything_else() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (kept, _) = client.create(&[("cart", text("full"))]).await;
    let (ended, _) = client.create(&[]).await;
    client.delete(by_id(&ended.id)).await.unwrap();
    let mut watching = client.watch(with_state()).await.unwrap();
    let state = watching.state().await;
    assert_eq!(ids(&state), [&kept.id]);
    assert_eq!((state[0].r#type(), state[0].revision), (EventType::Snapshot, kept.revision));
    assert_eq!(state[0].session.as_ref(), Some(&kept));
    client.set(by_id(&kept.id), &[("cart", text("empty"))]).await.unwrap();
    assert_eq!(watching.event().await.r#type(), EventType::Updated);
}

#[tokio::test]
async fn the_state_of_a_namespace_without_sessions_is_complete_at_once() {
    let world = World::shared();
    let server = world.server().await;
    let mut watching = server.client().await.watch(with_state()).await.unwrap();
    assert_eq!(watching.state().await, []);
}

#[tokio::test]
async fn the_state_is_that_of_what_is_watched() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let other = client.in_namespace("elsewhere");
    other.create(&[]).await;
    let labelled = |subject: &str, value: &str| CreateSessionRequest {
        subject: subject.into(),
        labels: labels(&[("device", value)]).into_iter().collect(),
        ..Default::default()
    };
    let (phone, _) = client.create_as(labelled("anna", "phone")).await.unwrap();
    let (laptop, token) = client.create_as(labelled("anna", "laptop")).await.unwrap();
    let (bert, _) = client.create_as(labelled("bert", "phone")).await.unwrap();
    let state = async |request: WatchRequest| {
        let request = WatchRequest { initial_state: true, ..request };
        let mut told: Vec<String> =
            client.watch(request).await.unwrap().state().await.into_iter().map(|event| event.id).collect();
        told.sort();
        told
    };
    let sorted = |mut ids: Vec<&Session>| {
        ids.sort_by_key(|session| session.id.clone());
        ids.into_iter().map(|session| session.id.clone()).collect::<Vec<_>>()
    };
    let subject = WatchRequest { subject: Some("anna".into()), ..Default::default() };
    assert_eq!(state(subject).await, sorted(vec![&phone, &laptop]));
    let label = WatchRequest { labels: labels(&[("device", "phone")]).into_iter().collect(), ..whole_namespace() };
    assert_eq!(state(label).await, sorted(vec![&phone, &bert]));
    let by_ids = vec![by_id(&bert.id).unwrap(), by_id(&laptop.id).unwrap()];
    assert_eq!(state(WatchRequest { keys: by_ids, ..Default::default() }).await, sorted(vec![&bert, &laptop]));
    let by_token = vec![by_token(&token).unwrap()];
    assert_eq!(state(WatchRequest { keys: by_token, ..Default::default() }).await, std::slice::from_ref(&laptop.id));
    // Kinds are of changes: the state comes whatever was asked for.
    let endings = WatchRequest { types: vec![EventType::Ended.into()], ..whole_namespace() };
    assert_eq!(state(endings).await, sorted(vec![&phone, &laptop, &bert]));
}

#[tokio::test]
async fn a_good_resume_token_stands_for_the_state() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut first = client.watch(with_state()).await.unwrap();
    first.state().await;
    let (session, _) = client.create(&[]).await;
    let mut resumed = client.watch(WatchRequest { resume_token: first.token.clone(), ..with_state() }).await.unwrap();
    let event = resumed.event().await;
    assert_eq!((event.r#type(), event.id), (EventType::Created, session.id));
}

/// Makes, changes and ends sessions until told to stop; how many changes.
async fn churn(client: &Client, stop: &tokio_util::sync::CancellationToken) -> usize {
    let mut changes = 0;
    while !stop.is_cancelled() {
        let (session, token) = client.create(&[("n", text("0"))]).await;
        client.set(by_token(&token), &[("n", text("1"))]).await.unwrap();
        if changes % 3 == 0 {
            client.delete(by_id(&session.id)).await.unwrap();
        }
        changes += 1;
    }
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w6_state_and_changes_together_are_the_truth_while_writes_go_on() {
    let world = World::shared();
    // A short ring buffer of the feed: entries come by the log, too.
    let (a, b) = (world.server().await, world.server_with("[limits]\nfeed_buffer = 2").await);
    let clients = [a.client().await, b.client().await];
    let stop = tokio_util::sync::CancellationToken::new();
    let writing = join_all(clients.iter().map(|client| churn(client, &stop)));
    let watching = async {
        let mut watches: Vec<(Watching, Held)> = Vec::new();
        for n in 0..20 {
            // On a channel of its own: the calls go on while it is not read.
            let mut watching = [&a, &b][n % 2].client().await.watch(with_state()).await.unwrap();
            let state = watching.state().await;
            let mut told = HashMap::new();
            for event in &state {
                let before = told.insert(event.id.clone(), event.revision);
                assert!(before.is_none_or(|before| before < event.revision), "told again after the state: {event:?}");
            }
            let mut held = Held::default();
            held.take(state);
            watches.push((watching, held));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.cancel();
        watches
    };
    let (changes, watches) = tokio::join!(writing, watching);
    assert!(changes.iter().sum::<usize>() > 200, "too few changes to prove anything: {changes:?}");
    let truth = revisions_in_redis(&clients[0]).await;
    for (mut watching, mut held) in watches {
        held.take(watching.everything_so_far().await);
        assert_eq!(held.revisions(), truth);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_was_being_told_as_redis_restarted_is_told_again() {
    const SESSIONS: usize = 1_500;
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let world = World { redis: Redis::start_with(&durable), prefix: "sessiond:".into() };
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let value = incompressible(8_000);
    for _ in 0..SESSIONS / 100 {
        let value = [("cart", text(&value))];
        join_all((0..100).map(|_| client.create(&value))).await;
    }
    let mut watching = client.watch(with_state()).await.unwrap();
    let mut held = Held::default();
    held.take(watching.response().await.unwrap().unwrap().events);
    assert!(!held.0.is_empty());
    // Not read any further: the server stands amid the cursor.
    world.redis.kill();
    world.redis.restart();
    eventually("the server is back", async || client.create_as(Default::default()).await.ok()).await;
    held.take_state(&mut watching).await;
    let truth = revisions_in_redis(&client).await;
    held.take(watching.everything_so_far().await);
    assert_eq!(held.revisions().len(), truth.len());
    assert_eq!(held.revisions(), truth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_whose_cursor_became_void_begins_its_partition_again_and_lacks_nothing() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let world = World { redis: Redis::start_with(&durable), prefix: "sessiond:".into() };
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let sessions = made_for_a_cursor(&client).await;
    let (mut listed, page_token) = half_of_the_list(&client, &sessions).await;
    // Another run has another order.
    world.redis.kill();
    world.redis.restart();
    listed.extend(rest_of_the_list(&client, page_token).await);
    assert_eq!(sessions.difference(&listed).count(), 0, "some are not listed");
    assert_eq!(listed.len(), sessions.len(), "others are listed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_as_gone_and_is_back_after_a_rewind_is_told() {
    let world = World { redis: Redis::start_with(&["--dbfilename", "saved.rdb"]), prefix: "sessiond:".into() };
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    // More than the windows of a connection hold.
    let value = [("cart", text(&incompressible(60_000)))];
    let mut sessions = BTreeSet::new();
    for _ in 0..100 {
        sessions.insert(client.create(&value).await.0.id);
    }
    world.redis.must(&["SAVE"]);
    // Gone by a change that the feed does not hear of: of the one that is read first.
    let first = sessions.iter().min_by_key(|id| id.parse::<SessionId>().unwrap()).unwrap();
    let due = world.redis.keys("*:due:*").remove(0);
    world.redis.must(&["ZREM", &due, first]);
    world.redis.must(&["DEL", &world.redis.keys(&format!("*:s:{NAMESPACE}:{first}"))[0]]);
    let mut watching = client.watch(with_state()).await.unwrap();
    let mut held = Held::default();
    held.take(watching.response().await.unwrap().unwrap().events);
    assert!(!held.0.is_empty() && !held.0.contains_key(first));
    world.redis.kill();
    world.redis.restart();
    eventually("the feed is back", async || world.redis.command(&["CLIENT", "LIST"]).contains("ssub=1 ").then_some(()))
        .await;
    held.take_state(&mut watching).await;
    assert_eq!(held.0.into_keys().collect::<BTreeSet<_>>(), sessions);
}

#[tokio::test]
async fn after_a_resync_the_state_is_told_again() {
    let world = World::own();
    let server = world.server().await;
    let client = server.client().await;
    client.create(&[]).await;
    let mut watching = client.watch(with_state()).await.unwrap();
    assert_eq!(watching.state().await.len(), 1);
    world.redis.command(&["FLUSHALL"]);
    let resync = watching.resync().await;
    assert_eq!((resync.reason(), resync.ids), (ResyncReason::Flushed, vec![]));
    assert_eq!(watching.state().await, []);
    let (session, _) = client.create(&[]).await;
    assert_eq!(watching.event().await.id, session.id);
    // And where it was not asked for it does not come.
    let mut resumed = client.resume(&watching.token).await;
    world.redis.command(&["FLUSHALL"]);
    assert_eq!(resumed.resync().await.reason(), ResyncReason::Flushed);
    let response = resumed.response().await.unwrap().unwrap();
    assert!(!matches!(response.control, Some(Control::Synced(_))), "{response:?}");
}

#[tokio::test]
async fn what_ended_while_the_state_was_told_is_told_after_it() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    // More than the windows of a connection hold.
    let value = incompressible(60_000);
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push(client.create(&[("cart", text(&value))]).await.0.id);
    }
    let mut watching = server.client().await.watch(with_state()).await.unwrap();
    let first = watching.response().await.unwrap().unwrap();
    for id in &sessions {
        client.delete(by_id(id)).await.unwrap();
    }
    let mut held = Held::default();
    held.take(first.events);
    let rest = watching.state().await;
    let ended = rest.iter().filter(|event| event.r#type() == EventType::Ended).count();
    held.take(rest);
    assert_eq!((held.0.len(), ended), (0, 100), "every ending is told before the state is complete");
}

#[tokio::test]
async fn a_session_that_came_to_match_while_the_state_was_told_is_not_missed() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut sessions = Vec::new();
    for _ in 0..50 {
        sessions.push(client.create(&[]).await.0.id);
    }
    let request = || WatchRequest { subject: Some("anna".into()), initial_state: true, ..Default::default() };
    let logins = join_all(sessions.iter().map(|id| {
        client.update(UpdateSessionRequest { key: by_id(id), subject: Some("anna".into()), ..Default::default() })
    }));
    let (logins, watching) = tokio::join!(logins, client.watch(request()));
    assert!(logins.iter().all(Result::is_ok));
    let mut watching = watching.unwrap();
    let mut held = Held::default();
    held.take(watching.state().await);
    eventually("all are held", async || {
        while held.0.len() < sessions.len() {
            held.take([watching.event().await]);
        }
        Some(())
    })
    .await;
}
