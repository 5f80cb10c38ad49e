//! What one client may take of a server, and how long a call may last.

mod harness;

use std::time::{Duration, Instant};

use harness::{client::*, raw::*, refusals::*, *};
use sessiond_client::v1::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

/// A call's answer is due then.
const DUE: Duration = Duration::from_millis(300);
/// A little earlier it may come, to be there before the caller gives up.
const EARLIEST: Duration = Duration::from_millis(200);
/// Generous, for the machine may be busy.
const LATEST: Duration = Duration::from_millis(1_900);

#[tokio::test]
async fn a_watch_beyond_the_limit_is_refused_until_one_ends() {
    let world = World::shared();
    let server = world.server_with("limits.watches = 2").await;
    let client = server.client().await;
    let first = client.watch_all().await;
    let _second = client.watch_all().await;
    expect_error(client.watch(whole_namespace()).await.map(|_| ()), Code::ResourceExhausted, "WATCH_LIMIT");
    client.create(&[]).await;
    drop(first);
    eventually("the place is free again", async || client.watch(whole_namespace()).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_was_found_slow_counts_until_its_reader_is_gone() {
    let world = World::shared();
    let server = world.server_with("limits = { watches = 2, slow_consumer_timeout = '1s' }").await;
    let client = server.client().await;
    let stalled = [server.client().await.watch_all().await, server.client().await.watch_all().await];
    let large = [("large", text(&incompressible(60_000)))];
    eventually("both are found slow", async || {
        client.create(&large).await;
        (server.metric("sessiond_slow_watchers_total").await == 2.0).then_some(())
    })
    .await;
    expect_error(client.watch(whole_namespace()).await.map(|_| ()), Code::ResourceExhausted, "WATCH_LIMIT");
    drop(stalled);
    eventually("their places are free again", async || client.watch(whole_namespace()).await.ok()).await;
}

/// Whether the server has closed this connection.
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
async fn a_connection_beyond_the_limit_is_closed_at_once_until_one_ends() {
    let world = World::shared();
    let server = world.server_with("limits.connections = 2").await;
    let client = server.client().await;
    client.create(&[]).await;
    let second = Raw::connect(&server.address).await;
    let (_, status) = second.call("CreateSession", &[], framed(&create())).await;
    assert_eq!(status.code(), Code::Ok);
    let mut third = TcpStream::connect(&server.address).await.unwrap();
    eventually("the third is closed", async || is_closed(&mut third).await.then_some(())).await;
    client.create(&[]).await;
    drop(second);
    eventually("the place is free again", async || {
        let mut stream = TcpStream::connect(&server.address).await.ok()?;
        (!is_closed(&mut stream).await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_beyond_the_limit_waits_until_one_ends() {
    let world = World::shared();
    let server = world.server_with("limits.streams_per_connection = 2").await;
    let raw = Raw::connect(&server.address).await;
    let (_, status) = raw.call("CreateSession", &[], framed(&create())).await;
    assert_eq!(status.code(), Code::Ok);
    eventually("the limit is told", async || (raw.0.current_max_send_streams() == 2).then_some(())).await;
    // On a channel that minds the limit, a call waits for a watch to end.
    let client = server.client().await;
    client.create(&[]).await;
    let first = client.watch_all().await;
    let _second = client.watch_all().await;
    let mut third = std::pin::pin!(client.create(&[]));
    assert!(tokio::time::timeout(DUE, &mut third).await.is_err(), "it is answered beside two watches");
    drop(first);
    tokio::time::timeout(PATIENCE, third).await.expect("it is answered once one has ended");
}

#[tokio::test]
async fn a_connection_that_never_speaks_is_dropped() {
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
    streams.push(("another protocol".into(), other));
    for (what, stream) in &mut streams {
        eventually(what, async || is_closed(stream).await.then_some(())).await;
    }
    eventually("none is counted", async || (server.metric("sessiond_connections").await == 0.0).then_some(())).await;
}

/// HTTP/2 frames: type, flags, stream, payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn a_connection_that_breaks_stream_after_stream_is_closed() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;
    const END_HEADERS: u8 = 4;
    // :method POST, :scheme http, :path /, by their numbers in HPACK's table.
    let headers = [0x83, 0x86, 0x84];
    let rows = [
        ("resets what it opened", frame(RST_STREAM, 0, 0, &8u32.to_be_bytes())),
        ("opens its window beyond what there is", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes())),
    ];
    let world = World::shared();
    let server = world.server().await;
    for (what, breaking, count) in
        rows.into_iter().flat_map(|(what, frame)| [(what, frame.clone(), 50), (what, frame, 1_000)])
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
        // It may be closed before all is sent.
        let _ = stream.write_all(&all).await;
        if count < 100 {
            let (answer, mut heard) = (frame(PING, 1, 0, b"are you?"), Vec::new());
            eventually(what, async || {
                stream.read_buf(&mut heard).await.unwrap();
                heard.windows(answer.len()).any(|part| part == answer).then_some(())
            })
            .await;
            continue;
        }
        eventually(what, async || is_closed(&mut stream).await.then_some(())).await;
    }
    server.client().await.create(&[]).await;
}

/// The code and reason of an answer, and that it came when it was due.
async fn timed(raw: &Raw, method: &str, timeout: Option<&str>, body: Vec<u8>) -> (Code, String) {
    let started = Instant::now();
    let headers: Vec<(&str, &str)> = timeout.iter().map(|timeout| ("grpc-timeout", *timeout)).collect();
    let (_, status) = raw.call(method, &headers, body).await;
    let took = started.elapsed();
    assert!((EARLIEST..LATEST).contains(&took), "{method} took {took:?}: {status:?}");
    (status.code(), status.reason())
}

#[tokio::test]
async fn a_call_is_answered_by_its_deadline_when_redis_hangs() {
    let world = World::own();
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
        ("GetSession", framed(&get(true)), "OUTCOME_UNKNOWN"),
        ("TouchSession", framed(&touch), "OUTCOME_UNKNOWN"),
        ("CreateSession", framed(&create()), "OUTCOME_UNKNOWN"),
        ("UpdateSession", framed(&update), "OUTCOME_UNKNOWN"),
        ("ListSessions", framed(&list()), "STORE_TIMEOUT"),
        ("Watch", framed(&watch()), "STORE_TIMEOUT"),
        ("DeleteSession", framed(&delete), "OUTCOME_UNKNOWN"),
    ];
    let raw = Raw::connect(&server.address).await;
    // All at once, while the connections to Redis still hope for an answer.
    world.redis.pause();
    let answers = rows.iter().map(async |(method, body, _)| timed(&raw, method, Some("300m"), body.clone()).await);
    let answers = futures_util::future::join_all(answers).await;
    world.redis.resume();
    for ((method, _, reason), answer) in rows.iter().zip(answers) {
        assert_eq!(answer, (Code::DeadlineExceeded, (*reason).to_owned()), "{method}");
    }
    let made = eventually("Redis is back", async || client.create_as(create()).await.ok()).await;
    client.get(by_id(&made.0.id)).await.unwrap();
}

#[tokio::test]
async fn a_call_without_a_deadline_or_with_a_longer_one_gets_the_servers() {
    let world = World::own();
    let server = world.server_with("limits.call_timeout = '300ms'").await;
    let client = server.client().await;
    client.create(&[]).await;
    let raw = Raw::connect(&server.address).await;
    let get = GetSessionRequest { namespace: NAMESPACE.into(), key: by_id(SOME_ID), ..Default::default() };
    world.redis.pause();
    let timeouts = [None, Some("5S"), Some("99999999H"), Some("nonsense")];
    let answers = timeouts.map(|timeout| timed(&raw, "GetSession", timeout, framed(&get)));
    for answer in futures_util::future::join_all(answers).await {
        assert_eq!(answer, (Code::DeadlineExceeded, "STORE_TIMEOUT".to_owned()));
    }
    // A message that never comes in whole is waited for no longer.
    for sent in [None, Some(&framed(&get)[..7])] {
        let (response, mut stream) = raw.begin("GetSession", &[], None).await;
        if let Some(sent) = sent {
            stream.send_data(bytes::Bytes::copy_from_slice(sent), false).unwrap();
        }
        let (_, status) = tokio::time::timeout(PATIENCE, answer(response)).await.unwrap();
        assert_eq!((status.code(), &status.reason()[..]), (Code::DeadlineExceeded, "STORE_TIMEOUT"));
    }
}

#[tokio::test]
async fn a_deadline_that_is_over_at_once_is_never_an_answer_of_another_kind() {
    let world = World::shared();
    let server = world.server().await;
    let raw = Raw::connect(&server.address).await;
    for timeout in ["0m", "1n", "1u"] {
        let (_, status) = raw.call("CreateSession", &[("grpc-timeout", timeout)], framed(&create())).await;
        assert!(matches!(status.code(), Code::Ok | Code::DeadlineExceeded), "{timeout}: {status:?}");
    }
}
