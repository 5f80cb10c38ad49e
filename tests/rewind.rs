//! W9: history that was rewound is announced, on open streams and on resume.

mod harness;

use std::{collections::BTreeSet, path::PathBuf};

use harness::{
    Client, Redis, Server, Status, Watching, World, client::*, eventually, proxy::Proxy, redis::plain,
    sentinel::Sentinels, servers::aside,
};
use sessiond_client::v1::{
    CreateSessionRequest, EventType, Resync, ResyncReason, UpdateSessionRequest, WatchRequest, watch_response::Control,
};

/// A Redis that keeps what it was told to save, and nothing after it.
fn forgetful() -> World {
    World { redis: Redis::start_with(&["--dbfilename", "saved.rdb"]), prefix: "sessiond:".into() }
}

impl World {
    fn rewind(&self) {
        self.redis.kill();
        self.redis.restart();
    }

    /// What Redis holds now, as of a file.
    fn copy(&self) -> Vec<u8> {
        self.redis.must(&["SAVE"]);
        std::fs::read(self.saved()).unwrap()
    }

    /// Redis holds what it held then.
    fn restore(&self, copy: &[u8]) {
        self.redis.kill();
        std::fs::write(self.saved(), copy).unwrap();
        self.redis.restart();
    }

    fn saved(&self) -> PathBuf {
        self.redis.socket().with_file_name("saved.rdb")
    }
}

async fn answers_again(client: &Client) {
    eventually("the server is back", async || client.create_as(Default::default()).await.ok()).await;
    // On a connection of its own.
    eventually("and reads the log", async || client.watch(whole_namespace()).await.ok()).await;
}

fn ids(resync: &Resync) -> BTreeSet<String> {
    assert_eq!(resync.reason(), ResyncReason::Rollback);
    resync.ids.iter().cloned().collect()
}

/// Two sessions, of which one is changed and a third is made after the moment that Redis goes back to; the ids of these two.
async fn lose_some(world: &World, client: &Client, watching: &mut Watching) -> (String, BTreeSet<String>) {
    let (untouched, _) = client.create(&[]).await;
    let (changed, _) = client.create(&[("cart", text("old"))]).await;
    world.redis.must(&["SAVE"]);
    client.set(by_id(&changed.id), &[("cart", text("new"))]).await.unwrap();
    let (made, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &made.id).await;
    (untouched.id, BTreeSet::from([changed.id, made.id]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w9_open_streams_are_told_which_sessions_a_rewind_concerns() {
    let world = forgetful();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (untouched, lost) = lose_some(&world, &client, &mut watching).await;
    let request = WatchRequest { keys: vec![by_id(&untouched).unwrap()], ..Default::default() };
    let mut of_another = client.watch(WatchRequest { bookmark_interval: millis(100), ..request }).await.unwrap();
    of_another.bookmark().await;
    world.rewind();
    assert_eq!(ids(&watching.resync().await), lost);
    answers_again(&client).await;
    // Whom it does not concern is not told, and misses nothing.
    client.delete(by_id(&untouched)).await.unwrap();
    assert_eq!(of_another.event().await.r#type(), EventType::Ended);
    watching.wait_for(EventType::Ended, &untouched).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_present_state_of_what_a_rewind_concerns_follows_where_it_was_asked_for() {
    let world = forgetful();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch(WatchRequest { initial_state: true, ..whole_namespace() }).await.unwrap();
    watching.state().await;
    let (_, lost) = lose_some(&world, &client, &mut watching).await;
    world.rewind();
    assert_eq!(ids(&watching.resync().await), lost);
    let state = watching.state().await;
    let present: Vec<_> = state.iter().filter(|event| event.r#type() == EventType::Snapshot).collect();
    assert_eq!(present.len(), 1, "one of the two is gone: {state:?}");
    assert!(lost.contains(&present[0].id));
    let cart = &present[0].session.as_ref().unwrap().attributes["cart"];
    assert_eq!(cart, &text("old"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_resume_a_position_of_a_lost_branch_is_answered_by_rollback() {
    let world = forgetful();
    let (server, other) = (world.server().await, world.server().await);
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (_, lost) = lose_some(&world, &client, &mut watching).await;
    watching.bookmark().await;
    let token = watching.token.clone();
    drop(watching);
    world.rewind();
    answers_again(&client).await;
    let (after, _) = client.create(&[]).await;
    // Both servers saw what was lost.
    for server in [&server, &other] {
        let client = server.client().await;
        answers_again(&client).await;
        let mut resumed = client.resume(&token).await;
        assert_eq!(ids(&resumed.resync().await), lost);
        resumed.wait_for(EventType::Created, &after.id).await;
    }
    // One that is new knows no more than that something is missing.
    let new = world.server().await;
    let mut resumed = new.client().await.resume(&token).await;
    assert_eq!(ids(&resumed.resync().await), BTreeSet::new());
    let (later, _) = client.create(&[]).await;
    resumed.wait_for(EventType::Created, &later.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_told_once_is_not_told_again() {
    let world = forgetful();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    lose_some(&world, &client, &mut watching).await;
    world.rewind();
    watching.resync().await;
    answers_again(&client).await;
    watching.bookmark().await;
    let mut resumed = client.resume(&watching.token).await;
    let (session, _) = client.create(&[]).await;
    resumed.wait_for(EventType::Created, &session.id).await;
    assert_eq!(server.metric("sessiond_resyncs_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_the_log_that_were_read_before_a_rewind_lead_nobody_astray() {
    let world = forgetful();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let start = watching.token.clone();
    let (_, lost) = lose_some(&world, &client, &mut watching).await;
    let lost_token = watching.token.clone();
    // Reads all of it from the log.
    client.resume(&start).await.events(4).await;
    world.rewind();
    watching.resync().await;
    answers_again(&client).await;
    let (after, _) = client.create(&[]).await;
    for token in [&start, &lost_token] {
        let mut resumed = client.resume(token).await;
        let mut told = Vec::new();
        loop {
            let response = resumed.response().await.unwrap().expect("the watch is open");
            told.extend(response.events.into_iter().map(|event| event.id));
            if let Some(Control::Resync(resync)) = response.control {
                assert_eq!(ids(&resync), lost);
            }
            if told.contains(&after.id) {
                break;
            }
            assert!(told.len() < 20, "it goes round in circles: {told:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_branch_that_comes_back_is_followed() {
    let world = forgetful();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    client.create(&[]).await;
    let older = world.copy();
    let (lost, _) = client.create(&[]).await;
    let newer = world.copy();
    watching.wait_for(EventType::Created, &lost.id).await;
    world.restore(&older);
    assert_eq!(ids(&watching.resync().await), BTreeSet::from([lost.id.clone()]));
    world.restore(&newer);
    watching.wait_for(EventType::Created, &lost.id).await;
    answers_again(&client).await;
    let (after, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &after.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_the_log_of_a_branch_that_came_back_is_led_on() {
    let world = forgetful();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let start = watching.token.clone();
    // More than the windows of a connection hold.
    let value = incompressible(60_000);
    for _ in 0..100 {
        client.create(&[("cart", text(&value))]).await;
    }
    let older = world.copy();
    let (lost, _) = client.create(&[]).await;
    let newer = world.copy();
    watching.wait_for(EventType::Created, &lost.id).await;
    world.restore(&older);
    watching.resync().await;
    answers_again(&client).await;
    // On its way to where the ring is now: on the branch that is lost next.
    let mut resumed = server.client().await.resume(&start).await;
    resumed.event().await;
    world.restore(&newer);
    watching.resync().await;
    watching.wait_for(EventType::Created, &lost.id).await;
    resumed.wait_for(EventType::Created, &lost.id).await;
    answers_again(&client).await;
    let (after, _) = client.create(&[]).await;
    resumed.wait_for(EventType::Created, &after.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_by_ids_lasts_for_a_session_whose_end_was_taken_back() {
    let world = forgetful();
    let server = world.server().await;
    let client = server.client().await;
    let labelled = || CreateSessionRequest { labels: [("n".into(), "1".into())].into(), ..Default::default() };
    let (revived, other) = (client.create(&[]).await.0, client.create_as(labelled()).await.unwrap().0);
    world.redis.must(&["SAVE"]);
    let keys = [&revived, &other].iter().filter_map(|session| by_id(&session.id)).collect();
    let request = WatchRequest { keys, bookmark_interval: millis(100), ..Default::default() };
    let mut watching = client.watch(request.clone()).await.unwrap();
    let of_other = WatchRequest { labels: labelled().labels.into_iter().collect(), ..request };
    let mut of_other = client.watch(of_other).await.unwrap();
    client.delete(by_id(&revived.id)).await.unwrap();
    watching.wait_for(EventType::Ended, &revived.id).await;
    assert_eq!(of_other.everything_so_far().await, []);
    world.rewind();
    assert_eq!(ids(&watching.resync().await), BTreeSet::from([revived.id.clone()]));
    answers_again(&client).await;
    client.delete(by_id(&other.id)).await.unwrap();
    for watching in [&mut watching, &mut of_other] {
        watching.wait_for(EventType::Ended, &other.id).await;
        watching.bookmark().await;
    }
    client.delete(by_id(&revived.id)).await.unwrap();
    watching.end().await.unwrap();
    assert_eq!(watching.kept().len(), 1);
    of_other.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_for_some_kinds_of_change_is_told_that_others_were_lost() {
    let world = forgetful();
    let server = world.server().await;
    let client = server.client().await;
    let types = vec![EventType::Ended.into()];
    world.redis.must(&["SAVE"]);
    let (lost, _) = client.create(&[]).await;
    let request = WatchRequest { types, initial_state: true, ..whole_namespace() };
    let mut watching = client.watch(request).await.unwrap();
    assert_eq!(watching.state().await.len(), 1);
    world.rewind();
    assert_eq!(ids(&watching.resync().await), BTreeSet::from([lost.id]));
    assert_eq!(watching.state().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_replica_that_lacks_writes_is_announced_with_what_was_lost() {
    let sentinels = aside(|| Sentinels::start(1)).await;
    let server = Server::start(&sentinels.url(), "sessiond:", "").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (kept, _) = client.create(&[("n", text("0"))]).await;
    let (old, replica) = (sentinels.primary(), sentinels.replicas().remove(0));
    old.wait_for(&replica);
    old.lose_touch_with(&replica);
    let mut lost = BTreeSet::from([kept.id.clone()]);
    client.set(by_id(&kept.id), &[("n", text("1"))]).await.unwrap();
    for _ in 0..5 {
        lost.insert(client.create(&[]).await.0.id);
    }
    // Made, changed, and those that were made after it: what it was not told is not taken back from it.
    watching.events(1 + lost.len()).await;
    old.kill();
    replica.resume();
    aside({
        let sentinels = sentinels.clone();
        let old = old.clone();
        move || {
            sentinels.wait_for_another_than(&old);
            old.restart();
        }
    })
    .await;
    let resync = loop {
        let response = watching.response().await.unwrap().expect("the watch is open");
        if let Some(Control::Resync(resync)) = response.control {
            break resync;
        }
    };
    let told = ids(&resync);
    assert!(told.is_superset(&lost), "{told:?} {lost:?}");
    let request = UpdateSessionRequest { key: by_id(&kept.id), ..Default::default() };
    let present = eventually("the server is back", async || client.update(request.clone()).await.ok()).await;
    assert_eq!(present.attributes["n"], text("0"));
}

/// One that may follow another, and be followed.
fn redis_of_a_pair() -> Redis {
    let settings = "--repl-diskless-sync-delay 0 --repl-ping-replica-period 1";
    Redis::on_ports(|[port, ..]| {
        let port = port.to_string();
        plain(["--port", &port].into_iter().chain(settings.split(' ')))
    })
}

impl Redis {
    /// Becomes the replica of that one, and has caught up with it.
    fn follow(&self, primary: &Redis) {
        self.must(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
        primary.wait_for(self);
    }

    fn follow_nobody(&self) {
        self.must(&["REPLICAOF", "NO", "ONE"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w9_what_a_subscriber_hears_of_another_branch_is_told_to_nobody_before_the_rollback() {
    let (old, new) = (redis_of_a_pair(), redis_of_a_pair());
    new.follow(&old);
    let proxy = Proxy::start(&old);
    let server = Server::start(&proxy.url(), "sessiond:", "partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (kept, _) = client.create(&[("n", text("0"))]).await;
    old.wait_for(&new);
    old.lose_touch_with(&new);
    // Of the branch that is lost.
    let (made, _) = client.create(&[]).await;
    client.set(by_id(&kept.id), &[("n", text("lost"))]).await.unwrap();
    watching.wait_for(EventType::Updated, &kept.id).await;
    let listening = old.subscribers();
    assert_eq!(listening.len(), 1);

    new.resume();
    new.follow_nobody();
    old.follow(&new);
    let another = Server::start(&new.url(), "sessiond:", "partitions = 1").await;
    let writing = another.client().await;
    let mut other_branch = BTreeSet::new();
    for _ in 0..5 {
        other_branch.insert(writing.create(&[]).await.0.id);
    }
    writing.set(by_id(&kept.id), &[("n", text("kept"))]).await.unwrap();
    let last = writing.create(&[]).await.0.id;
    other_branch.insert(last.clone());
    let heard = || proxy.heard().iter().any(|heard| heard.windows(last.len()).any(|part| part == last.as_bytes()));
    eventually("the subscriber hears the other branch", async || heard().then_some(())).await;
    // It is a replica that the server has: of that nothing is told at all.
    for answer in [client.get(by_id(&kept.id)).await.map(drop), client.create_as(Default::default()).await.map(drop)] {
        assert_eq!(answer.unwrap_err().reason(), "STORE_UNAVAILABLE");
    }
    assert_eq!(old.subscribers(), listening, "the subscriber has the connection that it had");

    // And as its history is told by a primary again, it is another one.
    new.wait_for(&old);
    old.follow_nobody();
    let resync = watching.resync().await;
    assert_eq!(watching.kept(), [], "told of the other branch before it was said that there is one");
    assert_eq!(ids(&resync), BTreeSet::from([made.id.clone(), kept.id.clone()]));
    let told = watching.events(other_branch.len() + 1).await;
    let created = told.iter().filter(|event| event.r#type() == EventType::Created).map(|event| event.id.clone());
    assert_eq!(created.collect::<BTreeSet<_>>(), other_branch);
    assert_eq!(old.subscribers(), listening, "the subscriber has the connection that it had");
    assert!(!client.lives(&made.id).await);
    assert_eq!(client.get(by_id(&kept.id)).await.unwrap().attributes["n"], text("kept"));
}
