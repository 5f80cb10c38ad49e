//! Guarantee W6: a snapshot and the events after it match the sessions in Redis.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use harness::{
    Client, Setup, WatchReader, World,
    client::*,
    eventually,
    listing::{create_enough_for_cursor, list_first_half, list_rest},
    setup,
};
use sessiond::session::SessionId;
use sessiond_client::v1::{
    CreateSessionRequest, EventType, ListSessionsRequest, ResyncReason, Session, SessionEvent, UpdateSessionRequest,
    WatchRequest, watch_response::Control,
};

fn with_snapshot() -> WatchRequest {
    WatchRequest { initial_state: true, ..whole_namespace() }
}

/// Copy of the sessions that a client keeps by applying all events.
#[derive(Default, Debug)]
struct Mirror(BTreeMap<String, Session>);

impl Mirror {
    fn apply(&mut self, events: impl IntoIterator<Item = SessionEvent>) {
        for event in events {
            match event.r#type() {
                EventType::Ended | EventType::Left => drop(self.0.remove(&event.id)),
                _ => drop(self.0.insert(event.id, event.session.unwrap())),
            }
        }
    }

    /// Applies all events until the snapshot is complete.
    async fn apply_snapshot(&mut self, watching: &mut WatchReader) {
        loop {
            let response = watching.response().await.unwrap().expect("the stream is open");
            self.apply(response.events);
            match response.control {
                Some(Control::Synced(_)) => return,
                Some(Control::Resync(_)) => self.0.clear(),
                _ => {}
            }
        }
    }

    /// Returns all ids and revisions.
    fn revisions(&self) -> BTreeSet<(String, i64)> {
        self.0.values().map(|session| (session.id.clone(), session.revision)).collect()
    }
}

/// Lists the ids and revisions of all live sessions.
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
async fn snapshot_is_sent_before_any_other_event() {
    let Setup { client, .. } = &setup().await;
    let (kept, _) = client.create(&[("cart", text("full"))]).await;
    let (ended, _) = client.create(&[]).await;
    client.delete(by_id(&ended.id)).await.unwrap();
    let mut watching = client.watch(with_snapshot()).await.unwrap();
    let state = watching.snapshot().await;
    assert_eq!(ids(&state), [&kept.id]);
    assert_eq!((state[0].r#type(), state[0].revision), (EventType::Snapshot, kept.revision));
    assert_eq!(state[0].session.as_ref(), Some(&kept));
    client.set(by_id(&kept.id), &[("cart", text("empty"))]).await.unwrap();
    assert_eq!(watching.event().await.r#type(), EventType::Updated);
}

#[tokio::test]
async fn snapshot_of_an_empty_namespace_is_empty() {
    let world = World::shared();
    let server = world.server().await;
    let mut watching = server.client().await.watch(with_snapshot()).await.unwrap();
    assert_eq!(watching.snapshot().await, []);
}

#[tokio::test]
async fn snapshot_contains_only_matching_sessions() {
    let Setup { client, .. } = &setup().await;
    let other = client.in_namespace("other");
    other.create(&[]).await;
    let labelled = |subject: &str, value: &str| CreateSessionRequest {
        subject: subject.into(),
        labels: labels(&[("device", value)]).into_iter().collect(),
        ..Default::default()
    };
    let (phone, _) = client.create_with(labelled("anna", "phone")).await.unwrap();
    let (laptop, token) = client.create_with(labelled("anna", "laptop")).await.unwrap();
    let (bert, _) = client.create_with(labelled("bert", "phone")).await.unwrap();
    let state = async |request: WatchRequest| {
        let request = WatchRequest { initial_state: true, ..request };
        let mut ids: Vec<String> =
            client.watch(request).await.unwrap().snapshot().await.into_iter().map(|event| event.id).collect();
        ids.sort();
        ids
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
    // The type filter applies to changes only: the snapshot is always sent.
    let endings = WatchRequest { types: vec![EventType::Ended.into()], ..whole_namespace() };
    assert_eq!(state(endings).await, sorted(vec![&phone, &laptop, &bert]));
}

#[tokio::test]
async fn valid_resume_token_skips_the_snapshot() {
    let Setup { client, .. } = &setup().await;
    let mut first = client.watch(with_snapshot()).await.unwrap();
    first.snapshot().await;
    let (session, _) = client.create(&[]).await;
    let mut resumed =
        client.watch(WatchRequest { resume_token: first.token.clone(), ..with_snapshot() }).await.unwrap();
    let event = resumed.event().await;
    assert_eq!((event.r#type(), event.id), (EventType::Created, session.id));
}

/// Creates, updates and deletes sessions until cancelled; returns the number of created sessions.
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
async fn w6_snapshot_during_writes_matches_redis() {
    let world = World::shared();
    // With a short buffer, the feed of the second server also reads entries from the log.
    let (a, b) = (world.server().await, world.server_with("[limits]\nfeed_buffer = 2").await);
    let clients = [a.client().await, b.client().await];
    let stop = tokio_util::sync::CancellationToken::new();
    let writing = join_all(clients.iter().map(|client| churn(client, &stop)));
    let watching = async {
        let mut watches: Vec<(WatchReader, Mirror)> = Vec::new();
        for n in 0..20 {
            // On a new connection, so that an unread watch does not block the calls.
            let mut watching = [&a, &b][n % 2].client().await.watch(with_snapshot()).await.unwrap();
            let state = watching.snapshot().await;
            let mut revisions = HashMap::new();
            for event in &state {
                let before = revisions.insert(event.id.clone(), event.revision);
                assert!(
                    before.is_none_or(|before| before < event.revision),
                    "delivered twice or out of order: {event:?}"
                );
            }
            let mut mirror = Mirror::default();
            mirror.apply(state);
            watches.push((watching, mirror));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.cancel();
        watches
    };
    let (changes, watches) = tokio::join!(writing, watching);
    assert!(changes.iter().sum::<usize>() > 200, "too few changes: {changes:?}");
    let truth = revisions_in_redis(&clients[0]).await;
    for (mut watching, mut mirror) in watches {
        mirror.apply(watching.events_until_now().await);
        assert_eq!(mirror.revisions(), truth);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_interrupted_by_redis_restart_is_sent_again() {
    const SESSIONS: usize = 1_500;
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let Setup { world, client, .. } = &World::dedicated_with(&durable).setup_with("partitions = 1").await;
    let value = incompressible(8_000);
    for _ in 0..SESSIONS / 100 {
        let value = [("cart", text(&value))];
        join_all((0..100).map(|_| client.create(&value))).await;
    }
    let mut watching = client.watch(with_snapshot()).await.unwrap();
    let mut mirror = Mirror::default();
    mirror.apply(watching.response().await.unwrap().unwrap().events);
    assert!(!mirror.0.is_empty());
    // The test stops reading, so the server waits in the middle of a cursor.
    world.redis.kill();
    world.redis.restart();
    eventually("the server responds again", async || client.create_with(Default::default()).await.ok()).await;
    mirror.apply_snapshot(&mut watching).await;
    let truth = revisions_in_redis(client).await;
    mirror.apply(watching.events_until_now().await);
    assert_eq!(mirror.revisions().len(), truth.len());
    assert_eq!(mirror.revisions(), truth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_after_redis_restart_returns_every_session() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let Setup { world, client, .. } = &World::dedicated_with(&durable).setup_with("partitions = 1").await;
    let sessions = create_enough_for_cursor(client).await;
    let (mut listed, page_token) = list_first_half(client, &sessions).await;
    // After a restart Redis returns keys in another order.
    world.redis.kill();
    world.redis.restart();
    listed.extend(list_rest(client, page_token).await);
    assert_eq!(sessions.difference(&listed).count(), 0, "sessions are missing");
    assert_eq!(listed.len(), sessions.len(), "unknown sessions are listed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_includes_sessions_restored_by_a_rollback() {
    let Setup { world, client, .. } = &World::with_snapshots().setup_with("partitions = 1").await;
    // More bytes than the flow-control windows of a connection hold.
    let value = [("cart", text(&incompressible(60_000)))];
    let mut sessions = BTreeSet::new();
    for _ in 0..100 {
        sessions.insert(client.create(&value).await.0.id);
    }
    world.redis.must(&["SAVE"]);
    // Deletes the session that the snapshot reads first, by a change that the feed does not receive.
    let first = sessions.iter().min_by_key(|id| id.parse::<SessionId>().unwrap()).unwrap();
    let due = world.redis.keys("*:due:*").remove(0);
    world.redis.must(&["ZREM", &due, first]);
    world.redis.must(&["DEL", &world.redis.keys(&format!("*:s:{NAMESPACE}:{first}"))[0]]);
    let mut watching = client.watch(with_snapshot()).await.unwrap();
    let mut mirror = Mirror::default();
    mirror.apply(watching.response().await.unwrap().unwrap().events);
    assert!(!mirror.0.is_empty() && !mirror.0.contains_key(first));
    world.redis.kill();
    world.redis.restart();
    eventually("the feed subscribes again", async || {
        world.redis.command(&["CLIENT", "LIST"]).contains("ssub=1 ").then_some(())
    })
    .await;
    mirror.apply_snapshot(&mut watching).await;
    assert_eq!(mirror.0.into_keys().collect::<BTreeSet<_>>(), sessions);
}

#[tokio::test]
async fn resync_is_followed_by_a_new_snapshot() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    client.create(&[]).await;
    let mut watching = client.watch(with_snapshot()).await.unwrap();
    assert_eq!(watching.snapshot().await.len(), 1);
    world.redis.command(&["FLUSHALL"]);
    let resync = watching.resync().await;
    assert_eq!((resync.reason(), resync.ids), (ResyncReason::Flushed, vec![]));
    assert_eq!(watching.snapshot().await, []);
    let (session, _) = client.create(&[]).await;
    assert_eq!(watching.event().await.id, session.id);
    // A watch without initial_state gets no snapshot.
    let mut resumed = client.resume(&watching.token).await;
    world.redis.command(&["FLUSHALL"]);
    assert_eq!(resumed.resync().await.reason(), ResyncReason::Flushed);
    let response = resumed.response().await.unwrap().unwrap();
    assert!(!matches!(response.control, Some(Control::Synced(_))), "{response:?}");
}

#[tokio::test]
async fn session_ended_during_the_snapshot_is_delivered() {
    let Setup { server, client, .. } = &setup().await;
    // More bytes than the flow-control windows of a connection hold.
    let value = incompressible(60_000);
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push(client.create(&[("cart", text(&value))]).await.0.id);
    }
    let mut watching = server.client().await.watch(with_snapshot()).await.unwrap();
    let first = watching.response().await.unwrap().unwrap();
    for id in &sessions {
        client.delete(by_id(id)).await.unwrap();
    }
    let mut mirror = Mirror::default();
    mirror.apply(first.events);
    let rest = watching.snapshot().await;
    let ended = rest.iter().filter(|event| event.r#type() == EventType::Ended).count();
    mirror.apply(rest);
    assert_eq!((mirror.0.len(), ended), (0, 100), "every end is delivered before synced");
}

#[tokio::test]
async fn session_matching_during_the_snapshot_is_delivered() {
    let Setup { client, .. } = &setup().await;
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
    let mut mirror = Mirror::default();
    mirror.apply(watching.snapshot().await);
    eventually("the mirror has all sessions", async || {
        while mirror.0.len() < sessions.len() {
            mirror.apply([watching.event().await]);
        }
        Some(())
    })
    .await;
}
