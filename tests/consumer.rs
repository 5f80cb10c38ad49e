//! A mirror that follows docs/watching.md matches the store after faults of servers, connections and Redis.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use harness::{
    Client, Redis, Server, WAIT_LIMIT, World,
    client::*,
    consumer::{Consumer, Mirror, is_draining},
    eventually,
    process::Process,
    proxy::Proxy,
    relay::Relay,
    sentinel::Sentinels,
    servers::run_blocking,
};
use rustix::process::Signal;
use sessiond_client::{
    v1::{watch_response::Control, *},
    watch::{Lost, State, Tracker, Update},
};
use tonic::Code;

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
const LABEL: (&str, &str) = ("tier", "gold");

/// Request of a mirror of the whole namespace. The bookmark interval is long enough for a machine under load: a pause of
/// twice the interval would look like a silent server.
fn everything() -> WatchRequest {
    WatchRequest {
        namespace: NAMESPACE.into(),
        initial_state: true,
        bookmark_interval: millis(2_000),
        ..whole_namespace()
    }
}

/// Request of a mirror of the sessions with the label, which sessions gain and lose during a test.
fn labelled() -> WatchRequest {
    WatchRequest { labels: labels(&[LABEL]), ..everything() }
}

/// Starts a mirror of everything and one of the sessions with the label; returns when both are LIVE.
async fn mirrors(instances: &[&str]) -> [Consumer; 2] {
    let instances: Vec<_> = instances.iter().map(|&address| address.to_owned()).collect();
    let both = [everything(), labelled()].map(|request| Consumer::start(request, instances.clone()));
    for mirror in &both {
        wait_until_live(mirror).await;
    }
    both
}

async fn wait_until_live(mirror: &Consumer) {
    eventually("the mirror is LIVE", async || {
        mirror.look(|mirror| {
            assert_ne!(mirror.state, State::Over, "{:?}", mirror.final_status);
            (mirror.state == State::Live).then_some(())
        })
    })
    .await;
}

/// Returns all live sessions with these labels, read with ListSessions.
async fn stored(client: &Client, labels: BTreeMap<String, String>) -> BTreeMap<String, Session> {
    let (mut all, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let request = ListSessionsRequest {
            namespace: client.namespace.clone(),
            labels: labels.clone(),
            page_size: 1_000,
            page_token,
            view: SessionView::Full.into(),
            ..Default::default()
        };
        let page = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
        all.extend(page.sessions.into_iter().map(|session| (session.id.clone(), session)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// Asserts that both mirrors hold exactly the stored sessions, after all short-lived sessions have ended and a later
/// bookmark has arrived.
async fn assert_matches_store(both: &[Consumer; 2], client: &Client, redis: &Redis) {
    let is_short_lived = |session: &Session| session.idle_timeout.is_some_and(|timeout| timeout.seconds < 5);
    for (mirror, request) in both.iter().zip([everything(), labelled()]) {
        // ListSessions omits a session from its deadline on; the mirror holds it until its ENDED event.
        eventually("short-lived sessions have ended", async || {
            let are_unlisted = stored(client, BTreeMap::new()).await.values().all(|session| !is_short_lived(session));
            let are_discarded = mirror.look(|mirror| mirror.held.values().all(|(_, session)| !is_short_lived(session)));
            (are_unlisted && are_discarded).then_some(())
        })
        .await;
        let now = redis.now() * 1_000;
        eventually("a bookmark arrives", async || {
            mirror.look(|mirror| mirror.as_of.is_some_and(|as_of| as_of > now).then_some(()))
        })
        .await;
        let expected = stored(client, request.labels).await;
        mirror.look(|mirror| {
            let held: BTreeMap<_, _> =
                mirror.held.iter().map(|(id, (_, session))| (id.clone(), session.clone())).collect();
            let wrong: Vec<_> = held.iter().filter(|(id, session)| expected.get(*id) != Some(session)).collect();
            let missing: Vec<_> = expected.iter().filter(|(id, _)| !held.contains_key(*id)).collect();
            assert_eq!((wrong, missing), (vec![], vec![]), "after {:?} and {:?}", mirror.lost, mirror.resyncs);
            assert_eq!(mirror.stale_events, 0, "an event was delivered twice or out of order");
        });
    }
}

/// Runs the fault while sessions are created, changed, labelled, unlabelled, ended and left to expire: until the fault is
/// over, and at least `min_changes` times.
async fn with_changes(client: &Client, min_changes: usize, fault: impl Future<Output = ()>) {
    let done = AtomicBool::new(false);
    let changes = async {
        let (mut ids, mut turn): (Vec<String>, usize) = (Vec::new(), 0);
        while turn < min_changes || !done.load(Ordering::Relaxed) {
            turn += 1;
            // A change fails while Redis is down, or if its session has ended.
            if !change_one(client, turn, &mut ids).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        assert!(!ids.is_empty());
    };
    let fault = async {
        fault.await;
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(changes, fault);
}

/// Makes one change; returns whether it succeeded.
async fn change_one(client: &Client, turn: usize, ids: &mut Vec<String>) -> bool {
    let at = turn.wrapping_mul(7_919) % ids.len().max(1);
    let namespace = client.namespace.clone();
    let key = ids.get(at).and_then(|id| by_id(id));
    match turn % 7 {
        0 if ids.len() > 30 => {
            ids.swap_remove(at);
            client.delete(key).await.is_ok()
        }
        1 | 2 if key.is_some() => client.set(key, &[("turn", text(&turn.to_string()))]).await.is_ok(),
        3 if key.is_some() => {
            let set_labels = labels(&[LABEL]);
            client.update(UpdateSessionRequest { key, set_labels, ..Default::default() }).await.is_ok()
        }
        4 if key.is_some() => {
            let remove_labels = vec![LABEL.0.to_owned()];
            client.update(UpdateSessionRequest { key, remove_labels, ..Default::default() }).await.is_ok()
        }
        _ => {
            let idle_timeout = (turn.is_multiple_of(5)).then(|| millis(200)).flatten();
            let labels = if turn.is_multiple_of(3) { labels(&[LABEL]) } else { BTreeMap::new() };
            let request = CreateSessionRequest { namespace, idle_timeout, labels, ..Default::default() };
            let created = client.create_with(request).await;
            ids.extend(created.as_ref().ok().map(|(session, _)| session.id.clone()));
            created.is_ok()
        }
    }
}

/// Asserts that both mirrors resumed with their tokens throughout.
fn assert_always_resumed(both: &[Consumer; 2]) {
    for mirror in both {
        mirror.look(|mirror| assert_eq!((mirror.fresh_streams, mirror.syncs, &mirror.resyncs[..]), (1, 1, &[][..])));
    }
}

fn was_silent(mirror: &Mirror) -> bool {
    mirror.lost.iter().any(|lost| matches!(lost, Lost::Silent(_)))
}

async fn wait_for_both(both: &[Consumer; 2], what: &str, check: impl Fn(&Mirror) -> bool) {
    for mirror in both {
        eventually(what, async || mirror.look(|mirror| check(mirror).then_some(()))).await;
    }
}

#[tokio::test]
async fn mirror_matches_the_store_after_servers_stop_in_turn() {
    let world = World::shared();
    let staying = world.server().await;
    let client = staying.client().await;
    let mut stopped = [world.server().await, world.server().await, world.server().await];
    let [a, b, c] = stopped.each_ref().map(|server| server.address.clone());
    let both = mirrors(&[&a, &b, &c, &staying.address]).await;
    with_changes(&client, 200, async {
        for (count, server) in stopped.iter_mut().enumerate() {
            server.stop().await;
            // LIVE: the next stream is open, so the next stopped server ends it with DRAINING.
            wait_for_both(&both, "it lost a draining server and is LIVE", |mirror| {
                mirror.state == State::Live && mirror.lost.iter().filter(|lost| is_draining(lost)).count() == count + 1
            })
            .await;
        }
    })
    .await;
    assert_matches_store(&both, &client, &world.redis).await;
    assert_always_resumed(&both);
}

#[tokio::test]
async fn mirror_matches_the_store_after_its_server_hangs() {
    let world = World::dedicated();
    let staying = world.server().await;
    let client = staying.client().await;
    let process = Process::start(&[format!("--redis={}", world.redis.url())]);
    let both = mirrors(&[&process.address, &staying.address]).await;
    with_changes(&client, 200, async {
        process.signal(Signal::STOP);
        wait_for_both(&both, "it lost a silent server and is LIVE", |mirror| {
            mirror.state == State::Live && was_silent(mirror)
        })
        .await;
    })
    .await;
    assert_matches_store(&both, &client, &world.redis).await;
    assert_always_resumed(&both);
}

#[tokio::test]
async fn mirror_matches_the_store_after_its_server_loses_redis() {
    let world = World::dedicated();
    let (proxy, [cut_off, staying], [_, client]) = world.proxied_pair().await;
    let both = mirrors(&[&cut_off.address, &staying.address]).await;
    with_changes(&client, 200, async {
        proxy.hold_requests();
        wait_for_both(&both, "it lost a silent server and is LIVE", |mirror| {
            mirror.state == State::Live && was_silent(mirror)
        })
        .await;
    })
    .await;
    assert_matches_store(&both, &client, &world.redis).await;
    assert_always_resumed(&both);
}

#[tokio::test]
async fn mirror_matches_the_store_after_redis_restarts() {
    let world = World { redis: Redis::start_with(&DURABLE), prefix: "ses:".into() };
    let server = world.server().await;
    let client = server.client().await;
    let both = mirrors(&[&server.address]).await;
    with_changes(&client, 200, async {
        for _ in 0..2 {
            world.redis.kill();
            world.redis.restart();
            eventually("the server writes again", async || client.create_with(Default::default()).await.ok()).await;
        }
    })
    .await;
    assert_matches_store(&both, &client, &world.redis).await;
    assert_always_resumed(&both);
}

#[tokio::test]
async fn mirror_matches_the_store_after_it_was_flushed() {
    let world = World::dedicated();
    let server = world.server().await;
    let client = server.client().await;
    let both = mirrors(&[&server.address]).await;
    with_changes(&client, 200, async {}).await;
    assert_matches_store(&both, &client, &world.redis).await;
    let was_flushed = |count: usize| {
        move |mirror: &Mirror| {
            let flushes = mirror.resyncs.iter().filter(|reason| **reason == ResyncReason::Flushed);
            mirror.state == State::Live && flushes.count() >= count
        }
    };
    world.redis.command(&["FLUSHALL"]);
    wait_for_both(&both, "it received the first FLUSHED", was_flushed(1)).await;
    for mirror in &both {
        mirror.look(|mirror| assert!(mirror.held.is_empty()));
    }
    with_changes(&client, 200, async {
        world.redis.command(&["FLUSHALL"]);
        wait_for_both(&both, "it received the second FLUSHED", was_flushed(2)).await;
        // This Redis has no persistence: a restart empties it.
        world.redis.kill();
        world.redis.restart();
        wait_for_both(&both, "it received the third FLUSHED", was_flushed(3)).await;
    })
    .await;
    assert_matches_store(&both, &client, &world.redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirror_matches_the_store_after_a_lossy_failover() {
    let sentinels = run_blocking(|| Sentinels::start(1)).await;
    let server = Server::start(&sentinels.url(), "ses:", "").await;
    let client = server.client().await;
    let both = mirrors(&[&server.address]).await;
    with_changes(&client, 200, async {}).await;
    let (old, new) = (sentinels.primary(), sentinels.replicas().remove(0));
    let (primary, replica) = (old.clone(), new.clone());
    run_blocking(move || primary.wait_for(&replica)).await;
    old.isolate_replica(&new);
    with_changes(&client, 100, async {}).await;
    let lost = CreateSessionRequest { labels: labels(&[LABEL]), ..Default::default() };
    let (lost, _) = client.create_with(lost).await.unwrap();
    wait_for_both(&both, "it holds the session that the failover loses", |mirror| mirror.held.contains_key(&lost.id))
        .await;
    with_changes(&client, 200, async {
        old.kill();
        new.resume();
        let sentinels = sentinels.clone();
        run_blocking(move || sentinels.wait_for_new_primary(&old)).await;
        wait_for_both(&both, "it received ROLLBACK and is LIVE", |mirror| {
            mirror.state == State::Live && mirror.resyncs.contains(&ResyncReason::Rollback)
        })
        .await;
        // The changes continue on the new primary.
        eventually("the server writes again", async || client.create_with(Default::default()).await.ok()).await;
    })
    .await;
    assert!(!client.lives(&lost.id).await, "the session was lost with the old primary");
    assert_matches_store(&both, &client, &new).await;
}

#[tokio::test]
async fn mirror_with_a_compacted_token_receives_a_new_snapshot() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let relay = Relay::start(&server.address).await;
    with_changes(&client, 200, async {}).await;
    let both = mirrors(&[&relay.address]).await;
    with_changes(&client, 100, async {}).await;
    assert_matches_store(&both, &client, &world.redis).await;
    relay.cut();
    wait_for_both(&both, "it lost its stream", |mirror| !mirror.lost.is_empty()).await;
    for (n, id) in stored(&client, BTreeMap::new()).await.keys().enumerate() {
        if n % 3 == 0 {
            client.delete(by_id(id)).await.unwrap();
        }
    }
    with_changes(&client, 400, async {}).await;
    for log in world.redis.keys(&format!("{}*:log", world.prefix)) {
        world.redis.command(&["XTRIM", &log, "MAXLEN", "1"]);
    }
    relay.set_target(&server.address);
    wait_for_both(&both, "it received COMPACTED and is LIVE", |mirror| {
        mirror.state == State::Live && mirror.resyncs == [ResyncReason::Compacted]
    })
    .await;
    assert_matches_store(&both, &client, &world.redis).await;
    for mirror in &both {
        mirror.look(|mirror| {
            assert_eq!(
                (mirror.fresh_streams, mirror.syncs, &mirror.resyncs[..]),
                (1, 2, &[ResyncReason::Compacted][..])
            );
        });
    }
}

#[tokio::test]
async fn mirror_that_loses_its_stream_before_synced_starts_over() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let relay = Arc::new(Relay::start(&server.address).await);
    // More than fits into one response and into the flow-control window.
    let large = incompressible(10_000);
    let mut created = Vec::new();
    for _ in 0..300 {
        let attributes = [("large".to_owned(), text(&large))].into();
        let request = CreateSessionRequest { attributes, labels: labels(&[LABEL]), ..Default::default() };
        created.push(client.create_with(request).await.unwrap().0.id);
    }
    let both = [everything(), labelled()].map(|request| {
        let (cut, mut has_cut) = (relay.clone(), false);
        Consumer::start_with(request, vec![relay.address.clone()], move |response| {
            let is_synced = matches!(response.control, Some(Control::Synced(_)));
            if !has_cut && !response.events.is_empty() {
                assert!(!is_synced, "the whole snapshot arrived in one response");
                cut.cut();
                has_cut = true;
            }
        })
    });
    wait_for_both(&both, "it lost its stream during the snapshot", |mirror| {
        mirror.fresh_streams > 1 || mirror.state == State::Waiting && !mirror.lost.is_empty()
    })
    .await;
    for id in created.iter().step_by(2) {
        client.delete(by_id(id)).await.unwrap();
    }
    with_changes(&client, 50, async {
        for mirror in &both {
            eventually("the mirror is LIVE", async || {
                // Each mirror cuts the relay once, for both.
                relay.set_target(&server.address);
                mirror.look(|mirror| (mirror.state == State::Live).then_some(()))
            })
            .await;
        }
    })
    .await;
    assert_matches_store(&both, &client, &world.redis).await;
    for mirror in &both {
        mirror.look(|mirror| assert!(mirror.fresh_streams >= 2 && mirror.syncs == 1, "{:?}", mirror.lost));
    }
}

fn event(kind: i32, id: &str, revision: i64, cause: Cause) -> SessionEvent {
    let session = Session { id: id.into(), revision, ..Default::default() };
    SessionEvent {
        r#type: kind,
        id: id.into(),
        revision,
        cause: cause.into(),
        session: Some(session),
        ..Default::default()
    }
}

fn resync(reason: i32, ids: &[&str]) -> Option<Control> {
    Some(Control::Resync(Resync { reason, ids: ids.iter().map(|&id| id.to_owned()).collect() }))
}

/// A mirror and the tracker of its watch, without a stream.
struct Driven {
    tracker: Tracker,
    mirror: Mirror,
}

impl Driven {
    fn new() -> Self {
        Driven { tracker: Tracker::new(&everything()), mirror: Mirror::default() }
    }

    /// Opens a stream; returns the resume token that opens it.
    fn open(&mut self) -> Option<u8> {
        self.tracker.open();
        let is_resumed = self.tracker.resume_token().is_some();
        self.mirror.apply(Update::Opening { is_resumed }, self.tracker.state());
        self.tracker.resume_token().map(|token| token[0])
    }

    /// Receives a response; returns whether it is the final response of its stream.
    fn receive(&mut self, token: u8, events: Vec<SessionEvent>, control: Option<Control>) -> bool {
        let response = WatchResponse { events, resume_token: vec![token], control };
        let is_final = self.tracker.receive(&response);
        self.mirror.apply(Update::Response(response), self.tracker.state());
        is_final
    }

    fn lose(&mut self) {
        let delay = self.tracker.lose();
        self.mirror.apply(Update::Lost { reason: Lost::Closed, delay }, self.tracker.state());
    }

    /// State, ids with their revisions, and resume token.
    fn contents(&self) -> (State, Vec<(&str, i64)>, Option<u8>) {
        let held = self.mirror.held.iter().map(|(id, (revision, _))| (&id[..], *revision)).collect();
        (self.mirror.state, held, self.tracker.resume_token().map(|token| token[0]))
    }
}

fn change(kind: EventType, id: &str, revision: i64) -> SessionEvent {
    event(kind.into(), id, revision, Cause::Unspecified)
}

fn synced() -> Option<Control> {
    Some(Control::Synced(Synced {}))
}

#[test]
fn mirror_applies_each_response_as_documented() {
    use EventType as E;
    let ended = |id, revision| event(E::Ended.into(), id, revision, Cause::Logout);
    let bookmark = || Some(Control::Bookmark(Bookmark::default()));
    let mut driven = Driven::new();
    assert_eq!(driven.open(), None);

    // Snapshot: the higher revision wins in either order; the mirror keeps no token yet.
    driven.receive(1, vec![change(E::Snapshot, "a", 5), change(E::Snapshot, "b", 7)], None);
    driven.receive(2, vec![change(E::Snapshot, "a", 6), change(E::Snapshot, "b", 6)], bookmark());
    assert_eq!(driven.contents(), (State::Syncing, vec![("a", 6), ("b", 7)], None));
    driven.receive(3, vec![], synced());
    assert_eq!(driven.contents(), (State::Live, vec![("a", 6), ("b", 7)], Some(3)));

    // Changes, and types that the client does not know.
    let rows = [
        (change(E::Created, "c", 1), vec![("a", 6), ("b", 7), ("c", 1)]),
        (change(E::Updated, "c", 2), vec![("a", 6), ("b", 7), ("c", 2)]),
        (change(E::Rotated, "c", 3), vec![("a", 6), ("b", 7), ("c", 3)]),
        (change(E::TokenReused, "c", 4), vec![("a", 6), ("b", 7), ("c", 4)]),
        (change(E::Updated, "d", 9), vec![("a", 6), ("b", 7), ("c", 4), ("d", 9)]),
        (change(E::Left, "d", 10), vec![("a", 6), ("b", 7), ("c", 4)]),
        (change(E::Left, "d", 10), vec![("a", 6), ("b", 7), ("c", 4)]),
        (ended("unknown", 1), vec![("a", 6), ("b", 7), ("c", 4)]),
        (ended("c", 5), vec![("a", 6), ("b", 7)]),
        (event(99, "a", 8, Cause::Unspecified), vec![("a", 8), ("b", 7)]),
        (event(99, "a", 9, Cause::Revoked), vec![("b", 7)]),
        // An unknown cause is a cause too.
        (SessionEvent { cause: 99, ..event(99, "b", 8, Cause::Unspecified) }, vec![]),
    ];
    for (n, (event, held)) in (10..).zip(rows) {
        assert!(!driven.receive(n, vec![event.clone()], None));
        assert_eq!(driven.contents(), (State::Live, held, Some(n)), "{event:?}");
    }
    assert_eq!(driven.mirror.stale_events, 0);
}

#[test]
fn mirror_discards_what_a_resync_names() {
    use EventType as E;
    let mut driven = Driven::new();
    driven.open();
    driven.receive(1, vec![], synced());

    // With ids: they are discarded with their revisions, after the events of the response took effect.
    driven.receive(30, vec![change(E::Created, "a", 20), change(E::Created, "b", 20)], None);
    let rollback = resync(ResyncReason::Rollback.into(), &["a"]);
    assert!(!driven.receive(31, vec![change(E::Updated, "a", 21)], rollback));
    assert_eq!(driven.contents(), (State::Syncing, vec![("b", 20)], None));
    driven.receive(32, vec![change(E::Snapshot, "a", 15)], None);
    driven.receive(33, vec![], synced());
    assert_eq!(driven.contents(), (State::Live, vec![("a", 15), ("b", 20)], Some(33)));

    // Without ids: everything is discarded for every reason, and the mirror is incomplete until the next `synced`.
    for reason in [ResyncReason::Compacted.into(), ResyncReason::Flushed.into(), 99] {
        driven.receive(40, vec![change(E::Updated, "a", 30)], None);
        assert!(!driven.receive(41, vec![], resync(reason, &[])));
        assert_eq!(driven.contents(), (State::Syncing, vec![], None));
        driven.receive(42, vec![change(E::Snapshot, "a", 1)], None);
        driven.lose();
        assert_eq!(driven.contents(), (State::Waiting, vec![("a", 1)], None));
        assert_eq!(driven.open(), None);
        assert_eq!(driven.contents(), (State::Syncing, vec![], None));
        driven.receive(43, vec![change(E::Snapshot, "a", 2)], synced());
    }
}

#[test]
fn mirror_keeps_its_sessions_and_token_across_streams() {
    use EventType as E;
    let slow_consumer = || resync(ResyncReason::SlowConsumer.into(), &[]);
    let mut driven = Driven::new();
    driven.open();
    driven.receive(43, vec![change(E::Snapshot, "a", 2)], synced());

    // SLOW_CONSUMER: the final response; nothing is discarded and its token opens the next stream.
    assert!(driven.receive(50, vec![change(E::Updated, "a", 31)], slow_consumer()));
    driven.lose();
    assert_eq!(driven.contents(), (State::Waiting, vec![("a", 31)], Some(50)));
    assert_eq!(driven.open(), Some(50));
    assert_eq!(driven.contents(), (State::Opening, vec![("a", 31)], Some(50)));

    // The first response makes the mirror LIVE, and then takes effect: also if it is a resync.
    driven.receive(51, vec![change(E::Updated, "a", 32)], None);
    assert_eq!(driven.contents(), (State::Live, vec![("a", 32)], Some(51)));
    driven.lose();
    assert_eq!(driven.open(), Some(51));
    driven.receive(52, vec![], resync(ResyncReason::Rollback.into(), &[]));
    assert_eq!(driven.contents(), (State::Syncing, vec![], None));
    driven.receive(53, vec![], synced());

    // SLOW_CONSUMER before `synced`: its token is not kept.
    driven.receive(54, vec![], resync(ResyncReason::Compacted.into(), &[]));
    assert!(driven.receive(55, vec![], slow_consumer()));
    driven.lose();
    assert_eq!(driven.open(), None);
}

#[tokio::test]
async fn mirror_of_ids_is_over_after_all_have_ended() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.create(&[]).await.0.id);
    }
    let keys = ids.iter().map(|id| by_id(id).unwrap()).collect();
    let request = WatchRequest { keys, whole_namespace: false, ..everything() };
    let mirror = Consumer::start(request, vec![server.address.clone()]);
    wait_until_live(&mirror).await;
    mirror.look(|mirror| assert_eq!(mirror.held.keys().collect::<Vec<_>>().len(), 3));
    for id in &ids {
        client.delete(by_id(id)).await.unwrap();
    }
    eventually("the mirror is OVER", async || mirror.look(|mirror| (mirror.state == State::Over).then_some(()))).await;
    mirror.look(|mirror| assert!(mirror.final_status.is_none() && mirror.held.is_empty()));
    let request = WatchRequest { keys: vec![by_id(&ids[0]).unwrap()], whole_namespace: false, ..everything() };
    let refused = Consumer::start(request, vec![server.address.clone()]);
    eventually("the watch is refused", async || refused.look(|mirror| mirror.final_status)).await;
    refused.look(|mirror| assert_eq!((mirror.state, mirror.final_status), (State::Over, Some(Code::NotFound))));
}

#[tokio::test]
async fn mirror_starts_over_elsewhere_after_silence_before_synced() {
    let world = World::dedicated();
    // One proxy for each mirror, which cuts Redis off when that mirror has received a part of the snapshot.
    let proxies = [(); 2].map(|()| Arc::new(Proxy::start(&world.redis)));
    let cut_off = [
        Server::start(&proxies[0].url(), &world.prefix, "").await,
        Server::start(&proxies[1].url(), &world.prefix, "").await,
    ];
    let staying = world.server().await;
    let client = staying.client().await;
    let large = incompressible(10_000);
    for _ in 0..300 {
        let attributes = [("large".to_owned(), text(&large))].into();
        let request = CreateSessionRequest { attributes, labels: labels(&[LABEL]), ..Default::default() };
        client.create_with(request).await.unwrap();
    }
    let both = [(everything(), 0), (labelled(), 1)].map(|(request, n)| {
        let (proxy, instances) = (proxies[n].clone(), vec![cut_off[n].address.clone(), staying.address.clone()]);
        Consumer::start_with(request, instances, move |response| {
            if !response.events.is_empty() {
                proxy.hold_requests();
            }
        })
    });
    wait_for_both(&both, "it is LIVE on the other server", |mirror| mirror.state == State::Live).await;
    assert_matches_store(&both, &client, &world.redis).await;
    for mirror in &both {
        mirror.look(|mirror| {
            assert!(was_silent(mirror) && mirror.fresh_streams >= 2, "{:?}", mirror.lost);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mirror_evicted_as_slow_consumer_resumes_with_its_token() {
    let world = World::shared();
    let server = world.server_with("limits.slow_consumer_timeout = '1s'").await;
    let client = server.client().await;
    let (session, _) =
        client.create_with(CreateSessionRequest { labels: labels(&[LABEL]), ..Default::default() }).await.unwrap();
    let is_slow = Arc::new(AtomicBool::new(false));
    let both = [everything(), labelled()].map(|request| {
        let is_slow = is_slow.clone();
        Consumer::start_with(request, vec![server.address.clone()], move |_| {
            let started = Instant::now();
            tokio::task::block_in_place(|| {
                while is_slow.load(Ordering::Relaxed) && started.elapsed() < 2 * WAIT_LIMIT {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        })
    });
    wait_for_both(&both, "it is LIVE", |mirror| mirror.state == State::Live).await;
    is_slow.store(true, Ordering::Relaxed);
    let large = incompressible(20_000);
    for n in 0..100 {
        client.set(by_id(&session.id), &[("large", text(&format!("{n}{large}")))]).await.unwrap();
    }
    eventually("both were evicted", async || {
        (server.metric("sessiond_watches_evicted_total").await >= 2.0).then_some(())
    })
    .await;
    with_changes(&client, 50, async { is_slow.store(false, Ordering::Relaxed) }).await;
    wait_for_both(&both, "it received SLOW_CONSUMER and is LIVE", |mirror| {
        mirror.state == State::Live && mirror.lost.iter().any(|lost| matches!(lost, Lost::SlowConsumer))
    })
    .await;
    assert_matches_store(&both, &client, &world.redis).await;
    for mirror in &both {
        mirror.look(|mirror| {
            assert_eq!((mirror.fresh_streams, mirror.syncs), (1, 1), "{:?}", mirror.lost);
            assert!(mirror.resyncs.iter().all(|reason| *reason == ResyncReason::SlowConsumer), "{:?}", mirror.resyncs);
        });
    }
}
