//! Guarantees W1 to W5 and W7: order, completeness, resume, bookmarks and expiry events of a watch.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use harness::{
    Redis, Setup, WatchReader, World, client::*, eventually, redis::KEYSPACE_NOTIFICATIONS, setup, setup_with,
};
use sessiond::{session::Revision, watch::ResumeToken};
use sessiond_client::v1::{
    Cause, CreateSessionRequest, DeleteSessionRequest, EventType, ResyncReason, SessionEvent, UpdateSessionRequest,
    WatchRequest, watch_response::Control,
};
use tokio::time::timeout;
use tonic::Code;

/// Creates, updates three times and deletes each session, all concurrently over these clients; returns the number of
/// changes.
async fn work(clients: &[&Client], sessions: usize) -> usize {
    let cycles = (0..sessions).map(async |n: usize| {
        let client = clients[n % clients.len()];
        let (session, token) = client.create(&[("n", text("0"))]).await;
        for turn in 1..=3 {
            let client = clients[(n + turn) % clients.len()];
            client.set(by_token(&token), &[("n", text(&turn.to_string()))]).await.unwrap();
        }
        client.delete(by_id(&session.id)).await.unwrap();
    });
    join_all(cycles).await;
    sessions * 5
}

/// Groups events by session, in order of arrival.
fn by_session(events: &[SessionEvent]) -> BTreeMap<String, Vec<&SessionEvent>> {
    let mut sessions: BTreeMap<String, Vec<&SessionEvent>> = BTreeMap::new();
    for event in events {
        sessions.entry(event.id.clone()).or_default().push(event);
    }
    sessions
}

/// Checks that the events of [`work`] are complete, in order, and delivered once.
fn assert_complete(events: &[SessionEvent], changes: usize) {
    assert_eq!(events.len(), changes);
    let unique: HashSet<_> = events.iter().map(|event| (&event.id, event.revision)).collect();
    assert_eq!(unique.len(), events.len(), "delivered twice");
    for events in by_session(events).values() {
        assert!(events.is_sorted_by_key(|event| event.revision), "out of order");
        let kinds: Vec<_> = events.iter().map(|event| event.r#type()).collect();
        let updated = EventType::Updated;
        assert_eq!(kinds, [EventType::Created, updated, updated, updated, EventType::Ended]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w1_events_of_one_session_have_rising_revisions() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let changes = work(&[&clients[0], &clients[1]], 40).await;
    assert_complete(&watching.events(changes).await, changes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w2_event_is_delivered_once_across_resumes() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = client.watch_all().await;
    let clients = [&client, &other];
    let working = work(&clients, 60);
    let resuming = async {
        let mut events = Vec::new();
        let mut instance = 0;
        while events.len() < 300 {
            let response = watching.response().await.unwrap().unwrap();
            events.extend(response.events);
            // Resumes after about every 20 events, on the other instance each time.
            if events.len() / 20 > instance {
                instance = events.len() / 20;
                let from = [&client, &other][instance % 2];
                watching = from.resume(&watching.token).await;
            }
        }
        events.extend(watching.events_until_now().await);
        events
    };
    let (changes, events) = tokio::join!(working, resuming);
    assert_complete(&events, changes);
}

#[tokio::test]
async fn w3_change_matching_before_or_after_is_delivered() {
    let Setup { client, .. } = &setup().await;
    let request = WatchRequest { labels: labels(&[("team", "red")]), ..whole_namespace() };
    let mut watching = client.watch(request).await.unwrap();
    watching.bookmark().await;
    let create = |team: &str| CreateSessionRequest { labels: labels(&[("team", team)]), ..Default::default() };
    let (red, _) = client.create_with(create("red")).await.unwrap();
    let (blue, _) = client.create_with(create("blue")).await.unwrap();
    let paint = async |id: &str, team: &str| {
        let set_labels = labels(&[("team", team)]);
        client.update(UpdateSessionRequest { key: by_id(id), set_labels, ..Default::default() }).await.unwrap();
    };
    paint(&red.id, "blue").await;
    client.set(by_id(&red.id), &[("unrelated", text("1"))]).await.unwrap();
    paint(&blue.id, "red").await;
    client.delete(by_id(&red.id)).await.unwrap();
    client.delete(by_id(&blue.id)).await.unwrap();
    let events = watching.events_until_now().await;
    let received: Vec<_> = events.iter().map(|event| (event.r#type(), event.id == red.id)).collect();
    let expected =
        [(EventType::Created, true), (EventType::Left, true), (EventType::Updated, false), (EventType::Ended, false)];
    let (reds, blues): (Vec<_>, Vec<_>) = received.into_iter().partition(|(_, is_red)| *is_red);
    assert_eq!([reds, blues].concat(), expected);
}

#[tokio::test]
async fn w3_watch_filters_by_type_and_uses_the_view() {
    let Setup { client, .. } = &setup().await;
    let request =
        WatchRequest { types: vec![EventType::Ended.into(), EventType::Snapshot.into()], view: 0, ..whole_namespace() };
    let mut watching = client.watch(request).await.unwrap();
    watching.bookmark().await;
    let (session, _) = client.create(&[("a", text("1"))]).await;
    client.in_namespace("other").create(&[]).await;
    client.delete(by_id(&session.id)).await.unwrap();
    let events = watching.events_until_now().await;
    assert_eq!(events.len(), 1);
    let ended = &events[0];
    assert_eq!((ended.r#type(), ended.cause()), (EventType::Ended, Cause::Logout));
    let last = ended.session.as_ref().unwrap();
    assert_eq!((&last.id, last.revision, last.attributes.len()), (&session.id, session.revision, 0));
}

#[tokio::test]
async fn w3_event_too_large_for_the_channel_is_read_from_the_log() {
    let Setup { server, client, .. } = &setup_with("[default_policy]\nmax_payload_bytes = '128 KiB'").await;
    let mut watching = client.watch_all().await;
    let (session, token) = client.create(&[("large", text(&incompressible(70_000)))]).await;
    // One read of the log may find several entries, so the second one is written after the first was read.
    assert_eq!(watching.event().await.session.as_ref(), Some(&session));
    client.set(by_token(&token), &[("small", text("1"))]).await.unwrap();
    assert_eq!(watching.event().await.session.as_ref().unwrap().attributes.len(), 2);
    assert!(
        server.metric("sessiond_feed_gaps_total").await >= 2.0,
        "the channel carried only the positions of the events"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w4_watch_resumes_on_another_instance() {
    let world = World::shared();
    let mut first = world.server().await;
    let client = first.client().await;
    let mut watching = client.watch_all().await;
    let before = work(&[&client], 10).await;
    let mut events = watching.events(before).await;
    let token = watching.token.clone();
    drop(watching);
    let missed = work(&[&client], 30).await;
    first.stop().await;
    let second = world.server().await;
    let client = second.client().await;
    let mut watching = client.resume(&token).await;
    events.extend(watching.events(missed).await);
    let live = work(&[&client], 10).await;
    events.extend(watching.events(live).await);
    assert_complete(&events, before + missed + live);
    // A resume token is valid with any filter.
    let by_label = WatchRequest { labels: labels(&[("no", "one")]), resume_token: token, ..whole_namespace() };
    let mut watching = client.watch(by_label).await.unwrap();
    assert_eq!(watching.events_until_now().await, []);
}

#[tokio::test]
async fn w4_missed_end_is_delivered_on_resume() {
    let Setup { client, .. } = &setup().await;
    // Opens a watch, closes it, and resumes it after the session has ended.
    let resume_after_end = async |id: &str, request: WatchRequest| {
        let mut watching = client.watch(request.clone()).await.unwrap();
        watching.bookmark().await;
        let resume_token = watching.token.clone();
        drop(watching);
        client.delete(by_id(id)).await.unwrap();
        client.watch(WatchRequest { resume_token, ..request }).await.unwrap()
    };
    let (session, _) = client.create(&[]).await;
    let by_ids = WatchRequest { keys: by_id(&session.id).into_iter().collect(), ..Default::default() };
    let mut resumed = resume_after_end(&session.id, by_ids).await;
    resumed.end().await.unwrap();
    assert_eq!(resumed.buffered().len(), 1);

    let (session, token) = client.create(&[]).await;
    let by_token = WatchRequest { keys: vec![by_token_key(&token)], ..Default::default() };
    let mut resumed = resume_after_end(&session.id, by_token.clone()).await;
    expect_error(resumed.end().await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(resumed.buffered().len(), 1);
    expect_error(client.watch(by_token).await.map(drop), Code::NotFound, "SESSION_ENDED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w3_end_during_resume_is_delivered() {
    let world = World::dedicated();
    let (server, other) = (world.server().await, world.server().await);
    let (client, other) = (server.client().await, other.client().await);
    for n in 0..50 {
        let (session, token) = client.create(&[]).await;
        let keys = vec![if n % 2 == 0 { by_id(&session.id).unwrap() } else { by_token_key(&token) }];
        let request = WatchRequest { keys, ..Default::default() };
        let mut watching = client.watch(request.clone()).await.unwrap();
        watching.bookmark().await;
        let request = WatchRequest { resume_token: watching.token.clone(), ..request };
        // Closes the feed's subscription, so that the end is in the log before the feed receives it.
        world.redis.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let (deleted, resumed) = tokio::join!(other.delete(by_id(&session.id)), client.watch(request));
        assert!(deleted.unwrap());
        let mut resumed = resumed.unwrap();
        assert_eq!(resumed.end().await.is_ok(), n % 2 == 0);
        assert_eq!(resumed.buffered().len(), 1);
    }
}

/// Runs the commands in one MULTI/EXEC transaction.
fn transaction(redis: &Redis, commands: &[&str]) {
    let mut stream = UnixStream::connect(redis.socket()).unwrap();
    stream.write_all(format!("MULTI\r\n{}\r\nEXEC\r\nQUIT\r\n", commands.join("\r\n")).as_bytes()).unwrap();
    let mut replies = String::new();
    stream.read_to_string(&mut replies).unwrap();
    assert!(replies.lines().all(|line| !line.starts_with('-')), "{commands:?}: {replies}");
}

#[tokio::test]
async fn w7_watch_by_ids_waits_until_the_end_is_written() {
    const NO_WRITES: &str = "CONFIG SET min-replicas-to-write 1";
    let Setup { world, client, .. } = &World::dedicated_with(&KEYSPACE_NOTIFICATIONS).setup().await;
    for is_deleted in [false, true] {
        let idle_timeout = if is_deleted { None } else { seconds(3) };
        let request = CreateSessionRequest { idle_timeout, ..Default::default() };
        let (session, _) = client.create_with(request).await.unwrap();
        let request = WatchRequest { keys: by_id(&session.id).into_iter().collect(), ..Default::default() };
        let mut watching = client.watch(request.clone()).await.unwrap();
        watching.bookmark().await;
        let request = WatchRequest { resume_token: watching.token.clone(), ..request };
        if is_deleted {
            let key = world.redis.keys(&format!("*:s:{NAMESPACE}:{}", session.id)).remove(0);
            transaction(&world.redis, &[&format!("DEL {key}"), NO_WRITES]);
        } else {
            transaction(&world.redis, &[NO_WRITES]);
        }
        eventually("the session is over", async || client.get(by_id(&session.id)).await.err()).await;
        let mut resumed = client.watch(request).await.unwrap();
        resumed.bookmark().await;
        world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
        resumed.end().await.unwrap();
        let received = resumed.buffered();
        assert_eq!(received.iter().map(|event| event.r#type()).collect::<Vec<_>>(), [EventType::Ended], "{is_deleted}");
    }
}

fn by_token_key(token: &str) -> sessiond_client::v1::SessionKey {
    by_token(token).unwrap()
}

#[tokio::test]
async fn w5_idle_watch_receives_bookmarks_with_rising_as_of() {
    let Setup { client, .. } = &setup().await;
    let mut watching =
        client.watch(WatchRequest { bookmark_interval: millis(100), ..whole_namespace() }).await.unwrap();
    let mut last = watching.bookmark().await.as_of.unwrap();
    for _ in 0..5 {
        let next = watching.bookmark().await.as_of.unwrap();
        assert!((next.seconds, next.nanos) > (last.seconds, last.nanos));
        last = next;
    }
}

#[tokio::test]
async fn w5_paused_redis_stops_bookmarks() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    let mut watching =
        client.watch(WatchRequest { bookmark_interval: millis(100), ..whole_namespace() }).await.unwrap();
    let as_of = async |watching: &mut WatchReader| {
        let as_of = watching.bookmark().await.as_of.unwrap();
        (as_of.seconds, as_of.nanos)
    };
    let mut last = as_of(&mut watching).await;
    world.redis.pause();
    let status = format!("/proc/{}/stat", world.redis.pid());
    let is_paused = || std::fs::read_to_string(&status).unwrap().contains(") T ");
    eventually("the Redis process is stopped", async || is_paused().then_some(())).await;
    let stopped = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let stopped = (stopped.as_secs() as i64, stopped.subsec_nanos() as i32);
    // Bookmarks that Redis was asked for before the pause may still arrive.
    let late_bookmark = timeout(Duration::from_secs(2), async {
        loop {
            let next = as_of(&mut watching).await;
            if next <= last || next > stopped {
                return next;
            }
            last = next;
        }
    });
    assert_eq!(
        late_bookmark.await.ok(),
        None,
        "a bookmark arrived after that of {last:?}; Redis stopped at {stopped:?}"
    );
    world.redis.resume();
    assert!(as_of(&mut watching).await > stopped);
}

#[tokio::test]
async fn watch_by_ids_closes_when_all_sessions_have_ended() {
    let Setup { client, .. } = &setup().await;
    let ((one, _), (two, _)) = (client.create(&[]).await, client.create(&[]).await);
    let keys = [&one, &two].iter().filter_map(|session| by_id(&session.id)).collect();
    let request = WatchRequest { keys, types: vec![EventType::Updated.into()], ..Default::default() };
    let mut watching = client.watch(request).await.unwrap();
    client.set(by_id(&one.id), &[("a", text("1"))]).await.unwrap();
    client.delete(by_id(&one.id)).await.unwrap();
    client.set(by_id(&two.id), &[("a", text("1"))]).await.unwrap();
    client.delete(by_id(&two.id)).await.unwrap();
    watching.end().await.unwrap();
    assert_eq!(watching.buffered().len(), 2);
    let unknown = WatchRequest { keys: by_id(&id_of(&new_token())).into_iter().collect(), ..Default::default() };
    expect_error(client.watch(unknown).await.map(drop), Code::NotFound, "SESSION_NOT_FOUND");
}

#[tokio::test]
async fn watch_by_token_closes_when_its_session_ends() {
    let Setup { client, .. } = &setup().await;
    let (session, token) = client.create(&[]).await;
    let request = WatchRequest { keys: vec![by_token_key(&token)], ..Default::default() };
    let mut watching = client.watch(request).await.unwrap();
    watching.bookmark().await;
    client.delete(by_id(&session.id)).await.unwrap();
    let status = expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(status.metadata_of("cause"), "LOGOUT");
    assert_eq!(watching.buffered().len(), 1);
    let wrong_secret = format!("{}{}", &token[..31], &new_token()[31..]);
    let request = WatchRequest { keys: vec![by_token_key(&wrong_secret)], ..Default::default() };
    expect_error(client.watch(request).await.map(drop), Code::NotFound, "SESSION_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w7_expiry_is_delivered_once_with_cause_and_never_early() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watches = [client.watch_all().await, other.watch_all().await];
    let creates = (0..200).map(async |n: i64| {
        let idle_timeout = millis(100 + n * 5);
        let absolute_timeout = if n % 2 == 0 { millis(100 + n * 5) } else { seconds(60) };
        let attributes = [("n".to_owned(), text(&n.to_string()))].into();
        let request = CreateSessionRequest { idle_timeout, absolute_timeout, attributes, ..Default::default() };
        client.create_with(request).await.unwrap().0
    });
    let sessions: HashMap<_, _> =
        join_all(creates).await.into_iter().map(|session| (session.id.clone(), session)).collect();
    for watching in &mut watches {
        let mut endings = HashSet::new();
        while endings.len() < sessions.len() {
            let event = watching.event().await;
            if event.r#type() != EventType::Ended {
                continue;
            }
            let session = &sessions[&event.id];
            assert!(endings.insert(event.id.clone()), "delivered twice");
            let expected = if session.expire_time == session.absolute_expire_time {
                Cause::AbsoluteTimeout
            } else {
                Cause::IdleTimeout
            };
            assert_eq!(event.cause(), expected);
            assert_eq!(event.session.as_ref(), Some(session));
            let (due, at) = (session.expire_time.unwrap(), event.event_time.unwrap());
            assert!((at.seconds, at.nanos) >= (due.seconds, due.nanos), "early");
        }
        assert!(watching.events_until_now().await.is_empty(), "one ENDED event per session");
    }
    let expired = async |server: &harness::Server| server.metric("sessiond_sessions_expired_total").await as usize;
    assert_eq!(expired(&a).await + expired(&b).await, sessions.len());
}

#[tokio::test]
async fn resume_token_older_than_the_log_gets_a_resync() {
    let Setup { world, client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let token = watching.token.clone();
    for _ in 0..3 {
        work(&[client], 20).await;
    }
    watching.events(300).await;
    for log in world.redis.keys(&format!("{}*:log", world.prefix)) {
        world.redis.command(&["XTRIM", &log, "MAXLEN", "1"]);
    }
    let mut resumed = client.resume(&token).await;
    assert_eq!(resumed.resync().await.reason(), ResyncReason::Compacted);
    // The stream stays open.
    let changes = work(&[client], 5).await;
    assert_complete(&resumed.events(changes).await, changes);
    assert_complete(&watching.events(changes).await, changes);
}

#[tokio::test]
async fn resume_token_of_other_store_or_branch_gets_a_resync() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    work(&[client], 4).await;
    watching.events(20).await;
    let own = ResumeToken::decode(&watching.token).unwrap();
    let other_store = ResumeToken { store: sessiond::store::StoreId([1; 16]), ..own.clone() };
    let mut ahead = own.clone();
    ahead.positions[3].revision = Revision(ahead.positions[3].revision.0 + 3_600_000_000);
    let mut other_branch = own.clone();
    other_branch.positions.iter_mut().for_each(|position| position.nonce ^= 1);
    for (token, reason) in
        [(other_store, ResyncReason::Flushed), (ahead, ResyncReason::Rollback), (other_branch, ResyncReason::Rollback)]
    {
        let mut resumed = client.resume(&token.encode()).await;
        assert_eq!(resumed.resync().await.reason(), reason);
        let (session, _) = client.create(&[]).await;
        resumed.wait_for(EventType::Created, &session.id).await;
    }
}

#[tokio::test]
async fn flushed_store_sends_a_resync_and_keeps_serving() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    watching.event().await;
    world.redis.command(&["FLUSHALL"]);
    assert_eq!(watching.resync().await.reason(), ResyncReason::Flushed);
    expect_error(client.get(by_id(&session.id)).await, Code::NotFound, "SESSION_NOT_FOUND");
    let (session, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &session.id).await;
}

#[tokio::test]
async fn stopped_server_closes_watches_with_resume_tokens() {
    let world = World::shared();
    let mut server = world.server().await;
    let other = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    watching.event().await;
    server.start_shutdown();
    expect_error(watching.end().await, Code::Unavailable, "DRAINING");
    server.stop().await;
    let client = other.client().await;
    client.delete(by_id(&session.id)).await.unwrap();
    let mut resumed = client.resume(&watching.token).await;
    assert_eq!(resumed.event().await.r#type(), EventType::Ended);
}

#[tokio::test]
async fn open_watches_are_counted() {
    let Setup { server, client, .. } = &setup().await;
    let watches = [client.watch_all().await, client.watch_all().await];
    assert_eq!(server.metric("sessiond_watches").await, 2.0);
    drop(watches);
    eventually("the watches are closed", async || (server.metric("sessiond_watches").await == 0.0).then_some(())).await;
    let cancelled = "sessiond_grpc_requests_total{method=\"Watch\",code=\"CANCELLED\"}";
    eventually("the calls are counted as cancelled", async || (server.metric(cancelled).await == 2.0).then_some(()))
        .await;
}

#[tokio::test]
async fn watch_receives_a_bookmark_at_once() {
    let Setup { client, .. } = &setup().await;
    let request = WatchRequest { bookmark_interval: seconds(60), ..whole_namespace() };
    let mut watching = client.watch(request).await.unwrap();
    let first = watching.response().await.unwrap().unwrap();
    assert!(first.events.is_empty() && matches!(first.control, Some(Control::Bookmark(_))));
}

#[tokio::test]
async fn concurrent_delete_and_expiry_produce_one_end() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = client.watch_all().await;
    let races = (0..100).map(async |n: i64| {
        let request = CreateSessionRequest { idle_timeout: millis(40), ..Default::default() };
        let (session, _) = client.create_with(request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30 + n as u64 % 20)).await;
        let delete =
            DeleteSessionRequest { namespace: NAMESPACE.into(), key: by_id(&session.id), ..Default::default() };
        let deleted = other.grpc.clone().delete_session(delete).await.unwrap().into_inner().deleted;
        (session.id, deleted)
    });
    let deleted: HashMap<_, _> = join_all(races).await.into_iter().collect();
    let mut endings = HashMap::new();
    while endings.len() < deleted.len() {
        let event = watching.event().await;
        if event.r#type() == EventType::Ended {
            assert!(endings.insert(event.id.clone(), event.cause()).is_none(), "delivered twice");
        }
    }
    assert!(watching.events_until_now().await.is_empty());
    for (id, cause) in endings {
        assert_eq!(cause == Cause::Logout, deleted[&id], "{cause:?}");
    }
}

#[tokio::test]
async fn concurrent_touch_and_expiry_agree() {
    let Setup { client, .. } = &setup_with("[default_policy]\ntouch_interval = '0s'").await;
    let mut watching = client.watch_all().await;
    let races = (0..50).map(async |n: u64| {
        let request = CreateSessionRequest { idle_timeout: millis(60), ..Default::default() };
        let (session, token) = client.create_with(request).await.unwrap();
        let mut expires = session.expire_time.unwrap();
        // The pauses grow, so that one touch is late.
        for pause in 50 + n % 15.. {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let key = by_token(&token);
            let touch = sessiond_client::v1::TouchSessionRequest { namespace: NAMESPACE.into(), key };
            match client.grpc.clone().touch_session(touch).await {
                Ok(touched) => expires = touched.into_inner().expire_time.unwrap(),
                Err(_) => break,
            }
        }
        (session.id, (expires.seconds, expires.nanos))
    });
    let last: HashMap<_, _> = join_all(races).await.into_iter().collect();
    let mut ended = Vec::new();
    while ended.len() < last.len() {
        ended.extend(Some(watching.event().await).filter(|event| event.r#type() == EventType::Ended));
    }
    for event in ended {
        let at = event.event_time.unwrap();
        assert!((at.seconds, at.nanos) >= last[&event.id], "ended before the deadline that the last touch returned");
    }
}

#[tokio::test]
async fn w5_busy_watch_receives_bookmarks() {
    let Setup { client, .. } = &setup().await;
    let (_, token) = client.create(&[]).await;
    let mut watching = client.watch_all().await;
    let flow = async {
        for n in 0.. {
            client.set(by_token(&token), &[("n", text(&n.to_string()))]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let five = async {
        for _ in 0..5 {
            watching.bookmark().await;
        }
    };
    tokio::select! {
        () = flow => {}
        () = five => {}
    }
    assert!(watching.buffered().len() >= 5);
}

#[tokio::test]
async fn w3_large_events_fit_the_default_message_limit() {
    let Setup { client, .. } = &setup().await;
    let start = client.watch_all().await.token;
    let name = |n: usize| format!("{n:03}{}", "x".repeat(120));
    let attributes: Vec<_> = (0..256).map(|n| (name(n), text(""))).collect();
    let attributes: Vec<_> = attributes.iter().map(|(name, value)| (&name[..], value.clone())).collect();
    let (_, token) = client.create(&attributes).await;
    for turn in 0..150 {
        let all: Vec<_> = attributes.iter().map(|(name, _)| (*name, text(&turn.to_string()))).collect();
        client.set(by_token(&token), &all).await.unwrap();
    }
    // Both responses from the log and from the ring stay below the 4 MiB that clients accept by default.
    assert_eq!(client.resume(&start).await.events(151).await.len(), 151);
}

#[tokio::test]
async fn w3_missing_log_entry_sends_a_resync() {
    let Setup { world, client, .. } = &setup().await;
    let start = client.watch_all().await.token;
    let (session, token) = client.create(&[]).await;
    for n in 0..5 {
        client.set(by_token(&token), &[("n", text(&n.to_string()))]).await.unwrap();
    }
    let logs = world.redis.keys(&format!("{}*:log", world.prefix));
    let entries = world.redis.list(&["XRANGE", &logs[0], "-", "+"]);
    let ids: Vec<_> = entries.iter().filter(|text| text.len() < 60 && text.contains('-')).collect();
    assert_eq!((logs.len(), ids.len()), (1, 6));
    world.redis.command(&["XDEL", &logs[0], ids[3]]);
    let mut resumed = client.resume(&start).await;
    assert_eq!(resumed.resync().await.reason(), ResyncReason::Rollback);
    let before: Vec<_> = resumed.buffered().iter().map(|event| event.id.clone()).collect();
    assert_eq!(before, [&session.id[..]; 3], "the events before the missing entry are delivered");
}

#[tokio::test]
async fn trimmed_log_sends_a_resync_to_older_resume_tokens() {
    let world = World::shared();
    for bounds in ["log_max_bytes = '64 KiB'", "log_max_age = '1s'"] {
        let server = world.server_with(bounds).await;
        let client = server.client().await;
        let start = client.watch_all().await.token;
        let (_, token) = client.create(&[]).await;
        let long = incompressible(2_000);
        for n in 0..100 {
            client.set(by_token(&token), &[("long", text(&format!("{n}{long}")))]).await.unwrap();
        }
        eventually("the log is trimmed", async || {
            let logs = world.redis.keys(&format!("{}*:log", world.prefix));
            let entries: i64 = logs.iter().map(|log| world.redis.number(&["XLEN", log])).sum();
            (entries < 50).then_some(())
        })
        .await;
        assert_eq!(client.resume(&start).await.resync().await.reason(), ResyncReason::Compacted);
        // Changes after the trim are delivered completely.
        let now = client.watch_all().await.token;
        client.set(by_token(&token), &[("short", text("1"))]).await.unwrap();
        assert_eq!(client.resume(&now).await.event().await.changed_attributes, ["short"]);
        client.delete(by_token(&token)).await.unwrap();
    }
}
