//! Guarantee W8: a slow watcher affects no other client, and loses no event as long as the log reaches back to it.
//! Otherwise it is evicted.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use harness::{Client, Server, Setup, WAIT_LIMIT, WatchReader, World, client::*, eventually, setup, setup_with};
use prost_types::Timestamp;
use sessiond_client::v1::{
    EventType, ResyncReason, SessionEvent, WatchRequest, session_service_client::SessionServiceClient,
    watch_response::Control,
};
use tokio::time::sleep;
use tonic::transport::Channel;

const CHANGES: usize = 600;

/// Creates [`CHANGES`] sessions of 8 KB each, far more than the flow-control windows of a stalled reader hold.
async fn create_many(client: &Client) -> Vec<String> {
    let value = [("cart", text(&incompressible(8_000)))];
    let mut ids = Vec::new();
    for _ in 0..CHANGES / 50 {
        ids.extend(join_all((0..50).map(|_| client.create(&value))).await.into_iter().map(|(session, _)| session.id));
    }
    ids
}

/// Reads up to the final response and returns its resync reason.
async fn final_reason(watching: &mut WatchReader) -> Option<ResyncReason> {
    let mut last = None;
    while let Some(response) = watching.response().await.unwrap() {
        last = Some(response);
    }
    match last?.control? {
        Control::Resync(resync) => Some(resync.reason()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_watcher_is_evicted_with_a_resume_token() {
    let Setup { server, client, .. } = &setup_with("[limits]\nslow_consumer_timeout = \"1s\"").await;
    let mut watching = server.client().await.watch_all().await;
    let mut ids = create_many(client).await;
    eventually("the watcher is evicted", async || {
        (server.metric("sessiond_watches_evicted_total").await == 1.0).then_some(())
    })
    .await;
    assert_eq!(server.metric("sessiond_watches").await, 1.0, "it keeps its place until its stream ends");
    let mut received = Vec::new();
    let reason = loop {
        let response = watching.response().await.unwrap().expect("a final response");
        received.extend(response.events.into_iter().map(|event| event.id));
        if let Some(Control::Resync(resync)) = response.control {
            break resync.reason();
        }
    };
    assert_eq!(reason, ResyncReason::SlowConsumer);
    assert!(watching.response().await.unwrap().is_none(), "the stream ends with OK");
    assert!(received.len() < CHANGES, "evicted after it had received all events");
    // The resume token continues without a gap.
    let mut resumed = client.resume(&watching.token).await;
    while received.len() < CHANGES {
        received.push(resumed.event().await.id);
    }
    ids.sort();
    received.sort();
    assert_eq!(received, ids, "each event once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watcher_with_free_window_is_not_evicted() {
    let Setup { server, client, .. } = &setup_with("[limits]\nslow_consumer_timeout = \"1s\"").await;
    let mut watching = client.watch_all().await;
    // The server sends only bookmarks, which fit into the window.
    sleep(Duration::from_millis(2_500)).await;
    let (session, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &session.id).await;
    assert_eq!(server.metric("sessiond_watches_evicted_total").await, 0.0);
}

/// What a lagging watcher has received.
struct Received {
    events: Vec<SessionEvent>,
    /// `as_of` of each bookmark and the number of events received before it.
    bookmarks: Vec<(Timestamp, usize)>,
}

/// Speed of a lagging watcher and size of its backlog.
struct Pace {
    /// Pause before each read.
    pause: Duration,
    /// Minimum number of unread changes: more than the client's window and the server's buffer hold.
    behind: usize,
    /// Size of each change in bytes.
    bytes: usize,
}

/// Reads a watch that always lags behind until `is_enough` returns true; returns what it received.
async fn lagging_watch(
    server: &Server,
    request: WatchRequest,
    pace: Pace,
    is_enough: impl Fn(&Received) -> bool,
) -> Received {
    const WINDOW: u32 = 64 * 1024;
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let grpc = SessionServiceClient::with_interceptor(endpoint.connect().await.unwrap(), Bearer::default());
    let mut watching = Client { grpc, ..client.clone() }.watch(request).await.unwrap();
    let (written, read, is_over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let writing = async {
        let large = incompressible(pace.bytes);
        while !is_over.load(Ordering::Relaxed) {
            let turn = written.load(Ordering::Relaxed);
            // Bounds the backlog, so that the log still reaches back to the watcher.
            if turn - read.load(Ordering::Relaxed) > 2 * pace.behind {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            client.set(by_id(&session.id), &[("large", text(&format!("{turn}{large}")))]).await.unwrap();
            written.store(turn + 1, Ordering::Relaxed);
        }
    };
    let mut received = Received { events: Vec::new(), bookmarks: Vec::new() };
    let reading = async {
        while !is_enough(&received) {
            sleep(pace.pause).await;
            let ahead = || written.load(Ordering::Relaxed) - received.events.len() >= pace.behind;
            eventually("the backlog is long enough", async || ahead().then_some(())).await;
            let response = watching.response().await.unwrap().expect("the stream is open");
            received.events.extend(response.events);
            match response.control {
                Some(Control::Resync(resync)) => panic!("unexpected resync: {resync:?}"),
                Some(Control::Bookmark(bookmark)) => {
                    received.bookmarks.push((bookmark.as_of.unwrap(), received.events.len()));
                }
                _ => {}
            }
            read.store(received.events.len(), Ordering::Relaxed);
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(writing, reading);
    while received.events.len() < written.load(Ordering::Relaxed) {
        received.events.push(watching.event().await);
    }
    assert!(received.events.is_sorted_by(|a, b| a.revision < b.revision), "each event once");
    received
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_but_reading_watcher_is_not_evicted() {
    const SLOW: Duration = Duration::from_secs(3);
    let world = World::shared();
    let server = world.server_with("[limits]\nslow_consumer_timeout = \"3s\"").await;
    let pace = Pace { pause: SLOW / 6, behind: 20, bytes: 50_000 };
    let began = Instant::now();
    lagging_watch(&server, whole_namespace(), pace, |_| began.elapsed() > 2 * SLOW + SLOW / 2).await;
    assert_eq!(server.metric("sessiond_watches_evicted_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_constantly_lagging_watcher_receives_bookmarks() {
    let world = World::shared();
    let server = world.server().await;
    let request = WatchRequest { bookmark_interval: millis(100), ..whole_namespace() };
    // The backlog lasts long enough for many reads of the tails.
    let pace = Pace { pause: Duration::from_millis(5), behind: 2_000, bytes: 6_000 };
    let began = Instant::now();
    // The first bookmark is due when the watch opens.
    let received = lagging_watch(&server, request, pace, |received| {
        assert!(
            began.elapsed() < 2 * WAIT_LIMIT,
            "{} bookmarks among {} events",
            received.bookmarks.len(),
            received.events.len()
        );
        received.bookmarks.len() > 2
    })
    .await;
    assert!(received.bookmarks.is_sorted_by_key(|(as_of, _)| (as_of.seconds, as_of.nanos)));
    for (as_of, before) in &received.bookmarks {
        let time = |event: &SessionEvent| event.event_time.map(|time| (time.seconds, time.nanos)).unwrap();
        let late = received.events[*before..].iter().find(|event| time(event) <= (as_of.seconds, as_of.nanos));
        assert!(late.is_none(), "an event was received after a bookmark with a later as_of");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watcher_behind_the_log_is_evicted_with_a_resume_token() {
    let world = World::dedicated();
    let toml = "[limits]\nring_slots = 16";
    let server = world.server_with(toml).await;
    let client = server.client().await;
    let mut watching = server.client().await.watch_all().await;
    create_many(&client).await;
    for key in world.redis.keys("*:log") {
        world.redis.command(&["XTRIM", &key, "MAXLEN", "1"]);
    }
    assert_eq!(final_reason(&mut watching).await, Some(ResyncReason::SlowConsumer));
    // A resume with the final token gets a resync.
    let mut resumed = client.resume(&watching.token).await;
    assert_eq!(resumed.resync().await.reason(), ResyncReason::Compacted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w8_lagging_watchers_share_log_reads() {
    const WATCHERS: usize = 8;
    let Setup { server, client, .. } = &setup_with("[limits]\nring_slots = 16").await;
    let token = client.watch_all().await.token;
    let mut ids = Vec::new();
    for _ in 0..CHANGES {
        ids.push(client.create(&[]).await.0.id);
    }
    ids.sort();
    let before = log_reads(server).await;
    let received = join_all((0..WATCHERS).map(async |_| {
        let mut watching = server.client().await.resume(&token).await;
        let mut received: Vec<_> = watching.events(CHANGES).await.into_iter().map(|event| event.id).collect();
        received.sort();
        received
    }))
    .await;
    for received in received {
        assert_eq!(received, ids, "each event once");
    }
    let reads = log_reads(server).await - before;
    // Without sharing each watcher would read at least one page of each of the 16 partitions.
    let unshared = (16 * WATCHERS) as f64;
    assert!(reads < unshared, "{reads} pages were read; without sharing it would be {unshared}");
}

/// Returns the number of log pages that the server has read.
async fn log_reads(server: &harness::Server) -> f64 {
    server.metric("sessiond_redis_commands_total{command=\"page\",result=\"ok\"}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w8_stalled_watchers_block_no_call_and_no_watcher() {
    let Setup { server, client, .. } = &setup().await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(server.client().await.watch_all().await);
    }
    let request = WatchRequest { types: vec![EventType::Ended.into()], ..whole_namespace() };
    let mut active = server.client().await.watch(request).await.unwrap();
    let ids = create_many(client).await;
    for id in &ids {
        client.delete(by_id(id)).await.unwrap();
    }
    let received = active.events(ids.len()).await;
    assert_eq!(received.len(), ids.len());
    drop(stalled);
}
