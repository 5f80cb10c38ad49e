//! Reads that the feed makes because of channel messages: messages that are not of the log cause few of them.

use std::time::Duration;

use harness::{Redis, Server, Setup, World, client::*, eventually, redis::server_arguments, setup_with};
use sessiond_client::v1::EventType;

/// Number of forged messages and of changes in a foreign store.
const MESSAGES: usize = 1_000;

/// Returns the number of commands and scripts that the server has sent to Redis.
async fn commands(server: &Server) -> f64 {
    let text = server.http("/metrics").await.expect("metrics are served");
    let lines = text.lines().filter(|line| line.starts_with("sessiond_redis_commands_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Waits until the server sends hardly any commands: it has processed all messages.
async fn wait_until_idle(server: &Server) {
    eventually("the server is idle", async || {
        let before = commands(server).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        (commands(server).await - before < 20.0).then_some(())
    })
    .await;
}

/// Returns the last log entry of the store with this prefix, as published.
fn last_entry(world: &World) -> Vec<u8> {
    let log = world.redis.keys(&format!("{}*:log", world.prefix)).remove(0);
    let reply = world.redis.command_bytes(&[b"XREVRANGE", log.as_bytes(), b"+", b"-", b"COUNT", b"1"]);
    let field = reply.windows(5).position(|part| part == b"\r\ne\r\n").unwrap() + 5;
    let start = field + reply[field..].windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
    reply[start..reply.len() - 2].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_channel_messages_cause_few_reads() {
    let Setup { world, server, client } = &setup_with("partitions = 1").await;
    let mut watching = client.watch_all().await;
    client.create(&[]).await;
    watching.event().await;
    // An entry of another store, later than all entries of this one.
    let other = setup_with("partitions = 1").await;
    other.client.create(&[]).await;
    let foreign = last_entry(&other.world);
    let channel = world.redis.keys(&format!("{}*:log", world.prefix)).remove(0).replace(":log", ":events");
    let forged: [&[u8]; 4] = [&foreign, b"9007199254740000-1", b"9007199254740000-1 1-1", b"garbage"];
    for message in forged {
        let before = commands(server).await;
        for _ in 0..MESSAGES {
            world.redis.command_bytes(&[b"SPUBLISH", channel.as_bytes(), message]);
        }
        wait_until_idle(server).await;
        let sent = commands(server).await - before;
        assert!(sent < MESSAGES as f64, "{sent} commands after {MESSAGES} forged messages");
        let (session, _) = client.create(&[]).await;
        watching.wait_for(EventType::Created, &session.id).await;
    }
}

#[tokio::test]
async fn large_events_are_read_at_once_despite_forged_messages() {
    let Setup { world, client, .. } = &setup_with("partitions = 1").await;
    let mut watching = client.watch_all().await;
    client.create(&[]).await;
    let channel = world.redis.keys(&format!("{}*:log", world.prefix)).remove(0).replace(":log", ":events");
    let large = text(&incompressible(20_000));
    // The pauses after fruitless reads would add up to more than the time limit of the watch reader.
    for _ in 0..100 {
        for _ in 0..20 {
            world.redis.command_bytes(&[b"SPUBLISH", channel.as_bytes(), b"garbage"]);
        }
        let (session, _) = client.create(&[("a", large.clone())]).await;
        watching.wait_for(EventType::Created, &session.id).await;
    }
}

#[tokio::test]
async fn stores_in_two_databases_cause_no_reads_of_each_other() {
    let redis = Redis::on_ports(|[port, ..]| server_arguments(["--port", &port.to_string()]));
    let url = |database| format!("redis://{}/{database}", redis.address());
    let idle = Server::start(&url(0), "ses:", "partitions = 1").await;
    let busy = Server::start(&url(1), "ses:", "partitions = 1").await;
    let (quiet, client) = (idle.client().await, busy.client().await);
    let mut of_idle = quiet.watch_all().await;
    let mut of_busy = client.watch_all().await;
    let before = commands(&idle).await;
    let (session, _) = client.create(&[]).await;
    for n in 0..MESSAGES {
        client.set(by_id(&session.id), &[("n", text(&n.to_string()))]).await.unwrap();
    }
    of_busy.events(1 + MESSAGES).await;
    wait_until_idle(&idle).await;
    let sent = commands(&idle).await - before;
    assert!(sent < MESSAGES as f64, "the idle server sent {sent} commands");
    assert_eq!(idle.metric("sessiond_feed_gaps_total").await, 0.0);
    // From here on a periodic read may find the entry before its message arrives, which counts as a gap.
    let (own, _) = quiet.create(&[]).await;
    assert_eq!(of_idle.event().await.id, own.id);
    assert!(!quiet.lives(&session.id).await);
}
