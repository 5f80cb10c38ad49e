//! Credentials: one answer for every failure, whatever is wrong, on every route; keys over time; key and certificate.

use std::time::{Duration, SystemTime};

use harness::{
    Server, Status as _, World,
    callers::{Caller, CallersFile, Key},
    client::*,
    eventually,
    pki::{Pki, uri},
    raw::{Raw, framed},
};
use sessiond_client::v1::GetSessionRequest;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// A server with one caller, which has one key.
async fn server_with_key() -> (World, Server, CallersFile, Key) {
    let key = Key::generate();
    let file = CallersFile::new(&[Caller::new("shop", &[("web", "full")]).key(&key)]);
    let world = World::shared();
    let server = world.server_with(&file.toml()).await;
    (world, server, file, key)
}

/// Text of the time that many seconds from now, as TOML has it.
fn in_seconds(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(now.checked_add_signed(seconds).unwrap());
    humantime::format_rfc3339_seconds(time).to_string()
}

#[tokio::test]
async fn every_wrong_key_has_the_same_answer() {
    let (_world, server, _file, key) = server_with_key().await;
    let raw = Raw::connect(&server.address).await;
    let request = GetSessionRequest { namespace: "web".into(), key: by_token(&new_token()), ..Default::default() };
    let body = framed(&request);
    let bearer = |key: &str| format!("Bearer {key}");
    let good = bearer(&key.text);
    let other = Key::generate();
    let with_other_id = format!("sdk_{}{}", other.id, &key.text[14..]);
    let last = |symbol: &str| bearer(&format!("{}{symbol}", &key.text[..key.text.len() - 1]));
    let rows: Vec<(&str, Vec<String>)> = vec![
        ("absent", vec![]),
        ("empty", vec![String::new()]),
        ("scheme only", vec!["Bearer".into()]),
        ("scheme and space", vec!["Bearer ".into()]),
        ("lower case scheme", vec![format!("bearer {}", key.text)]),
        ("other scheme", vec![format!("Basic {}", key.text)]),
        ("key only", vec![key.text.clone()]),
        ("two spaces", vec![format!("Bearer  {}", key.text)]),
        ("tab", vec![format!("Bearer\t{}", key.text)]),
        ("trailing letter", vec![format!("{good}a")]),
        ("two keys in one header", vec![format!("{good}, {good}")]),
        ("twice", vec![good.clone(), good.clone()]),
        ("right and wrong", vec![good.clone(), bearer(&other.text)]),
        ("right id, wrong secret", vec![bearer(&key.with_other_secret())]),
        ("right secret, other id", vec![bearer(&with_other_id)]),
        ("unknown key", vec![bearer(&other.text)]),
        ("last symbol changed", vec![last(if key.text.ends_with('a') { "q" } else { "a" })]),
        ("upper case", vec![bearer(&key.text.to_uppercase())]),
        ("session token as key", vec![bearer(&new_token())]),
        ("hash as key", vec![bearer(&key.hash)]),
        ("not ASCII", vec![format!("{good}\u{e9}")]),
        ("15 KiB", vec![bearer(&"a".repeat(15 * 1024))]),
    ];
    let mut answers = Vec::new();
    for (name, values) in rows {
        let headers: Vec<_> = values.iter().map(|value| ("authorization", &value[..])).collect();
        let (_, status) = raw.call("GetSession", &headers, body.clone()).await;
        assert_eq!((status.code(), &status.reason()[..]), (Code::Unauthenticated, "CREDENTIALS_INVALID"), "{name}");
        answers.push((status.message().to_owned(), status.details().to_vec()));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let (_, status) = raw.call("GetSession", &[("authorization", &good)], body).await;
    assert_eq!(status.reason(), "SESSION_NOT_FOUND");
    let refused =
        r#"sessiond_requests_total{method="GetSession",code="UNAUTHENTICATED"}"#.replace("requests", "grpc_requests");
    assert_eq!(server.metric(&refused).await, 22.0);
    assert_eq!(server.metric(r#"sessiond_authentications_total{by="key",result="unknown_key"}"#).await, 4.0);
}

#[tokio::test]
async fn api_key_as_session_token_is_not_found() {
    let (_world, server, _file, key) = server_with_key().await;
    let client = Client::connect_with(&server.address, &ClientOptions::with_key(&key.text)).await;
    expect_error(client.get(by_token(&key.text)).await, Code::NotFound, "SESSION_NOT_FOUND");
}

#[tokio::test]
async fn every_route_but_the_health_check_needs_a_credential() {
    let (_world, server, _file, key) = server_with_key().await;
    let raw = Raw::connect(&server.address).await;
    let code = async |path: &str, key: Option<&Key>| {
        let mut request = http::Request::post(format!("http://test{path}")).header("content-type", "application/grpc");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {}", key.text));
        }
        let (response, _) = raw.send(request.body(()).unwrap(), Some(vec![0; 5].into())).await;
        let (parts, mut body) = response.await.unwrap().into_parts();
        let trailers = match parts.headers.get("grpc-status") {
            Some(_) => parts.headers,
            None => {
                // The health watch stays open: its first message is enough.
                let first = body.data().await.map(|data| data.is_ok());
                if first == Some(true) && path.ends_with("Watch") {
                    return Code::Ok;
                }
                body.trailers().await.unwrap().unwrap_or_default()
            }
        };
        Code::from_bytes(trailers["grpc-status"].as_bytes())
    };
    let routes = [
        "/sessiond.v1.SessionService/GetSession",
        "/sessiond.v1.SessionService/NoSuchMethod",
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/NoSuchMethod",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/no.such.Service/Method",
        "/",
        "//grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Check/",
        "/grpc.health.v1.Health/%43heck",
    ];
    for route in routes {
        assert_eq!(code(route, None).await, Code::Unauthenticated, "{route}");
        assert_ne!(code(route, Some(&key)).await, Code::Unauthenticated, "{route}");
    }
    assert_eq!(code("/grpc.health.v1.Health/Check", None).await, Code::Ok);
    let channel = ClientOptions::default().endpoint(&server.address).connect().await.unwrap();
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn key_is_valid_from_its_start_to_its_end() {
    let keys = [(); 4].map(|()| Key::generate());
    let lines = [
        format!("expires = {}", in_seconds(-1)),
        format!("expires = {}", in_seconds(3600)),
        format!("not_before = {}", in_seconds(3600)),
        format!("not_before = {}\nexpires = {}", in_seconds(-3600), in_seconds(3)),
    ];
    let mut caller = Caller::new("shop", &[("web", "full")]);
    for (key, lines) in keys.iter().zip(&lines) {
        caller = caller.key_with(key, lines);
    }
    let file = CallersFile::new(&[caller]);
    let world = World::shared();
    let server = world.server_with(&file.toml()).await;
    let clients = keys.map(|key| ClientOptions::with_key(&key.text));
    let lives = async |index: usize| {
        let client = Client::connect_with(&server.address, &clients[index]).await;
        let status = client.get(by_token(&new_token())).await.unwrap_err();
        match status.code() {
            Code::NotFound => true,
            Code::Unauthenticated => false,
            _ => panic!("{status:?}"),
        }
    };
    assert_eq!([lives(0).await, lives(1).await, lives(2).await], [false, true, false]);
    eventually("the key expires", async || (!lives(3).await).then_some(())).await;
}

#[tokio::test]
async fn key_decides_on_a_connection_with_a_certificate() {
    let (pki, [key, unknown]) = (Pki::generate(), [(); 2].map(|()| Key::generate()));
    let file = CallersFile::new(&[
        Caller::new("by-key", &[("web", "full")]).key(&key),
        Caller::new("by-certificate", &[("other", "full")]).certificate("spiffe://test/shop"),
    ]);
    let world = World::shared();
    let server = world.server_with(&(pki.mutual_toml() + &file.toml())).await;
    let certificate = pki.client_authority.client(&[uri("spiffe://test/shop")]);
    let connect = async |key: Option<&Key>| {
        let tls = Some(pki.client_options_with(&certificate));
        Client::connect_with(&server.address, &ClientOptions { tls, key: key.map(|key| key.text.clone()) }).await
    };
    let both = connect(Some(&key)).await;
    both.create(&[]).await;
    expect_error(both.in_namespace("other").get(by_token(&new_token())).await, Code::PermissionDenied, "GRANT_MISSING");
    let wrong = connect(Some(&unknown)).await.in_namespace("other");
    expect_error(wrong.get(by_token(&new_token())).await, Code::Unauthenticated, "CREDENTIALS_INVALID");
    connect(None).await.in_namespace("other").create(&[]).await;
}

#[tokio::test]
async fn caller_is_refused_before_the_namespace_is_looked_up() {
    let key = Key::generate();
    let file = CallersFile::new(&[Caller::new("shop", &[("web", "full")]).key(&key)]);
    let toml = format!("{}allow_unlisted_namespaces = false\n[namespace.listed]\n", file.toml());
    let world = World::shared();
    let server = world.server_with(&toml).await;
    let client = Client::connect_with(&server.address, &ClientOptions::with_key(&key.text)).await;
    let mut statuses = Vec::new();
    for namespace in ["listed", "unlisted"] {
        // Other fields are invalid too: their check would show the policy of the namespace.
        let request = sessiond_client::v1::CreateSessionRequest {
            subject: "x".repeat(10_000),
            idle_timeout: seconds(1 << 40),
            ..Default::default()
        };
        let status = client.in_namespace(namespace).create_with(request).await.unwrap_err();
        statuses.push(status.message().replace(namespace, ""));
        assert_eq!(status.reason(), "GRANT_MISSING");
    }
    assert_eq!(statuses[0], statuses[1]);
    expect_error(client.get(by_token(&new_token())).await, Code::NotFound, "NAMESPACE_UNKNOWN");
}
