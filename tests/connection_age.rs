//! The maximum age of a gRPC connection: new calls move to a new connection, open calls and watches continue.

use std::future::poll_fn;

use futures_util::future::join_all;
use harness::{raw::*, *};
use sessiond_client::v1::EventType;

const SHORT_AGE: &str = "max_connection_age = '100ms'";
/// HTTP/2 error code of a connection that is not closed because of an error.
const NO_ERROR: u32 = 0;

#[tokio::test]
async fn connection_receives_goaway_at_its_maximum_age() {
    let Setup { server, .. } = &setup_with(SHORT_AGE).await;
    let Raw(mut requests) = Raw::connect(&server.address).await;
    let error = eventually("the connection is closed to new calls", async || {
        poll_fn(|context| requests.poll_ready(context)).await.err()
    })
    .await;
    assert!(error.is_go_away() && error.reason().map(u32::from) == Some(NO_ERROR), "{error}");
}

/// Creates a session. Repeats a call that did not reach the server: tonic fails calls that are queued for a connection when
/// GOAWAY arrives, as CANCELLED "operation was canceled" or INTERNAL "h2 protocol error".
async fn create(client: &Client) {
    while let Err(status) = client.create_with(Default::default()).await {
        let source = format!("{:?}", std::error::Error::source(&status));
        let is_unsent = source.contains("hyper::Error(Canceled") || source.contains("GoAway(b\"\", NO_ERROR, Remote)");
        assert!(is_unsent, "{status:?}");
    }
}

#[tokio::test]
async fn watch_stays_open_beyond_the_age_of_its_connection() {
    let Setup { server, client, .. } = &setup_with(SHORT_AGE).await;
    let mut watch = client.watch_all().await;
    let mut created = 0;
    eventually("the calls use a second connection", async || {
        create(client).await;
        created += 1;
        (server.metric("sessiond_grpc_connections").await >= 2.0).then_some(())
    })
    .await;
    create(client).await;
    for event in watch.events(created + 1).await {
        assert_eq!(event.r#type(), EventType::Created);
    }
    drop(watch);
    eventually("the first connection ends with the watch", async || {
        (server.metric("sessiond_grpc_connections").await <= 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_at_the_server_fails_at_the_connection_age() {
    const CALLERS: usize = 8;
    const CALLS: usize = 200;
    let Setup { server, client, .. } = &setup_with("max_connection_age = '20ms'").await;
    let calls = async || {
        for _ in 0..CALLS {
            create(client).await;
        }
    };
    join_all((0..CALLERS).map(|_| calls())).await;
    let metrics = server.http("/metrics").await.unwrap();
    let counts: Vec<_> =
        metrics.lines().filter(|line| line.contains("requests_total{method=\"CreateSession\"")).collect();
    let all = format!("sessiond_grpc_requests_total{{method=\"CreateSession\",code=\"OK\"}} {}", CALLERS * CALLS);
    assert_eq!(counts, [all]);
}

#[tokio::test]
async fn connection_without_a_maximum_age_stays_open() {
    let Setup { server, client, .. } = &setup_with("max_connection_age = 'never'").await;
    let _watch = client.watch_all().await;
    client.create(&[]).await;
    assert_eq!(server.metric("sessiond_grpc_connections").await, 1.0);
}
