//! Limits of the server: watches, connections, streams, and the time of a call.

use std::time::{Duration, Instant};

use harness::{client::*, raw::*, refusals::*, *};
use sessiond_client::v1::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

/// Timeout of the calls.
const TIMEOUT: Duration = Duration::from_millis(300);
/// Minimum time of a response: the server responds shortly before the timeout, so that the caller still receives it.
const MIN_TIME: Duration = Duration::from_millis(200);
/// Maximum time of a response, long enough for a busy machine.
const MAX_TIME: Duration = Duration::from_millis(1_900);

#[tokio::test]
async fn watch_beyond_the_limit_is_rejected_until_one_ends() {
    let world = World::shared();
    let server = world.server_with("limits.watches = 2").await;
    let client = server.client().await;
    let first = client.watch_all().await;
    let _second = client.watch_all().await;
    expect_error(client.watch(whole_namespace()).await.map(|_| ()), Code::ResourceExhausted, "WATCH_LIMIT");
    client.create(&[]).await;
    drop(first);
    eventually("a watch is accepted again", async || client.watch(whole_namespace()).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicted_watch_counts_until_its_reader_disconnects() {
    let world = World::shared();
    let server = world.server_with("limits = { watches = 2, slow_consumer_timeout = '1s' }").await;
    let client = server.client().await;
    let stalled = [server.client().await.watch_all().await, server.client().await.watch_all().await];
    let large = [("large", text(&incompressible(60_000)))];
    eventually("both are evicted", async || {
        client.create(&large).await;
        (server.metric("sessiond_watches_evicted_total").await == 2.0).then_some(())
    })
    .await;
    expect_error(client.watch(whole_namespace()).await.map(|_| ()), Code::ResourceExhausted, "WATCH_LIMIT");
    drop(stalled);
    eventually("a watch is accepted again", async || client.watch(whole_namespace()).await.ok()).await;
}

/// Returns whether the server has closed this connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match tokio::time::timeout(Duration::from_millis(20), stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
            Err(_) => return false,
        }
    }
}

#[tokio::test]
async fn connection_beyond_the_limit_is_closed_until_one_ends() {
    let world = World::shared();
    let server = world.server_with("limits.connections = 2").await;
    let client = server.client().await;
    client.create(&[]).await;
    let second = Raw::connect(&server.address).await;
    let (_, status) = second.call("CreateSession", &[], framed(&create())).await;
    assert_eq!(status.code(), Code::Ok);
    let mut third = TcpStream::connect(&server.address).await.unwrap();
    eventually("the third connection is closed", async || is_closed(&mut third).await.then_some(())).await;
    client.create(&[]).await;
    drop(second);
    eventually("a connection is accepted again", async || {
        let mut stream = TcpStream::connect(&server.address).await.ok()?;
        (!is_closed(&mut stream).await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn stream_beyond_the_limit_waits_until_one_ends() {
    let world = World::shared();
    let server = world.server_with("limits.streams_per_connection = 2").await;
    let raw = Raw::connect(&server.address).await;
    let (_, status) = raw.call("CreateSession", &[], framed(&create())).await;
    assert_eq!(status.code(), Code::Ok);
    eventually("the client receives the limit", async || (raw.0.current_max_send_streams() == 2).then_some(())).await;
    // A channel that respects the limit queues a call until a watch ends.
    let client = server.client().await;
    client.create(&[]).await;
    let first = client.watch_all().await;
    let _second = client.watch_all().await;
    let at_limit = async || server.metric("sessiond_grpc_connections_at_stream_limit").await;
    assert_eq!(at_limit().await, 1.0);
    let mut third = std::pin::pin!(client.create(&[]));
    assert!(tokio::time::timeout(TIMEOUT, &mut third).await.is_err(), "the call ended while two watches were open");
    drop(first);
    tokio::time::timeout(WAIT_LIMIT, third).await.expect("the call ends after one watch has ended");
    eventually("the connection is below the limit", async || (at_limit().await == 0.0).then_some(())).await;
}

#[tokio::test]
async fn connection_without_a_preface_is_closed() {
    let world = World::shared();
    let server = world.server().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut streams = Vec::new();
    for sent in [&b""[..], &preface[..1], &preface[..23]] {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        streams.push((String::from_utf8_lossy(sent).into_owned(), stream));
    }
    let mut other = TcpStream::connect(&server.address).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    streams.push(("HTTP/1.1".into(), other));
    for (name, stream) in &mut streams {
        eventually(name, async || is_closed(stream).await.then_some(())).await;
    }
    eventually("the metric is 0", async || (server.metric("sessiond_grpc_connections").await == 0.0).then_some(()))
        .await;
}

/// Returns an HTTP/2 frame.
#[tokio::test]
async fn connection_that_breaks_many_streams_is_closed() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;
    const END_HEADERS: u8 = 4;
    // :method POST, :scheme http, :path /, as indexes of the static HPACK table.
    let headers = [0x83, 0x86, 0x84];
    let rows = [
        ("resets every stream", frame(RST_STREAM, 0, 0, &8u32.to_be_bytes())),
        ("overflows the window of every stream", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes())),
    ];
    let world = World::shared();
    let server = world.server().await;
    for (name, breaking, count) in
        rows.into_iter().flat_map(|(name, frame)| [(name, frame.clone(), 50), (name, frame, 1_000)])
    {
        let mut all = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat();
        for stream in (1..).step_by(2).take(count) {
            all.extend(frame(HEADERS, END_HEADERS, stream, &headers));
            let mut breaking = breaking.clone();
            breaking[5..9].copy_from_slice(&stream.to_be_bytes());
            all.extend(breaking);
        }
        all.extend(frame(PING, 0, 0, b"are you?"));
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        // The server may close the connection before all is sent.
        let _ = stream.write_all(&all).await;
        if count < 100 {
            let (pong, mut received) = (frame(PING, 1, 0, b"are you?"), Vec::new());
            eventually(name, async || {
                stream.read_buf(&mut received).await.unwrap();
                received.windows(pong.len()).any(|part| part == pong).then_some(())
            })
            .await;
            continue;
        }
        eventually(name, async || is_closed(&mut stream).await.then_some(())).await;
    }
    server.client().await.create(&[]).await;
}

/// Returns the code and the reason of a response. Asserts that it arrived around the timeout.
async fn call_until_timeout(raw: &Raw, method: &str, timeout: Option<&str>, body: Vec<u8>) -> (Code, String) {
    let started = Instant::now();
    let headers: Vec<(&str, &str)> = timeout.iter().map(|timeout| ("grpc-timeout", *timeout)).collect();
    let (_, status) = raw.call(method, &headers, body).await;
    let took = started.elapsed();
    assert!((MIN_TIME..MAX_TIME).contains(&took), "{method} took {took:?}: {status:?}");
    (status.code(), status.reason())
}

#[tokio::test]
async fn call_ends_by_its_deadline_when_redis_hangs() {
    let world = World::dedicated();
    let server = world.server().await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    let namespace = || NAMESPACE.to_owned();
    let get = |touch| GetSessionRequest { namespace: namespace(), key: by_token(&token), touch, ..Default::default() };
    let touch = TouchSessionRequest { namespace: namespace(), key: by_id(&session.id) };
    let delete = DeleteSessionRequest { namespace: namespace(), key: by_id(&session.id), ..Default::default() };
    let update = UpdateSessionRequest { key: by_id(&session.id), clear_attributes: true, ..update() };
    let rows = [
        ("GetSession", framed(&get(false)), "STORE_TIMEOUT"),
        ("GetSession", framed(&get(true)), "STORE_TIMEOUT"),
        ("TouchSession", framed(&touch), "STORE_TIMEOUT"),
        ("CreateSession", framed(&create()), "OUTCOME_UNKNOWN"),
        ("UpdateSession", framed(&update), "STORE_TIMEOUT"),
        ("ListSessions", framed(&list()), "STORE_TIMEOUT"),
        ("Watch", framed(&watch()), "STORE_TIMEOUT"),
        ("DeleteSession", framed(&delete), "OUTCOME_UNKNOWN"),
    ];
    let raw = Raw::connect(&server.address).await;
    // All at the same time, before the heartbeat closes the connections to Redis.
    world.redis.pause();
    let answers =
        rows.iter().map(async |(method, body, _)| call_until_timeout(&raw, method, Some("300m"), body.clone()).await);
    let answers = futures_util::future::join_all(answers).await;
    world.redis.resume();
    for ((method, _, reason), answer) in rows.iter().zip(answers) {
        assert_eq!(answer, (Code::DeadlineExceeded, (*reason).to_owned()), "{method}");
    }
    let made = eventually("Redis responds again", async || client.create_with(create()).await.ok()).await;
    client.get(by_id(&made.0.id)).await.unwrap();
}

#[tokio::test]
async fn call_with_no_or_a_longer_deadline_gets_the_servers() {
    let world = World::dedicated();
    let server = world.server_with("limits.call_timeout = '300ms'").await;
    let client = server.client().await;
    client.create(&[]).await;
    let raw = Raw::connect(&server.address).await;
    let get = GetSessionRequest { namespace: NAMESPACE.into(), key: by_id(SOME_ID), ..Default::default() };
    world.redis.pause();
    let timeouts = [None, Some("5S"), Some("99999999H"), Some("nonsense")];
    let answers = timeouts.map(|timeout| call_until_timeout(&raw, "GetSession", timeout, framed(&get)));
    for answer in futures_util::future::join_all(answers).await {
        assert_eq!(answer, (Code::DeadlineExceeded, "STORE_TIMEOUT".to_owned()));
    }
    // The same time limits the wait for a message that never arrives completely.
    for sent in [None, Some(&framed(&get)[..7])] {
        let (response, mut stream) = raw.begin("GetSession", &[], None).await;
        if let Some(sent) = sent {
            stream.send_data(bytes::Bytes::copy_from_slice(sent), false).unwrap();
        }
        let (_, status) = tokio::time::timeout(WAIT_LIMIT, answer(response)).await.unwrap();
        assert_eq!((status.code(), &status.reason()[..]), (Code::DeadlineExceeded, "STORE_TIMEOUT"));
    }
}

#[tokio::test]
async fn expired_deadline_returns_ok_or_deadline_exceeded() {
    let world = World::shared();
    let server = world.server().await;
    let raw = Raw::connect(&server.address).await;
    for timeout in ["0m", "1n", "1u"] {
        let (_, status) = raw.call("CreateSession", &[("grpc-timeout", timeout)], framed(&create())).await;
        assert!(matches!(status.code(), Code::Ok | Code::DeadlineExceeded), "{timeout}: {status:?}");
    }
}
