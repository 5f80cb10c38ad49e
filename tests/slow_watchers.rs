//! W8: a slow watcher harms nobody, keeps its place while the log reaches back, and is told when it does not.

mod harness;

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use harness::{Client, PATIENCE, Server, Watching, World, client::*, eventually};
use prost_types::Timestamp;
use sessiond_client::v1::{
    EventType, ResyncReason, SessionEvent, WatchRequest, session_service_client::SessionServiceClient,
    watch_response::Control,
};
use tokio::time::sleep;
use tonic::transport::Channel;

const CHANGES: usize = 600;

/// Changes of 8 KB each: far more than the windows of a stalled reader hold.
async fn change_much(client: &Client) -> Vec<String> {
    let value = [("cart", text(&incompressible(8_000)))];
    let mut ids = Vec::new();
    for _ in 0..CHANGES / 50 {
        ids.extend(join_all((0..50).map(|_| client.create(&value))).await.into_iter().map(|(session, _)| session.id));
    }
    ids
}

/// The reason of the last response, after what comes before it.
async fn last_word(watching: &mut Watching) -> Option<ResyncReason> {
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
async fn one_that_reads_nothing_for_the_configured_time_is_ended_with_its_token() {
    let world = World::shared();
    let server = world.server_with("[limits]\nslow_consumer_timeout = \"1s\"").await;
    let client = server.client().await;
    let mut watching = server.client().await.watch_all().await;
    let mut ids = change_much(&client).await;
    eventually("it is left", async || (server.metric("sessiond_slow_watchers_total").await == 1.0).then_some(())).await;
    assert_eq!(server.metric("sessiond_watchers").await, 0.0);
    let mut told = Vec::new();
    let reason = loop {
        let response = watching.response().await.unwrap().expect("its last word comes");
        told.extend(response.events.into_iter().map(|event| event.id));
        if let Some(Control::Resync(resync)) = response.control {
            break resync.reason();
        }
    };
    assert_eq!(reason, ResyncReason::SlowConsumer);
    assert!(watching.response().await.unwrap().is_none(), "the stream ends with OK");
    assert!(told.len() < CHANGES, "it was ended before it had all");
    // And goes on where it was.
    let mut resumed = client.resume(&watching.token).await;
    while told.len() < CHANGES {
        told.push(resumed.event().await.id);
    }
    ids.sort();
    told.sort();
    assert_eq!(told, ids, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_reads_nothing_is_not_ended_where_its_window_takes_what_comes() {
    let world = World::shared();
    let server = world.server_with("[limits]\nslow_consumer_timeout = \"1s\"").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    // Nothing comes but bookmarks.
    sleep(Duration::from_millis(2_500)).await;
    let (session, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &session.id).await;
    assert_eq!(server.metric("sessiond_slow_watchers_total").await, 0.0);
}

/// What one was told that never rests.
struct Told {
    events: Vec<SessionEvent>,
    /// The times of the bookmarks, and how many events were told before each.
    bookmarks: Vec<(Timestamp, usize)>,
}

/// How one reads, and what.
struct Pace {
    /// From one response that it takes to the next.
    turn: Duration,
    /// How many changes wait for it, and how many bytes each has: more than its window and the server's buffer for it hold.
    behind: usize,
    bytes: usize,
}

/// One watches that never rests, until it was told enough.
async fn watch_without_rest(
    server: &Server,
    request: WatchRequest,
    pace: Pace,
    is_enough: impl Fn(&Told) -> bool,
) -> Told {
    const WINDOW: u32 = 64 * 1024;
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let grpc = SessionServiceClient::new(endpoint.connect().await.unwrap());
    let mut watching = Client { grpc, ..client.clone() }.watch(request).await.unwrap();
    let (written, read, is_over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let writing = async {
        let large = incompressible(pace.bytes);
        while !is_over.load(Ordering::Relaxed) {
            let turn = written.load(Ordering::Relaxed);
            // Not so far that the log does not reach back.
            if turn - read.load(Ordering::Relaxed) > 2 * pace.behind {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            client.set(by_id(&session.id), &[("large", text(&format!("{turn}{large}")))]).await.unwrap();
            written.store(turn + 1, Ordering::Relaxed);
        }
    };
    let mut told = Told { events: Vec::new(), bookmarks: Vec::new() };
    let reading = async {
        while !is_enough(&told) {
            sleep(pace.turn).await;
            let ahead = || written.load(Ordering::Relaxed) - told.events.len() >= pace.behind;
            eventually("more waits for it than is under way", async || ahead().then_some(())).await;
            let response = watching.response().await.unwrap().expect("it is not ended");
            told.events.extend(response.events);
            match response.control {
                Some(Control::Resync(resync)) => panic!("it misses nothing: {resync:?}"),
                Some(Control::Bookmark(bookmark)) => {
                    told.bookmarks.push((bookmark.as_of.unwrap(), told.events.len()));
                }
                _ => {}
            }
            read.store(told.events.len(), Ordering::Relaxed);
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(writing, reading);
    while told.events.len() < written.load(Ordering::Relaxed) {
        told.events.push(watching.event().await);
    }
    assert!(told.events.is_sorted_by(|a, b| a.revision < b.revision), "each once");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_reads_slowly_is_not_ended_however_far_behind() {
    const SLOW: Duration = Duration::from_secs(3);
    let world = World::shared();
    let server = world.server_with("[limits]\nslow_consumer_timeout = \"3s\"").await;
    let pace = Pace { turn: SLOW / 6, behind: 20, bytes: 50_000 };
    let began = Instant::now();
    watch_without_rest(&server, whole_namespace(), pace, |_| began.elapsed() > 2 * SLOW + SLOW / 2).await;
    assert_eq!(server.metric("sessiond_slow_watchers_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_bookmarks_come_to_one_that_never_rests() {
    let world = World::shared();
    let server = world.server().await;
    let request = WatchRequest { bookmark_interval: millis(100), ..whole_namespace() };
    // So far behind that the tails can be read again and again meanwhile.
    let pace = Pace { turn: Duration::from_millis(5), behind: 2_000, bytes: 6_000 };
    let began = Instant::now();
    // One is due as the watch begins.
    let told = watch_without_rest(&server, request, pace, |told| {
        assert!(began.elapsed() < 2 * PATIENCE, "{} among {} events", told.bookmarks.len(), told.events.len());
        told.bookmarks.len() > 2
    })
    .await;
    assert!(told.bookmarks.is_sorted_by_key(|(as_of, _)| (as_of.seconds, as_of.nanos)));
    for (as_of, before) in &told.bookmarks {
        let time = |event: &SessionEvent| event.event_time.map(|time| (time.seconds, time.nanos)).unwrap();
        let late = told.events[*before..].iter().find(|event| time(event) <= (as_of.seconds, as_of.nanos));
        assert!(late.is_none(), "told after a bookmark that says it was told");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_falls_off_the_log_is_ended_with_its_token() {
    let world = World::own();
    let toml = "[limits]\nring_slots = 16";
    let server = world.server_with(toml).await;
    let client = server.client().await;
    let mut watching = server.client().await.watch_all().await;
    change_much(&client).await;
    for key in world.redis.keys("*:log") {
        world.redis.command(&["XTRIM", &key, "MAXLEN", "1"]);
    }
    assert_eq!(last_word(&mut watching).await, Some(ResyncReason::SlowConsumer));
    // There is one way to recover.
    let mut resumed = client.resume(&watching.token).await;
    assert_eq!(resumed.resync().await.reason(), ResyncReason::Compacted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w8_those_that_are_far_behind_keep_their_place_and_read_the_log_together() {
    const WATCHERS: usize = 8;
    let world = World::shared();
    let server = world.server_with("[limits]\nring_slots = 16").await;
    let client = server.client().await;
    let token = client.watch_all().await.token;
    let mut ids = Vec::new();
    for _ in 0..CHANGES {
        ids.push(client.create(&[]).await.0.id);
    }
    ids.sort();
    let before = reads_of_the_log(&server).await;
    let told = join_all((0..WATCHERS).map(async |_| {
        let mut watching = server.client().await.resume(&token).await;
        let mut told: Vec<_> = watching.events(CHANGES).await.into_iter().map(|event| event.id).collect();
        told.sort();
        told
    }))
    .await;
    for told in told {
        assert_eq!(told, ids, "each once");
    }
    let reads = reads_of_the_log(&server).await - before;
    // Alone each would read a page at least of each of the 16 partitions.
    let alone = (16 * WATCHERS) as f64;
    assert!(reads < alone, "{reads} pages were read, {alone} would be without sharing");
}

async fn reads_of_the_log(server: &harness::Server) -> f64 {
    server.metric("sessiond_redis_calls_total{command=\"XRANGE\",result=\"ok\"}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w8_stalled_readers_hold_up_no_call_and_no_other_watcher() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(server.client().await.watch_all().await);
    }
    let request = WatchRequest { types: vec![EventType::Ended.into()], ..whole_namespace() };
    let mut lively = server.client().await.watch(request).await.unwrap();
    let ids = change_much(&client).await;
    for id in &ids {
        client.delete(by_id(id)).await.unwrap();
    }
    let told = lively.events(ids.len()).await;
    assert_eq!(told.len(), ids.len());
    drop(stalled);
}
