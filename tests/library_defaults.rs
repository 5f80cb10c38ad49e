//! Unsafe defaults of the HTTP/2 and Redis libraries that this server avoids: the cases that no other file tests.
//! docs/faults.md has the whole list.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use harness::{Redis, client::*, proxy::Proxy, raw::*, refusals::*, relay::Relay, *};
use sessiond::store::scripts;
use sessiond_client::v1::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tonic::Code;

/// Time after which a call counts as blocked.
const A_WHILE: Duration = Duration::from_millis(300);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;

/// Returns an HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns the payload of the next frame of this type; skips all others.
async fn next_frame(stream: &mut TcpStream, kind: u8) -> Vec<u8> {
    let read = async {
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.expect("a frame header");
            let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
            stream.read_exact(&mut payload).await.expect("a frame payload");
            if header[3] == kind {
                return payload;
            }
        }
    };
    timeout(WAIT_LIMIT, read).await.expect("a frame of this type")
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

#[tokio::test]
async fn connection_receives_its_limits_as_settings() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    const MAX_HEADER_LIST_SIZE: u16 = 6;
    let world = World::shared();
    let server = world.server_with("limits.streams_per_connection = 7").await;
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let settings = next_frame(&mut stream, SETTINGS).await;
    let setting = |id: u16| {
        let found = settings.chunks(6).find(|setting| setting[..2] == id.to_be_bytes());
        found.map(|setting| number(&setting[2..]))
    };
    assert_eq!(setting(MAX_CONCURRENT_STREAMS), Some(7));
    assert_eq!(setting(MAX_HEADER_LIST_SIZE), Some(64 * 1024));
    assert_eq!(setting(INITIAL_WINDOW_SIZE), Some(1024 * 1024));
}

#[tokio::test]
async fn oversized_headers_are_rejected_per_call() {
    let world = World::shared();
    let server = world.server().await;
    let raw = Raw::connect(&server.address).await;
    let (_, status) = raw.call("CreateSession", &[("x", &a(20_000))], framed(&create())).await;
    assert_eq!((status.code(), &status.reason()[..]), (Code::ResourceExhausted, "METADATA_TOO_LARGE"), "{status:?}");
    let (response, _) = raw.begin("CreateSession", &[("x", &a(100_000))], Some(framed(&create()).into())).await;
    let rejected = timeout(WAIT_LIMIT, response).await.expect("a response").unwrap();
    assert_eq!(rejected.status(), http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let (_, status) = raw.call("CreateSession", &[("x", &a(10_000))], framed(&create())).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
}

#[tokio::test]
async fn rapid_stream_resets_close_the_connection() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    // :method POST, :scheme http, :path /, as indexes of the static HPACK table.
    let headers = [0x83, 0x86, 0x84];
    let world = World::shared();
    let server = world.server().await;
    let mut all = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for stream in (1..).step_by(2).take(1_000) {
        all.extend(frame(HEADERS, END_HEADERS, stream, &headers));
        all.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    // The server may close the connection before all frames are sent.
    let _ = stream.write_all(&all).await;
    let goaway = next_frame(&mut stream, GOAWAY).await;
    assert_eq!(number(&goaway[4..8]), ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn peer_without_ping_replies_is_disconnected() {
    let world = World::shared();
    let server = world.server_with("[limits]\nkeepalive_interval = '200ms'\nkeepalive_timeout = '1s'").await;
    let relay = Relay::start(&server.address).await;
    let (direct, relayed) = (server.client().await, Client::connect(&relay.address).await);
    let (mut healthy, _stalled) = (direct.watch_all().await, relayed.watch_all().await);
    assert_eq!(server.metric("sessiond_watches").await, 2.0);
    relay.stall_connections();
    eventually("its watch is closed", async || (server.metric("sessiond_watches").await == 1.0).then_some(())).await;
    eventually("its connection is closed", async || {
        (server.metric("sessiond_grpc_connections").await == 1.0).then_some(())
    })
    .await;
    let (session, _) = direct.create(&[]).await;
    healthy.wait_for(EventType::Created, &session.id).await;
}

/// Opens this many watches of the whole namespace and reads nothing from them.
async fn stalled_watches(raw: &Raw, count: usize) -> Vec<impl Sized> {
    let request = WatchRequest { namespace: NAMESPACE.into(), ..whole_namespace() };
    join_all((0..count).map(|_| raw.begin("Watch", &[], Some(framed(&request).into())))).await
}

#[tokio::test]
async fn drain_does_not_wait_for_stalled_readers() {
    let world = World::shared();
    let mut server = world.server_with("drain_timeout = '500ms'").await;
    let client = server.client().await;
    let mut reading = client.watch_all().await;
    // A stream window of 0: the server can send neither a bookmark nor the status.
    let raw = Raw::connect_with_windows(&server.address, 0, 65_535).await;
    let _stalled = stalled_watches(&raw, 8).await;
    eventually("the watches are open", async || (server.metric("sessiond_watches").await == 9.0).then_some(())).await;
    client.create(&[]).await;
    timeout(WAIT_LIMIT, server.stop()).await.expect("the server stops");
    expect_error(reading.end().await, Code::Unavailable, "DRAINING");
}

#[tokio::test]
async fn stalled_readers_block_only_their_connection() {
    let Setup { server, client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let raw = Raw::connect_with_windows(&server.address, 65_535, 65_535).await;
    let stalled = stalled_watches(&raw, 8).await;
    eventually("the watches are open", async || (server.metric("sessiond_watches").await == 9.0).then_some(())).await;
    let large = incompressible(60_000);
    let (session, _) = client.create(&[]).await;
    for n in 0..20 {
        client.set(by_id(&session.id), &[("large", text(&format!("{n}{large}")))]).await.unwrap();
    }
    assert_eq!(watching.events(21).await.len(), 21);
    let get = framed(&GetSessionRequest { key: by_id(&session.id), namespace: NAMESPACE.into(), ..Default::default() });
    // Repeats the same call on another connection.
    let calls_on_other_connection = async || {
        let began = Instant::now();
        let mut calls = 0;
        while calls < 10 || began.elapsed() < A_WHILE {
            client.get(by_id(&session.id)).await.unwrap();
            calls += 1;
        }
    };
    let waiting = eventually("a call on the stalled connection blocks", async || {
        let (response, _) = raw.begin("GetSession", &[], Some(get.clone().into())).await;
        let mut call = Box::pin(answer(response));
        tokio::select! {
            biased;
            _ = &mut call => None,
            () = calls_on_other_connection() => Some(call),
        }
    })
    .await;
    drop(stalled);
    let (_, status) = timeout(WAIT_LIMIT, waiting).await.expect("a response after the stalled watches are closed");
    assert_eq!(status.code(), Code::Ok);
}

#[tokio::test]
async fn write_executed_by_redis_is_not_resent() {
    let world = World::dedicated();
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    let written = |event: SessionEvent| event.session.unwrap().attributes.get("a").cloned();
    proxy.hold_replies_after(&scripts::UPDATE, 1);
    let attributes = [("a", text("first"))];
    let first = slow.set(by_id(&session.id), &attributes);
    let fault = async {
        let event = watching.wait_for(EventType::Updated, &session.id).await;
        assert_eq!(written(event), Some(text("first")), "Redis has executed the update");
        client.set(by_id(&session.id), &[("a", text("second"))]).await.unwrap();
        proxy.cut();
        proxy.release_replies();
    };
    let (result, ()) = tokio::join!(first, fault);
    expect_error(result, Code::Unknown, "OUTCOME_UNKNOWN");
    // If the server resent the first update on its new connections, it would do so before this update.
    eventually("the slow server responds again", async || slow.set(by_id(&session.id), &[("b", text("1"))]).await.ok())
        .await;
    let values: Vec<_> = watching.events_until_now().await.into_iter().map(written).collect();
    assert_eq!(values, [Some(text("second")), Some(text("second"))]);
}

/// Metric of the script that starts a reconciliation.
const RECONCILIATIONS: &str = "sessiond_redis_commands_total{command=\"claim\",result=\"ok\"}";

/// First words that make fred treat a reply of three or four elements as a channel message, and texts that it follows
/// as a cluster redirect.
const PUSH_WORDS: [&str; 13] = [
    "message",
    "pmessage",
    "smessage",
    "subscribe",
    "psubscribe",
    "ssubscribe",
    "unsubscribe",
    "punsubscribe",
    "sunsubscribe",
    "MOVED 1 127.0.0.1:1",
    "ASK 1 127.0.0.1:1",
    "invalidate",
    "OK",
];

#[tokio::test]
async fn sessions_containing_push_words_reach_their_callers() {
    let Setup { client, .. } = &World::dedicated().setup().await;
    // One to four attributes, so that replies have as few elements as a channel message.
    let created = join_all((0..PUSH_WORDS.len() * 4).map(async |n| {
        let word = PUSH_WORDS[n / 4];
        let attributes = PUSH_WORDS.iter().cycle().skip(n / 4).take(n % 4 + 1);
        let attributes = attributes.map(|name| ((*name).to_owned(), text(word))).collect();
        let labels = labels(&[("message", word)]);
        let request = CreateSessionRequest { subject: word.into(), attributes, labels, ..Default::default() };
        client.create_with(request).await.unwrap()
    }))
    .await;
    let mut watching = client.watch_all().await;
    for _ in 0..5 {
        join_all(created.iter().map(async |(session, token)| {
            let (by_id, by_token, listed) = tokio::join!(
                client.get(by_id(&session.id)),
                client.get(by_token(token)),
                client.list_subject(&session.subject)
            );
            assert_eq!((&by_id.unwrap(), &by_token.unwrap()), (session, session));
            let ids: BTreeSet<_> = listed.into_iter().map(|session| session.id).collect();
            assert!(ids.len() == 4 && ids.contains(&session.id), "{ids:?}");
        }))
        .await;
    }
    join_all(
        created
            .iter()
            .map(async |(session, token)| assert!(client.delete(by_token(token)).await.unwrap(), "{session:?}")),
    )
    .await;
    let mut received = watching.events(created.len()).await;
    received.sort_by(|a, b| a.id.cmp(&b.id));
    let mut expected: Vec<_> = created.into_iter().map(|(session, _)| session).collect();
    expected.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(received.into_iter().map(|event| event.session.unwrap()).collect::<Vec<_>>(), expected);
}

#[test]
fn first_elements_returns_the_first_of_each_list() {
    let bytes = b"+OK\r\n*2\r\n$7\r\nmessage\r\n*1\r\n$1\r\na\r\n*0\r\n*2\r\n:1\r\n+b\r\n%1\r\n+k\r\n*1\r\n+v\r\n>1\r\n+p\r\n*1\r\n$-1\r\n*1\r\n$1";
    let text = resp::FirstElement::Text(b"message".to_vec());
    assert_eq!(
        resp::first_elements(bytes),
        [text, resp::FirstElement::Other, resp::FirstElement::Other, resp::FirstElement::Other]
    );
}

#[tokio::test]
async fn redis_replies_never_start_with_user_text() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "reconcile_interval = '1s'").await;
    // Users choose the namespace too.
    let client = server.client().await.in_namespace("message");
    let token = client.watch_all().await.token;
    let created = join_all(PUSH_WORDS.map(async |word| {
        let attributes = [(word.to_owned(), text(word))].into();
        let labels = labels(&[("message", word)]);
        let token = format!("{word:~<24}");
        let request = CreateSessionRequest { subject: word.into(), attributes, labels, token, ..Default::default() };
        let (session, _) = client.create_with(request.clone()).await.unwrap();
        let again = client.create_with(request.clone()).await;
        expect_error(again, Code::AlreadyExists, "SESSION_EXISTS");
        client.set(by_token(&request.token), &[("smessage", text(word))]).await.unwrap();
        client
            .update(UpdateSessionRequest { key: by_id(&session.id), touch: true, ..Default::default() })
            .await
            .unwrap();
        let successor = client.rotate(&request.token).await.unwrap();
        assert_eq!(client.list_subject(word).await.len(), 1);
        (session, successor)
    }))
    .await;
    let all = ListSessionsRequest {
        namespace: client.namespace.clone(),
        view: SessionView::Full.into(),
        ..Default::default()
    };
    let all = client.grpc.clone().list_sessions(all).await.unwrap().into_inner();
    assert_eq!(all.sessions.len(), created.len());
    let short = CreateSessionRequest { idle_timeout: millis(50), subject: "message".into(), ..Default::default() };
    let (short, _) = client.create_with(short).await.unwrap();
    let mut watching = client.resume(&token).await;
    watching.wait_for(EventType::Ended, &short.id).await;
    let before = server.metric(RECONCILIATIONS).await;
    eventually("a reconciliation starts and ends", async || {
        (server.metric(RECONCILIATIONS).await > before + 1.0).then_some(())
    })
    .await;
    for (n, (session, successor)) in created.iter().enumerate() {
        match n % 2 {
            0 => assert!(client.delete(by_token(successor)).await.unwrap()),
            _ => assert_eq!(client.delete_subject(&session.subject).await.unwrap(), 1),
        }
    }
    let first_elements: Vec<_> = proxy.replies().iter().flat_map(|bytes| resp::first_elements(bytes)).collect();
    assert!(first_elements.len() > 200, "{}", first_elements.len());
    // Allowed first elements: ids of sessions and of the store, numbers such as times and cursors, and a server's role.
    let is_id = |text: &[u8]| text.len() == 26 && text.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    let is_hex = |text: &[u8]| text.len() == 32 && text.iter().all(|byte| matches!(byte, b'a'..=b'f' | b'0'..=b'9'));
    let is_number = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    let is_harmless = |text: &[u8]| is_number(text) || is_id(text) || is_hex(text) || text == b"master";
    let texts = first_elements.iter().filter_map(|element| match element {
        resp::FirstElement::Text(text) => Some(&text[..]),
        resp::FirstElement::Other => None,
    });
    let wrong: BTreeSet<_> = texts.filter(|text| !is_harmless(text)).map(String::from_utf8_lossy).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// One connection in CLIENT LIST.
struct Listed {
    id: String,
    /// Seconds since the connection was opened.
    age: u64,
    /// Seconds since the last command on it.
    idle: u64,
    is_subscriber: bool,
}

/// Returns all connections of this Redis except the one that runs CLIENT LIST.
fn connections(redis: &Redis) -> Vec<Listed> {
    let list = redis.list(&["CLIENT", "LIST"]).concat();
    let others = list.lines().filter(|line| line.contains("id=") && !line.contains("cmd=client|list"));
    others
        .map(|line| {
            let value =
                |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).unwrap();
            let number = |name| value(name).parse().unwrap();
            let is_subscriber = value("flags").contains('P');
            Listed { id: value("id").to_owned(), age: number("age"), idle: number("idle"), is_subscriber }
        })
        .collect()
}

#[tokio::test]
async fn idle_redis_connections_stay_open() {
    let world = World::dedicated();
    let server = world.server().await;
    let ids = || connections(&world.redis).into_iter().map(|listed| listed.id).collect::<BTreeSet<_>>();
    let before = ids();
    assert_eq!(before.len(), 3);
    assert_eq!(connections(&world.redis).iter().filter(|listed| listed.is_subscriber).count(), 1);
    // Longer than fred's limit for a silent connection. The subscriber's connection carries only pings in that time.
    for age in 4..8 {
        eventually("every connection has been pinged", async || {
            connections(&world.redis).iter().all(|listed| listed.age >= age && listed.idle < 2).then_some(())
        })
        .await;
    }
    assert_eq!(ids(), before);
    server.client().await.create(&[]).await;
}

#[tokio::test]
async fn w3_channel_overflow_is_a_gap_and_loses_nothing() {
    const FLOOD: &str = "for _ = 1, 30000 do redis.call('SPUBLISH', KEYS[1], 'nothing') end";
    let Setup { world, client, .. } = &World::dedicated().setup_with("partitions = 1").await;
    let mut watching = client.watch_all().await;
    let channels = world.redis.list(&["PUBSUB", "SHARDCHANNELS"]);
    assert_eq!(channels.len(), 1, "{channels:?}");
    let mut created = Vec::new();
    for _ in 0..3 {
        // More than three times what the receiver holds, at once. The feed reads the log's tail for each message.
        world.redis.command(&["EVAL", FLOOD, "1", &channels[0]]);
        for _ in 0..20 {
            created.push(client.create(&[]).await.0.id);
        }
    }
    let received = watching.events(created.len()).await;
    assert_eq!(received.into_iter().map(|event| event.id).collect::<Vec<_>>(), created);
    assert!(watching.events_until_now().await.is_empty());
}
