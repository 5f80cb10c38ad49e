//! Unreadable log entries and channel messages: watchers receive a resync, and the stream stays open.

use harness::{client::*, *};
use sessiond_client::v1::{attribute_value::Kind, *};

/// Starts a server with one partition; also returns the names of its log and its channel.
async fn one_partition() -> (World, Server, Client, String, String) {
    let Setup { world, server, client } = setup_with("partitions = 1").await;
    client.create(&[]).await;
    let log = world.redis.keys(&format!("{}*:log", world.prefix)).remove(0);
    let channel = log.replace(":log", ":events");
    (world, server, client, log, channel)
}

/// Field and value of entries that no script of sessiond writes.
const GARBAGE: [(&str, &[u8]); 6] = [
    ("e", b""),
    ("e", b"message"),
    ("e", b"\xfa\x01"),
    ("e", b"\xfa\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    ("e", b"\xfa\x01\x00\x00\x09\x03\x03\x00\x03\x00\x00\x00\x00\x00\x00\x00\x091-12-2w:a"),
    ("other", b"x"),
];

/// Appends an entry without updating the partition's meta, as a manual XADD does.
fn append(redis: &Redis, log: &str, (field, value): (&str, &[u8])) {
    let last = redis.list(&["XREVRANGE", log, "+", "-", "COUNT", "1"]).remove(0);
    let revision: u64 = last.split('-').next().unwrap().parse().unwrap();
    let id = format!("{}-1", revision + 1);
    let reply = redis.command_bytes(&[b"XADD", log.as_bytes(), id.as_bytes(), field.as_bytes(), value]);
    assert!(reply.starts_with(b"$"), "{}", String::from_utf8_lossy(&reply));
}

#[tokio::test]
async fn unreadable_entry_resyncs_an_open_watch() {
    let (world, _server, client, log, _) = one_partition().await;
    let mut watching = client.watch_all().await;
    for garbage in GARBAGE {
        append(&world.redis, &log, garbage);
        // Too large for the channel, so the server has to read the log.
        let mut incompressible = vec![0; 65_400];
        getrandom::fill(&mut incompressible).unwrap();
        let large = AttributeValue { kind: Some(Kind::BytesValue(incompressible)) };
        let (large, _) = client.create(&[("a", large)]).await;
        tokio::time::timeout(WAIT_LIMIT, watching.resync()).await.expect("a resync");
        let (after, _) = client.create(&[("a", text("x"))]).await;
        watching.wait_for(EventType::Created, &after.id).await;
        assert_eq!(client.get(by_id(&large.id)).await.unwrap(), large);
    }
}

#[tokio::test]
async fn unreadable_entry_resyncs_a_resumed_watch() {
    let (world, _server, client, log, _) = one_partition().await;
    for garbage in GARBAGE {
        let token = client.watch_all().await.token;
        let (before, _) = client.create(&[]).await;
        append(&world.redis, &log, garbage);
        client.set(by_id(&before.id), &[("a", text("x"))]).await.unwrap();
        let mut watching = client.resume(&token).await;
        let resync = tokio::time::timeout(WAIT_LIMIT, watching.resync()).await.expect("a resync");
        assert_eq!(resync.reason(), ResyncReason::Compacted);
        let (after, _) = client.create(&[]).await;
        watching.wait_for(EventType::Created, &after.id).await;
    }
}

#[tokio::test]
async fn forged_channel_messages_are_ignored() {
    let (world, _server, client, log, channel) = one_partition().await;
    let mut watching = client.watch_all().await;
    let mut created = Vec::new();
    // A valid entry that is published again is stale.
    let own = world.redis.command_bytes(&[b"XREVRANGE", log.as_bytes(), b"+", b"-", b"COUNT", b"1"]);
    let own = own[own.windows(5).position(|part| part == b"\r\ne\r\n").unwrap()..].to_vec();
    let own = &own[own.iter().position(|byte| *byte == b'$').unwrap()..];
    let start = own.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
    let own = &own[start..own.len() - 2];
    for message in GARBAGE.map(|(_, value)| value).into_iter().chain([own, b"1-1", b"99999999999999999999-1"]) {
        world.redis.command_bytes(&[b"SPUBLISH", channel.as_bytes(), message]);
        world.redis.command_bytes(&[b"PUBLISH", channel.as_bytes(), message]);
        created.push(client.create(&[]).await.0.id);
    }
    // `events` panics on a resync.
    let received: Vec<String> = watching.events(created.len()).await.into_iter().map(|event| event.id).collect();
    assert_eq!(received, created);
}

#[tokio::test]
async fn garbage_in_the_due_set_does_not_block_expiry() {
    let Setup { world, client, .. } = &setup_with("partitions = 1\n[default_policy]\nidle_timeout = '1s'").await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    let due = world.redis.keys(&format!("{}*:due:*", world.prefix)).remove(0);
    for garbage in ["message", "", "MOVED 1 x", "{"] {
        world.redis.command(&["ZADD", &due, "1", garbage]);
    }
    watching.wait_for(EventType::Ended, &session.id).await;
    let (session, _) = client.create(&[]).await;
    watching.wait_for(EventType::Ended, &session.id).await;
    // Garbage that stays would make the expiry worker loop without a pause.
    eventually("the garbage is removed", async || (world.redis.number(&["ZCARD", &due]) == 0).then_some(())).await;
}
