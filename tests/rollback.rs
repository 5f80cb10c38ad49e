//! Guarantee W9: a rollback of Redis' history sends a resync to open watches and to resumed ones.

use std::collections::BTreeSet;

use harness::{
    Client, Redis, Server, Setup, Status, WatchReader, World, client::*, eventually, proxy::Proxy,
    redis::server_arguments, sentinel::Sentinels, servers::run_blocking,
};
use sessiond_client::v1::{
    CreateSessionRequest, EventType, Resync, ResyncReason, UpdateSessionRequest, WatchRequest, watch_response::Control,
};

/// Waits until the server writes to Redis and reads the log again; they use different connections.
async fn wait_until_served(client: &Client) {
    eventually("the server writes again", async || client.create_with(Default::default()).await.ok()).await;
    eventually("the server reads the log again", async || client.watch(whole_namespace()).await.ok()).await;
}

/// Returns the ids in a resync with reason ROLLBACK.
fn ids(resync: &Resync) -> BTreeSet<String> {
    assert_eq!(resync.reason(), ResyncReason::Rollback);
    resync.ids.iter().cloned().collect()
}

/// Creates two sessions and takes a snapshot of Redis; then updates one of them and creates a third.
///
/// Returns the id of the unchanged session and the ids of the two whose last writes a rollback to the snapshot loses.
async fn write_after_snapshot(
    world: &World,
    client: &Client,
    watching: &mut WatchReader,
) -> (String, BTreeSet<String>) {
    let (unchanged, _) = client.create(&[]).await;
    let (changed, _) = client.create(&[("cart", text("old"))]).await;
    world.redis.must(&["SAVE"]);
    client.set(by_id(&changed.id), &[("cart", text("new"))]).await.unwrap();
    let (created, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &created.id).await;
    (unchanged.id, BTreeSet::from([changed.id, created.id]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w9_rollback_sends_affected_ids_to_open_watches() {
    let Setup { world, client, .. } = &World::with_snapshots().setup().await;
    let mut watching = client.watch_all().await;
    let (unchanged, lost) = write_after_snapshot(world, client, &mut watching).await;
    let request = WatchRequest { keys: vec![by_id(&unchanged).unwrap()], ..Default::default() };
    let mut other_watch = client.watch(WatchRequest { bookmark_interval: millis(100), ..request }).await.unwrap();
    other_watch.bookmark().await;
    world.roll_back();
    assert_eq!(ids(&watching.resync().await), lost);
    wait_until_served(client).await;
    // A watch of unaffected sessions gets no resync and misses nothing.
    client.delete(by_id(&unchanged)).await.unwrap();
    assert_eq!(other_watch.event().await.r#type(), EventType::Ended);
    watching.wait_for(EventType::Ended, &unchanged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_is_followed_by_a_snapshot_of_affected_ids() {
    let Setup { world, client, .. } = &World::with_snapshots().setup().await;
    let mut watching = client.watch(WatchRequest { initial_state: true, ..whole_namespace() }).await.unwrap();
    watching.snapshot().await;
    let (_, lost) = write_after_snapshot(world, client, &mut watching).await;
    world.roll_back();
    assert_eq!(ids(&watching.resync().await), lost);
    let state = watching.snapshot().await;
    let sent: Vec<_> = state.iter().filter(|event| event.r#type() == EventType::Snapshot).collect();
    assert_eq!(sent.len(), 1, "one of the two no longer exists: {state:?}");
    assert!(lost.contains(&sent[0].id));
    let cart = &sent[0].session.as_ref().unwrap().attributes["cart"];
    assert_eq!(cart, &text("old"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resume_token_of_a_lost_branch_gets_a_rollback() {
    let world = World::with_snapshots();
    let (server, other) = (world.server().await, world.server().await);
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (_, lost) = write_after_snapshot(&world, &client, &mut watching).await;
    watching.bookmark().await;
    let token = watching.token.clone();
    drop(watching);
    // A watch opens after a read barrier: the other server has received the lost entries too.
    drop(other.client().await.watch_all().await);
    world.roll_back();
    wait_until_served(&client).await;
    let (after, _) = client.create(&[]).await;
    // Both servers have received the lost entries, so their resync has ids.
    for server in [&server, &other] {
        let client = server.client().await;
        wait_until_served(&client).await;
        let mut resumed = client.resume(&token).await;
        assert_eq!(ids(&resumed.resync().await), lost);
        resumed.wait_for(EventType::Created, &after.id).await;
    }
    // A new server only detects that entries are missing, so its resync has no ids.
    let new = world.server().await;
    let mut resumed = new.client().await.resume(&token).await;
    assert_eq!(ids(&resumed.resync().await), BTreeSet::new());
    let (later, _) = client.create(&[]).await;
    resumed.wait_for(EventType::Created, &later.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_is_sent_once() {
    let Setup { world, server, client } = World::with_snapshots().setup().await;
    let mut watching = client.watch_all().await;
    write_after_snapshot(&world, &client, &mut watching).await;
    world.roll_back();
    watching.resync().await;
    wait_until_served(&client).await;
    watching.bookmark().await;
    let mut resumed = client.resume(&watching.token).await;
    let (session, _) = client.create(&[]).await;
    resumed.wait_for(EventType::Created, &session.id).await;
    assert_eq!(server.metric("sessiond_resyncs_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_pages_cached_before_a_rollback_are_not_reused() {
    let Setup { world, client, .. } = &World::with_snapshots().setup().await;
    let mut watching = client.watch_all().await;
    let start = watching.token.clone();
    let (_, lost) = write_after_snapshot(world, client, &mut watching).await;
    let lost_token = watching.token.clone();
    // Reads all entries from the log.
    client.resume(&start).await.events(4).await;
    world.roll_back();
    watching.resync().await;
    wait_until_served(client).await;
    let (after, _) = client.create(&[]).await;
    for token in [&start, &lost_token] {
        let mut resumed = client.resume(token).await;
        let mut received = Vec::new();
        loop {
            let response = resumed.response().await.unwrap().expect("the stream is open");
            received.extend(response.events.into_iter().map(|event| event.id));
            if let Some(Control::Resync(resync)) = response.control {
                assert_eq!(ids(&resync), lost);
            }
            if received.contains(&after.id) {
                break;
            }
            assert!(received.len() < 20, "the same events are delivered again: {received:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_branch_is_followed() {
    let Setup { world, client, .. } = &World::with_snapshots().setup_with("partitions = 1").await;
    let mut watching = client.watch_all().await;
    client.create(&[]).await;
    let older = world.save();
    let (lost, _) = client.create(&[]).await;
    let newer = world.save();
    watching.wait_for(EventType::Created, &lost.id).await;
    world.restore(&older);
    assert_eq!(ids(&watching.resync().await), BTreeSet::from([lost.id.clone()]));
    world.restore(&newer);
    watching.wait_for(EventType::Created, &lost.id).await;
    wait_until_served(client).await;
    let (after, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &after.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watcher_reading_a_restored_branch_catches_up() {
    let Setup { world, server, client } = World::with_snapshots().setup_with("partitions = 1").await;
    let mut watching = client.watch_all().await;
    let start = watching.token.clone();
    // More bytes than the flow-control windows of a connection hold.
    let value = incompressible(60_000);
    for _ in 0..100 {
        client.create(&[("cart", text(&value))]).await;
    }
    let older = world.save();
    let (lost, _) = client.create(&[]).await;
    let newer = world.save();
    watching.wait_for(EventType::Created, &lost.id).await;
    world.restore(&older);
    watching.resync().await;
    wait_until_served(&client).await;
    // Reads the log up to the ring, on the branch that is lost next.
    let mut resumed = server.client().await.resume(&start).await;
    resumed.event().await;
    world.restore(&newer);
    watching.resync().await;
    watching.wait_for(EventType::Created, &lost.id).await;
    resumed.wait_for(EventType::Created, &lost.id).await;
    wait_until_served(&client).await;
    let (after, _) = client.create(&[]).await;
    resumed.wait_for(EventType::Created, &after.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_by_ids_stays_open_for_a_restored_session() {
    let Setup { world, client, .. } = &World::with_snapshots().setup().await;
    let labelled = || CreateSessionRequest { labels: [("n".into(), "1".into())].into(), ..Default::default() };
    let (revived, other) = (client.create(&[]).await.0, client.create_with(labelled()).await.unwrap().0);
    world.redis.must(&["SAVE"]);
    let keys = [&revived, &other].iter().filter_map(|session| by_id(&session.id)).collect();
    let request = WatchRequest { keys, bookmark_interval: millis(100), ..Default::default() };
    let mut watching = client.watch(request.clone()).await.unwrap();
    let request = WatchRequest { labels: labelled().labels.into_iter().collect(), ..request };
    let mut other_watch = client.watch(request).await.unwrap();
    client.delete(by_id(&revived.id)).await.unwrap();
    watching.wait_for(EventType::Ended, &revived.id).await;
    assert_eq!(other_watch.events_until_now().await, []);
    world.roll_back();
    assert_eq!(ids(&watching.resync().await), BTreeSet::from([revived.id.clone()]));
    wait_until_served(client).await;
    client.delete(by_id(&other.id)).await.unwrap();
    for watching in [&mut watching, &mut other_watch] {
        watching.wait_for(EventType::Ended, &other.id).await;
        watching.bookmark().await;
    }
    client.delete(by_id(&revived.id)).await.unwrap();
    watching.end().await.unwrap();
    assert_eq!(watching.buffered().len(), 1);
    other_watch.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_is_sent_to_watches_filtered_by_type() {
    let Setup { world, client, .. } = &World::with_snapshots().setup().await;
    let types = vec![EventType::Ended.into()];
    world.redis.must(&["SAVE"]);
    let (lost, _) = client.create(&[]).await;
    let request = WatchRequest { types, initial_state: true, ..whole_namespace() };
    let mut watching = client.watch(request).await.unwrap();
    assert_eq!(watching.snapshot().await.len(), 1);
    world.roll_back();
    assert_eq!(ids(&watching.resync().await), BTreeSet::from([lost.id]));
    assert_eq!(watching.snapshot().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_with_lost_writes_sends_the_lost_ids() {
    let sentinels = run_blocking(|| Sentinels::start(1)).await;
    let server = Server::start(&sentinels.url(), "ses:", "").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (kept, _) = client.create(&[("n", text("0"))]).await;
    let (old, replica) = (sentinels.primary(), sentinels.replicas().remove(0));
    old.wait_for(&replica);
    old.isolate_replica(&replica);
    let mut lost = BTreeSet::from([kept.id.clone()]);
    client.set(by_id(&kept.id), &[("n", text("1"))]).await.unwrap();
    for _ in 0..5 {
        lost.insert(client.create(&[]).await.0.id);
    }
    // The two events of the first session and the creates after it. A resync names only sessions whose lost events were
    // delivered.
    watching.events(1 + lost.len()).await;
    old.kill();
    replica.resume();
    run_blocking({
        let sentinels = sentinels.clone();
        let old = old.clone();
        move || {
            sentinels.wait_for_new_primary(&old);
            old.restart();
        }
    })
    .await;
    let resync = loop {
        let response = watching.response().await.unwrap().expect("the stream is open");
        if let Some(Control::Resync(resync)) = response.control {
            break resync;
        }
    };
    let affected = ids(&resync);
    assert!(affected.is_superset(&lost), "{affected:?} {lost:?}");
    let request = UpdateSessionRequest { key: by_id(&kept.id), ..Default::default() };
    let current = eventually("the server responds again", async || client.update(request.clone()).await.ok()).await;
    assert_eq!(current.attributes["n"], text("0"));
}

/// Starts a Redis that can be primary or replica of another.
fn replicable_redis() -> Redis {
    let settings = "--repl-diskless-sync-delay 0 --repl-ping-replica-period 1";
    Redis::on_ports(|[port, ..]| {
        let port = port.to_string();
        server_arguments(["--port", &port].into_iter().chain(settings.split(' ')))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w9_events_of_another_branch_follow_the_rollback() {
    let (old, new) = (replicable_redis(), replicable_redis());
    new.replicate_from(&old);
    let proxy = Proxy::start(&old);
    let server = Server::start(&proxy.url(), "ses:", "partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (kept, _) = client.create(&[("n", text("0"))]).await;
    old.wait_for(&new);
    old.isolate_replica(&new);
    // Writes on the branch that is lost.
    let (created, _) = client.create(&[]).await;
    client.set(by_id(&kept.id), &[("n", text("lost"))]).await.unwrap();
    watching.wait_for(EventType::Updated, &kept.id).await;
    let subscribers = old.subscribers();
    assert_eq!(subscribers.len(), 1);

    new.resume();
    new.stop_replicating();
    old.replicate_from(&new);
    let another = Server::start(&new.url(), "ses:", "partitions = 1").await;
    let other_client = another.client().await;
    let mut other_branch = BTreeSet::new();
    for _ in 0..5 {
        other_branch.insert(other_client.create(&[]).await.0.id);
    }
    other_client.set(by_id(&kept.id), &[("n", text("kept"))]).await.unwrap();
    let last = other_client.create(&[]).await.0.id;
    other_branch.insert(last.clone());
    // Its Redis is a replica now: until the next heartbeat its subscriber may receive the other branch.
    eventually("the server leaves the replica", async || old.subscribers().is_disjoint(&subscribers).then_some(()))
        .await;
    for result in [client.get(by_id(&kept.id)).await.map(drop), client.create_with(Default::default()).await.map(drop)]
    {
        assert_eq!(result.unwrap_err().reason(), "STORE_UNAVAILABLE");
    }

    // Once its Redis is a primary again, the server detects that the history is another one.
    new.wait_for(&old);
    old.stop_replicating();
    let resync = watching.resync().await;
    assert_eq!(watching.buffered(), [], "an event of the other branch before the resync");
    assert_eq!(ids(&resync), BTreeSet::from([created.id.clone(), kept.id.clone()]));
    let events = watching.events(other_branch.len() + 1).await;
    let ids = events.iter().filter(|event| event.r#type() == EventType::Created).map(|event| event.id.clone());
    assert_eq!(ids.collect::<BTreeSet<_>>(), other_branch);
    // The connection for calls may be the last to reconnect.
    let kept = eventually("calls succeed again", async || client.get(by_id(&kept.id)).await.ok()).await;
    assert_eq!(kept.attributes["n"], text("kept"));
    assert!(!client.lives(&created.id).await);
}
