//! Faults: late packets, cut connections, and stopped or killed processes.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use harness::{
    Redis, Server, Setup, World,
    client::*,
    eventually,
    process::Process,
    proxy::Proxy,
    servers::run_blocking,
    writers::{assert_complete_in_order, write_during},
};
use rustix::process::Signal;
use sessiond::store::scripts;
use sessiond_client::v1::{
    CreateSessionRequest, EventType, GetSessionRequest, ResyncReason, SessionEvent, TokenState, TouchSessionRequest,
    UpdateSessionRequest,
};
use tokio::time::Instant;
use tonic::Code;

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Configuration with a short call timeout. Clients in these tests set no deadline, because their timer would end the
/// call first.
const IMPATIENT: &str = "[limits]\ncall_timeout = '700ms'";

/// Returns a request that sets one attribute.
fn set(namespace: &str, id: &str, name: &str, value: &str) -> UpdateSessionRequest {
    UpdateSessionRequest {
        namespace: namespace.into(),
        key: by_id(id),
        set_attributes: [(name.to_owned(), text(value))].into(),
        ..Default::default()
    }
}

/// Delivers an update and a create to Redis only after both sessions were deleted, and checks that neither is revived.
///
/// `before_delivery` runs between the deletes and the delivery.
async fn late_write(before_delivery: impl AsyncFnOnce(&World, &str)) {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let behind = Server::start(&proxy.url(), &world.prefix, IMPATIENT).await;
    let direct = world.server().await;
    let (slow, client) = (behind.client().await, direct.client().await);
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[("a", text("1"))]).await;
    // A call, so that the slow server has an estimate of the Redis clock.
    slow.get(by_id(&session.id)).await.unwrap();
    proxy.hold_requests_at(&scripts::UPDATE);
    let mut grpc = slow.grpc.clone();
    let write = grpc.update_session(set(NAMESPACE, &session.id, "late", "1"));
    let token = new_token();
    let create = CreateSessionRequest { namespace: NAMESPACE.into(), token: token.clone(), ..Default::default() };
    let create = async {
        eventually("the update is held back", async || proxy.is_holding_requests().then_some(())).await;
        slow.grpc.clone().create_session(create).await
    };
    let (write, create) = tokio::join!(write, create);
    for result in [write.map(drop), create.map(drop)] {
        expect_error(result, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    }
    assert!(client.delete(by_id(&session.id)).await.unwrap());
    client.delete(by_id(&id_of(&token))).await.unwrap();
    before_delivery(&world, &world.prefix).await;
    proxy.release_requests();
    // Once the slow server reads from Redis again, the held requests have been delivered.
    eventually("the slow server responds again", async || {
        slow.get(by_id(&session.id)).await.err().filter(is_not_found)
    })
    .await;
    for id in [&session.id, &id_of(&token)] {
        expect_not_found(&client, id).await;
    }
    let events = watching.events_until_now().await;
    let kinds: Vec<_> = events.iter().map(SessionEvent::r#type).collect();
    assert_eq!(kinds, [EventType::Created, EventType::Ended]);
}

fn is_not_found(status: &tonic::Status) -> bool {
    status.code() == Code::NotFound
}

async fn expect_not_found(client: &Client, id: &str) {
    assert_eq!(client.get(by_id(id)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn s3_late_write_does_not_revive_a_deleted_session() {
    late_write(async |_, _| {}).await;
}

#[tokio::test]
async fn s3_write_after_the_tombstone_does_not_revive() {
    late_write(async |world, prefix| {
        // Deletes the tombstones, as their expiry would.
        for key in world.redis.keys(&format!("{prefix}*:s:*")) {
            world.redis.command(&["DEL", &key]);
        }
    })
    .await;
}

#[tokio::test]
async fn cut_connection_is_outcome_unknown_and_not_resent() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "").await;
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    let writes = |redis: &Redis| {
        let logs = redis.keys("*:log");
        logs.iter().map(|log| redis.number(&["XLEN", log])).sum::<i64>()
    };
    let before = writes(&world.redis);
    proxy.hold_requests_at(&scripts::UPDATE);
    let mut grpc = client.grpc.clone();
    let write = grpc.update_session(set(NAMESPACE, &session.id, "a", "1"));
    let cut = async {
        eventually("the write is sent", async || proxy.is_holding_requests().then_some(())).await;
        proxy.cut();
        proxy.release_requests();
    };
    let (result, ()) = tokio::join!(write, cut);
    expect_error(result.map(drop), Code::Unknown, "OUTCOME_UNKNOWN");
    eventually("the server responds again", async || client.set(by_id(&session.id), &[("b", text("2"))]).await.ok())
        .await;
    assert_eq!(writes(&world.redis), before + 1, "the lost write is not sent again");
    assert_eq!(client.get(by_id(&session.id)).await.unwrap().attributes.len(), 1);
}

/// The first use of a token is recorded by a script. Nothing that the caller of a plain read waits for can be lost with it.
#[tokio::test]
async fn lost_first_use_is_answered_and_lost_touch_unknown() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "[default_policy]\ntouch_interval = '0s'").await;
    let client = server.client().await;
    for touch in [false, true] {
        let token = eventually("a session", async || client.create_with(Default::default()).await.ok()).await.1;
        let token = client.rotate(&token).await.unwrap();
        proxy.hold_replies_after(&scripts::READ, 1);
        let request =
            GetSessionRequest { namespace: NAMESPACE.into(), key: by_token(&token), touch, ..Default::default() };
        let mut grpc = client.grpc.clone();
        let cut = async {
            eventually("Redis has replied", async || proxy.is_holding_replies().then_some(())).await;
            proxy.cut();
            proxy.release_replies();
        };
        let (read, ()) = tokio::join!(grpc.get_session(request), cut);
        match touch {
            // The record that was read before answers.
            false => assert_eq!(read.unwrap().into_inner().token_state(), TokenState::Current),
            true => drop(expect_error(read, Code::Unknown, "OUTCOME_UNKNOWN")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w3_killed_subscriber_loses_and_duplicates_nothing() {
    let world = World::dedicated();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let kill = async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let redis = world.redis.clone();
            tokio::task::spawn_blocking(move || redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"])).await.unwrap();
        }
    };
    let (acknowledged, events) = tokio::join!(write_during(&clients, 10_000, kill), async {
        let mut events = watching.events(10_000).await;
        events.extend(watching.events_until_now().await);
        events
    });
    let mut events = events;
    events.extend(watching.events_until_now().await);
    let count: usize = acknowledged.values().map(HashSet::len).sum();
    assert!(count >= 10_000, "{count}");
    assert_eq!(events.len(), count, "one event per change, because no write has failed");
    assert_complete_in_order(&events, &acknowledged);
    assert!(b.metric("sessiond_feed_gaps_total").await > 0.0, "the fault had an effect");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_scripts_are_reloaded() {
    let world = World::dedicated();
    let server = world.server().await;
    let clients = [server.client().await];
    let mut watching = clients[0].watch_all().await;
    let flush = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            world.redis.command(&["SCRIPT", "FLUSH"]);
        }
    };
    let acknowledged = write_during(&clients, 2_000, flush).await;
    let events = watching.events_until_now().await;
    let count: usize = acknowledged.values().map(HashSet::len).sum();
    assert_eq!((events.len(), count >= 2_000), (count, true), "no write failed or was done twice");
    assert_complete_in_order(&events, &acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_redis_keeps_acknowledged_writes() {
    let world = World::dedicated_with(&DURABLE);
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let restart = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            world.redis.kill();
            world.redis.restart();
            eventually("the server responds again", async || clients[0].create_with(Default::default()).await.ok())
                .await;
        }
    };
    let acknowledged = write_during(&clients, 0, restart).await;
    let events = watching.events_until_now().await;
    assert_complete_in_order(&events, &acknowledged);
    for (id, revisions) in &acknowledged {
        let session = clients[0].get(by_id(id)).await.unwrap();
        assert!(session.revision >= *revisions.iter().max().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_of_a_killed_server_resumes_on_another() {
    let world = World::dedicated();
    let mut process = Process::start(&[format!("--redis={}", world.redis.url())]);
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = process.client().await.watch_all().await;
    let clients = [client.clone()];
    let (acknowledged, mut events) =
        tokio::join!(write_during(&clients, 1_000, tokio::time::sleep(Duration::from_millis(500))), async {
            let events = watching.events(200).await;
            process.kill();
            let mut events = [events, watching.buffered()].concat();
            // Includes the responses that arrived before the connection broke.
            while let Ok(Some(response)) = watching.response().await {
                events.extend(response.events);
            }
            watching = client.resume(&watching.token).await;
            events
        });
    events.extend(watching.events_until_now().await);
    assert_eq!(events.len(), acknowledged.values().map(HashSet::len).sum::<usize>());
    assert_complete_in_order(&events, &acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_on_paused_redis_fail_in_time_and_unapplied() {
    let world = World::dedicated();
    let (a, b) = (world.server_with(IMPATIENT).await, world.server_with(IMPATIENT).await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let sessions = join_all((0..8).map(async |_| clients[0].create(&[]).await.0)).await;
    world.redis.pause();
    let began = Instant::now();
    let workers = (0..8).map(async |worker: usize| {
        let (client, session) = (&clients[worker % 2], &sessions[worker]);
        let (mut unavailable, mut unknown, mut turn) = (HashSet::new(), HashSet::new(), 0);
        while began.elapsed() < Duration::from_secs(5) {
            turn += 1;
            let name = format!("turn{turn}");
            let mut grpc = client.grpc.clone();
            let sent = Instant::now();
            let status = grpc.update_session(set(NAMESPACE, &session.id, &name, "1")).await.unwrap_err();
            assert!(sent.elapsed() < Duration::from_secs(2), "late: {:?}", sent.elapsed());
            match (status.code(), &status.reason()[..]) {
                (Code::Unavailable, "STORE_UNAVAILABLE") => unavailable.insert(name),
                (Code::DeadlineExceeded | Code::Unknown, "OUTCOME_UNKNOWN") => unknown.insert(name),
                // The deadline passed before the write was sent.
                (Code::DeadlineExceeded, "STORE_TIMEOUT") => unavailable.insert(name),
                other => panic!("{other:?}: {status:?}"),
            };
            let read = GetSessionRequest { namespace: NAMESPACE.into(), key: by_id(&session.id), ..Default::default() };
            let status = grpc.get_session(read).await.unwrap_err();
            let expected = [(Code::Unavailable, "STORE_UNAVAILABLE"), (Code::DeadlineExceeded, "STORE_TIMEOUT")];
            assert!(expected.contains(&(status.code(), &status.reason())), "{status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (session, unavailable, unknown)
    });
    let outcomes = join_all(workers).await;
    assert!(outcomes.iter().all(|(_, unavailable, _)| !unavailable.is_empty()), "the server closed the connection");
    world.redis.resume();
    for client in &clients {
        eventually("the server responds again", async || {
            client.set(by_id(&sessions[0].id), &[("x", text("1"))]).await.ok()
        })
        .await;
    }
    let events = watching.events_until_now().await;
    for (session, unavailable, unknown) in outcomes {
        let held = clients[0].get(by_id(&session.id)).await.unwrap();
        for name in held.attributes.keys().filter(|name| *name != "x") {
            assert!(
                unknown.contains(name) && !unavailable.contains(name),
                "{name} was applied although the call returned UNAVAILABLE"
            );
        }
        // The watcher has missed nothing: its last event has the current revision.
        let last = events.iter().rfind(|event| event.id == session.id).unwrap();
        assert_eq!(last.revision, held.revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_redis_fails_pending_calls_before_their_deadline() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    let (session, _) = client.create(&[]).await;
    let (deleted, _) = client.create(&[]).await;
    world.redis.pause();
    let (key, attributes) = (by_id(&session.id), [("a", text("1"))]);
    let (read, updated, deleted) =
        tokio::join!(client.get(key.clone()), client.set(key.clone(), &attributes), client.delete(by_id(&deleted.id)));
    // An update reads first.
    for status in [read.unwrap_err(), updated.unwrap_err()] {
        assert_eq!((status.code(), &status.reason()[..]), (Code::Unavailable, "STORE_UNAVAILABLE"));
    }
    expect_error(deleted, Code::Unknown, "OUTCOME_UNKNOWN");
    world.redis.resume();
    eventually("the server responds again", async || client.set(key.clone(), &attributes).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_redis_replaces_the_subscriber_connection() {
    let world = World::dedicated();
    let process = Process::start(&[format!("--redis={}", world.redis.url())]);
    let client = process.client().await;
    let mut watching = client.watch_all().await;
    let before = world.redis.subscribers();
    assert_eq!(before.len(), 1);
    world.redis.pause();
    // The connection for calls or the subscriber notices it; no new connection is possible before Redis resumes.
    let notices = || process.log.lock().unwrap().contains("Redis unresponsive; reconnecting");
    eventually("the server notices it", async || notices().then_some(())).await;
    world.redis.resume();
    eventually("a new connection subscribes", async || {
        let now = world.redis.subscribers();
        (now.len() == 1 && now.is_disjoint(&before)).then_some(())
    })
    .await;
    let (session, _) =
        eventually("calls succeed again", async || client.create_with(Default::default()).await.ok()).await;
    watching.wait_for(EventType::Created, &session.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_with_full_send_buffer_is_replaced() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    let sessions = join_all((0..8).map(async |_| client.create(&[]).await.0)).await;
    world.redis.pause();
    // Far more incompressible bytes than the socket buffer holds, so that writes to the socket block.
    let large: String = (0..400).map(|_| new_token()).collect();
    let write =
        async |turn: usize| client.set(by_id(&sessions[turn % 8].id), &[("large", text(&large))]).await.unwrap_err();
    let errors = join_all((0..200).map(write)).await;
    assert!(errors.iter().all(|status| ["OUTCOME_UNKNOWN", "STORE_UNAVAILABLE"].contains(&&status.reason()[..])));
    let is_unavailable = async || {
        let status = client.set(by_id(&sessions[0].id), &[("a", text("1"))]).await.unwrap_err();
        status.message().contains("reconnecting").then_some(())
    };
    eventually("the server sends nothing more", is_unavailable).await;
    world.redis.resume();
    for session in &sessions {
        eventually("calls succeed again", async || client.set(by_id(&session.id), &[("a", text("1"))]).await.ok())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_with_full_queue_is_replaced() {
    // More than the queue of the connection holds.
    const CALLS: usize = 20_000;
    let Setup { world, server, client } = &World::dedicated().setup().await;
    let (session, _) = client.create(&[]).await;
    let clients = join_all((0..25).map(|_| server.client())).await;
    world.redis.pause();
    let touch = async |client: &Client| {
        let request = TouchSessionRequest { namespace: NAMESPACE.into(), key: by_id(&session.id) };
        client.grpc.clone().touch_session(request).await
    };
    let flood = join_all((0..CALLS).map(async |number| touch(&clients[number % clients.len()]).await.is_err()));
    let replaced = eventually("the connection is replaced", async || {
        let status = touch(client).await.unwrap_err();
        status.message().contains("reconnecting").then_some(())
    });
    assert!(tokio::join!(flood, replaced).0.iter().all(|failed| *failed));
    world.redis.resume();
    eventually("calls succeed again", async || touch(client).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_store_with_leftover_meta_is_recreated() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    let mut watching = client.watch_all().await;
    client.create(&[]).await;
    watching.event().await;
    for meta in world.redis.keys("*:meta") {
        // One script, so that no other command runs between the two writes.
        let empty = "redis.call('DEL', KEYS[1]) redis.call('HSET', KEYS[1], 'bytes', '5')";
        world.redis.must(&["EVAL", empty, "1", &meta]);
    }
    assert_eq!(watching.resync().await.reason(), ResyncReason::Flushed);
    eventually("creates succeed again", async || client.create_with(Default::default()).await.ok()).await;
    let another = world.server().await;
    another.client().await.create(&[]).await;
}

#[tokio::test]
async fn readiness_follows_redis() {
    let world = World::dedicated();
    let server = world.server().await;
    let ready = async || server.http("/readyz").await.is_some_and(|response| response.starts_with("HTTP/1.1 200"));
    assert!(ready().await);
    world.redis.pause();
    eventually("the server is not ready", async || (!ready().await).then_some(())).await;
    assert!(server.http("/healthz").await.unwrap().starts_with("HTTP/1.1 200"), "the process itself is alive");
    world.redis.resume();
    eventually("the server is ready again", async || ready().await.then_some(())).await;
}

#[tokio::test]
async fn embedded_redis_data_survives_a_killed_sessiond() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [format!("--data-dir={}", directory.path().display())];
    let mut process = Process::start(&arguments);
    let (session, token) = process.client().await.create(&[("cart", json(r#"["item1"]"#))]).await;
    // The embedded Redis syncs its file every second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    process.kill();
    let mut process = Process::start(&arguments);
    assert_eq!(process.client().await.get(by_token(&token)).await.unwrap(), session);
    // A second sessiond on the same directory exits with one log line.
    let (log, code) = Process::expect_start_failure(&arguments);
    assert!(log.contains("in use by another sessiond") && code == Some(1), "{log}");
    assert_eq!(process.stop().await, Some(0));
    let process = Process::start(&arguments);
    assert_eq!(process.client().await.get(by_token(&token)).await.unwrap(), session);
}

#[tokio::test]
async fn sigterm_finishes_pending_calls() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    // Started on another thread, because the proxy runs on this one.
    let arguments = [format!("--redis={}", proxy.url())];
    let mut process = run_blocking(move || Process::start(&arguments)).await;
    let client = process.client().await;
    let (session, _) = client.create(&[]).await;
    proxy.hold_replies_after(&scripts::UPDATE, 1);
    let mut grpc = client.grpc.clone();
    let write = grpc.update_session(set(NAMESPACE, &session.id, "a", "1"));
    let stop = async {
        eventually("the call waits for Redis", async || proxy.is_holding_replies().then_some(())).await;
        process.signal(Signal::TERM);
        let drains = || process.log.lock().unwrap().contains("draining");
        eventually("the server drains", async || drains().then_some(())).await;
        proxy.release_replies();
    };
    let (result, ()) = tokio::join!(write, stop);
    result.unwrap();
    assert_eq!(process.wait().await, Some(0));
}

#[tokio::test]
async fn full_redis_rejects_writes_but_reads_and_ends() {
    let Setup { world, client, .. } = &World::dedicated().setup_with("[default_policy]\ntouch_interval = '0s'").await;
    let mut watching = client.watch_all().await;
    let (session, token) = client.create(&[("a", text("1"))]).await;
    let short = CreateSessionRequest { idle_timeout: millis(500), ..Default::default() };
    let (short, _) = client.create_with(short).await.unwrap();
    world.redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    expect_error(client.create_with(Default::default()).await, Code::ResourceExhausted, "STORE_FULL");
    expect_error(client.set(by_token(&token), &[("b", text("2"))]).await, Code::ResourceExhausted, "STORE_FULL");
    let touch = TouchSessionRequest { namespace: NAMESPACE.into(), key: by_token(&token) };
    client.grpc.clone().touch_session(touch).await.unwrap();
    assert_eq!(client.get(by_token(&token)).await.unwrap().attributes.len(), 1);
    assert!(client.delete(by_token(&token)).await.unwrap());
    watching.wait_for(EventType::Ended, &session.id).await;
    watching.wait_for(EventType::Ended, &short.id).await;
    world.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    client.create(&[]).await;
}

#[tokio::test]
async fn reads_succeed_while_redis_rejects_writes() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    let (_, token) = client.create(&[]).await;
    world.redis.refuse_saves().await;
    client.get(by_token(&token)).await.unwrap();
    let write = client.set(by_token(&token), &[("a", text("1"))]).await;
    expect_error(write, Code::Unavailable, "STORE_UNAVAILABLE");
    world.redis.permit_saves().await;
    assert!(client.get(by_token(&token)).await.unwrap().attributes.is_empty(), "nothing was applied");
}
