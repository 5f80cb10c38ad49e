//! Expiry of sessions in many namespaces at once.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use harness::{World, client::*, eventually};
use sessiond::{
    observe::Metrics,
    store::{Eviction, Partition, ReplicatedWrites, Store, StoreOptions},
};
use sessiond_client::v1::{CreateSessionRequest, EventType};

/// Creates one session in each of this many namespaces.
async fn fill(client: &Client, namespaces: usize, idle_timeout: Option<prost_types::Duration>) {
    let creates = (0..namespaces).map(async |n| {
        let client = client.in_namespace(&format!("of-many-{n}"));
        client.create_with(CreateSessionRequest { idle_timeout, ..Default::default() }).await.unwrap();
    });
    join_all(creates).await;
}

#[tokio::test]
async fn w7_sessions_due_at_once_in_many_namespaces_all_end() {
    let world = World::shared();
    let server = world.server_with("partitions = 1").await;
    fill(&server.client().await, 200, millis(300)).await;
    eventually("all sessions have ended", async || {
        (server.metric("sessiond_sessions_expired_total").await == 200.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn w7_many_due_sessions_do_not_delay_another_namespace() {
    const MANY: usize = 1_000;
    let world = World::shared();
    let mut server = world.server_with("partitions = 1").await;
    let (many, one) = (server.client().await.in_namespace("many"), server.client().await.in_namespace("one"));
    let tokens = [many.watch_all().await.token, one.watch_all().await.token];
    let request = CreateSessionRequest { idle_timeout: millis(3_000), ..Default::default() };
    join_all((0..MANY).map(async |_| many.create_with(request.clone()).await.unwrap())).await;
    let (last, _) = one.create_with(request).await.unwrap();
    server.stop().await;
    // All sessions are due when the next server starts, this one last.
    let due = last.expire_time.unwrap();
    world.redis.wait_for_time(due.seconds * 1_000 + 1_000).await;
    let server = world.server_with("partitions = 1").await;
    let last_revision = async |namespace: &str, token: &[u8], sessions: usize| {
        let mut watching = server.client().await.in_namespace(namespace).resume(token).await;
        let events = watching.events(2 * sessions).await;
        assert!(events[sessions..].iter().all(|event| event.r#type() == EventType::Ended));
        events.last().map(|event| event.revision).unwrap()
    };
    let (last_of_many, of_one) =
        (last_revision("many", &tokens[0], MANY).await, last_revision("one", &tokens[1], 1).await);
    // A revision is a time by the clock of Redis, in us.
    assert!(of_one < last_of_many, "the session ended {} us after the last of the others", of_one - last_of_many);
}

#[tokio::test]
async fn full_page_of_due_namespaces_is_followed_by_another_at_once() {
    let world = World::shared();
    let server = world.server_with("partitions = 1").await;
    fill(&server.client().await, 100, None).await;
    let open = StoreOptions {
        url: &world.redis.url(),
        credentials: &Arc::default(),
        prefix: &world.prefix,
        partitions: 1,
        eviction: Eviction::Refused,
        replicated_writes: ReplicatedWrites::Disabled,
        feed_buffer: 16,
    };
    let store = Store::open(open, Arc::new(Metrics::default())).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let far_future = u64::MAX / 2;
    let (due, next) = store.due_namespaces(Partition(0), far_future, deadline).await.unwrap();
    assert!(due.len() < 100);
    assert_eq!(next, Some(far_future));
    // If no namespace is due, the call returns the next deadline.
    let (due, next) = store.due_namespaces(Partition(0), 0, deadline).await.unwrap();
    assert_eq!(due, []);
    assert!(next.is_some_and(|next| next > 0 && next < far_future));
}
