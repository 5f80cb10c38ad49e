//! What stands beside the service: reflection, health, metrics, the command line; and the example that all is for.

mod harness;

use std::process::Command;

use harness::{World, client::*, eventually};
use sessiond_client::v1::{EventType, attribute_value::Kind};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

#[tokio::test]
async fn user_1_with_a_cart_of_two_items_is_written_on_a_and_heard_and_read_on_b() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let (server_a, server_b) = (a.client().await, b.client().await);
    let mut watching = server_b.watch_all().await;
    let user_id = sessiond_client::v1::AttributeValue { kind: Some(Kind::IntValue(1)) };
    let (written, token) = server_a.create(&[("user_id", user_id), ("cart", json(r#"["item1","item2"]"#))]).await;
    let heard = watching.event().await;
    assert_eq!((heard.r#type(), heard.session.as_ref()), (EventType::Created, Some(&written)));
    assert_eq!(server_b.get(by_token(&token)).await.unwrap(), written);
}

async fn channel(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn reflection_serves_v1_with_the_details_of_errors() {
    let world = World::shared();
    let server = world.server().await;
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel(&server.address).await);
    for symbol in
        ["sessiond.v1.SessionService", "google.rpc.ErrorInfo", "google.rpc.BadRequest", "grpc.health.v1.Health"]
    {
        use v1::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
        let message_request = Some(MessageRequest::FileContainingSymbol(symbol.into()));
        let request = v1::ServerReflectionRequest { host: String::new(), message_request };
        let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        let answer = answers.next().await.unwrap().unwrap().message_response;
        assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{symbol}");
    }
}

#[tokio::test]
async fn reflection_serves_v1alpha() {
    use v1alpha::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
    let world = World::shared();
    let server = world.server().await;
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel(&server.address).await);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!() };
    assert!(list.service.iter().any(|service| service.name == "sessiond.v1.SessionService"));
}

#[tokio::test]
async fn health_is_serving_only_while_redis_answers() {
    let world = World::own();
    let server = world.server().await;
    let client = HealthClient::new(channel(&server.address).await);
    let is = async |service: &str, expected: ServingStatus| {
        let request = HealthCheckRequest { service: service.into() };
        let status = client.clone().check(request).await.unwrap().into_inner().status();
        (status == expected).then_some(())
    };
    for service in ["", "sessiond.v1.SessionService"] {
        eventually("it serves", async || is(service, ServingStatus::Serving).await).await;
    }
    world.redis.pause();
    eventually("it does not", async || is("", ServingStatus::NotServing).await).await;
    world.redis.resume();
    eventually("it serves again", async || is("", ServingStatus::Serving).await).await;
}

#[tokio::test]
async fn metrics_tell_what_happens_and_name_no_namespace_and_no_subject() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await.in_namespace("a-namespace-of-its-own");
    let mut watching = client.watch_all().await;
    let subject = sessiond_client::v1::CreateSessionRequest {
        subject: "a-subject-of-its-own".into(),
        attributes: [("a".to_owned(), text(&"long ".repeat(1000)))].into(),
        idle_timeout: millis(50),
        ..Default::default()
    };
    client.create_as(subject).await.unwrap();
    watching.events(2).await;
    let text = server.http("/metrics").await.unwrap();
    for name in [
        "sessiond_calls_total{method=\"CreateSession\",code=\"OK\"} 1",
        "sessiond_call_duration_seconds_count{method=\"CreateSession\"} 1",
        "sessiond_redis_calls_total{command=\"create\",result=\"ok\"} 1",
        "sessiond_watchers 1",
        "sessiond_events_received_total 2",
        "sessiond_events_delivered_total 2",
        "sessiond_sessions_expired_total 1",
        "sessiond_expiry_lag_seconds_count 1",
        "sessiond_feed_lag_seconds_count 2",
        "sessiond_store_up 1",
    ] {
        assert!(text.contains(name), "{name} in {text}");
    }
    assert!(!text.contains("-of-its-own"));
    let (before, after) =
        (server.metric("sessiond_values_bytes_total").await, server.metric("sessiond_stored_values_bytes_total").await);
    assert!(before > 5_000.0 && after < before / 4.0, "{before} {after}");
}

fn sessiond(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sessiond")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_configuration_is_shown_without_its_secrets() {
    let (ok, shown, _) = sessiond(&["config", "--redis", "redis://user:hunter2@localhost:6379/3"]);
    assert!(ok && shown.contains("redis://user:****@localhost:6379/3") && shown.contains("idle_timeout = \"30m\""));
}

#[test]
fn every_problem_of_the_configuration_is_told_before_anything_starts() {
    let (ok, _, told) = sessiond(&["serve", "--listen", "0.0.0.0:1", "--drain-timeout", "soon", "--log-format", "xml"]);
    assert!(!ok);
    for problem in ["listen: is not a loopback address", "drain_timeout: must be", "log_format: must be"] {
        assert!(told.contains(problem), "{problem} in {told}");
    }
}

#[test]
fn a_redis_that_may_evict_is_refused_unless_said() {
    let redis = harness::Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let (log, code) = harness::process::Process::start_in_vain(&[format!("--redis={}", redis.url())]);
    assert!(code == Some(1) && log.contains("--allow-eviction"), "{log}");
    harness::process::Process::start(&[format!("--redis={}", redis.url()), "--allow-eviction".into()]);
}

#[test]
fn a_store_with_other_partitions_is_refused_with_the_remedy() {
    let redis = harness::Redis::start();
    drop(harness::process::Process::start(&[format!("--redis={}", redis.url())]));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sessiond.toml");
    std::fs::write(&file, "partitions = 32").unwrap();
    let arguments = [format!("--redis={}", redis.url()), format!("--config={}", file.display())];
    let (log, code) = harness::process::Process::start_in_vain(&arguments);
    assert!(code == Some(1) && log.contains("set partitions = 16"), "{log}");
}

#[test]
fn a_redis_with_user_and_password_over_tcp_is_served() {
    // Redis picks no port by itself: the first free one that is still free a moment later.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let user = ["--user", "sessiond", "on", ">hunter2", "~sessiond:*", "&sessiond:*", "+@all"];
    let _redis = harness::Redis::start_with(&[&["--port", &port], &user[..]].concat());
    let url = format!("--redis=redis://sessiond:hunter2@127.0.0.1:{port}");
    harness::process::Process::start(&[url]);
    let wrong = format!("--redis=redis://sessiond:wrong@127.0.0.1:{port}");
    let (log, code) = harness::process::Process::start_in_vain(&[wrong]);
    assert!(code == Some(1) && log.contains("WRONGPASS") && !log.contains("wrong@"), "{log}");
}

#[test]
fn without_a_redis_server_one_line_says_how_to_get_one() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sessiond"))
        .args(["serve", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--data-dir"])
        .arg(directory.path())
        .env("PATH", "")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{told}");
    assert!(told.contains("apt-get install redis-server"), "{told}");
}

#[tokio::test]
async fn the_embedded_redis_runs_in_a_directory_too_deep_for_a_socket() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(120));
    let mut process = harness::process::Process::start(&[format!("--data-dir={}", deep.display())]);
    process.client().await.create(&[]).await;
    assert_eq!(process.stop().await, Some(0));
}
