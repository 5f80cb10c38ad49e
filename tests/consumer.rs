//! A mirror that does what docs/watching.md says stays true, whatever happens to servers, connections and Redis.

mod harness;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use harness::{
    Client, PATIENCE, Redis, Server, World,
    client::*,
    consumer::{Consumer, Lost, Mirror, State, is_final},
    eventually,
    process::Process,
    proxy::Proxy,
    relay::Relay,
    sentinel::Sentinels,
    servers::aside,
};
use rustix::process::Signal;
use sessiond_client::v1::{watch_response::Control, *};
use tonic::{Code, Status};

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
const LABEL: (&str, &str) = ("tier", "gold");

/// A mirror's request: everything in the namespace. A machine that stands still for twice the interval is no fault that a
/// test means.
fn everything() -> WatchRequest {
    WatchRequest {
        namespace: NAMESPACE.into(),
        initial_state: true,
        bookmark_interval: millis(2_000),
        ..whole_namespace()
    }
}

/// Those with the label alone, which sessions get and lose.
fn labelled() -> WatchRequest {
    WatchRequest { labels: labels(&[LABEL]), ..everything() }
}

/// A mirror of everything, and one of those with the label; both are live.
async fn mirrors(instances: &[&str]) -> [Consumer; 2] {
    let instances: Vec<_> = instances.iter().map(|&address| address.to_owned()).collect();
    let both = [everything(), labelled()].map(|request| Consumer::start(request, instances.clone()));
    for mirror in &both {
        live(mirror).await;
    }
    both
}

async fn live(mirror: &Consumer) {
    eventually("it is live", async || {
        mirror.look(|mirror| {
            assert!(!matches!(mirror.state, State::Over(_)), "{:?}", mirror.state);
            (mirror.state == State::Live).then_some(())
        })
    })
    .await;
}

/// All that live, as the store says.
async fn truth(client: &Client, labels: BTreeMap<String, String>) -> BTreeMap<String, Session> {
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

/// Once all that were to end soon have ended, and a bookmark says that nothing is missing, what is held is the truth.
async fn assert_true(both: &[Consumer; 2], client: &Client, redis: &Redis) {
    let ends_soon = |session: &Session| session.idle_timeout.is_some_and(|of| of.seconds < 5);
    for (mirror, of) in both.iter().zip([everything(), labelled()]) {
        // A session whose time is over is in no list, and is held until its end is told.
        eventually("those that were to end have ended", async || {
            let is_over = truth(client, BTreeMap::new()).await.values().all(|session| !ends_soon(session));
            let is_told = mirror.look(|mirror| mirror.held.values().all(|(_, session)| !ends_soon(session)));
            (is_over && is_told).then_some(())
        })
        .await;
        let now = redis.now() * 1_000;
        eventually("nothing is missing", async || {
            mirror.look(|mirror| mirror.as_of.is_some_and(|as_of| as_of > now).then_some(()))
        })
        .await;
        let expected = truth(client, of.labels).await;
        mirror.look(|mirror| {
            let held: BTreeMap<_, _> =
                mirror.held.iter().map(|(id, (_, session))| (id.clone(), session.clone())).collect();
            let wrong: Vec<_> = held.iter().filter(|(id, session)| expected.get(*id) != Some(session)).collect();
            let missing: Vec<_> = expected.iter().filter(|(id, _)| !held.contains_key(*id)).collect();
            assert_eq!((wrong, missing), (vec![], vec![]), "after {:?} and {:?}", mirror.lost, mirror.resyncs);
            assert_eq!(mirror.stale, 0, "something was told twice, or out of order");
        });
    }
}

/// Sessions are made, changed, given and deprived of the label, ended, and left to expire, until the fault is over and at
/// least so many times.
async fn amid_changes(client: &Client, at_least: usize, fault: impl Future<Output = ()>) {
    let done = AtomicBool::new(false);
    let work = async {
        let (mut ids, mut turn): (Vec<String>, usize) = (Vec::new(), 0);
        while turn < at_least || !done.load(Ordering::Relaxed) {
            turn += 1;
            // What fails was for a Redis that was not there, or a session that is not there any more.
            if !work(client, turn, &mut ids).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        assert!(!ids.is_empty());
    };
    let fault = async {
        fault.await;
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(work, fault);
}

/// One change; false = it failed.
async fn work(client: &Client, turn: usize, ids: &mut Vec<String>) -> bool {
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
            let made = client.create_as(request).await;
            ids.extend(made.as_ref().ok().map(|(session, _)| session.id.clone()));
            made.is_ok()
        }
    }
}

/// They went on with their tokens throughout.
fn assert_one_beginning(both: &[Consumer; 2]) {
    for mirror in both {
        mirror.look(|mirror| assert_eq!((mirror.beginnings, mirror.syncs, &mirror.resyncs[..]), (1, 1, &[][..])));
    }
}

async fn every_mirror(both: &[Consumer; 2], what: &str, check: impl Fn(&Mirror) -> bool) {
    for mirror in both {
        eventually(what, async || mirror.look(|mirror| check(mirror).then_some(()))).await;
    }
}

#[tokio::test]
async fn a_mirror_stays_true_while_its_servers_are_stopped_one_after_the_other() {
    let world = World::shared();
    let staying = world.server().await;
    let client = staying.client().await;
    let mut leaving = [world.server().await, world.server().await, world.server().await];
    let [a, b, c] = leaving.each_ref().map(|server| server.address.clone());
    let both = mirrors(&[&a, &b, &c, &staying.address]).await;
    let draining = Lost::Status(Code::Unavailable, Some("DRAINING".into()));
    amid_changes(&client, 200, async {
        for (count, server) in leaving.iter_mut().enumerate() {
            server.stop().await;
            // LIVE: its next stream is open, so that the next server to be stopped has something to tell it.
            every_mirror(&both, "it was told so, and goes on", |mirror| {
                mirror.state == State::Live && mirror.lost.iter().filter(|lost| **lost == draining).count() == count + 1
            })
            .await;
        }
    })
    .await;
    assert_true(&both, &client, &world.redis).await;
    assert_one_beginning(&both);
}

#[tokio::test]
async fn a_mirror_stays_true_when_its_server_hangs() {
    let world = World::own();
    let staying = world.server().await;
    let client = staying.client().await;
    let process = Process::start(&[format!("--redis={}", world.redis.url())]);
    let both = mirrors(&[&process.address, &staying.address]).await;
    amid_changes(&client, 200, async {
        process.signal(Signal::STOP);
        every_mirror(&both, "it finds it silent, and goes on", |mirror| {
            mirror.state == State::Live && mirror.lost.contains(&Lost::Silent)
        })
        .await;
    })
    .await;
    assert_true(&both, &client, &world.redis).await;
    assert_one_beginning(&both);
}

#[tokio::test]
async fn a_mirror_stays_true_when_its_server_has_no_redis() {
    let world = World::own();
    let proxy = Proxy::start(&world.redis);
    let behind = Server::start(&proxy.url(), &world.prefix, "").await;
    let staying = world.server().await;
    let client = staying.client().await;
    let both = mirrors(&[&behind.address, &staying.address]).await;
    amid_changes(&client, 200, async {
        proxy.hold();
        every_mirror(&both, "no bookmark comes, and it goes on elsewhere", |mirror| {
            mirror.state == State::Live && mirror.lost.contains(&Lost::Silent)
        })
        .await;
    })
    .await;
    assert_true(&both, &client, &world.redis).await;
    assert_one_beginning(&both);
}

#[tokio::test]
async fn a_mirror_stays_true_through_restarts_of_redis() {
    let world = World { redis: Redis::start_with(&DURABLE), prefix: "sessiond:".into() };
    let server = world.server().await;
    let client = server.client().await;
    let both = mirrors(&[&server.address]).await;
    amid_changes(&client, 200, async {
        for _ in 0..2 {
            world.redis.kill();
            world.redis.restart();
            eventually("the server is back", async || client.create_as(Default::default()).await.ok()).await;
        }
    })
    .await;
    assert_true(&both, &client, &world.redis).await;
    assert_one_beginning(&both);
}

#[tokio::test]
async fn a_mirror_is_emptied_with_its_store_and_goes_on() {
    let world = World::own();
    let server = world.server().await;
    let client = server.client().await;
    let both = mirrors(&[&server.address]).await;
    amid_changes(&client, 200, async {}).await;
    assert_true(&both, &client, &world.redis).await;
    let emptied = |count: usize| {
        move |mirror: &Mirror| {
            let flushes = mirror.resyncs.iter().filter(|reason| **reason == ResyncReason::Flushed);
            mirror.state == State::Live && flushes.count() >= count
        }
    };
    world.redis.command(&["FLUSHALL"]);
    every_mirror(&both, "it is told so", emptied(1)).await;
    for mirror in &both {
        mirror.look(|mirror| assert!(mirror.held.is_empty()));
    }
    amid_changes(&client, 200, async {
        world.redis.command(&["FLUSHALL"]);
        every_mirror(&both, "it is told again", emptied(2)).await;
        // Nothing of this Redis is on disk.
        world.redis.kill();
        world.redis.restart();
        every_mirror(&both, "and once more", emptied(3)).await;
    })
    .await;
    assert_true(&both, &client, &world.redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_stays_true_through_a_failover_that_loses_writes() {
    let sentinels = aside(|| Sentinels::start(1)).await;
    let server = Server::start(&sentinels.url(), "sessiond:", "").await;
    let client = server.client().await;
    let both = mirrors(&[&server.address]).await;
    amid_changes(&client, 200, async {}).await;
    let (old, new) = (sentinels.primary(), sentinels.replicas().remove(0));
    let (of, to) = (old.clone(), new.clone());
    aside(move || of.wait_for(&to)).await;
    old.lose_touch_with(&new);
    amid_changes(&client, 100, async {}).await;
    let lost = CreateSessionRequest { labels: labels(&[LABEL]), ..Default::default() };
    let (lost, _) = client.create_as(lost).await.unwrap();
    every_mirror(&both, "it holds what is going to be lost", |mirror| mirror.held.contains_key(&lost.id)).await;
    amid_changes(&client, 200, async {
        old.kill();
        new.resume();
        let of = sentinels.clone();
        aside(move || of.wait_for_another_than(&old)).await;
        every_mirror(&both, "it is told so, and goes on", |mirror| {
            mirror.state == State::Live && mirror.resyncs.contains(&ResyncReason::Rollback)
        })
        .await;
        // Amid the changes after it.
        eventually("it is served again", async || client.create_as(Default::default()).await.ok()).await;
    })
    .await;
    assert!(!client.lives(&lost.id).await, "it was lost with its primary");
    assert_true(&both, &client, &new).await;
}

#[tokio::test]
async fn a_mirror_that_was_away_for_longer_than_the_log_is_built_anew() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let relay = Relay::start(&server.address).await;
    amid_changes(&client, 200, async {}).await;
    let both = mirrors(&[&relay.address]).await;
    amid_changes(&client, 100, async {}).await;
    assert_true(&both, &client, &world.redis).await;
    relay.cut();
    every_mirror(&both, "it is away", |mirror| !mirror.lost.is_empty()).await;
    for (n, id) in truth(&client, BTreeMap::new()).await.keys().enumerate() {
        if n % 3 == 0 {
            client.delete(by_id(id)).await.unwrap();
        }
    }
    amid_changes(&client, 400, async {}).await;
    for log in world.redis.keys(&format!("{}*:log", world.prefix)) {
        world.redis.command(&["XTRIM", &log, "MAXLEN", "1"]);
    }
    relay.turn_to(&server.address);
    every_mirror(&both, "it is back, and was told so", |mirror| {
        mirror.state == State::Live && mirror.resyncs == [ResyncReason::Compacted]
    })
    .await;
    assert_true(&both, &client, &world.redis).await;
    for mirror in &both {
        mirror.look(|mirror| {
            assert_eq!((mirror.beginnings, mirror.syncs, &mirror.resyncs[..]), (1, 2, &[ResyncReason::Compacted][..]));
        });
    }
}

#[tokio::test]
async fn a_mirror_that_lost_its_server_before_synced_begins_anew() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let relay = Arc::new(Relay::start(&server.address).await);
    // More than comes in one response, and than is under way at once.
    let large = incompressible(10_000);
    let mut made = Vec::new();
    for _ in 0..300 {
        let attributes = [("large".to_owned(), text(&large))].into();
        let request = CreateSessionRequest { attributes, labels: labels(&[LABEL]), ..Default::default() };
        made.push(client.create_as(request).await.unwrap().0.id);
    }
    let both = [everything(), labelled()].map(|request| {
        let (cut, mut has_cut) = (relay.clone(), false);
        Consumer::start_and_see(request, vec![relay.address.clone()], move |response| {
            let is_synced = matches!(response.control, Some(Control::Synced(_)));
            if !has_cut && !response.events.is_empty() {
                assert!(!is_synced, "everything came in one response");
                cut.cut();
                has_cut = true;
            }
        })
    });
    every_mirror(&both, "it holds a part, and its server is gone", |mirror| {
        mirror.beginnings > 1 || mirror.state == State::Waiting && !mirror.lost.is_empty()
    })
    .await;
    for id in made.iter().step_by(2) {
        client.delete(by_id(id)).await.unwrap();
    }
    amid_changes(&client, 50, async {
        for mirror in &both {
            eventually("it is live", async || {
                // Each of them cuts once, for both.
                relay.turn_to(&server.address);
                mirror.look(|mirror| (mirror.state == State::Live).then_some(()))
            })
            .await;
        }
    })
    .await;
    assert_true(&both, &client, &world.redis).await;
    for mirror in &both {
        mirror.look(|mirror| assert!(mirror.beginnings >= 2 && mirror.syncs == 1, "{:?}", mirror.lost));
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

fn response(token: u8, events: Vec<SessionEvent>, control: Option<Control>) -> WatchResponse {
    WatchResponse { events, resume_token: vec![token], control }
}

fn resync(reason: i32, ids: &[&str]) -> Option<Control> {
    Some(Control::Resync(Resync { reason, ids: ids.iter().map(|&id| id.to_owned()).collect() }))
}

/// State, ids with their revisions, and token.
fn stands(mirror: &Mirror) -> (State, Vec<(&str, i64)>, Option<u8>) {
    let held = mirror.held.iter().map(|(id, (revision, _))| (&id[..], *revision)).collect();
    (mirror.state.clone(), held, mirror.token.as_ref().map(|token| token[0]))
}

#[test]
fn each_response_has_the_effect_that_the_manual_says() {
    use EventType as E;
    let change = |kind: E, id, revision| event(kind.into(), id, revision, Cause::Unspecified);
    let ended = |id, revision| event(E::Ended.into(), id, revision, Cause::Logout);
    let synced = || Some(Control::Synced(Synced {}));
    let bookmark = || Some(Control::Bookmark(Bookmark::default()));
    let (syncing, live) = (|| State::Syncing, || State::Live);
    let mut mirror = Mirror::default();
    assert_eq!(mirror.open(), b"");

    // A snapshot: the higher of two counts, in either order; its tokens do not.
    mirror.take(response(1, vec![change(E::Snapshot, "a", 5), change(E::Snapshot, "b", 7)], None));
    mirror.take(response(2, vec![change(E::Snapshot, "a", 6), change(E::Snapshot, "b", 6)], bookmark()));
    assert_eq!(stands(&mirror), (syncing(), vec![("a", 6), ("b", 7)], None));
    mirror.take(response(3, vec![], synced()));
    assert_eq!(stands(&mirror), (live(), vec![("a", 6), ("b", 7)], Some(3)));

    // Changes, and what is not known.
    let rows = [
        (change(E::Created, "c", 1), vec![("a", 6), ("b", 7), ("c", 1)]),
        (change(E::Updated, "c", 2), vec![("a", 6), ("b", 7), ("c", 2)]),
        (change(E::Rotated, "c", 3), vec![("a", 6), ("b", 7), ("c", 3)]),
        (change(E::TokenReused, "c", 4), vec![("a", 6), ("b", 7), ("c", 4)]),
        (change(E::Updated, "d", 9), vec![("a", 6), ("b", 7), ("c", 4), ("d", 9)]),
        (change(E::Left, "d", 10), vec![("a", 6), ("b", 7), ("c", 4)]),
        (change(E::Left, "d", 10), vec![("a", 6), ("b", 7), ("c", 4)]),
        (ended("nobody", 1), vec![("a", 6), ("b", 7), ("c", 4)]),
        (ended("c", 5), vec![("a", 6), ("b", 7)]),
        (event(99, "a", 8, Cause::Unspecified), vec![("a", 8), ("b", 7)]),
        (event(99, "a", 9, Cause::Revoked), vec![("b", 7)]),
        // A cause that is not known is a cause.
        (SessionEvent { cause: 99, ..event(99, "b", 8, Cause::Unspecified) }, vec![]),
    ];
    for (n, (event, held)) in (10..).zip(rows) {
        assert!(mirror.take(response(n, vec![event.clone()], None)));
        assert_eq!(stands(&mirror), (live(), held, Some(n)), "{event:?}");
    }
    assert_eq!(mirror.stale, 0);

    // Some are forgotten, with their revisions; events of the same response come before.
    mirror.take(response(30, vec![change(E::Created, "a", 20), change(E::Created, "b", 20)], None));
    let rollback = resync(ResyncReason::Rollback.into(), &["a"]);
    assert!(mirror.take(response(31, vec![change(E::Updated, "a", 21)], rollback)));
    assert_eq!(stands(&mirror), (syncing(), vec![("b", 20)], None));
    mirror.take(response(32, vec![change(E::Snapshot, "a", 15)], None));
    mirror.take(response(33, vec![], synced()));
    assert_eq!(stands(&mirror), (live(), vec![("a", 15), ("b", 20)], Some(33)));

    // All are, whatever the reason; nothing is complete before the next synced.
    for reason in [ResyncReason::Compacted.into(), ResyncReason::Flushed.into(), 99] {
        mirror.take(response(40, vec![change(E::Updated, "a", 30)], None));
        assert!(mirror.take(response(41, vec![], resync(reason, &[]))));
        assert_eq!(stands(&mirror), (syncing(), vec![], None));
        mirror.take(response(42, vec![change(E::Snapshot, "a", 1)], None));
        mirror.lose(Lost::Closed);
        assert_eq!(stands(&mirror), (State::Waiting, vec![("a", 1)], None));
        assert_eq!(mirror.open(), b"");
        assert_eq!(stands(&mirror), (syncing(), vec![], None));
        mirror.take(response(43, vec![change(E::Snapshot, "a", 2)], synced()));
    }

    // Too slow: the last response; nothing is forgotten, and it is gone on from there.
    let too_slow = || resync(ResyncReason::SlowConsumer.into(), &[]);
    assert!(!mirror.take(response(50, vec![change(E::Updated, "a", 31)], too_slow())));
    mirror.lose(Lost::TooSlow);
    assert_eq!(stands(&mirror), (State::Waiting, vec![("a", 31)], Some(50)));
    assert_eq!(mirror.open(), [50]);
    assert_eq!(stands(&mirror), (State::Opening, vec![("a", 31)], Some(50)));

    // The first response shows that it goes on; a resync in it says from where.
    mirror.take(response(51, vec![change(E::Updated, "a", 32)], None));
    assert_eq!(stands(&mirror), (live(), vec![("a", 32)], Some(51)));
    mirror.lose(Lost::Silent);
    assert_eq!(mirror.open(), [51]);
    mirror.take(response(52, vec![], resync(ResyncReason::Rollback.into(), &[])));
    assert_eq!(stands(&mirror), (syncing(), vec![], None));
    mirror.take(response(53, vec![], synced()));

    // But not from before synced.
    mirror.take(response(54, vec![], resync(ResyncReason::Compacted.into(), &[])));
    assert!(!mirror.take(response(55, vec![], too_slow())));
    mirror.lose(Lost::TooSlow);
    assert_eq!(mirror.open(), b"");
}

#[test]
fn waits_double_up_to_five_seconds_and_begin_anew_with_a_stream_that_is_well() {
    let mut mirror = Mirror::default();
    mirror.open();
    for longest in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
        // A bookmark before synced does not show that the next stream will get further.
        mirror.take(response(1, vec![], Some(Control::Bookmark(Bookmark::default()))));
        assert_eq!(mirror.lose(Lost::Closed), Duration::from_millis(longest));
        mirror.open();
    }
    mirror.take(response(1, vec![], Some(Control::Synced(Synced {}))));
    assert_eq!(mirror.lose(Lost::Closed), Duration::from_millis(100));
    assert_eq!(mirror.open(), [1]);
    mirror.take(response(2, vec![], None));
    assert_eq!(mirror.lose(Lost::Closed), Duration::from_millis(200));
    mirror.open();
    mirror.take(response(3, vec![], Some(Control::Bookmark(Bookmark::default()))));
    assert_eq!(mirror.lose(Lost::Closed), Duration::from_millis(100));
}

#[test]
fn a_status_is_final_where_a_repeat_would_be_answered_alike() {
    use tonic_types::{ErrorDetails, StatusExt};
    let limit = ErrorDetails::with_error_info("WATCH_LIMIT", "sessiond", [("a".to_owned(), "b".to_owned())]);
    let passing =
        [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown, Code::Internal, Code::Aborted];
    for code in passing {
        assert!(!is_final(&Status::new(code, "")), "{code:?}");
    }
    assert!(!is_final(&Status::with_error_details(Code::ResourceExhausted, "", limit)));
    for code in [Code::ResourceExhausted, Code::InvalidArgument, Code::NotFound, Code::Unimplemented, Code::DataLoss] {
        assert!(is_final(&Status::new(code, "")), "{code:?}");
    }
}

#[tokio::test]
async fn a_mirror_of_ids_is_over_when_all_have_ended() {
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
    live(&mirror).await;
    mirror.look(|mirror| assert_eq!(mirror.held.keys().collect::<Vec<_>>().len(), 3));
    for id in &ids {
        client.delete(by_id(id)).await.unwrap();
    }
    eventually("it is over", async || mirror.look(|mirror| (mirror.state == State::Over(None)).then_some(()))).await;
    mirror.look(|mirror| assert!(mirror.held.is_empty()));
    let request = WatchRequest { keys: vec![by_id(&ids[0]).unwrap()], whole_namespace: false, ..everything() };
    let gone = Consumer::start(request, vec![server.address.clone()]);
    let over = State::Over(Some(Code::NotFound));
    eventually("it never begins", async || gone.look(|mirror| (mirror.state == over).then_some(()))).await;
}

#[tokio::test]
async fn a_mirror_begins_elsewhere_when_its_server_has_no_redis_any_more() {
    let world = World::own();
    // One for each mirror: it has got some of the state when its server loses Redis.
    let proxies = [(); 2].map(|()| Arc::new(Proxy::start(&world.redis)));
    let behind = [
        Server::start(&proxies[0].url(), &world.prefix, "").await,
        Server::start(&proxies[1].url(), &world.prefix, "").await,
    ];
    let staying = world.server().await;
    let client = staying.client().await;
    let large = incompressible(10_000);
    for _ in 0..300 {
        let attributes = [("large".to_owned(), text(&large))].into();
        let request = CreateSessionRequest { attributes, labels: labels(&[LABEL]), ..Default::default() };
        client.create_as(request).await.unwrap();
    }
    let both = [(everything(), 0), (labelled(), 1)].map(|(request, n)| {
        let (proxy, instances) = (proxies[n].clone(), vec![behind[n].address.clone(), staying.address.clone()]);
        Consumer::start_and_see(request, instances, move |response| {
            if !response.events.is_empty() {
                proxy.hold();
            }
        })
    });
    every_mirror(&both, "no more comes, and it goes on elsewhere", |mirror| mirror.state == State::Live).await;
    assert_true(&both, &client, &world.redis).await;
    for mirror in &both {
        mirror.look(|mirror| {
            assert!(mirror.lost.contains(&Lost::Silent) && mirror.beginnings >= 2, "{:?}", mirror.lost);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mirror_that_was_found_too_slow_goes_on_with_its_token() {
    let world = World::shared();
    let server = world.server_with("limits.slow_consumer_timeout = '1s'").await;
    let client = server.client().await;
    let (session, _) =
        client.create_as(CreateSessionRequest { labels: labels(&[LABEL]), ..Default::default() }).await.unwrap();
    let is_slow = Arc::new(AtomicBool::new(false));
    let both = [everything(), labelled()].map(|request| {
        let is_slow = is_slow.clone();
        Consumer::start_and_see(request, vec![server.address.clone()], move |_| {
            let started = Instant::now();
            tokio::task::block_in_place(|| {
                while is_slow.load(Ordering::Relaxed) && started.elapsed() < 2 * PATIENCE {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        })
    });
    every_mirror(&both, "it is live", |mirror| mirror.state == State::Live).await;
    is_slow.store(true, Ordering::Relaxed);
    let large = incompressible(20_000);
    for n in 0..100 {
        client.set(by_id(&session.id), &[("large", text(&format!("{n}{large}")))]).await.unwrap();
    }
    eventually("both are too slow", async || {
        (server.metric("sessiond_slow_watchers_total").await >= 2.0).then_some(())
    })
    .await;
    amid_changes(&client, 50, async { is_slow.store(false, Ordering::Relaxed) }).await;
    every_mirror(&both, "it was told so, and goes on", |mirror| {
        mirror.state == State::Live && mirror.lost.contains(&Lost::TooSlow)
    })
    .await;
    assert_true(&both, &client, &world.redis).await;
    for mirror in &both {
        mirror.look(|mirror| {
            assert_eq!((mirror.beginnings, mirror.syncs), (1, 1), "{:?}", mirror.lost);
            assert!(mirror.resyncs.iter().all(|reason| *reason == ResyncReason::SlowConsumer), "{:?}", mirror.resyncs);
        });
    }
}
