//! Memory of Redis: history gives way before a login fails.

use futures_util::future::join_all;
use harness::{Setup, World, client::*, eventually};
use sessiond_client::v1::{ResyncReason, SessionView, UpdateSessionRequest};
use tonic::Code;

const SESSIONS: usize = 20;
const UPDATES: usize = 20_000;
const MAXMEMORY: f64 = 48.0 * 1024.0 * 1024.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_updates_never_fill_redis_with_history() {
    let Setup { world, server, client } = &World::dedicated_with(&["--maxmemory", "48mb"]).setup().await;
    let token = client.watch_all().await.token;
    let large = [("cart", text(&incompressible(12_000)))];
    let created = join_all((0..SESSIONS).map(|_| client.create(&large))).await;
    let updates = created.iter().map(async |(session, _)| {
        for n in 0..UPDATES / SESSIONS {
            let set_attributes = [("n".to_owned(), text(&n.to_string()))].into();
            let view = SessionView::Basic.into();
            let namespace = NAMESPACE.into();
            let key = by_id(&session.id);
            let update = UpdateSessionRequest { namespace, key, set_attributes, view, ..Default::default() };
            client.grpc.clone().update_session(update).await.unwrap();
        }
    });
    join_all(updates).await;
    client.create_for("alice").await;
    let limit = server.metric("sessiond_log_limit_bytes").await;
    assert!(limit > 0.0 && limit <= MAXMEMORY / 5.0, "{limit}");
    let used = |log: &String| world.redis.number(&["MEMORY", "USAGE", log]) as f64;
    eventually("the logs are within their limit", async || {
        let bytes = world.redis.keys("*:log").iter().map(used).sum::<f64>();
        // An entry of this size takes 20 % more than its bytes.
        (server.metric("sessiond_log_bytes").await <= limit && bytes <= 1.25 * limit).then_some(())
    })
    .await;
    // A watcher that is behind receives the gap.
    assert_eq!(client.resume(&token).await.resync().await.reason(), ResyncReason::Compacted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_gives_way_when_redis_is_full_of_other_data() {
    let Setup { world, server, client } = &World::dedicated_with(&["--maxmemory", "48mb"]).setup().await;
    let token = client.watch_all().await.token;
    let (session, _) = client.create(&[("cart", text(&incompressible(12_000)))]).await;
    for n in 0..40 {
        client.set(by_id(&session.id), &[("n", text(&n.to_string()))]).await.unwrap();
    }
    // Another application fills the rest of the memory.
    let value = "x".repeat(100_000);
    let fill = |prefix: &str| {
        (0..).take_while(|n| world.redis.command(&["SET", &format!("{prefix}{n}"), &value]) == "+OK\r\n").count()
    };
    fill("other:");
    eventually("history is trimmed early", async || {
        (server.metric("sessiond_log_entries_trimmed_early_total").await > 0.0).then_some(())
    })
    .await;
    // Redis frees the memory of an entry after its removal.
    let login = async |subject: &str| {
        let create = sessiond_client::v1::CreateSessionRequest { subject: subject.into(), ..Default::default() };
        client.create_with(create).await
    };
    eventually("a login succeeds", async || login("alice").await.ok()).await;
    assert_eq!(client.resume(&token).await.resync().await.reason(), ResyncReason::Compacted);
    // History is spent, and memory is full: now logins fail.
    let full = eventually("Redis is full", async || {
        fill(&format!("more{}:", getrandom::u64().unwrap()));
        login("bob").await.err()
    })
    .await;
    expect_error(Err::<(), _>(full), Code::ResourceExhausted, "STORE_FULL");
    for key in world.redis.keys("other:1*") {
        world.redis.command(&["DEL", &key]);
    }
    eventually("a login succeeds", async || login("carol").await.ok()).await;
}
