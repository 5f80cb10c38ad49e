//! Liveness of Redis connections: they are kept only while Redis can serve calls, and the cause of every problem is named.

use std::{io::Write, time::Duration};

use harness::{client::*, process::Process, redis::acl_rule, relay::Relay, servers::run_blocking, *};
use sessiond_client::v1::*;
use tonic::Code;

/// Waits until `/readyz` has this status and its text contains `part`.
async fn readiness(address: &str, status: u16, part: &str) -> String {
    let expected = format!("HTTP/1.1 {status}");
    let what = format!("/readyz returns {status} with {part:?}");
    eventually(&what, async || {
        let response = http(address, "/readyz").await?;
        (response.starts_with(&expected) && response.contains(part)).then_some(response)
    })
    .await
}

/// A primary with a replica, each with its own address.
async fn pair() -> (Redis, Redis) {
    run_blocking(|| {
        let primary = Redis::on_ports(|ports| redis::server_arguments(["--port", &ports[0].to_string()]));
        let of = primary.port().to_string();
        let replica = Redis::on_ports(|ports| {
            redis::server_arguments(["--port", &ports[0].to_string(), "--replicaof", "127.0.0.1", &of])
        });
        (primary, replica)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_that_moves_to_the_new_primary_is_followed() {
    let (primary, replica) = pair().await;
    let relay = Relay::start(&primary.address()).await;
    let url = format!("redis://sessiond:change-me@{}", relay.address);
    let server = Server::start(&url, "ses:", "").await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    let mut watching = client.watch_all().await;
    primary.wait_for(&replica);
    // As a managed Redis does it: open connections stay at the demoted node, the address names the new primary.
    replica.must(&["REPLICAOF", "NO", "ONE"]);
    relay.set_target(&replica.address());
    primary.must(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]);
    let write = async || client.set(by_token(&token), &[("a", text("1"))]).await.ok();
    eventually("writes succeed again", write).await;
    watching.wait_for(EventType::Updated, &session.id).await;
    readiness(&server.metrics_address, 200, "ready").await;
    let (created, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &created.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_redis_without_a_successor_is_not_ready() {
    let (primary, replica) = pair().await;
    let url = format!("redis://sessiond:change-me@{}", primary.address());
    let server = Server::start(&url, "ses:", "").await;
    let client = server.client().await;
    replica.must(&["REPLICAOF", "NO", "ONE"]);
    primary.must(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]);
    readiness(&server.metrics_address, 503, "READONLY").await;
    let status = client.create_with(Default::default()).await.unwrap_err();
    assert!(status.reason() == "STORE_UNAVAILABLE" && status.message().contains("READONLY"), "{status:?}");
    primary.must(&["REPLICAOF", "NO", "ONE"]);
    readiness(&server.metrics_address, 200, "ready").await;
    client.create(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_taken_at_run_time_stops_calls_before_they_write() {
    let Setup { world, server, client } = &World::dedicated().setup().await;
    let (session, token) = client.create(&[("a", text("1"))]).await;
    for command in ["set", "setrange", "hset", "xadd", "zrem"] {
        world.redis.must(&["ACL", "SETUSER", "sessiond", &format!("-{command}")]);
        let text = readiness(&server.metrics_address, 503, &command.to_uppercase()).await;
        assert!(text.contains("lacks rights"), "{text}");
        let status = client.delete(by_token(&token)).await.unwrap_err();
        assert!(status.reason() == "STORE_UNAVAILABLE" && status.message().contains("rights"), "{status:?}");
        world.redis.must(&["ACL", "SETUSER", "sessiond", &format!("+{command}")]);
        readiness(&server.metrics_address, 200, "ready").await;
        assert_eq!(client.get(by_token(&token)).await.unwrap().id, session.id);
    }
}

/// The calls follow at once: no heartbeat has found that the right is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_taken_just_before_a_call_changes_nothing() {
    // In one partition the deleted session is not the last of its namespace, whose end needs ZCARD too.
    let Setup { world, server, client } = &World::dedicated().setup_with("partitions = 1").await;
    let logged = || world.redis.keys("*:log").iter().map(|log| world.redis.number(&["XLEN", log])).sum::<i64>();
    // The calls that need the command.
    let (update, delete) = (&["update"][..], &["delete"][..]);
    let both = &["update", "delete"][..];
    let needed_by = [
        ("hset", both),
        ("set", both),
        ("getrange", both),
        ("xadd", both),
        ("zrange", both),
        ("setrange", update),
        ("zadd", update),
        ("zscore", update),
        ("zcard", update),
        ("zrem", delete),
    ];
    for (command, calls) in needed_by {
        let large = text(&incompressible(3_000));
        let (session, _) = client.create(&[("a", text("1")), ("b", text("1")), ("large", large)]).await;
        let before = logged();
        world.redis.must(&["ACL", "SETUSER", "sessiond", &format!("-{command}")]);
        let request = UpdateSessionRequest {
            key: by_id(&session.id),
            set_attributes: [("b".to_owned(), text("2"))].into(),
            remove_attributes: vec!["a".into()],
            idle_timeout: seconds(60),
            ..Default::default()
        };
        let (updated, deleted) = (client.update(request).await, client.delete(by_id(&session.id)).await);
        world.redis.must(&["ACL", "SETUSER", "sessiond", &format!("+{command}")]);
        let mut applied = 0;
        for (result, call) in [(updated.map(drop), "update"), (deleted.map(drop), "delete")] {
            if !calls.contains(&call) {
                assert!(result.is_ok(), "{command}: {result:?}");
                applied += 1;
                continue;
            }
            let status = result.unwrap_err();
            let expected = (Code::Unavailable, "STORE_UNAVAILABLE");
            assert_eq!((status.code(), status.reason().as_str()), expected, "{command}: {status:?}");
        }
        readiness(&server.metrics_address, 200, "ready").await;
        assert_eq!(logged(), before + applied, "{command}");
        if applied == 0 {
            assert_eq!(client.get(by_id(&session.id)).await.unwrap(), session, "{command}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_right_of_a_script_is_refused_at_the_start() {
    let commands = acl_rule("+evalsha").split(' ').filter_map(|word| word.strip_prefix('+'));
    // Commands that no script uses. A server that may not send them fails before it has written anything.
    let direct = ["ping", "info", "client|id", "scan", "ssubscribe", "subscribe", "wait", "asking", "cluster|nodes"];
    let commands: Vec<&str> = commands.filter(|command| !direct.contains(command)).collect();
    let redis = run_blocking(Redis::start).await;
    for command in commands.into_iter().filter(|command| !command.contains("config")) {
        redis.must(&["ACL", "SETUSER", "sessiond", &format!("-{command}")]);
        let url = redis.url();
        let (log, code) = run_blocking(move || {
            Process::expect_start_failure(&[format!("--redis={url}"), "--start-timeout=0s".into()])
        })
        .await;
        assert!(code == Some(1) && log.to_lowercase().contains(command), "{command}: {log}");
        redis.must(&["ACL", "SETUSER", "sessiond", &format!("+{command}")]);
    }
    assert_eq!(redis.number(&["DBSIZE"]), 0, "nothing was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_enabled_at_run_time_is_announced() {
    let Setup { world, server, client } = &World::dedicated().setup().await;
    world.redis.must(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    readiness(&server.metrics_address, 200, "maxmemory-policy allkeys-lru").await;
    assert!(server.metric("sessiond_store_problems").await >= 1.0);
    client.create(&[]).await;
    world.redis.must(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    eventually("the problem is gone", async || {
        (!http(&server.metrics_address, "/readyz").await?.contains("maxmemory-policy")).then_some(())
    })
    .await;
    assert_eq!(server.metric("sessiond_store_problems").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_takes_over_is_checked() {
    let (primary, replica) = pair().await;
    replica.must(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    let relay = Relay::start(&primary.address()).await;
    let url = format!("redis://sessiond:change-me@{}", relay.address);
    let server = Server::start(&url, "ses:", "").await;
    replica.must(&["REPLICAOF", "NO", "ONE"]);
    relay.set_target(&replica.address());
    primary.must(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]);
    readiness(&server.metrics_address, 200, "maxmemory-policy volatile-ttl").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_password_at_run_time_is_named_not_repeated() {
    let world = World::dedicated();
    let arguments = [format!("--redis={}", world.redis.url())];
    let process = run_blocking(move || Process::start(&arguments)).await;
    let client = process.client().await;
    world.redis.must(&["ACL", "SETUSER", "sessiond", "resetpass", ">another"]);
    world.redis.must(&["CLIENT", "KILL", "USER", "sessiond"]);
    readiness(&process.metrics_address, 503, "WRONGPASS").await;
    let status = client.create_with(Default::default()).await.unwrap_err();
    assert!(status.message().contains("WRONGPASS"), "{status:?}");
    let is_logged = |line: &&str| line.contains("Redis has problems") && line.contains("WRONGPASS");
    let logged = || process.log.lock().unwrap().lines().filter(is_logged).count();
    eventually("the cause is logged", async || (logged() > 0).then_some(())).await;
    // Further attempts, at most 2 s apart, are not further lines.
    tokio::time::sleep(Duration::from_secs(3)).await;
    // More than one if a slow attempt ended without a reply in between.
    assert!(logged() < 4, "{}", process.log.lock().unwrap());
    world.redis.must(&["ACL", "SETUSER", "sessiond", "resetpass", ">change-me"]);
    readiness(&process.metrics_address, 200, "ready").await;
    client.create(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_connections_are_named() {
    let Setup { world, server, client } = &World::dedicated().setup().await;
    // An open connection of its own: Redis accepts no other one afterwards.
    let mut administrator = std::os::unix::net::UnixStream::connect(world.redis.socket()).unwrap();
    let mut run = |command: &str| administrator.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    run("CONFIG SET maxclients 1");
    run("CLIENT KILL USER sessiond");
    readiness(&server.metrics_address, 503, "max number of clients").await;
    let status = client.create_with(Default::default()).await.unwrap_err();
    assert!(status.message().contains("max number of clients"), "{status:?}");
    run("CONFIG SET maxclients 100");
    readiness(&server.metrics_address, 200, "ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_subscription_is_announced_and_events_arrive() {
    let Setup { world, server, client } = &World::dedicated().setup().await;
    let mut watching = client.watch_all().await;
    world.redis.must(&["ACL", "SETUSER", "sessiond", "-ssubscribe"]);
    world.redis.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    readiness(&server.metrics_address, 200, "ssubscribe").await;
    let (session, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &session.id).await;
    world.redis.must(&["ACL", "SETUSER", "sessiond", "+ssubscribe"]);
    eventually("the problem is gone", async || {
        (!http(&server.metrics_address, "/readyz").await?.contains("ssubscribe")).then_some(())
    })
    .await;
}
