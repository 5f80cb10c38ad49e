//! Reflection, health, metrics, configuration and start-up of a server.

use std::process::Command;

use harness::{World, client::*, eventually, process::program};
use sessiond_client::v1::{EventType, attribute_value::Kind};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

#[tokio::test]
async fn session_created_on_one_server_is_received_on_another() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let (server_a, server_b) = (a.client().await, b.client().await);
    let mut watching = server_b.watch_all().await;
    let user_id = sessiond_client::v1::AttributeValue { kind: Some(Kind::IntValue(1)) };
    let (written, token) = server_a.create(&[("user_id", user_id), ("cart", json(r#"["item1","item2"]"#))]).await;
    let event = watching.event().await;
    assert_eq!((event.r#type(), event.session.as_ref()), (EventType::Created, Some(&written)));
    assert_eq!(server_b.get(by_token(&token)).await.unwrap(), written);
}

async fn channel(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn reflection_v1_includes_the_error_details() {
    let world = World::shared();
    let server = world.server().await;
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel(&server.address).await);
    for symbol in
        ["sessiond.v1.SessionService", "google.rpc.ErrorInfo", "google.rpc.BadRequest", "grpc.health.v1.Health"]
    {
        use v1::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
        let message_request = Some(MessageRequest::FileContainingSymbol(symbol.into()));
        let request = v1::ServerReflectionRequest { host: String::new(), message_request };
        let mut responses = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        let response = responses.next().await.unwrap().unwrap().message_response;
        assert!(matches!(response, Some(MessageResponse::FileDescriptorResponse(_))), "{symbol}");
    }
}

#[tokio::test]
async fn reflection_v1alpha_lists_the_service() {
    use v1alpha::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
    let world = World::shared();
    let server = world.server().await;
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel(&server.address).await);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request };
    let mut responses = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let response = responses.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = response else { panic!() };
    assert!(list.service.iter().any(|service| service.name == "sessiond.v1.SessionService"));
}

#[tokio::test]
async fn health_is_serving_only_while_redis_responds() {
    let world = World::dedicated();
    let server = world.server().await;
    let client = HealthClient::new(channel(&server.address).await);
    let has_status = async |service: &str, expected: ServingStatus| {
        let request = HealthCheckRequest { service: service.into() };
        let status = client.clone().check(request).await.unwrap().into_inner().status();
        (status == expected).then_some(())
    };
    for service in ["", "sessiond.v1.SessionService"] {
        eventually("health is SERVING", async || has_status(service, ServingStatus::Serving).await).await;
    }
    world.redis.pause();
    eventually("health is NOT_SERVING", async || has_status("", ServingStatus::NotServing).await).await;
    world.redis.resume();
    eventually("health is SERVING again", async || has_status("", ServingStatus::Serving).await).await;
}

#[tokio::test]
async fn metrics_count_calls_and_contain_no_namespace_or_subject() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await.in_namespace("secret-namespace");
    let mut watching = client.watch_all().await;
    let request = sessiond_client::v1::CreateSessionRequest {
        subject: "secret-subject".into(),
        attributes: [("a".to_owned(), text(&"long ".repeat(1000)))].into(),
        idle_timeout: millis(50),
        ..Default::default()
    };
    client.create_with(request).await.unwrap();
    watching.events(2).await;
    let text = server.http("/metrics").await.unwrap();
    for name in [
        "sessiond_grpc_requests_total{method=\"CreateSession\",code=\"OK\"} 1",
        "sessiond_grpc_request_duration_seconds_count{method=\"CreateSession\"} 1",
        "sessiond_redis_commands_total{command=\"create\",result=\"ok\"} 1",
        "sessiond_tasks ",
        "sessiond_watches 1",
        "sessiond_grpc_streams_reset_total 0",
        "sessiond_grpc_connections_at_stream_limit 0",
        "sessiond_events_received_total 2",
        "sessiond_events_delivered_total 2",
        "sessiond_sessions_expired_total 1",
        "sessiond_expiry_lag_seconds_count 1",
        "sessiond_feed_lag_seconds_count 2",
        "sessiond_redis_up 1",
    ] {
        assert!(text.contains(name), "{name} in {text}");
    }
    assert!(!text.contains("secret-"));
    let attribute_bytes =
        async |form: &str| server.metric(&format!("sessiond_attribute_bytes_total{{form=\"{form}\"}}")).await;
    let (plain, stored) = (attribute_bytes("plain").await, attribute_bytes("stored").await);
    assert!(plain > 5_000.0 && stored < plain / 4.0, "{plain} {stored}");
}

fn sessiond(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(program()).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn config_prints_the_configuration_with_masked_secrets() {
    let (is_ok, output, _) = sessiond(&["config", "--redis", "redis://user:hunter2@localhost:6379/3"]);
    assert!(
        is_ok && output.contains("redis://user:****@localhost:6379/3") && output.contains("idle_timeout = \"30m\"")
    );
}

#[test]
fn serve_reports_every_configuration_problem_before_it_starts() {
    let (is_ok, _, errors) =
        sessiond(&["serve", "--listen", "0.0.0.0:1", "--drain-timeout", "soon", "--log-format", "xml"]);
    assert!(!is_ok);
    for problem in ["listen: needs tls_cert and tls_key", "drain_timeout: must be", "log_format: must be"] {
        assert!(errors.contains(problem), "{problem} in {errors}");
    }
}

#[test]
fn redis_with_eviction_is_refused_without_allow_eviction() {
    let redis = harness::Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let (log, code) = harness::process::Process::expect_start_failure(&[format!("--redis={}", redis.url())]);
    assert!(code == Some(1) && log.contains("--allow-eviction"), "{log}");
    harness::process::Process::start(&[format!("--redis={}", redis.url()), "--allow-eviction".into()]);
}

#[test]
fn store_with_another_partition_count_is_refused() {
    let redis = harness::Redis::start();
    drop(harness::process::Process::start(&[format!("--redis={}", redis.url())]));
    let file = harness::ConfigFile::new("partitions = 32");
    let arguments = [format!("--redis={}", redis.url()), file.flag()];
    let (log, code) = harness::process::Process::expect_start_failure(&arguments);
    assert!(code == Some(1) && log.contains("set partitions = 16"), "{log}");
}

#[test]
fn redis_with_user_and_password_over_tcp_works() {
    // Redis cannot choose a free port itself. The test picks one, which another process could take before Redis starts.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let user = ["--user", "sessiond", "on", ">hunter2", "~ses:*", "&ses:*", "+@all"];
    let _redis = harness::Redis::start_with(&[&["--port", &port], &user[..]].concat());
    let url = format!("--redis=redis://sessiond:hunter2@127.0.0.1:{port}");
    harness::process::Process::start(&[url]);
    let wrong = format!("--redis=redis://sessiond:wrong@127.0.0.1:{port}");
    let (log, code) = harness::process::Process::expect_start_failure(&[wrong]);
    assert!(code == Some(1) && log.contains("WRONGPASS") && !log.contains("wrong@"), "{log}");
}

#[test]
fn missing_redis_server_is_reported_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(program())
        .args(["serve", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--data-dir"])
        .arg(directory.path())
        .env("PATH", "")
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), errors.lines().count()), (Some(1), 1), "{errors}");
    assert!(errors.contains("apt-get install redis-server"), "{errors}");
}

#[tokio::test]
async fn embedded_redis_starts_with_a_path_too_long_for_a_socket() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(120));
    let mut process = harness::process::Process::start(&[format!("--data-dir={}", deep.display())]);
    process.client().await.create(&[]).await;
    assert_eq!(process.stop().await, Some(0));
}
