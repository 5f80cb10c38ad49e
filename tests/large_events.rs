//! Large events and sessions: the server reads them in bounded pages, so slow lines and client limits of Redis suffice.

use futures_util::future::join_all;
use harness::{Client, Redis, Server, WatchReader, World, client::*, proxy::Proxy};
use sessiond_client::v1::{GetSessionRequest, ListSessionsRequest, SessionView, WatchRequest};

const TOML: &str = "partitions = 1\n[default_policy]\nmax_payload_bytes = '1 MiB'";
/// Size of each session in bytes.
const LARGE: usize = 900_000;
/// Number of sessions in the snapshot and the list.
const SESSIONS: usize = 12;
/// Number of changes, more than a page of the log may hold.
const CHANGES: usize = 30;

/// Changes a session [`CHANGES`] times to a size of [`LARGE`].
async fn change_often(client: &Client) {
    let (session, _) = client.create(&[]).await;
    let large = incompressible(LARGE);
    for n in 0..CHANGES {
        client.set(by_id(&session.id), &[("a", text(&format!("{n}{large}")))]).await.unwrap();
    }
}

/// Reads all events of [`change_often`] and returns their number.
async fn receive(mut watching: WatchReader) -> usize {
    watching.events(1 + CHANGES).await.len()
}

/// Reads a small session again and again until the future completes. Panics if a call fails.
async fn with_calls<T>(client: &Client, future: impl Future<Output = T>) -> T {
    let (small, _) = client.in_namespace("calls").create(&[]).await;
    let calls = async {
        loop {
            client.in_namespace("calls").get(by_id(&small.id)).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        done = future => done,
        () = calls => unreachable!(),
    }
}

/// Delivers large events through the proxy: to an open watch, to a resumed one, and as snapshot and list of sessions.
async fn deliver(redis: &Redis, proxy: &Proxy) {
    let world = World { redis: redis.clone(), prefix: "ses:".into() };
    let (writer, reader) = (world.server_with(TOML).await, Server::start(&proxy.url(), "ses:", TOML).await);
    let (writing, client) = (writer.client().await, reader.client().await);
    let connections = proxy.connections();
    let live = client.watch_all().await;
    let token = live.token.clone();
    let received = with_calls(&client, async { tokio::join!(change_often(&writing), receive(live)).1 }).await;
    assert_eq!(received, 1 + CHANGES);
    let received = with_calls(&client, async { receive(client.resume(&token).await).await }).await;
    assert_eq!(received, 1 + CHANGES);
    assert_eq!(proxy.connections(), connections, "the server reconnected");

    let sessions = writing.in_namespace("sessions");
    for _ in 0..SESSIONS {
        sessions.create(&[("a", text(&incompressible(LARGE)))]).await;
    }
    let reading = client.in_namespace("sessions");
    let request = WatchRequest { initial_state: true, ..whole_namespace() };
    let snapshot = async { reading.watch(request).await.unwrap().snapshot().await.len() };
    assert_eq!(with_calls(&client, snapshot).await, SESSIONS);
    let lists = join_all((0..4).map(|_| list(&reading)));
    assert_eq!(with_calls(&client, lists).await, [SESSIONS; 4]);
    assert_eq!(proxy.connections(), connections, "the server reconnected");
}

/// Lists all sessions with their attributes and returns their number.
async fn list(client: &Client) -> usize {
    let (mut count, mut page_token) = (0, String::new());
    loop {
        let view = SessionView::Full.into();
        let request =
            ListSessionsRequest { namespace: client.namespace.clone(), view, page_token, ..Default::default() };
        let page = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
        count += page.sessions.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return count;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_arrive_over_a_slow_line() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    proxy.limit_bandwidth(10_000_000);
    deliver(&redis, &proxy).await;
}

/// A line of 10 MB/s to a store with one session of [`LARGE`] bytes.
struct SlowLine {
    proxy: Proxy,
    server: Server,
    client: Client,
    /// Id of the session.
    id: String,
    /// Number of connections to Redis.
    connections: usize,
}

impl SlowLine {
    async fn start() -> Self {
        let redis = Redis::start();
        let proxy = Proxy::start(&redis);
        proxy.limit_bandwidth(10_000_000);
        let server = Server::start(&proxy.url(), "ses:", TOML).await;
        let client = server.client().await;
        let (session, _) = client.create(&[("a", text(&incompressible(LARGE)))]).await;
        let connections = proxy.connections();
        SlowLine { proxy, server, client, id: session.id, connections }
    }

    fn assert_no_reconnect(&self) {
        assert_eq!(self.proxy.connections(), self.connections, "the server reconnected");
    }
}

/// All replies together take about twice as long as a heartbeat without any reply may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_wait_behind_large_replies_to_calls() {
    const CALLS: usize = 12;
    let line = SlowLine::start().await;
    let calls = (0..CALLS).map(async |_| line.server.client().await.get(by_id(&line.id)).await.unwrap());
    join_all(calls).await;
    line.assert_no_reconnect();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_to_callers_that_gave_up_are_signs_of_life() {
    const CALLS: usize = 12;
    let line = SlowLine::start().await;
    let (small, _) = line.client.create(&[]).await;
    let calls = (0..CALLS).map(async |_| {
        let request = GetSessionRequest { namespace: NAMESPACE.into(), key: by_id(&line.id), ..Default::default() };
        let mut request = tonic::Request::new(request);
        request.set_timeout(std::time::Duration::from_millis(500));
        line.server.client().await.grpc.get_session(request).await
    });
    assert!(join_all(calls).await.iter().any(Result::is_err), "calls give up");
    line.client.get(by_id(&small.id)).await.unwrap();
    line.assert_no_reconnect();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_arrive_with_a_client_memory_limit() {
    let redis = Redis::start_with(&["--maxmemory-clients", "16mb"]);
    let proxy = Proxy::start(&redis);
    deliver(&redis, &proxy).await;
}
