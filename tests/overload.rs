//! Overload and hostile peers: limits per server and per caller, connections without a credential, health watches, and floods of
//! control frames.

use std::time::Duration;

use harness::{
    Server, Status as _, World,
    callers::{Caller, CallersFile, Key},
    client::*,
    eventually,
    raw::{Raw, frame, framed},
};
use sessiond_client::v1::GetSessionRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A server with these limits and two callers, and a client of each.
async fn two_callers(world: &World, limits: &str) -> (Server, CallersFile, [Client; 2], [Key; 2]) {
    let keys = [(); 2].map(|()| Key::generate());
    let file = CallersFile::new(&callers(&keys));
    let server = world.server_with(&format!("{}[limits]\n{limits}", file.toml())).await;
    let connect = async |key: &Key| Client::connect_with(&server.address, &ClientOptions::with_key(&key.text)).await;
    let clients = [connect(&keys[0]).await, connect(&keys[1]).await];
    (server, file, clients, keys)
}

fn callers(keys: &[Key; 2]) -> [Caller; 2] {
    [("a", &keys[0]), ("b", &keys[1])].map(|(name, key)| Caller::new(name, &[("web", "full")]).key(key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_at_half_of_the_calls_delays_no_other() {
    let world = World::dedicated();
    let (server, _file, [a, b], _keys) = two_callers(&world, "calls = 8").await;
    let (session, _) = a.create(&[]).await;
    world.redis.pause();
    let read = async |client: &Client| client.get(by_id(&session.id)).await.unwrap_err();
    let (of_a, of_b) = tokio::join!(
        futures_util::future::join_all((0..6).map(|_| read(&a))),
        futures_util::future::join_all((0..2).map(|_| read(&b))),
    );
    world.redis.resume();
    let refused: Vec<_> = of_a.into_iter().filter(|status| status.reason() == "OVERLOADED").collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    for status in refused {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some_and(|info| info.retry_delay.is_some()));
    }
    // The other caller has its half.
    assert!(of_b.iter().all(|status| status.reason() != "OVERLOADED"), "{of_b:?}");
    eventually("calls succeed again", async || a.get(by_id(&session.id)).await.ok()).await;
    assert_eq!(server.metric("sessiond_shed_total{limit=\"caller_calls\"}").await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_gets_half_of_the_watches_across_reloads() {
    let world = World::shared();
    let (server, file, [a, b], keys) = two_callers(&world, "watches = 4").await;
    let mut open = vec![a.watch_all().await, a.watch_all().await];
    expect_error(a.watch(whole_namespace()).await, Code::ResourceExhausted, "WATCH_LIMIT");
    open.push(b.watch_all().await);
    // The load of a caller continues when the file is read again.
    file.write(&callers(&keys));
    let reloads = async || server.metric("sessiond_reload_last_success_timestamp_seconds{file=\"callers\"}").await;
    let before = reloads().await;
    eventually("the file is reloaded", async || (reloads().await != before).then_some(())).await;
    expect_error(a.watch(whole_namespace()).await, Code::ResourceExhausted, "WATCH_LIMIT");
    open.remove(0);
    eventually("the place of a closed watch is free", async || a.watch(whole_namespace()).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_watches_are_limited_and_end_at_the_drain() {
    let world = World::shared();
    let mut server = world.server_with("drain_timeout = '1h'\n[limits]\nstreams_per_connection = 2000").await;
    let channel = ClientOptions::default().endpoint(&server.address).connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let mut open = Vec::new();
    for _ in 0..1_000 {
        open.push(health.watch(HealthCheckRequest::default()).await.unwrap().into_inner());
    }
    let status = health.watch(HealthCheckRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), &status.reason()[..]), (Code::Unavailable, "OVERLOADED"));
    health.check(HealthCheckRequest::default()).await.unwrap();
    let reading = async {
        for mut watch in open {
            let mut last = None;
            let status = loop {
                match watch.message().await {
                    Ok(message) => last = Some(message.expect("it does not end with OK").status()),
                    Err(status) => break status,
                }
            };
            assert_eq!((status.code(), &status.reason()[..]), (Code::Unavailable, "DRAINING"));
            assert_eq!(last, Some(tonic_health::pb::health_check_response::ServingStatus::NotServing));
        }
    };
    let (stopped, ()) = tokio::join!(timeout(harness::WAIT_LIMIT, server.stop()), reading);
    stopped.expect("the drain does not wait for health watches");
}

/// Opens an HTTP/2 connection that makes no call.
async fn idle_connection(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oldest_connections_without_a_credential_are_closed() {
    let world = World::shared();
    let (server, _file, [a, _], [key, _]) = two_callers(&world, "unauthenticated_connections = 20").await;
    a.create(&[]).await;
    let mut watch = a.watch_all().await;
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(idle_connection(&server.address).await);
    }
    // A known caller still connects, and the open connection of a caller is kept.
    let client = Client::connect_with(&server.address, &ClientOptions::with_key(&key.text)).await;
    let (session, _) = client.create(&[]).await;
    while watch.event().await.id != session.id {}
    let closed = "sessiond_connections_closed_total{reason=\"no_credential\"}";
    eventually("the oldest are closed", async || (server.metric(closed).await >= 470.0).then_some(())).await;
    assert!(server.metric("sessiond_grpc_connections").await <= 25.0);
    for mut stream in idle.drain(..470) {
        let mut answer = Vec::new();
        let _ = timeout(harness::WAIT_LIMIT, stream.read_to_end(&mut answer)).await.expect("it is closed");
    }
    // Wrong credentials do not count.
    let raw = Raw::connect(&server.address).await;
    let body = framed(&GetSessionRequest { namespace: "web".into(), key: by_id(&session.id), ..Default::default() });
    let (_, status) = raw.call("GetSession", &[("authorization", "Bearer wrong")], body).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    client.get(by_id(&session.id)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_control_frames_closes_its_connection_only() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    let floods: [(&str, Vec<u8>); 6] = [
        ("PING", frame(6, 0, 0, &[7; 8])),
        ("SETTINGS", frame(4, 0, 0, &[])),
        ("PRIORITY", frame(2, 0, 1, &[0, 0, 0, 3, 1])),
        ("WINDOW_UPDATE", frame(8, 0, 0, &[0, 0, 0, 1])),
        ("unknown type", frame(0xfa, 0, 0, &[7; 100])),
        ("CONTINUATION", [frame(1, 0, 1, &[]), frame(9, 0, 1, &[0; 100]).repeat(1_000)].concat()),
    ];
    for (name, piece) in floods {
        let (mut reading, mut writing) = idle_connection(&server.address).await.into_split();
        // The server's answers are read, so that its write timeout does not close the connection.
        let closed = async { while matches!(reading.read(&mut [0; 16 * 1024]).await, Ok(1..)) {} };
        let many = piece.repeat(64 * 1024 / piece.len() + 1);
        let flood = async {
            // 16 MiB, which the server must not read.
            for _ in 0..256 {
                if writing.write_all(&many).await.is_err() {
                    return;
                }
            }
            panic!("{name}: the connection is still open");
        };
        timeout(harness::WAIT_LIMIT, async { tokio::join!(closed, flood) }).await.expect("the connection is closed");
        client.get(by_id(&session.id)).await.unwrap();
    }
    // h2 itself closes the last one.
    let closed = "sessiond_connections_closed_total{reason=\"control_frames\"}";
    eventually("the others are counted", async || (server.metric(closed).await == 5.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_and_acknowledgements_of_a_busy_client_are_allowed() {
    let world = World::shared();
    let server = world.server().await;
    let endpoint = ClientOptions::default().endpoint(&server.address);
    let endpoint = endpoint.http2_adaptive_window(true).http2_keep_alive_interval(Duration::from_millis(5));
    let channel = endpoint.keep_alive_while_idle(true).connect().await.unwrap();
    let grpc =
        sessiond_client::v1::session_service_client::SessionServiceClient::with_interceptor(channel, Bearer::default());
    let client = Client { grpc, namespace: NAMESPACE.to_owned() };
    let mut watch = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    for _ in 0..2_000 {
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
    }
    watch.events_until_now().await;
    assert_eq!(server.metric("sessiond_connections_closed_total{reason=\"control_frames\"}").await, 0.0);
}
