//! S1, S2, S3: many callers change one session at the same time, from servers at unequal distances from Redis, and the record
//! changes between the read and the write of a call.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use harness::{Client, Server, World, client::*, clock::Clock, eventually, process::Process, proxy::Proxy};
use sessiond::store::scripts;
use sessiond_client::v1::UpdateSessionRequest;
use tokio::time::sleep;
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
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
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

/// Two servers on one Redis: the one that is slow takes the turn, because the session changes between its reads and writes.
struct Turn {
    world: World,
    proxy: Proxy,
    _servers: [Server; 2],
    slow: Client,
    client: Client,
    id: String,
    record: String,
}

impl Turn {
    async fn start(world: World) -> Self {
        let (proxy, servers, [slow, client]) = world.proxied_pair().await;
        let (session, _) = client.create(&[]).await;
        slow.set(by_id(&session.id), &[("slow", text("0"))]).await.unwrap();
        let record = world.redis.keys(&format!("*:s:*{}", session.id)).remove(0);
        proxy.delay_replies(Duration::from_millis(50));
        Turn { world, proxy, _servers: servers, slow, client, id: session.id, record }
    }

    /// Whether a call has the turn, perhaps one that is over.
    fn is_stored(&self) -> bool {
        let reply = self.world.redis.command_bytes(&[b"GETRANGE", self.record.as_bytes(), b"30", b"42"]);
        reply != b"$13\r\n\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n"
    }

    /// Changes the session without a pause, each time to another value, until a call has the turn or this call is over.
    async fn change_until_stored<T>(&self, call: impl Future<Output = CallResult<T>>) -> Option<CallResult<T>> {
        let change = async {
            for n in 0.. {
                self.client.set(by_id(&self.id), &[("n", text(&n.to_string()))]).await.unwrap();
            }
        };
        // While a change waits for the turn of the other call.
        let stored = async {
            while !self.is_stored() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let mut call = pin!(call);
        tokio::select! {
            result = &mut call => Some(result),
            () = stored => None,
            () = change => unreachable!(),
        }
    }

    /// The slow server takes the turn, and never learns of it: it does not receive the reply.
    async fn take(&self) {
        let mut n = 0;
        // On a busy machine there may be no change between its read and its write.
        eventually("a call takes the turn", async || {
            n += 1;
            let changed = [("slow", text(&n.to_string()))];
            self.proxy.hold_replies_after(&scripts::UPDATE, 2);
            let early = self.change_until_stored(self.slow.set(by_id(&self.id), &changed)).await;
            if early.is_some() {
                self.proxy.release_replies();
            }
            early.is_none().then_some(())
        })
        .await;
    }

    /// Changes the session at the fast server.
    async fn change(&self) {
        let changed = self.client.set(by_id(&self.id), &[("fast", text("1"))]).await.unwrap();
        assert_eq!(changed.attributes["fast"], text("1"));
    }
}

/// A turn is at most 100 ms: an instance that dies with it does not stop the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_turn_whose_holder_is_lost_ends_by_itself() {
    let turn = Turn::start(World::dedicated()).await;
    turn.take().await;
    turn.change().await;
    assert!(!turn.is_stored());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_turn_from_before_the_clock_was_set_back_stops_no_call() {
    let (world, clock) = Clock::world();
    let turn = Turn::start(world).await;
    turn.take().await;
    clock.shift_to(-3_600);
    turn.change().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_change_of_its_holder_ends_the_turn() {
    let turn = Turn::start(World::dedicated()).await;
    let taken = async |n: u32| {
        let changed = [("slow", text(&n.to_string()))];
        let mut change = pin!(turn.slow.set(by_id(&turn.id), &changed));
        match turn.change_until_stored(&mut change).await {
            Some(changed) => drop(changed.unwrap()),
            None => return Some(change.await.unwrap()),
        }
        None
    };
    let mut n = 0;
    eventually("a call takes the turn", async || {
        n += 1;
        taken(n).await
    })
    .await;
    assert!(!turn.is_stored(), "others wait, although the change was made");
}
