//! What the libraries do by default, and this server must not do: those that no other file shows. All are listed in
//! docs/faults.md.

mod harness;

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

/// Long enough to see that an answer does not come.
const A_WHILE: Duration = Duration::from_millis(300);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;

/// An HTTP/2 frame: type, flags, stream, payload.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The payload of the next frame of this type; all others are passed over.
async fn next_frame(stream: &mut TcpStream, kind: u8) -> Vec<u8> {
    let read = async {
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.expect("a frame comes");
            let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
            stream.read_exact(&mut payload).await.expect("a whole frame comes");
            if header[3] == kind {
                return payload;
            }
        }
    };
    timeout(PATIENCE, read).await.expect("the frame comes")
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

#[tokio::test]
async fn a_connection_is_told_its_limits() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    const MAX_HEADER_LIST_SIZE: u16 = 6;
    let world = World::shared();
    let server = world.server_with("limits.streams_per_connection = 7").await;
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let told = next_frame(&mut stream, SETTINGS).await;
    let setting = |id: u16| {
        let found = told.chunks(6).find(|setting| setting[..2] == id.to_be_bytes());
        found.map(|setting| number(&setting[2..]))
    };
    assert_eq!(setting(MAX_CONCURRENT_STREAMS), Some(7));
    assert_eq!(setting(MAX_HEADER_LIST_SIZE), Some(16 * 1024));
    assert_eq!(setting(INITIAL_WINDOW_SIZE), Some(1024 * 1024));
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused_and_the_connection_goes_on() {
    let world = World::shared();
    let server = world.server().await;
    let raw = Raw::connect(&server.address).await;
    let (response, _) = raw.begin("CreateSession", &[("x", &a(20_000))], Some(framed(&create()).into())).await;
    let refused = timeout(PATIENCE, response).await.expect("an answer comes").unwrap();
    assert_eq!(refused.status(), http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let (_, status) = raw.call("CreateSession", &[("x", &a(10_000))], framed(&create())).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
}

#[tokio::test]
async fn who_resets_stream_after_stream_is_told_to_calm_down() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    // :method POST, :scheme http, :path /, by their numbers in HPACK's table.
    let headers = [0x83, 0x86, 0x84];
    let world = World::shared();
    let server = world.server().await;
    let mut all = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for stream in (1..).step_by(2).take(1_000) {
        all.extend(frame(HEADERS, END_HEADERS, stream, &headers));
        all.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    // The server may close before all is sent.
    let _ = stream.write_all(&all).await;
    let told = next_frame(&mut stream, GOAWAY).await;
    assert_eq!(number(&told[4..8]), ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_dropped_with_its_watch() {
    let world = World::shared();
    let server = world.server_with("[limits]\nkeepalive_interval = '200ms'\nkeepalive_timeout = '1s'").await;
    let relay = Relay::start(&server.address).await;
    let (near, far) = (server.client().await, Client::connect(&relay.address).await);
    let (mut healthy, _swallowed) = (near.watch_all().await, far.watch_all().await);
    assert_eq!(server.metric("sessiond_watchers").await, 2.0);
    relay.silence();
    eventually("its watch is gone", async || (server.metric("sessiond_watchers").await == 1.0).then_some(())).await;
    eventually("and its connection", async || (server.metric("sessiond_connections").await == 1.0).then_some(())).await;
    let (session, _) = near.create(&[]).await;
    healthy.wait_for(EventType::Created, &session.id).await;
}

/// So many watches of everything in the namespace, from which nobody reads.
async fn stalled_watches(raw: &Raw, count: usize) -> Vec<impl Sized> {
    let request = WatchRequest { namespace: NAMESPACE.into(), ..whole_namespace() };
    join_all((0..count).map(|_| raw.begin("Watch", &[], Some(framed(&request).into())))).await
}

#[tokio::test]
async fn a_drain_does_not_wait_for_readers_that_stall() {
    let world = World::shared();
    let mut server = world.server_with("drain_timeout = '500ms'").await;
    let client = server.client().await;
    let mut reading = client.watch_all().await;
    // Not one byte of their streams may be sent: neither their bookmark, nor the status behind it.
    let raw = Raw::connect_with_windows(&server.address, 0, 65_535).await;
    let _stalled = stalled_watches(&raw, 8).await;
    eventually("they are open", async || (server.metric("sessiond_watchers").await == 9.0).then_some(())).await;
    client.create(&[]).await;
    timeout(PATIENCE, server.stop()).await.expect("the server stops");
    expect_error(reading.end().await, Code::Unavailable, "DRAINING");
}

#[tokio::test]
async fn stalled_readers_hold_up_their_own_connection_and_no_other() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let raw = Raw::connect_with_windows(&server.address, 65_535, 65_535).await;
    let stalled = stalled_watches(&raw, 8).await;
    eventually("they are open", async || (server.metric("sessiond_watchers").await == 9.0).then_some(())).await;
    let large = incompressible(60_000);
    let (session, _) = client.create(&[]).await;
    for n in 0..20 {
        client.set(by_id(&session.id), &[("large", text(&format!("{n}{large}")))]).await.unwrap();
    }
    assert_eq!(watching.events(21).await.len(), 21);
    let get = framed(&GetSessionRequest { key: by_id(&session.id), namespace: NAMESPACE.into(), ..Default::default() });
    // The same call, one after the other.
    let elsewhere = async || {
        let began = Instant::now();
        let mut calls = 0;
        while calls < 10 || began.elapsed() < A_WHILE {
            client.get(by_id(&session.id)).await.unwrap();
            calls += 1;
        }
    };
    let waiting = eventually("beside them a call waits, while others are answered elsewhere", async || {
        let (response, _) = raw.begin("GetSession", &[], Some(get.clone().into())).await;
        let mut call = Box::pin(answer(response));
        tokio::select! {
            biased;
            _ = &mut call => None,
            () = elsewhere() => Some(call),
        }
    })
    .await;
    drop(stalled);
    let (_, status) = timeout(PATIENCE, waiting).await.expect("without them it is answered");
    assert_eq!(status.code(), Code::Ok);
}

#[tokio::test]
async fn a_write_that_reached_redis_is_not_sent_again_over_a_later_one() {
    let world = World::own();
    let proxy = Proxy::start(&world.redis);
    let behind = Server::start(&proxy.url(), &world.prefix, "").await;
    let direct = world.server().await;
    let (slow, client) = (behind.client().await, direct.client().await);
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    let written = |event: SessionEvent| event.session.unwrap().attributes.get("a").cloned();
    proxy.stop_at(&scripts::UPDATE, 1);
    let attributes = [("a", text("first"))];
    let first = slow.set(by_id(&session.id), &attributes);
    let fault = async {
        let event = watching.wait_for(EventType::Updated, &session.id).await;
        assert_eq!(written(event), Some(text("first")), "Redis has run it");
        client.set(by_id(&session.id), &[("a", text("second"))]).await.unwrap();
        proxy.cut();
        proxy.go_on();
    };
    let (answer, ()) = tokio::join!(first, fault);
    expect_error(answer, Code::Unknown, "OUTCOME_UNKNOWN");
    // On the connections that it has now, whatever was to be sent again stands before this.
    eventually("it is back", async || slow.set(by_id(&session.id), &[("b", text("1"))]).await.ok()).await;
    let told: Vec<_> = watching.everything_so_far().await.into_iter().map(written).collect();
    assert_eq!(told, [Some(text("second")), Some(text("second"))]);
}

/// Runs of the script with which an audit begins.
const AUDITS: &str = "sessiond_redis_calls_total{command=\"claim\",result=\"ok\"}";

/// First words of replies that fred takes for messages of a channel where the reply has three or four elements, and
/// texts that it follows to another node of a cluster.
const PUSHED: [&str; 13] = [
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
async fn sessions_that_hold_nothing_but_words_of_channels_are_answered_to_their_own_callers() {
    let world = World::own();
    let server = world.server().await;
    let client = server.client().await;
    // One to four attributes: as few as such a reply has elements.
    let made = join_all((0..PUSHED.len() * 4).map(async |n| {
        let word = PUSHED[n / 4];
        let attributes = PUSHED.iter().cycle().skip(n / 4).take(n % 4 + 1);
        let attributes = attributes.map(|name| ((*name).to_owned(), text(word))).collect();
        let labels = labels(&[("message", word)]);
        let request = CreateSessionRequest { subject: word.into(), attributes, labels, ..Default::default() };
        client.create_as(request).await.unwrap()
    }))
    .await;
    let mut watching = client.watch_all().await;
    for _ in 0..5 {
        join_all(made.iter().map(async |(session, token)| {
            let (by_id, by_token, listed) = tokio::join!(
                client.get(by_id(&session.id)),
                client.get(by_token(token)),
                client.list_of(&session.subject)
            );
            assert_eq!((&by_id.unwrap(), &by_token.unwrap()), (session, session));
            let ids: BTreeSet<_> = listed.into_iter().map(|session| session.id).collect();
            assert!(ids.len() == 4 && ids.contains(&session.id), "{ids:?}");
        }))
        .await;
    }
    join_all(
        made.iter().map(async |(session, token)| assert!(client.delete(by_token(token)).await.unwrap(), "{session:?}")),
    )
    .await;
    let mut told = watching.events(made.len()).await;
    told.sort_by(|a, b| a.id.cmp(&b.id));
    let mut held: Vec<_> = made.into_iter().map(|(session, _)| session).collect();
    held.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(told.into_iter().map(|event| event.session.unwrap()).collect::<Vec<_>>(), held);
}

#[test]
fn lists_are_found_by_how_they_begin() {
    let bytes = b"+OK\r\n*2\r\n$7\r\nmessage\r\n*1\r\n$1\r\na\r\n*0\r\n*2\r\n:1\r\n+b\r\n%1\r\n+k\r\n*1\r\n+v\r\n>1\r\n+p\r\n*1\r\n$-1\r\n*1\r\n$1";
    let text = resp::Beginning::Text(b"message".to_vec());
    assert_eq!(resp::beginnings(bytes), [text, resp::Beginning::Other, resp::Beginning::Other, resp::Beginning::Other]);
}

#[tokio::test]
async fn no_reply_of_redis_begins_with_a_text_of_users() {
    let world = World::own();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "audit_interval = '1s'").await;
    // A namespace is a text of users too.
    let client = server.client().await.in_namespace("message");
    let token = client.watch_all().await.token;
    let made = join_all(PUSHED.map(async |word| {
        let attributes = [(word.to_owned(), text(word))].into();
        let labels = labels(&[("message", word)]);
        let token = format!("{word:~<24}");
        let request = CreateSessionRequest { subject: word.into(), attributes, labels, token, ..Default::default() };
        let (session, _) = client.create_as(request.clone()).await.unwrap();
        let again = client.create_as(request.clone()).await;
        expect_error(again, Code::AlreadyExists, "SESSION_EXISTS");
        client.set(by_token(&request.token), &[("smessage", text(word))]).await.unwrap();
        client
            .update(UpdateSessionRequest { key: by_id(&session.id), touch: true, ..Default::default() })
            .await
            .unwrap();
        let successor = client.rotate(&request.token).await.unwrap();
        assert_eq!(client.list_of(word).await.len(), 1);
        (session, successor)
    }))
    .await;
    let all = ListSessionsRequest {
        namespace: client.namespace.clone(),
        view: SessionView::Full.into(),
        ..Default::default()
    };
    let all = client.grpc.clone().list_sessions(all).await.unwrap().into_inner();
    assert_eq!(all.sessions.len(), made.len());
    let short = CreateSessionRequest { idle_timeout: millis(50), subject: "message".into(), ..Default::default() };
    let (short, _) = client.create_as(short).await.unwrap();
    let mut watching = client.resume(&token).await;
    watching.wait_for(EventType::Ended, &short.id).await;
    let audits = server.metric(AUDITS).await;
    eventually("an audit begins and ends", async || (server.metric(AUDITS).await > audits + 1.0).then_some(())).await;
    for (n, (session, successor)) in made.iter().enumerate() {
        match n % 2 {
            0 => assert!(client.delete(by_token(successor)).await.unwrap()),
            _ => assert_eq!(client.delete_all(&session.subject).await.unwrap(), 1),
        }
    }
    let heard: Vec<_> = proxy.heard().iter().flat_map(|bytes| resp::beginnings(bytes)).collect();
    assert!(heard.len() > 200, "{}", heard.len());
    // Ids of sessions and of the store, numbers such as times and cursors, and the role of a server are all that lists
    // begin with besides.
    let is_id = |text: &[u8]| text.len() == 26 && text.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    let is_hex = |text: &[u8]| text.len() == 32 && text.iter().all(|byte| matches!(byte, b'a'..=b'f' | b'0'..=b'9'));
    let is_number = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    let is_harmless = |text: &[u8]| is_number(text) || is_id(text) || is_hex(text) || text == b"master";
    let texts = heard.iter().filter_map(|beginning| match beginning {
        resp::Beginning::Text(text) => Some(&text[..]),
        resp::Beginning::Other => None,
    });
    let wrong: BTreeSet<_> = texts.filter(|text| !is_harmless(text)).map(String::from_utf8_lossy).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A connection, as Redis lists it.
struct Listed {
    id: String,
    /// In seconds: since it was made, and since anything was sent on it.
    age: u64,
    idle: u64,
    is_subscriber: bool,
}

/// The connections that Redis has, but for the one that asks.
fn connections(redis: &Redis) -> Vec<Listed> {
    let list = redis.list(&["CLIENT", "LIST"]).concat();
    let others = list.lines().filter(|line| line.contains("id=") && !line.contains("cmd=client|list"));
    others
        .map(|line| {
            let value = |of: &str| line.split(' ').find_map(|field| field.strip_prefix(of)?.strip_prefix('=')).unwrap();
            let number = |of| value(of).parse().unwrap();
            let is_subscriber = value("flags").contains('P');
            Listed { id: value("id").to_owned(), age: number("age"), idle: number("idle"), is_subscriber }
        })
        .collect()
}

#[tokio::test]
async fn connections_to_redis_that_are_idle_are_kept() {
    let world = World::own();
    let server = world.server().await;
    let ids = || connections(&world.redis).into_iter().map(|listed| listed.id).collect::<BTreeSet<_>>();
    let before = ids();
    assert_eq!(before.len(), 3);
    assert_eq!(connections(&world.redis).iter().filter(|listed| listed.is_subscriber).count(), 1);
    // Longer than fred lets a connection be silent. Nothing is sent on that of the subscriber meanwhile but pings.
    for age in 4..8 {
        eventually("each of them is asked whether it lives", async || {
            connections(&world.redis).iter().all(|listed| listed.age >= age && listed.idle < 2).then_some(())
        })
        .await;
    }
    assert_eq!(ids(), before);
    server.client().await.create(&[]).await;
}

#[tokio::test]
async fn w3_messages_beyond_what_the_receiver_holds_are_a_gap_and_lose_nothing() {
    const FLOOD: &str = "for _ = 1, 30000 do redis.call('SPUBLISH', KEYS[1], 'nothing') end";
    let world = World::own();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let channels = world.redis.list(&["PUBSUB", "SHARDCHANNELS"]);
    assert_eq!(channels.len(), 1, "{channels:?}");
    let mut made = Vec::new();
    for _ in 0..3 {
        // More than three times what it holds, at once; each takes the feed a look at the log's end.
        world.redis.command(&["EVAL", FLOOD, "1", &channels[0]]);
        for _ in 0..20 {
            made.push(client.create(&[]).await.0.id);
        }
    }
    let told = watching.events(made.len()).await;
    assert_eq!(told.into_iter().map(|event| event.id).collect::<Vec<_>>(), made);
    assert!(watching.everything_so_far().await.is_empty());
}
