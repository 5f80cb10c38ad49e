//! Hostile and unlucky clients on a network: rights that end in the middle, paths that name nothing, keys that are guessed, and
//! connections in great number. Calls of known callers succeed throughout.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use harness::{
    Server, World,
    callers::{Caller, CallersFile, Key},
    client::*,
    eventually,
    pki::{Pki, client_parameters, uri},
    raw::{Raw, answer, frame, framed},
};
use sessiond_client::v1::{GetSessionRequest, ListSessionsRequest, WatchRequest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

async fn client_with_key(server: &Server, key: &Key) -> Client {
    Client::connect_with(&server.address, &ClientOptions::with_key(&key.text)).await
}

/// A server with the caller `shop`, which may do everything in `web`, and its client.
async fn server_of_shop(world: &World, lines: &str) -> (Server, CallersFile, Client, Key) {
    let key = Key::generate();
    let file = CallersFile::new(&[Caller::new("shop", &[("web", "full")]).key(&key)]);
    let server = world.server_with(&format!("{}{lines}", file.toml())).await;
    let client = client_with_key(&server, &key).await;
    (server, file, client, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_of_a_client_certificate_ends_its_watch() {
    let (world, pki) = (World::shared(), Pki::generate());
    let file = CallersFile::new(&[Caller::new("shop", &[("web", "full")]).certificate("spiffe://test/shop")]);
    let server = world.server_with(&(pki.mutual_toml() + &file.toml())).await;
    let mut parameters = client_parameters(&[uri("spiffe://test/shop")]);
    parameters.not_after = (SystemTime::now() + Duration::from_secs(6)).into();
    let pair = pki.client_authority.issue(parameters);
    let options = ClientOptions { tls: Some(pki.client_options_with(&pair)), key: None };
    let client = Client::connect_with(&server.address, &options).await;
    let mut watch = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    assert_eq!(watch.event().await.id, session.id);
    expect_error(watch.end().await, Code::Unauthenticated, "CREDENTIALS_INVALID");
    assert!(!watch.token.is_empty());
    // The open connection is closed to new calls, and a new handshake is refused.
    assert!(client.get(by_id(&session.id)).await.is_err());
    let refused = eventually("the handshake is refused", async || {
        let count = server.metric("sessiond_tls_handshakes_total{result=\"certificate_expired\"}").await;
        let _ = client.get(by_id(&session.id)).await;
        (count > 0.0).then_some(count)
    });
    refused.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grant_removed_between_two_pages_ends_the_list() {
    let world = World::shared();
    let (server, file, client, key) = server_of_shop(&world, "").await;
    for _ in 0..3 {
        client.create(&[]).await;
    }
    let list = async |page_token: String| {
        let request = ListSessionsRequest { namespace: "web".into(), page_size: 1, page_token, ..Default::default() };
        client.grpc.clone().list_sessions(request).await.map(tonic::Response::into_inner)
    };
    let page = list(String::new()).await.unwrap();
    assert!(!page.next_page_token.is_empty());
    file.write(&[Caller::new("shop", &[("web", "token")]).key(&key)]);
    server.reload();
    eventually("the grant is removed", async || list(String::new()).await.err()).await;
    expect_error(list(page.next_page_token.clone()).await, Code::PermissionDenied, "GRANT_MISSING");
    // Of another namespace, it is a page token of another list.
    file.write(&[Caller::new("shop", &[("other", "full")]).key(&key)]);
    server.reload();
    let other = client.in_namespace("other");
    let request =
        ListSessionsRequest { namespace: "other".into(), page_token: page.next_page_token, ..Default::default() };
    let status = eventually("the grant is given", async || {
        let result = other.grpc.clone().list_sessions(request.clone()).await;
        result.err().filter(|status| status.code() != Code::PermissionDenied)
    })
    .await;
    expect_error::<()>(Err(status), Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resume_token_of_another_caller_gives_nothing() {
    let world = World::shared();
    let [full, token_only] = [(); 2].map(|()| Key::generate());
    let caller = |name: &str, grant: &str, key: &Key| Caller::new(name, &[("web", grant)]).key(key);
    let file = CallersFile::new(&[caller("full", "full", &full), caller("browser", "token", &token_only)]);
    let server = world.server_with(&file.toml()).await;
    let (full, browser) = (client_with_key(&server, &full).await, client_with_key(&server, &token_only).await);
    let (own, own_token) = full.create(&[]).await;
    let mut watch = full.watch_all().await;
    watch.bookmark().await;
    let resume_token = watch.token.clone();
    let (other, _) = full.create(&[]).await;
    full.set(by_id(&other.id), &[("a", text("secret"))]).await.unwrap();
    full.set(by_id(&own.id), &[("a", text("1"))]).await.unwrap();
    // Without a key of its own it has no right, whatever token it resumes.
    let whole = WatchRequest { resume_token: resume_token.clone(), ..whole_namespace() };
    expect_error(browser.watch(whole).await, Code::PermissionDenied, "GRANT_MISSING");
    let by_id_of_other = WatchRequest {
        keys: by_id(&other.id).into_iter().collect(),
        resume_token: resume_token.clone(),
        ..Default::default()
    };
    expect_error(browser.watch(by_id_of_other).await, Code::PermissionDenied, "GRANT_MISSING");
    let mixed = WatchRequest {
        keys: [by_token(&own_token), by_id(&other.id)].into_iter().flatten().collect(),
        resume_token: resume_token.clone(),
        ..Default::default()
    };
    expect_error(browser.watch(mixed).await, Code::PermissionDenied, "GRANT_MISSING");
    // With its own session it receives the events of that one only.
    let by_own = WatchRequest {
        keys: by_token(&own_token).into_iter().collect(),
        resume_token,
        bookmark_interval: millis(100),
        ..Default::default()
    };
    let mut resumed = browser.watch(by_own).await.unwrap();
    let events = resumed.events_until_now().await;
    assert!(!events.is_empty() && events.iter().all(|event| event.id == own.id), "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_that_names_nothing_reaches_nothing() {
    let world = World::shared();
    let (server, _file, client, key) = server_of_shop(&world, "").await;
    let (session, token) = client.create(&[]).await;
    let bearer = format!("Bearer {}", key.text);
    let body = framed(&GetSessionRequest { namespace: "web".into(), key: by_token(&token), ..Default::default() });
    let long = format!("/sessiond.v1.SessionService/{}", "a".repeat(60 * 1024));
    let paths = [
        "/sessiond.v1.SessionService/%47etSession",
        "/sessiond.v1.SessionService/../sessiond.v1.SessionService/GetSession",
        "/x/%2e%2e/sessiond.v1.SessionService/GetSession",
        "//sessiond.v1.SessionService/GetSession",
        "/sessiond.v1.SessionService/GetSession/",
        "/sessiond.v1.SessionService//GetSession",
        "/sessiond.v1.sessionservice/GetSession",
        "/sessiond.v1.SessionService/getsession",
        "/grpc.health.v1.Health/../../sessiond.v1.SessionService/GetSession",
        "/http://test/sessiond.v1.SessionService/GetSession",
        "/",
        &long,
    ];
    for path in paths {
        for credential in [None, Some(&bearer)] {
            let raw = Raw::connect(&server.address).await;
            let mut request =
                http::Request::post(format!("http://test{path}")).header("content-type", "application/grpc");
            if let Some(bearer) = credential {
                request = request.header("authorization", bearer);
            }
            let (response, _stream) = raw.send(request.body(()).unwrap(), Some(body.clone().into())).await;
            let (data, status) = timeout(harness::WAIT_LIMIT, answer(response)).await.unwrap();
            let expected = if credential.is_some() { Code::Unimplemented } else { Code::Unauthenticated };
            assert_eq!((status.code(), data.len()), (expected, 0), "{} bytes: {path:.80}", path.len());
        }
    }
    client.get(by_id(&session.id)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_wrong_keys_fails_no_call_of_a_known_caller() {
    const WRONG: usize = 10_000;
    let world = World::shared();
    let (server, _file, client, key) = server_of_shop(&world, "").await;
    let (session, _) = client.create(&[]).await;
    let wrong = ClientOptions::with_key(&key.with_other_secret());
    let attackers = join_all((0..4).map(|_| Client::connect_with(&server.address, &wrong))).await;
    let attack = join_all(attackers.iter().flat_map(|attacker| {
        (0..25).map(|_| async {
            for _ in 0..WRONG / 100 {
                let refused = attacker.get(by_id(&session.id)).await;
                expect_error(refused, Code::Unauthenticated, "CREDENTIALS_INVALID");
            }
        })
    }));
    let known = async {
        for _ in 0..200 {
            client.get(by_id(&session.id)).await.unwrap();
        }
    };
    tokio::join!(attack, known);
    let refused = server.metric("sessiond_authentications_total{by=\"key\",result=\"unknown_key\"}").await;
    assert_eq!(refused, WRONG as f64);
}

/// Opens an HTTP/2 connection that answers every frame that needs an answer, and makes no call.
async fn answering_connection(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let answer_to_ping = frame(6, 1, 0, &[0; 8]);
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..];
    stream.write_all(&[preface, &frame(4, 0, 0, &[]), &answer_to_ping].concat()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_credential_keep_no_caller_out() {
    let world = World::shared();
    let (server, _file, client, key) = server_of_shop(&world, "").await;
    let mut watch = client.watch_all().await;
    // The last ones that were opened: the server closes the oldest of more than 1,000.
    let mut open = std::collections::VecDeque::new();
    for number in 0..10_000 {
        open.push_back(answering_connection(&server.address).await);
        if open.len() > 2_000 {
            open.pop_front();
        }
        if number % 1_000 == 0 {
            let known = client_with_key(&server, &key).await;
            let (session, _) = known.create(&[]).await;
            while watch.event().await.id != session.id {}
        }
    }
    let closed = "sessiond_connections_closed_total{reason=\"no_credential\"}";
    eventually("the oldest are closed", async || (server.metric(closed).await >= 1_000.0).then_some(())).await;
    eventually("the others are open", async || {
        (server.metric("sessiond_grpc_connections").await <= 1_020.0).then_some(())
    })
    .await;
    client_with_key(&server, &key).await.create(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_after_a_valid_call_closes_the_connection() {
    let world = World::shared();
    let (server, _file, client, key) = server_of_shop(&world, "").await;
    let (session, token) = client.create(&[]).await;
    let block = |name: &str, value: &str| {
        [&[0, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    let headers = [
        block(":method", "POST"),
        block(":scheme", "http"),
        block(":path", "/sessiond.v1.SessionService/GetSession"),
        block(":authority", "test"),
        block("content-type", "application/grpc"),
        block("authorization", &format!("Bearer {}", key.text)),
    ]
    .concat();
    let message = framed(&GetSessionRequest { namespace: "web".into(), key: by_token(&token), ..Default::default() });
    let mut stream = answering_connection(&server.address).await;
    stream.write_all(&[frame(1, 4, 1, &headers), frame(0, 1, 1, &message)].concat()).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    // The answer has the id of the session.
    let mut received = Vec::new();
    while !received.windows(session.id.len()).any(|window| window == session.id.as_bytes()) {
        let count = timeout(harness::WAIT_LIMIT, reading.read_buf(&mut received)).await.unwrap().unwrap();
        assert!(count > 0, "the call is answered");
    }
    let drain = async { while matches!(reading.read(&mut [0; 16 * 1024]).await, Ok(1..)) {} };
    let pings = frame(6, 0, 0, &[7; 8]).repeat(1_000);
    let flood = async {
        for _ in 0..1_000 {
            if writing.write_all(&pings).await.is_err() {
                return;
            }
        }
        panic!("the connection is still open after 1,000,000 PING frames");
    };
    timeout(harness::WAIT_LIMIT, async { tokio::join!(drain, flood) }).await.expect("the connection is closed");
    client.get(by_id(&session.id)).await.unwrap();
    let closed = server.metric("sessiond_connections_closed_total{reason=\"control_frames\"}").await;
    assert_eq!(closed, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_call_without_a_message_ends_by_itself() {
    let world = World::shared();
    let (server, _file, client, key) = server_of_shop(&world, "[limits]\ncall_timeout = '300ms'\n").await;
    let raw = Raw::connect(&server.address).await;
    for (method, key) in [("Check", None), ("Watch", Some(&key.text))] {
        let mut request = http::Request::post(format!("http://test/grpc.health.v1.Health/{method}"))
            .header("content-type", "application/grpc");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let (response, _stays_open) = raw.send(request.body(()).unwrap(), None).await;
        let (_, status) = timeout(harness::WAIT_LIMIT, answer(response)).await.unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{method}");
    }
    client.create(&[]).await;
}
