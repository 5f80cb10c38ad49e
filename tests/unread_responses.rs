//! Clients that do not read: their responses hold bounded memory for a bounded time, and other clients do not notice.

use std::time::Duration;

use futures_util::future::join_all;
use harness::{client::*, process::Process, raw::*, refusals::*, *};
use sessiond_client::v1::*;
use tokio::time::timeout;
use tonic::Code;

/// Size of the sessions of a list.
const SESSION_BYTES: usize = 60_000;

/// Creates as many sessions as fill a page of ListSessions.
async fn create_page(client: &Client) {
    let value = incompressible(SESSION_BYTES);
    join_all((0..40).map(async |_| client.create(&[("large", text(&value))]).await)).await;
}

fn full_list() -> Vec<u8> {
    framed(&ListSessionsRequest { page_size: 1_000, view: SessionView::Full.into(), ..list() })
}

/// Resident memory of a process in bytes.
fn resident(process: &Process) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", process.pid())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Begins this number of calls on one connection, reads no response, and asserts for some seconds that the process holds at
/// most 200 MiB more than before: 32 MiB of responses of one connection, each of which takes several times its size while it
/// is made. Then `others` runs, while the responses are still unread.
async fn assert_unread_are_bounded(
    process: &Process,
    method: &str,
    request: Vec<u8>,
    count: usize,
    others: impl Future<Output = ()>,
) {
    const BOUND: u64 = 200 << 20;
    let before = resident(process);
    let raw = Raw::connect_with_windows(&process.address, 1_000, 1 << 20).await;
    let unread = join_all((0..count).map(|_| raw.begin(method, &[], Some(request.clone().into())))).await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let more = resident(process).saturating_sub(before);
        assert!(more < BOUND, "{} MiB more", more >> 20);
    }
    others.await;
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicted_watch_releases_its_place_without_a_read() {
    let world = World::shared();
    let server =
        world.server_with("limits = { watches = 2, slow_consumer_timeout = '1s', response_timeout = '1s' }").await;
    let client = server.client().await;
    let mut stalled = [server.client().await.watch_all().await, server.client().await.watch_all().await];
    let large = [("large", text(&incompressible(SESSION_BYTES)))];
    eventually("both are evicted", async || {
        client.create(&large).await;
        (server.metric("sessiond_watches_evicted_total").await == 2.0).then_some(())
    })
    .await;
    let mut next = eventually("a watch is accepted again", async || client.watch(whole_namespace()).await.ok()).await;
    next.bookmark().await;
    eventually("the places are free", async || (server.metric("sessiond_watches").await == 1.0).then_some(())).await;
    for watching in &mut stalled {
        let end = loop {
            match watching.response().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        assert_eq!(end.unwrap_err().code(), Code::Cancelled, "the stream is reset");
        // The token of the last response that arrived is still good.
        client.resume(&watching.token).await.event().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_lists_of_a_connection_hold_bounded_memory() {
    const LISTS: usize = 150;
    let world = World::dedicated();
    let process = Process::start(&[format!("--redis={}", world.redis.url())]);
    let client = process.client().await;
    create_page(&client).await;
    assert_unread_are_bounded(&process, "ListSessions", full_list(), LISTS, async {
        client.create(&[]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_snapshots_of_a_connection_hold_bounded_memory() {
    const WATCHES: usize = 900;
    let world = World::dedicated();
    let process = Process::start(&[format!("--redis={}", world.redis.url())]);
    let client = process.client().await;
    create_page(&client).await;
    let request = framed(&WatchRequest { initial_state: true, ..watch() });
    assert_unread_are_bounded(&process, "Watch", request, WATCHES, async {
        // A watch on another connection is not delayed.
        let mut watching = client.watch(WatchRequest { initial_state: true, ..whole_namespace() }).await.unwrap();
        assert_eq!(watching.events(40).await.len(), 40);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_response_is_reset_after_its_timeout() {
    const LISTS: usize = 5;
    let Setup { server, client, .. } = &setup_with("limits.response_timeout = '1s'").await;
    create_page(client).await;
    // One window is empty, one has room for a part of the response, one for all of it except the last byte.
    let whole = Raw::connect(&server.address).await.call("ListSessions", &[], full_list()).await.0.len();
    for window in [0, 1_000, whole - 1] {
        let resets = server.metric("sessiond_grpc_streams_reset_total").await;
        let raw = Raw::connect_with_windows(&server.address, window as u32, 64 << 20).await;
        let mut unread = Vec::new();
        for _ in 0..LISTS {
            unread.push(raw.begin("ListSessions", &[], Some(full_list().into())).await.0.await.unwrap());
        }
        eventually("all streams are reset", async || {
            (server.metric("sessiond_grpc_streams_reset_total").await == resets + LISTS as f64).then_some(())
        })
        .await;
        for response in unread {
            let mut body = response.into_body();
            let end = timeout(WAIT_LIMIT, async { while body.data().await.unwrap().is_ok() {} });
            end.await.expect("the stream has ended");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reader_gets_its_whole_response() {
    let Setup { server, client, .. } = &setup().await;
    create_page(client).await;
    let (whole, _) = Raw::connect(&server.address).await.call("ListSessions", &[], full_list()).await;
    let raw = Raw::connect_with_windows(&server.address, 64 << 10, 64 << 10).await;
    let (response, _) = raw.begin("ListSessions", &[], Some(full_list().into())).await;
    let mut body = response.await.unwrap().into_body();
    let mut received = Vec::new();
    while let Some(data) = timeout(WAIT_LIMIT, body.data()).await.expect("the next part") {
        let data = data.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        body.flow_control().release_capacity(data.len()).unwrap();
        received.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap().expect("a status");
    assert_eq!(tonic::Status::from_header_map(&trailers).unwrap().code(), Code::Ok);
    assert_eq!(received.len(), whole.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_without_room_for_its_response_is_not_executed() {
    let Setup { server, client, .. } = &setup_with("limits.response_bytes = '8 MiB'").await;
    create_page(client).await;
    // Four connections with a quarter of the budget each.
    let raws = join_all((0..4).map(|_| Raw::connect_with_windows(&server.address, 1_000, 1 << 20))).await;
    let lists = raws.iter().flat_map(|raw| (0..5).map(|_| raw.begin("ListSessions", &[], Some(full_list().into()))));
    let (unread, raw) = (join_all(lists).await, &raws[0]);
    let create = CreateSessionRequest { subject: "alice".into(), ..create() };
    let mut created = 0;
    let expect_overloaded = |status: tonic::Status| {
        assert_eq!((status.code(), &status.reason()[..]), (Code::Unavailable, "OVERLOADED"), "{status:?}");
    };
    eventually("the connection has no place", async || {
        let (_, status) = raw.call("CreateSession", &[("grpc-timeout", "300m")], framed(&create)).await;
        if status.code() == Code::Ok {
            created += 1;
            return None;
        }
        expect_overloaded(status);
        Some(())
    })
    .await;
    // The responses hold the whole budget of the server, except for less than one list.
    let other = Raw::connect(&server.address).await;
    expect_overloaded(other.call("ListSessions", &[("grpc-timeout", "300m")], full_list()).await.1);
    // Calls whose responses contain no session need no place.
    assert!(!client.delete(by_id(SOME_ID)).await.unwrap());
    drop((unread, raws));
    eventually("the places are free", async || {
        (other.call("ListSessions", &[], full_list()).await.1.code() == Code::Ok).then_some(())
    })
    .await;
    client.create_with(create).await.unwrap();
    assert_eq!(client.list_subject("alice").await.len(), created + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_whose_socket_is_not_read_is_closed() {
    // Far more bytes than the buffers of the sockets hold.
    const LISTS: u32 = 15;
    let settings = "limits = { keepalive_interval = '500ms', keepalive_timeout = '500ms' }";
    let Setup { server, client, .. } = &setup_with(settings).await;
    create_page(client).await;
    let connections = server.metric("sessiond_grpc_connections").await;
    let unread = Raw::send_without_reading(&server.address, "ListSessions", &full_list(), LISTS).await;
    eventually("the connection is open", async || {
        (server.metric("sessiond_grpc_connections").await == connections + 1.0).then_some(())
    })
    .await;
    eventually("the connection is closed", async || {
        (server.metric("sessiond_grpc_connections").await == connections).then_some(())
    })
    .await;
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_lists_leave_room_for_other_connections() {
    let Setup { server, client, .. } = &setup_with("limits.response_bytes = '8 MiB'").await;
    create_page(client).await;
    let raw = Raw::connect_with_windows(&server.address, 0, 1 << 20).await;
    let mut unread = Vec::new();
    for _ in 0..40 {
        unread.push(raw.begin("ListSessions", &[], Some(full_list().into())).await);
    }
    // The first response has begun: it holds its place.
    unread.swap_remove(0).0.await.unwrap();
    let another = Raw::connect(&server.address).await;
    for _ in 0..10 {
        let (_, status) = another.call("ListSessions", &[], full_list()).await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_streams_are_bounded_in_number_size_and_time() {
    const STREAMS: usize = 32;
    let Setup { server, .. } = &setup_with("limits.response_timeout = '2s'").await;
    let raw = Raw::connect(&server.address).await;
    let open = async || {
        let path = "http://test/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
        let (response, requests) = raw.send(request.body(()).unwrap(), None).await;
        (response.await.unwrap(), requests)
    };
    let status = |response: &http::Response<_>| tonic::Status::from_header_map(response.headers());
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(open().await);
    }
    assert!(streams.iter().all(|(response, _)| status(response).is_none()));
    let refused = status(&open().await.0).expect("a status");
    assert_eq!((refused.code(), refused.reason().as_str()), (Code::Unavailable, "OVERLOADED"));
    let (response, mut requests) = eventually("a stream is reset", async || {
        let (response, requests) = open().await;
        status(&response).is_none().then_some((response, requests))
    })
    .await;
    // A list of the services, with a host of 8,000 bytes, which the answer would contain.
    let request = [&[0x0a, 0xc0, 0x3e][..], &[b'a'; 8_000], &[0x3a, 0]].concat();
    requests.send_data([header(false, request.len()), request].concat().into(), true).unwrap();
    assert!(response.into_body().data().await.is_none(), "a large request has no answer");
}
