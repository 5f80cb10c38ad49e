//! TLS of the gRPC port: what a TLS port and a plain port refuse, stalled handshakes, and that calls work over it.

use harness::{
    Server, World,
    callers::{Caller, CallersFile, Key},
    client::*,
    eventually,
    pki::Pki,
};
use sessiond_client::v1::CreateSessionRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A server with TLS, without callers.
async fn tls_server() -> (World, Server, Pki) {
    let (world, pki) = (World::shared(), Pki::generate());
    let server = world.server_with(&pki.toml()).await;
    (world, server, pki)
}

async fn tls_client(server: &Server, pki: &Pki) -> Client {
    let options = ClientOptions { tls: Some(pki.client_options()), key: None };
    Client::connect_with(&server.address, &options).await
}

async fn handshakes(server: &Server, result: &str) -> f64 {
    server.metric(&format!("sessiond_tls_handshakes_total{{result=\"{result}\"}}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_watches_work_over_tls() {
    let (_world, server, pki) = tls_server().await;
    let client = tls_client(&server, &pki).await;
    let mut watch = client.watch_all().await;
    // Larger than a record of TLS, and than the write buffer of a connection.
    let (session, token) = client.create(&[("a", text(&incompressible(60_000)))]).await;
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
    assert_eq!(watch.event().await.id, session.id);
    let calls = (0..200).map(|_| async { client.get(by_id(&session.id)).await.unwrap() });
    for read in futures_util::future::join_all(calls).await {
        assert_eq!(read, session);
    }
    assert_eq!(handshakes(&server, "ok").await, 1.0);
}

#[tokio::test]
async fn tls_port_speaks_nothing_else() {
    let (_world, server, pki) = tls_server().await;
    assert!(fails(Client::try_connect(&server.address).await).await, "h2c");
    let tls_1_1 = client_hello([3, 2]);
    let oversized = [&[22, 3, 3, 0xff, 0xff][..], &[1; 20_000]].concat();
    let rows: [(&str, &[u8], &str); 5] = [
        ("h2c", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "no_tls"),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", "no_tls"),
        ("TLS 1.1", &tls_1_1, "incompatible"),
        ("oversized record", &oversized, "no_tls"),
        ("zeros", &[0; 100], "no_tls"),
    ];
    for (name, bytes, result) in rows {
        let before = handshakes(&server, result).await;
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer[0] == 21, "{name}: only an alert is sent, not {answer:?}");
        assert_eq!(handshakes(&server, result).await, before + 1.0, "{name}");
    }
    for protocols in [&[][..], &["http/1.1"], &["h3"]] {
        let closed = async {
            let mut stream = pki.connect(&server.address, protocols).await?;
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.map(|_| answer)
        };
        assert!(closed.await.map_or(true, |answer| answer.is_empty()), "{protocols:?}");
    }
    assert_eq!(handshakes(&server, "no_alpn").await, 3.0);
    tls_client(&server, &pki).await.create(&[]).await;
}

/// Returns a ClientHello of this version, without the extension that offers later ones.
fn client_hello(version: [u8; 2]) -> Vec<u8> {
    let mut hello = Vec::from(version);
    hello.extend([7; 32]);
    // No session id; two cipher suites; no compression.
    hello.extend([0, 0, 4, 0xc0, 0x13, 0xc0, 0x2f, 1, 0]);
    let handshake = [&[1, 0, 0, hello.len() as u8][..], &hello].concat();
    [&[22, 3, 1, 0, handshake.len() as u8][..], &handshake].concat()
}

/// Whether the connection failed, or the first call on it.
async fn fails(connected: Result<Client, tonic::transport::Error>) -> bool {
    match connected {
        Ok(client) => client.create_with(CreateSessionRequest::default()).await.is_err(),
        Err(_) => true,
    }
}

#[tokio::test]
async fn plain_port_closes_a_tls_client() {
    let world = World::shared();
    let (server, pki) = (world.server().await, Pki::generate());
    assert!(pki.connect(&server.address, &["h2"]).await.is_err());
    server.client().await.create(&[]).await;
    assert_eq!(handshakes(&server, "no_tls").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_handshakes_are_closed_and_delay_no_other() {
    let (_world, server, pki) = tls_server().await;
    let half = &client_hello([3, 3])[..20];
    let mut stalled = Vec::new();
    for index in 0..200 {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        // Some send nothing at all, some one byte, most half a ClientHello.
        stream.write_all(&half[..(index % 5) * 5]).await.unwrap();
        stalled.push(stream);
    }
    tls_client(&server, &pki).await.create(&[]).await;
    // After the handshake, the preface has to come as well.
    let mut silent = pki.connect(&server.address, &["h2"]).await.unwrap();
    silent.write_all(b"PRI * HT").await.unwrap();
    for mut stream in stalled {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(harness::WAIT_LIMIT, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the server closes a stalled handshake");
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(harness::WAIT_LIMIT, silent.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the server closes a connection without the whole preface");
    eventually("the stalled handshakes are counted", async || {
        (handshakes(&server, "timeout").await == 201.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_reads_nothing_is_closed_over_tls() {
    let (world, pki) = (World::shared(), Pki::generate());
    let limits = "[limits]\nkeepalive_interval = '200ms'\nkeepalive_timeout = '200ms'\n";
    let server = world.server_with(&format!("{}{limits}", pki.toml())).await;
    let mut stream = pki.connect(&server.address, &["h2"]).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    eventually("the connection is open", async || {
        (server.metric("sessiond_grpc_connections").await >= 1.0).then_some(())
    })
    .await;
    // It answers no ping.
    eventually("the connection is closed", async || {
        (server.metric("sessiond_grpc_connections").await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn key_is_accepted_where_a_certificate_is_requested() {
    let (world, pki, key) = (World::shared(), Pki::generate(), Key::generate());
    let file = CallersFile::new(&[Caller::new("shop", &[("web", "full")]).key(&key)]);
    let server = world.server_with(&(pki.mutual_toml() + &file.toml())).await;
    let options = ClientOptions { tls: Some(pki.client_options()), key: Some(key.text) };
    Client::connect_with(&server.address, &options).await.create(&[]).await;
    let without = tls_client(&server, &pki).await;
    expect_error(without.get(by_token(&new_token())).await, tonic::Code::Unauthenticated, "CREDENTIALS_INVALID");
}
