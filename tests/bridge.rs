//! W10: what is done to the keys behind our back becomes the end of the session it was done to, once.

mod harness;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use harness::{
    Client, PATIENCE, Redis, Server, Watching, World, client::*, eventually, process::Process,
    redis::TELLS_OF_VANISHING,
};
use sessiond_client::v1::{
    AttributeValue, Cause, CreateSessionRequest, EventType, ResyncReason, Session, SessionEvent, WatchRequest,
    watch_response::Control,
};
use tokio::time::timeout;
use tonic::Code;

/// A Redis that tells of keys that vanish.
fn telling() -> World {
    World { redis: Redis::start_with(&TELLS_OF_VANISHING), prefix: "sessiond:".into() }
}

fn key_of(world: &World, session: &Session) -> String {
    let keys = world.redis.keys(&format!("*:s:{NAMESPACE}:{}", session.id));
    keys.into_iter().next().expect("the session has a key")
}

/// So many sessions, a few at a time.
async fn make(client: &Client, sessions: usize, attributes: &[(&str, AttributeValue)]) {
    for _ in 0..sessions / 20 {
        join_all((0..20).map(|_| client.create(attributes))).await;
    }
}

/// Returns when so many are counted that vanished: counted once the script has answered, which is after it was told.
async fn counted(server: &Server, vanished: usize) {
    let is_counted =
        async || (server.metric("sessiond_vanished_sessions_total").await == vanished as f64).then_some(());
    eventually("they are counted", is_counted).await;
}

/// The one ending of a session, and that no other follows.
async fn ending(watching: &mut Watching, session: &Session) -> SessionEvent {
    let ended = watching.wait_for(EventType::Ended, &session.id).await;
    let rest = watching.everything_so_far().await;
    assert!(rest.iter().all(|event| event.id != session.id), "told after its end: {rest:?}");
    ended
}

#[tokio::test]
async fn w10_a_key_that_somebody_takes_away_ends_its_session_once_on_all_instances() {
    let world = telling();
    let servers = [world.server().await, world.server().await, world.server().await];
    let mut clients = Vec::new();
    let mut watches = Vec::new();
    for server in &servers {
        clients.push(server.client().await);
        watches.push(clients.last().unwrap().watch_all().await);
    }
    let away: [&[&str]; 3] = [&["DEL"], &["UNLINK"], &["RENAME"]];
    for words in away {
        let (session, token) = clients[0].create(&[]).await;
        let key = key_of(&world, &session);
        let to = "elsewhere".to_owned();
        let mut words: Vec<&str> = words.iter().copied().chain([&key[..]]).collect();
        if words[0] == "RENAME" {
            words.push(&to);
        }
        world.redis.command(&words);
        for watching in &mut watches {
            let ended = ending(watching, &session).await;
            assert_eq!(ended.cause(), Cause::OutOfBand, "{words:?}");
        }
        let refused = expect_error(clients[1].get(by_token(&token)).await, Code::NotFound, "SESSION_NOT_FOUND");
        assert!(refused.message().len() > 10);
        assert_eq!(world.redis.number(&["EXISTS", &key]), 1, "a tombstone stands in its place");
    }
}

#[tokio::test]
async fn a_key_that_somebody_has_expire_ends_its_session() {
    let world = telling();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    world.redis.command(&["PEXPIRE", &key_of(&world, &session), "50"]);
    assert_eq!(ending(&mut watching, &session).await.cause(), Cause::OutOfBand);
}

#[tokio::test]
async fn one_whose_deadline_is_over_by_then_ended_by_that() {
    let world = telling();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let request = CreateSessionRequest { idle_timeout: millis(1_000), ..Default::default() };
    let (session, _) = client.create_as(request).await.unwrap();
    let key = key_of(&world, &session);
    // The sweeper, which would come first, is not led to it: what decides is the script that the bridge runs.
    world.redis.keys("*:ns").iter().for_each(|namespaces| drop(world.redis.must(&["DEL", namespaces])));
    let expires = session.expire_time.unwrap();
    let is_over = async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        (now > Duration::new(expires.seconds as u64, expires.nanos as u32)).then_some(())
    };
    eventually("its deadline is over", is_over).await;
    assert_eq!(watching.everything_so_far().await.len(), 1, "it was made, and is not ended");
    world.redis.must(&["DEL", &key]);
    assert_eq!(ending(&mut watching, &session).await.cause(), Cause::IdleTimeout);
    counted(&server, 1).await;
    assert_eq!(server.metric("sessiond_sessions_expired_total").await, 0.0);
}

#[tokio::test]
async fn many_that_vanish_at_once_are_all_told() {
    const SESSIONS: usize = 500;
    let world = telling();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    make(&client, SESSIONS, &[]).await;
    let keys = world.redis.keys("sessiond:*:s:*");
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
    counted(&server, SESSIONS).await;
}

#[tokio::test]
async fn watchers_by_id_and_by_subject_are_told_too() {
    let world = telling();
    let server = world.server().await;
    let client = server.client().await;
    let (session, _) = client.create_of("anna").await;
    let by_id = vec![by_id(&session.id).unwrap()];
    let mut by_id = client.watch(WatchRequest { keys: by_id, ..Default::default() }).await.unwrap();
    let mut by_subject =
        client.watch(WatchRequest { subject: Some("anna".into()), ..Default::default() }).await.unwrap();
    world.redis.command(&["DEL", &key_of(&world, &session)]);
    for watching in [&mut by_id, &mut by_subject] {
        assert_eq!(watching.event().await.cause(), Cause::OutOfBand);
    }
    by_id.end().await.unwrap();
}

#[tokio::test]
async fn forged_news_end_nothing() {
    let world = telling();
    // One partition: what is heard there is looked at in one go, or in order.
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    let key = key_of(&world, &session);
    let no_such = key.replace(&session.id, "aaaaaaaaaaaaaaaaaaaaaaaaaa");
    for event in ["del", "unlink", "expired", "evicted", "rename_from"] {
        for key in [&key[..], &no_such, "sessiond:{", "message", ""] {
            world.redis.command(&["PUBLISH", &format!("__keyevent@0__:{event}"), key]);
        }
    }
    // One that is true, behind them: they have been looked at when it is told.
    let (vanished, _) = client.create(&[]).await;
    world.redis.command(&["DEL", &key_of(&world, &vanished)]);
    watching.wait_for(EventType::Ended, &vanished.id).await;
    counted(&server, 1).await;
    assert!(client.lives(&session.id).await);
    assert!(watching.everything_so_far().await.is_empty());
}

#[tokio::test]
async fn an_ending_of_our_own_is_none_behind_our_back() {
    let world = telling();
    // One partition: what is heard there is looked at in one go, or in order.
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    for n in 0..20 {
        let (session, token) = client.create(&[]).await;
        if n % 2 == 0 { client.delete(by_id(&session.id)).await } else { client.delete(by_token(&token)).await }
            .unwrap();
        let ended = ending(&mut watching, &session).await;
        assert_ne!(ended.cause(), Cause::OutOfBand);
    }
    // Their keys vanished, and Redis told so: nobody went to look, but for the one that it is true of.
    let (vanished, _) = client.create(&[]).await;
    world.redis.must(&["DEL", &key_of(&world, &vanished)]);
    assert_eq!(ending(&mut watching, &vanished).await.cause(), Cause::OutOfBand);
    counted(&server, 1).await;
    assert_eq!(server.metric("sessiond_redis_calls_total{command=\"ZSCORE\",result=\"ok\"}").await, 1.0);
}

#[tokio::test]
async fn what_vanishes_while_nobody_listens_is_found_when_somebody_does_again() {
    let world = telling();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    for _ in 0..5 {
        let (session, _) = client.create(&[]).await;
        let key = key_of(&world, &session);
        world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        world.redis.command(&["DEL", &key]);
        assert_eq!(ending(&mut watching, &session).await.cause(), Cause::OutOfBand);
    }
}

#[tokio::test]
async fn where_redis_does_not_tell_the_audit_finds_it() {
    let world = World::own();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("sessiond.toml");
    std::fs::write(&config, "audit_interval = \"1s\"").unwrap();
    let arguments = [format!("--redis={}", world.redis.url()), format!("--config={}", config.display())];
    let mut process = Process::start(&arguments);
    let client = process.client().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    world.redis.command(&["DEL", &key_of(&world, &session)]);
    assert_eq!(ending(&mut watching, &session).await.cause(), Cause::OutOfBand);
    assert!(process.metrics().await.contains("sessiond_keyspace_notifications 0"));
    let ready = harness::http(&process.metrics_address, "/readyz").await.unwrap();
    assert!(ready.ends_with("ready; Redis does not tell of keys that vanish\n"), "{ready}");
    let log = process.log.lock().unwrap().clone();
    assert!(log.contains("does not tell of keys that vanish"), "{log}");
    process.stop().await;
}

#[tokio::test]
async fn where_redis_tells_that_is_seen() {
    let world = telling();
    let server = world.server().await;
    eventually("the gauge", async || (server.metric("sessiond_keyspace_notifications").await == 1.0).then_some(()))
        .await;
}

#[tokio::test]
async fn a_redis_that_lets_itself_be_asked_is_asked_to_tell_once() {
    let redis = Redis::start_with(&["--notify-keyspace-events", "Kl"]);
    let server = Server::start(&redis.unrestricted_url(), "sessiond:", "").await;
    let flags = async || redis.list(&["CONFIG", "GET", "notify-keyspace-events"]).remove(1);
    eventually("it tells", async || (server.metric("sessiond_keyspace_notifications").await == 1.0).then_some(()))
        .await;
    let mut set: Vec<char> = flags().await.chars().collect();
    set.sort_unstable();
    assert_eq!(set.iter().collect::<String>(), "EKeglx", "beside what it told of before");
    // Who switches it off means it.
    redis.must(&["CONFIG", "SET", "notify-keyspace-events", ""]);
    eventually("that is seen", async || (server.metric("sessiond_keyspace_notifications").await == 0.0).then_some(()))
        .await;
    assert_eq!(flags().await, "");
}

#[tokio::test]
async fn what_redis_evicts_where_it_may_ends_its_session_once_on_all_instances() {
    // It may evict what has a TTL alone, which no session has; and it tells of nothing but evictions.
    let may = ["--notify-keyspace-events", "Ee", "--maxmemory-policy", "volatile-random"];
    let world = World { redis: Redis::start_with(&may), prefix: "sessiond:".into() };
    let toml = "allow_eviction = true\npartitions = 1";
    let servers = [world.server_with(toml).await, world.server_with(toml).await, world.server_with(toml).await];
    let mut watches = Vec::new();
    for server in &servers {
        watches.push(server.client().await.watch_all().await);
    }
    let client = servers[0].client().await;
    let (first, second) = (client.create(&[]).await.0, client.create(&[]).await.0);
    let mut told = [const { Vec::new() }; 3];
    // When the second one is told, the first has been looked at everywhere; and its tombstone is evicted too.
    for session in [&first, &second] {
        let key = key_of(&world, session);
        world.redis.must(&["EXPIRE", &key, "1000"]);
        world.redis.must(&["CONFIG", "SET", "maxmemory", "1"]);
        eventually("it is evicted", async || (world.redis.number(&["EXISTS", &key]) == 0).then_some(())).await;
        world.redis.must(&["CONFIG", "SET", "maxmemory", "0"]);
        for (watching, told) in watches.iter_mut().zip(&mut told) {
            let mut ended = async |watching: &mut Watching| {
                loop {
                    let event = watching.event().await;
                    told.push((event.id.clone(), event.r#type(), event.cause()));
                    if event.r#type() == EventType::Ended && event.id == session.id {
                        return;
                    }
                }
            };
            // Long before an audit.
            timeout(PATIENCE, ended(watching)).await.expect("its end is told");
        }
    }
    for (watching, told) in watches.iter_mut().zip(&told) {
        assert!(watching.everything_so_far().await.is_empty());
        let of = |session: &Session, kind, cause| (session.id.clone(), kind, cause);
        let expected = [
            of(&first, EventType::Created, Cause::Unspecified),
            of(&second, EventType::Created, Cause::Unspecified),
            of(&first, EventType::Ended, Cause::OutOfBand),
            of(&second, EventType::Ended, Cause::OutOfBand),
        ];
        assert_eq!(told[..], expected);
    }
}

#[tokio::test]
async fn a_redis_that_evicts_any_key_costs_sessions_and_not_silently() {
    let extra = ["--maxmemory-policy", "allkeys-random", "--save", ""];
    let words: Vec<&str> = TELLS_OF_VANISHING.iter().copied().chain(extra).collect();
    let world = World { redis: Redis::start_with(&words), prefix: "sessiond:".into() };
    let mut process = Process::start(&[format!("--redis={}", world.redis.url()), "--allow-eviction".into()]);
    let client = process.client().await;
    let mut watching = client.watch_all().await;
    let value = [("cart", text(&incompressible(8_000)))];
    make(&client, 200, &value).await;
    let used = world.redis.info("memory", "used_memory").parse::<u64>().unwrap();
    world.redis.command(&["CONFIG", "SET", "maxmemory", &(used - 400_000).to_string()]);
    // The store's own keys are among those that may go: then what is told is that it was emptied.
    let is_told = async {
        loop {
            let response = watching.response().await.unwrap().expect("the watch is open");
            let is_resync = matches!(
                &response.control,
                Some(Control::Resync(resync)) if resync.reason() == ResyncReason::Flushed
            );
            if is_resync || response.events.iter().any(|event| event.cause() == Cause::OutOfBand) {
                break;
            }
        }
    };
    timeout(PATIENCE, is_told).await.expect("it is told");
    world.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    process.stop().await;
}
