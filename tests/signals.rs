//! Signals to the server, and the time between the shutdown signal and the drain.

use harness::{World, client::*, eventually, http, process::Process};
use rustix::process::Signal;
use sessiond_client::v1::EventType;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

fn start(world: &World, arguments: &[&str]) -> Process {
    let redis = format!("--redis={}", world.redis.url());
    let arguments = arguments.iter().map(|argument| (*argument).to_owned());
    Process::start(&[redis].into_iter().chain(arguments).collect::<Vec<_>>())
}

#[tokio::test]
async fn hangup_is_logged_and_does_not_end_the_server() {
    let world = World::dedicated();
    let mut process = start(&world, &[]);
    let mut watch = process.client().await.watch_all().await;
    process.signal(Signal::HUP);
    eventually("the signal is logged", async || process.log.lock().unwrap().contains("SIGHUP received").then_some(()))
        .await;
    process.client().await.create(&[]).await;
    assert_eq!(watch.event().await.r#type(), EventType::Created);
    assert_eq!(process.stop().await, Some(0));
}

#[tokio::test]
async fn drain_delay_serves_new_clients_while_not_ready() {
    let world = World::dedicated();
    let mut process = start(&world, &["--drain-delay=1h"]);
    let client = process.client().await;
    let mut watch = client.watch_all().await;
    process.signal(Signal::TERM);
    eventually("the server is not ready", async || (!process.is_ready().await).then_some(())).await;
    let response = http(&process.metrics_address, "/readyz").await.unwrap();
    assert!(response.starts_with("HTTP/1.1 503"), "{response}");
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", process.address)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    eventually("health is NOT_SERVING", async || {
        let status = health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status();
        (status == ServingStatus::NotServing).then_some(())
    })
    .await;
    // Open connections, new connections and watches are served.
    client.create(&[]).await;
    process.client().await.create(&[]).await;
    assert_eq!([watch.event().await.r#type(), watch.event().await.r#type()], [EventType::Created; 2]);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().await, Some(1));
}

#[tokio::test]
async fn drain_starts_after_the_drain_delay() {
    let world = World::dedicated();
    let mut process = start(&world, &["--drain-delay=300ms"]);
    let mut watch = process.client().await.watch_all().await;
    process.signal(Signal::TERM);
    expect_error(watch.end().await, Code::Unavailable, "DRAINING");
    assert_eq!(process.wait().await, Some(0));
}
