//! Log entries and messages that cannot be read: watchers are told to resync, and the watch goes on.

mod harness;

use harness::{client::*, *};
use sessiond_client::v1::{attribute_value::Kind, *};

/// A server of one partition, and the names of its log and channel.
async fn one_partition() -> (World, Server, Client, String, String) {
    let world = World::shared();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    client.create(&[]).await;
    let log = world.redis.keys(&format!("{}*:log", world.prefix)).remove(0);
    let channel = log.replace(":log", ":events");
    (world, server, client, log, channel)
}

/// Entries that no script of ours writes: field and value.
const GARBAGE: [(&str, &[u8]); 6] = [
    ("e", b""),
    ("e", b"message"),
    ("e", b"\x9a\x01"),
    ("e", b"\xdd\xff\xff\xff\xff\x01"),
    ("e", b"\x9a\x02\xa1x\xa1x\x01\x00\xa1x\xa1x\xa1x\x90\xa0"),
    ("other", b"x"),
];

/// Adds an entry after the last one; its place is in no meta, as if it had been added by hand.
fn add(redis: &Redis, log: &str, (field, value): (&str, &[u8])) {
    let last = redis.list(&["XREVRANGE", log, "+", "-", "COUNT", "1"]).remove(0);
    let revision: u64 = last.split('-').next().unwrap().parse().unwrap();
    let id = format!("{}-1", revision + 1);
    let answer = redis.command_bytes(&[b"XADD", log.as_bytes(), id.as_bytes(), field.as_bytes(), value]);
    assert!(answer.starts_with(b"$"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_watch_open_over_an_entry_that_cannot_be_read_is_told_to_resync_and_goes_on() {
    let (world, _server, client, log, _) = one_partition().await;
    let mut watching = client.watch_all().await;
    for garbage in GARBAGE {
        add(&world.redis, &log, garbage);
        // Too large to travel by the channel: the log has to be read.
        let mut incompressible = vec![0; 20_000];
        getrandom::fill(&mut incompressible).unwrap();
        let large = AttributeValue { kind: Some(Kind::BytesValue(incompressible)) };
        let (large, _) = client.create(&[("a", large)]).await;
        tokio::time::timeout(PATIENCE, watching.resync()).await.expect("a resync comes");
        let (after, _) = client.create(&[("a", text("x"))]).await;
        watching.wait_for(EventType::Created, &after.id).await;
        assert_eq!(client.get(by_id(&large.id)).await.unwrap(), large);
    }
}

#[tokio::test]
async fn a_resume_over_an_entry_that_cannot_be_read_is_told_to_resync_and_goes_on() {
    let (world, _server, client, log, _) = one_partition().await;
    for garbage in GARBAGE {
        let token = client.watch_all().await.token;
        let (before, _) = client.create(&[]).await;
        add(&world.redis, &log, garbage);
        client.set(by_id(&before.id), &[("a", text("x"))]).await.unwrap();
        let mut watching = client.resume(&token).await;
        let resync = tokio::time::timeout(PATIENCE, watching.resync()).await.expect("a resync comes");
        assert_eq!(resync.reason(), ResyncReason::Compacted);
        let (after, _) = client.create(&[]).await;
        watching.wait_for(EventType::Created, &after.id).await;
    }
}

#[tokio::test]
async fn forged_messages_on_the_channel_change_nothing() {
    let (world, _server, client, log, channel) = one_partition().await;
    let mut watching = client.watch_all().await;
    let mut made = Vec::new();
    // One of our own, told again, is as stale as it is true.
    let own = world.redis.command_bytes(&[b"XREVRANGE", log.as_bytes(), b"+", b"-", b"COUNT", b"1"]);
    let own = own[own.windows(5).position(|part| part == b"\r\ne\r\n").unwrap()..].to_vec();
    let own = &own[own.iter().position(|byte| *byte == b'$').unwrap()..];
    let start = own.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
    let own = &own[start..own.len() - 2];
    for message in GARBAGE.map(|(_, value)| value).into_iter().chain([own, b"1-1", b"99999999999999999999-1"]) {
        world.redis.command_bytes(&[b"SPUBLISH", channel.as_bytes(), message]);
        world.redis.command_bytes(&[b"PUBLISH", channel.as_bytes(), message]);
        made.push(client.create(&[]).await.0.id);
    }
    // Any resync would fail this.
    let told: Vec<String> = watching.events(made.len()).await.into_iter().map(|event| event.id).collect();
    assert_eq!(told, made);
}

#[tokio::test]
async fn garbage_in_the_sets_of_deadlines_holds_nothing_up() {
    let world = World::shared();
    let server = world.server_with("partitions = 1\n[default_policy]\nidle_timeout = '1s'").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    let due = world.redis.keys(&format!("{}*:due:*", world.prefix)).remove(0);
    for garbage in ["message", "", "MOVED 1 x", "{"] {
        world.redis.command(&["ZADD", &due, "1", garbage]);
    }
    watching.wait_for(EventType::Ended, &session.id).await;
    let (session, _) = client.create(&[]).await;
    watching.wait_for(EventType::Ended, &session.id).await;
    // Else the sweeper would look at it without a pause.
    eventually("it is gone", async || (world.redis.number(&["ZCARD", &due]) == 0).then_some(())).await;
}
