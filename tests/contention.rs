//! S1, S2, S3: many callers change one session at the same time, from servers at unequal distances from Redis, and the record
//! changes between the read and the write of a call.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use harness::{Client, Server, World, client::*, eventually, process::Process, proxy::Proxy};
use sessiond::store::scripts;
use sessiond_client::v1::UpdateSessionRequest;
use tonic::Code;

const WRITERS: usize = 64;
const ROUNDS: usize = 3;
/// Delay of the replies of Redis to each server.
const DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(5), Duration::from_millis(20)];
/// Maximum number of times that an update is sent to Redis on average: once, and again after conflicts and turns of others.
const MAX_SENDS: usize = 6;

/// Servers on one Redis, each behind a line of another length.
struct Distant {
    _world: World,
    _proxies: Vec<Proxy>,
    servers: Vec<Server>,
    clients: Vec<Client>,
}

impl Distant {
    async fn start() -> Self {
        let world = World::dedicated();
        let (mut proxies, mut servers, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        for delay in DELAYS {
            let proxy = Proxy::start(&world.redis);
            let server = Server::start(&proxy.url(), &world.prefix, "").await;
            clients.push(server.client().await);
            proxy.delay_replies(delay);
            proxies.push(proxy);
            servers.push(server);
        }
        Distant { _world: world, _proxies: proxies, servers, clients }
    }

    fn client(&self, writer: usize) -> &Client {
        &self.clients[writer % self.clients.len()]
    }

    /// Number of update scripts that all servers have sent.
    async fn sends(&self) -> usize {
        let name = r#"sessiond_redis_commands_total{command="update",result="ok"}"#;
        let counts = join_all(self.servers.iter().map(async |server| server.metric(name).await)).await;
        counts.iter().sum::<f64>() as usize
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_writers_at_unequal_distances_all_succeed() {
    let distant = Distant::start().await;
    let (session, _) = distant.clients[0].create(&[]).await;
    for round in 0..ROUNDS {
        let value = text(&round.to_string());
        let write = async |writer: usize| {
            distant.client(writer).set(by_id(&session.id), &[(&writer.to_string(), value.clone())]).await
        };
        for written in join_all((0..WRITERS).map(write)).await {
            written.unwrap();
        }
        let attributes = distant.clients[0].get(by_id(&session.id)).await.unwrap().attributes;
        let expected = (0..WRITERS).map(|writer| (writer.to_string(), value.clone())).collect();
        assert_eq!(attributes, expected, "round {round}: an update was lost");
    }
    let sends = distant.sends().await;
    assert!((ROUNDS * WRITERS..=ROUNDS * WRITERS * MAX_SENDS).contains(&sends), "{sends} sends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_ending_does_not_wait_behind_writers() {
    let distant = Distant::start().await;
    for ending in 0..DELAYS.len() {
        let (session, token) = distant.clients[0].create(&[]).await;
        let (has_ended, applied) = (AtomicBool::new(false), AtomicU32::new(0));
        let write = async |writer: usize| {
            loop {
                // Read before the call: a call that began after the end must not succeed.
                let is_late = has_ended.load(Ordering::SeqCst);
                let changed = [(&*writer.to_string(), text(&applied.load(Ordering::SeqCst).to_string()))];
                match distant.client(writer).set(by_id(&session.id), &changed).await {
                    Ok(_) => assert!(!is_late, "an update after the end"),
                    Err(status) => return assert_eq!(status.reason(), "SESSION_ENDED"),
                }
                applied.fetch_add(1, Ordering::SeqCst);
            }
        };
        let end = async {
            eventually("the writers write", async || (applied.load(Ordering::SeqCst) > WRITERS as u32).then_some(()))
                .await;
            assert!(distant.clients[ending].delete(by_token(&token)).await.unwrap());
            has_ended.store(true, Ordering::SeqCst);
        };
        tokio::join!(join_all((0..WRITERS).map(write)), end);
        expect_error(distant.clients[0].get(by_token(&token)).await, Code::NotFound, "SESSION_ENDED");
    }
}

/// An instance that holds a read record dies; the others go on, and nothing of its change appears later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_instance_killed_before_its_write_stops_no_other() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let doomed = Process::start(&[format!("--redis={}", proxy.url())]);
    let server = world.server().await;
    let (slow, client) = (doomed.client().await, server.client().await);
    let (session, _) = client.create(&[("a", text("1"))]).await;
    proxy.hold_requests_at(&scripts::UPDATE);
    let (key, late) = (by_id(&session.id), [("late", text("1"))]);
    let lost = slow.set(key.clone(), &late);
    let others = async {
        eventually("the write is held back", async || proxy.is_holding_requests().then_some(())).await;
        drop(doomed);
        for n in 0..WRITERS {
            client.set(key.clone(), &[("a", text(&n.to_string()))]).await.unwrap();
        }
    };
    let (lost, ()) = tokio::join!(lost, others);
    assert!(lost.is_err());
    proxy.cut();
    proxy.release_requests();
    let last = client.set(key.clone(), &[("b", text("1"))]).await.unwrap();
    let expected = [("a".to_owned(), text(&(WRITERS - 1).to_string())), ("b".into(), text("1"))].into();
    assert_eq!(last.attributes, expected);
}

/// The record is set back between the read and the write of an update, as by a restored backup or a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_update_across_a_restored_record_changes_that_record() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let behind = Server::start(&proxy.url(), &world.prefix, "").await;
    let direct = world.server().await;
    let (slow, client) = (behind.client().await, direct.client().await);
    let (session, first) = client.create(&[("a", text("old"))]).await;
    let record = world.redis.keys(&format!("*:s:*{}", session.id)).remove(0);
    let get = || world.redis.command_bytes(&[b"GET", record.as_bytes()]);
    let backup = get();
    client.set(by_id(&session.id), &[("a", text("new"))]).await.unwrap();
    proxy.hold_requests_at(&scripts::UPDATE);
    let update = UpdateSessionRequest { set_attributes: [("b".to_owned(), text("1"))].into(), ..Default::default() };
    let update = UpdateSessionRequest { key: by_token(&first), namespace: NAMESPACE.into(), ..update };
    let restore = async {
        eventually("the write is held back", async || proxy.is_holding_requests().then_some(())).await;
        let from = backup.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
        world.redis.command_bytes(&[b"SET", record.as_bytes(), &backup[from..backup.len() - 2]]);
        assert_eq!(get(), backup);
        proxy.release_requests();
    };
    let (updated, ()) = tokio::join!(slow.update(update), restore);
    let expected = [("a".to_owned(), text("old")), ("b".into(), text("1"))].into();
    assert_eq!(updated.unwrap().attributes, expected);
    assert_eq!(client.get(by_token(&first)).await.unwrap().attributes, expected);
    // The session goes on as usual.
    let second = client.rotate(&first).await.unwrap();
    assert_eq!(client.token_state(&second).await.unwrap(), sessiond_client::v1::TokenState::Current);
}
