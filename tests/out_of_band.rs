//! Guarantee W10: an out-of-band deletion in Redis ends its session once, with cause OUT_OF_BAND.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use harness::{
    Client, ConfigFile, Redis, Server, Setup, WAIT_LIMIT, WatchReader, World, client::*, eventually, process::Process,
    redis::KEYSPACE_NOTIFICATIONS,
};
use sessiond_client::v1::{
    AttributeValue, Cause, CreateSessionRequest, EventType, ResyncReason, Session, SessionEvent, WatchRequest,
    watch_response::Control,
};
use tokio::time::timeout;
use tonic::Code;

/// Starts a Redis with keyspace notifications.
fn notifying_redis() -> World {
    World::dedicated_with(&KEYSPACE_NOTIFICATIONS)
}

/// Returns the key of a session.
fn key_of(world: &World, session: &Session) -> String {
    let keys = world.redis.keys(&format!("*:s:{NAMESPACE}:{}", session.id));
    keys.into_iter().next().expect("the session has a key")
}

/// Creates this many sessions, 20 at a time.
async fn create_many(client: &Client, sessions: usize, attributes: &[(&str, AttributeValue)]) {
    for _ in 0..sessions / 20 {
        join_all((0..20).map(|_| client.create(attributes))).await;
    }
}

/// Waits until the metric counts this many out-of-band deletions. The server counts one when the script has returned,
/// which is after the event was published.
async fn wait_for_count(server: &Server, deleted: usize) {
    let is_counted =
        async || (server.metric("sessiond_sessions_deleted_out_of_band_total").await == deleted as f64).then_some(());
    eventually("the deletions are counted", is_counted).await;
}

/// Waits for the ENDED event of a session and checks that no event of it follows.
async fn single_end(watching: &mut WatchReader, session: &Session) -> SessionEvent {
    let ended = watching.wait_for(EventType::Ended, &session.id).await;
    let rest = watching.events_until_now().await;
    assert!(rest.iter().all(|event| event.id != session.id), "an event after the end: {rest:?}");
    ended
}

#[tokio::test]
async fn w10_deleted_key_ends_its_session_once_on_all_instances() {
    let world = notifying_redis();
    let servers = [world.server().await, world.server().await, world.server().await];
    let mut clients = Vec::new();
    let mut watches = Vec::new();
    for server in &servers {
        clients.push(server.client().await);
        watches.push(clients.last().unwrap().watch_all().await);
    }
    let commands: [&[&str]; 3] = [&["DEL"], &["UNLINK"], &["RENAME"]];
    for words in commands {
        let (session, token) = clients[0].create(&[]).await;
        let key = key_of(&world, &session);
        let to = "renamed".to_owned();
        let mut words: Vec<&str> = words.iter().copied().chain([&key[..]]).collect();
        if words[0] == "RENAME" {
            words.push(&to);
        }
        world.redis.command(&words);
        for watching in &mut watches {
            let ended = single_end(watching, &session).await;
            assert_eq!(ended.cause(), Cause::OutOfBand, "{words:?}");
        }
        let refused = expect_error(clients[1].get(by_token(&token)).await, Code::NotFound, "SESSION_NOT_FOUND");
        assert!(refused.message().len() > 10);
        assert_eq!(world.redis.number(&["EXISTS", &key]), 1, "a tombstone exists under the key");
    }
}

#[tokio::test]
async fn key_expired_by_another_client_ends_its_session() {
    let Setup { world, client, .. } = &notifying_redis().setup().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    world.redis.command(&["PEXPIRE", &key_of(world, &session), "50"]);
    assert_eq!(single_end(&mut watching, &session).await.cause(), Cause::OutOfBand);
}

#[tokio::test]
async fn deleted_key_after_its_deadline_ends_by_timeout() {
    let Setup { world, server, client } = notifying_redis().setup().await;
    let mut watching = client.watch_all().await;
    let request = CreateSessionRequest { idle_timeout: millis(1_000), ..Default::default() };
    let (session, _) = client.create_with(request).await.unwrap();
    let key = key_of(&world, &session);
    // Without the namespace sets the expiry worker does not find the session. So the script of the keyspace reconciler
    // decides the cause.
    world.redis.keys("*:ns").iter().for_each(|namespaces| drop(world.redis.must(&["DEL", namespaces])));
    let expires = session.expire_time.unwrap();
    let is_over = async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        (now > Duration::new(expires.seconds as u64, expires.nanos as u32)).then_some(())
    };
    eventually("the deadline has passed", is_over).await;
    assert_eq!(watching.events_until_now().await.len(), 1, "created and not ended");
    world.redis.must(&["DEL", &key]);
    assert_eq!(single_end(&mut watching, &session).await.cause(), Cause::IdleTimeout);
    wait_for_count(&server, 1).await;
    assert_eq!(server.metric("sessiond_sessions_expired_total").await, 0.0);
}

#[tokio::test]
async fn many_deleted_keys_are_all_delivered() {
    const SESSIONS: usize = 500;
    let Setup { world, server, client } = notifying_redis().setup().await;
    let mut watching = client.watch_all().await;
    create_many(&client, SESSIONS, &[]).await;
    let keys = world.redis.keys("ses:*:s:*");
    let words: Vec<&str> = ["UNLINK"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    world.redis.command(&words);
    let mut ended = 0;
    while ended < SESSIONS {
        let event = watching.event().await;
        if event.r#type() == EventType::Ended {
            assert_eq!(event.cause(), Cause::OutOfBand);
            ended += 1;
        }
    }
    wait_for_count(&server, SESSIONS).await;
}

#[tokio::test]
async fn deleted_key_is_delivered_to_id_and_subject_watches() {
    let Setup { world, client, .. } = &notifying_redis().setup().await;
    let (session, _) = client.create_for("anna").await;
    let by_id = vec![by_id(&session.id).unwrap()];
    let mut by_id = client.watch(WatchRequest { keys: by_id, ..Default::default() }).await.unwrap();
    let mut by_subject =
        client.watch(WatchRequest { subject: Some("anna".into()), ..Default::default() }).await.unwrap();
    world.redis.command(&["DEL", &key_of(world, &session)]);
    for watching in [&mut by_id, &mut by_subject] {
        assert_eq!(watching.event().await.cause(), Cause::OutOfBand);
    }
    by_id.end().await.unwrap();
}

#[tokio::test]
async fn forged_keyspace_notification_ends_nothing() {
    let world = notifying_redis();
    // One partition, so that notifications are checked together or in order.
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    let key = key_of(&world, &session);
    let no_such = key.replace(&session.id, "aaaaaaaaaaaaaaaaaaaaaaaaaa");
    for event in ["del", "unlink", "expired", "evicted", "rename_from"] {
        for key in [&key[..], &no_such, "ses:{", "message", ""] {
            world.redis.command(&["PUBLISH", &format!("__keyevent@0__:{event}"), key]);
        }
    }
    // A real deletion after the forged ones: when it is delivered, those have been checked.
    let (deleted, _) = client.create(&[]).await;
    world.redis.command(&["DEL", &key_of(&world, &deleted)]);
    watching.wait_for(EventType::Ended, &deleted.id).await;
    wait_for_count(&server, 1).await;
    assert!(client.lives(&session.id).await);
    assert!(watching.events_until_now().await.is_empty());
}

#[tokio::test]
async fn delete_by_call_is_not_counted_as_out_of_band() {
    let world = notifying_redis();
    // One partition, so that notifications are checked together or in order.
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    for n in 0..20 {
        let (session, token) = client.create(&[]).await;
        if n % 2 == 0 { client.delete(by_id(&session.id)).await } else { client.delete(by_token(&token)).await }
            .unwrap();
        let ended = single_end(&mut watching, &session).await;
        assert_ne!(ended.cause(), Cause::OutOfBand);
    }
    // Redis has sent notifications for all these keys. The server checks only the key that was deleted out of band.
    let (deleted, _) = client.create(&[]).await;
    world.redis.must(&["DEL", &key_of(&world, &deleted)]);
    assert_eq!(single_end(&mut watching, &deleted).await.cause(), Cause::OutOfBand);
    wait_for_count(&server, 1).await;
    assert_eq!(server.metric("sessiond_redis_commands_total{command=\"ZSCORE\",result=\"ok\"}").await, 1.0);
}

#[tokio::test]
async fn key_deleted_while_unsubscribed_is_found_later() {
    let Setup { world, client, .. } = &notifying_redis().setup().await;
    let mut watching = client.watch_all().await;
    for _ in 0..5 {
        let (session, _) = client.create(&[]).await;
        let key = key_of(world, &session);
        world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        world.redis.command(&["DEL", &key]);
        assert_eq!(single_end(&mut watching, &session).await.cause(), Cause::OutOfBand);
    }
}

#[tokio::test]
async fn reconciler_without_notifications_finds_deleted_keys() {
    let world = World::dedicated();
    let config = ConfigFile::new("reconcile_interval = \"1s\"");
    let arguments = [format!("--redis={}", world.redis.url()), config.flag()];
    let mut process = Process::start(&arguments);
    let client = process.client().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    world.redis.command(&["DEL", &key_of(&world, &session)]);
    assert_eq!(single_end(&mut watching, &session).await.cause(), Cause::OutOfBand);
    assert!(process.metrics().await.contains("sessiond_keyspace_notifications 0"));
    let ready = harness::http(&process.metrics_address, "/readyz").await.unwrap();
    assert!(ready.ends_with("ready; Redis publishes no keyspace notifications\n"), "{ready}");
    let log = process.log.lock().unwrap().clone();
    assert!(log.contains("keyspace notifications disabled"), "{log}");
    process.stop().await;
}

#[tokio::test]
async fn create_with_the_id_of_a_deleted_key_ends_the_session() {
    let world = World::dedicated();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let create = CreateSessionRequest { token: new_token(), ..Default::default() };
    let (session, _) = client.create_with(create.clone()).await.unwrap();
    world.redis.command(&["DEL", &key_of(&world, &session)]);
    let status = expect_error(client.create_with(create).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(status.metadata_of("cause"), "OUT_OF_BAND");
    assert_eq!(single_end(&mut watching, &session).await.cause(), Cause::OutOfBand);
}

#[tokio::test]
async fn enabled_notifications_set_the_gauge() {
    let world = notifying_redis();
    let server = world.server().await;
    eventually("the gauge is set", async || {
        (server.metric("sessiond_keyspace_notifications").await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn configurable_redis_gets_notifications_enabled_once() {
    let redis = Redis::start_with(&["--notify-keyspace-events", "Kl"]);
    let server = Server::start(&redis.unrestricted_url(), "ses:", "").await;
    let flags = async || redis.list(&["CONFIG", "GET", "notify-keyspace-events"]).remove(1);
    eventually("notifications are enabled", async || {
        (server.metric("sessiond_keyspace_notifications").await == 1.0).then_some(())
    })
    .await;
    let mut set: Vec<char> = flags().await.chars().collect();
    set.sort_unstable();
    assert_eq!(set.iter().collect::<String>(), "EKeglx", "added to the flags that were set before");
    // The server does not enable them again after an operator has disabled them.
    redis.must(&["CONFIG", "SET", "notify-keyspace-events", ""]);
    eventually("the gauge is cleared", async || {
        (server.metric("sessiond_keyspace_notifications").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(flags().await, "");
}

#[tokio::test]
async fn redis_eviction_ends_the_session_once_on_all_instances() {
    // Redis may evict only keys with a TTL, which sessions do not have, and sends notifications of evictions only.
    let arguments = ["--notify-keyspace-events", "Ee", "--maxmemory-policy", "volatile-random"];
    let world = World::dedicated_with(&arguments);
    let toml = "allow_eviction = true\npartitions = 1";
    let servers = [world.server_with(toml).await, world.server_with(toml).await, world.server_with(toml).await];
    let mut watches = Vec::new();
    for server in &servers {
        watches.push(server.client().await.watch_all().await);
    }
    let client = servers[0].client().await;
    let (first, second) = (client.create(&[]).await.0, client.create(&[]).await.0);
    let mut received = [const { Vec::new() }; 3];
    // When the end of the second session is delivered, all instances have checked the first. The tombstone of the first
    // session is evicted too.
    for session in [&first, &second] {
        let key = key_of(&world, session);
        world.redis.must(&["EXPIRE", &key, "1000"]);
        world.redis.must(&["CONFIG", "SET", "maxmemory", "1"]);
        eventually("the key is evicted", async || (world.redis.number(&["EXISTS", &key]) == 0).then_some(())).await;
        world.redis.must(&["CONFIG", "SET", "maxmemory", "0"]);
        for (watching, received) in watches.iter_mut().zip(&mut received) {
            let mut ended = async |watching: &mut WatchReader| {
                loop {
                    let event = watching.event().await;
                    received.push((event.id.clone(), event.r#type(), event.cause()));
                    if event.r#type() == EventType::Ended && event.id == session.id {
                        return;
                    }
                }
            };
            // Long before the periodic reconciliation.
            timeout(WAIT_LIMIT, ended(watching)).await.expect("the end is delivered");
        }
    }
    for (watching, received) in watches.iter_mut().zip(&received) {
        assert!(watching.events_until_now().await.is_empty());
        let of = |session: &Session, kind, cause| (session.id.clone(), kind, cause);
        let expected = [
            of(&first, EventType::Created, Cause::Unspecified),
            of(&second, EventType::Created, Cause::Unspecified),
            of(&first, EventType::Ended, Cause::OutOfBand),
            of(&second, EventType::Ended, Cause::OutOfBand),
        ];
        assert_eq!(received[..], expected);
    }
}

#[tokio::test]
async fn redis_eviction_of_any_key_is_reported() {
    let extra = ["--maxmemory-policy", "allkeys-random", "--save", ""];
    let words: Vec<&str> = KEYSPACE_NOTIFICATIONS.iter().copied().chain(extra).collect();
    let world = World::dedicated_with(&words);
    let mut process = Process::start(&[format!("--redis={}", world.redis.url()), "--allow-eviction".into()]);
    let client = process.client().await;
    let mut watching = client.watch_all().await;
    let value = [("cart", text(&incompressible(8_000)))];
    create_many(&client, 200, &value).await;
    let used = world.redis.info("memory", "used_memory").parse::<u64>().unwrap();
    world.redis.command(&["CONFIG", "SET", "maxmemory", &(used - 400_000).to_string()]);
    // Redis may also evict the keys of the store itself; then the resync has reason FLUSHED.
    let is_reported = async {
        loop {
            let response = watching.response().await.unwrap().expect("the stream is open");
            let is_resync = matches!(
                &response.control,
                Some(Control::Resync(resync)) if resync.reason() == ResyncReason::Flushed
            );
            if is_resync || response.events.iter().any(|event| event.cause() == Cause::OutOfBand) {
                break;
            }
        }
    };
    timeout(WAIT_LIMIT, is_reported).await.expect("the eviction is reported");
    world.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    process.stop().await;
}
