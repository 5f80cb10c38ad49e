//! Near cache while messages are lost and reads of the logs are slow: no value is answered for more than a second after it
//! was replaced.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{
    Client, Server, World,
    client::*,
    eventually,
    proxy::{Proxy, Purpose},
};
use sessiond::store::scripts;
use sessiond_client::v1::{AttributeValue, CreateSessionRequest, Session};
use tokio::time::{sleep, timeout};
use tonic::Code;

use crate::near_cache::{any_revision, get};

/// Maximum time from the end of a value to a read from memory that returns it.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Reads any revision, from memory if possible. None: the read failed.
async fn read(client: &Client, id: &str) -> Option<Session> {
    get(client, any_revision(by_id(id))).await.ok()?.session
}

/// Reads attribute `a` of any revision, from memory if possible. None: the read failed, or the session has no such attribute.
async fn value(client: &Client, id: &str) -> Option<AttributeValue> {
    read(client, id).await?.attributes.get("a").cloned()
}

/// Waits until the server has sent the next read of the ends of the logs, and holds back its reply.
async fn hold_tail_read(proxy: &Proxy) {
    proxy.hold_replies_after_command("HMGET", Purpose::LogReads);
    eventually("the tail read is sent", async || proxy.is_holding_replies().then_some(())).await;
    // Redis executes it.
    sleep(Duration::from_millis(20)).await;
}

/// Reads until the value is in memory, and returns it.
async fn value_in_memory(client: &Client, id: &str) -> AttributeValue {
    let read = eventually("the session is read", async || value(client, id).await).await;
    for _ in 0..20 {
        value(client, id).await;
        sleep(Duration::from_millis(1)).await;
    }
    read
}

/// Checks that no read returns the old value once [`MAX_AGE`] has passed since it was replaced. Sends none before: it could
/// replace the copy.
async fn assert_ends(old: &AttributeValue, replaced: Instant, client: &Client, id: &str) {
    sleep((MAX_AGE + Duration::from_millis(1)).saturating_sub(replaced.elapsed())).await;
    while replaced.elapsed() < 2 * MAX_AGE {
        let age = replaced.elapsed();
        assert_ne!(value(client, id).await.as_ref(), Some(old), "the value was read {age:?} after its end");
        sleep(Duration::from_millis(1)).await;
    }
}

/// The reply to a read of the ends of the logs arrives late: it proves what was true when the read was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_read_with_a_late_reply_proves_an_earlier_time() {
    let world = World::dedicated();
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
    let (session, _) = client.create(&[("a", text("first"))]).await;
    for round in 0..3 {
        proxy.drop_messages(true);
        let old = value_in_memory(&slow, &session.id).await;
        hold_tail_read(&proxy).await;
        client.set(by_id(&session.id), &[("a", text(&round.to_string()))]).await.unwrap();
        let replaced = Instant::now();
        sleep(MAX_AGE - Duration::from_millis(100)).await;
        proxy.release_replies();
        assert_ends(&old, replaced, &slow, &session.id).await;
        proxy.drop_messages(false);
    }
}

/// The ends of the logs are known, and the entries up to them arrive late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_read_without_its_entries_proves_nothing() {
    let world = World::dedicated();
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
    let (session, _) = client.create(&[("a", text("first"))]).await;
    for round in 0..3 {
        proxy.drop_messages(true);
        let old = value_in_memory(&slow, &session.id).await;
        // The next tail read follows 400 ms later, and the value has been replaced then.
        hold_tail_read(&proxy).await;
        proxy.release_replies();
        proxy.hold_replies_after_command("XRANGE", Purpose::LogReads);
        client.set(by_id(&session.id), &[("a", text(&round.to_string()))]).await.unwrap();
        let replaced = Instant::now();
        eventually("the log is read", async || proxy.is_holding_replies().then_some(())).await;
        assert_ends(&old, replaced, &slow, &session.id).await;
        proxy.release_replies();
        proxy.drop_messages(false);
    }
}

/// The server does not receive the events of its own writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_own_writes_without_events_are_in_later_reads() {
    let world = World::dedicated();
    let (proxy, _servers, [slow, _]) = world.proxied_pair().await;
    for round in 0..8 {
        let (session, token) = slow.create_for("alice").await;
        let id = &session.id;
        eventually("the session is read", async || read(&slow, id).await).await;
        read(&slow, id).await;
        proxy.drop_messages(true);
        match round % 4 {
            0 => drop(slow.set(by_id(id), &[("a", text("new"))]).await.unwrap()),
            1 => drop(slow.rotate(&token).await.unwrap()),
            2 => assert!(slow.delete(by_id(id)).await.unwrap()),
            _ => assert_ne!(slow.delete_subject("alice").await.unwrap(), 0),
        }
        let (read, from_redis) = (read(&slow, id).await, slow.get(by_id(id)).await.ok());
        assert_eq!(read, from_redis, "round {round}");
        proxy.drop_messages(false);
    }
}

/// The client of a write gives up after Redis has executed it, and the server does not receive its event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_write_of_a_cancelled_call_is_in_later_reads() {
    const CANCELLED: &str = "sessiond_grpc_requests_total{method=\"UpdateSession\",code=\"CANCELLED\"}";
    // The partition is verified for longer than that.
    const READ_TIME: Duration = Duration::from_millis(200);
    let world = World::dedicated();
    let (proxy, [server, _other], [slow, client]) = world.proxied_pair().await;
    let (session, _) = client.create(&[("a", text("old"))]).await;
    let key = by_id(&session.id);
    for round in 0..5 {
        let old = value_in_memory(&slow, &session.id).await;
        proxy.hold_replies_after(&scripts::UPDATE, 1);
        let new = text(&round.to_string());
        let attributes = [("a", new.clone())];
        let is_executed = async || {
            let read = client.get(key.clone()).await.unwrap();
            (read.attributes.get("a") == Some(&new)).then_some(())
        };
        tokio::select! {
            biased;
            written = slow.set(key.clone(), &attributes) => panic!("the reply is held back: {written:?}"),
            () = eventually("Redis executes the write", is_executed) => {}
        }
        let is_cancelled = async || (server.metric(CANCELLED).await > f64::from(round)).then_some(());
        eventually("the server has dropped the call", is_cancelled).await;
        let read = timeout(READ_TIME, value(&slow, &session.id)).await;
        assert_ne!(read, Ok(Some(old)), "round {round}");
        proxy.release_replies();
    }
}

/// A read with a superseded token ends the session, and the server does not receive the event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_end_by_a_read_of_this_server_is_in_later_reads() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let policy = "[default_policy]\nrotation_grace = '0s'\ntoken_reuse = 'end'";
    let server = Server::start(&proxy.url(), &world.prefix, policy).await;
    let client = server.client().await;
    for round in 0..5 {
        let (session, first) = client.create(&[("a", text("1"))]).await;
        client.rotate_and_use(&first).await;
        value_in_memory(&client, &session.id).await;
        proxy.drop_messages(true);
        expect_error(client.get(by_token(&first)).await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(value(&client, &session.id).await, None, "round {round}");
        proxy.drop_messages(false);
    }
}

/// The other server ends a session, and its tombstone is deleted. This server creates the session again, and does not receive
/// the events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_session_created_again_is_in_later_reads() {
    let world = World::dedicated();
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
    for round in 0..5 {
        let token = new_token();
        let id = id_of(&token);
        let create = |value: &str| {
            let attributes = [("a".to_owned(), text(value))].into();
            slow.create_with(CreateSessionRequest { token: token.clone(), attributes, ..Default::default() })
        };
        create("first").await.unwrap();
        value_in_memory(&slow, &id).await;
        proxy.drop_messages(true);
        assert!(client.delete(by_id(&id)).await.unwrap());
        let record = world.redis.keys(&format!("*:s:*:{id}")).remove(0);
        world.redis.must(&["DEL", &record]);
        create("second").await.unwrap();
        assert_eq!(value(&slow, &id).await, Some(text("second")), "round {round}");
        proxy.drop_messages(false);
    }
}

/// The replies to reads and to a write of the same server arrive together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_reads_in_flight_at_an_own_write_are_not_kept() {
    const EXECUTION_TIME: Duration = Duration::from_millis(10);
    let world = World::dedicated();
    let (proxy, _servers, [slow, _]) = world.proxied_pair().await;
    proxy.drop_messages(true);
    for round in 0..40 {
        let (session, _) = slow.create(&[]).await;
        let (key, id) = (by_id(&session.id), &session.id);
        proxy.hold_replies_to(Purpose::Calls);
        let reading = join_all((0..16).map(|_| read(&slow, id)));
        let deleting = async {
            sleep(EXECUTION_TIME).await;
            slow.delete(key).await.unwrap()
        };
        let releasing = async {
            sleep(2 * EXECUTION_TIME).await;
            proxy.release_replies();
        };
        let (_, is_deleted, ()) = tokio::join!(reading, deleting, releasing);
        assert!(is_deleted);
        assert_eq!(read(&slow, id).await, None, "round {round}");
    }
}
