//! Every error status has a reason, also for calls that no method receives, and fits into the buffers of proxies.

use harness::{client::*, raw::*, refusals::*, *};
use http::{HeaderMap, Request, request::Builder};
use sessiond_client::v1::*;
use tokio::time::timeout;
use tonic::Code;

/// Maximum size of all headers of a response in bytes: the default buffer of nginx.
const MAX_HEADER_BYTES: usize = 4_096;

#[tokio::test]
async fn call_that_no_method_receives_has_a_reason() {
    let Setup { server, .. } = &setup().await;
    let raw = Raw::connect(&server.address).await;
    let service = "sessiond.v1.SessionService";
    let post = |path: String| Request::post(format!("http://test/{path}"));
    let grpc = |builder: Builder| builder.header("content-type", "application/grpc").header("te", "trailers");
    let unknown = (Code::Unimplemented, "METHOD_UNKNOWN");
    let malformed = (Code::InvalidArgument, "FIELD_INVALID");
    let rows = [
        ("unknown method", grpc(post(format!("{service}/Nope"))), unknown),
        ("method below another", grpc(post(format!("{service}/Nope/GetSession"))), unknown),
        ("no method", grpc(post(format!("{service}/"))), unknown),
        ("unknown service", grpc(post("sessiond.v2.SessionService/GetSession".into())), unknown),
        ("no path", grpc(post(String::new())), unknown),
        (
            "gzip",
            grpc(post(format!("{service}/GetSession"))).header("grpc-encoding", "gzip"),
            (Code::Unimplemented, "COMPRESSION_UNSUPPORTED"),
        ),
        (
            "large metadata",
            grpc(post(format!("{service}/Watch"))).header("x", a(17_000)),
            (Code::ResourceExhausted, "METADATA_TOO_LARGE"),
        ),
        ("GET", grpc(Request::get(format!("http://test/{service}/GetSession"))), malformed),
    ];
    for (name, request, (code, reason)) in rows {
        let body = if name == "GET" { Vec::new() } else { b"{\"id\":1}".to_vec() };
        let (response, _) = raw.send(request.body(()).unwrap(), Some(body.into())).await;
        let (_, status) = timeout(WAIT_LIMIT, answer(response)).await.expect("a response");
        assert_eq!((status.code(), &status.reason()[..]), (code, reason), "{name}: {status:?}");
        let accepted = status.metadata().get("grpc-accept-encoding").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(accepted, (name == "gzip").then(|| "identity".to_owned()), "{name}");
    }
    let identity = [("grpc-encoding", "identity")];
    let (_, status) = raw.call("CreateSession", &identity, framed(&create())).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    let name = "sessiond_grpc_requests_total{method=\"unknown\",code=\"UNIMPLEMENTED\"}";
    assert_eq!(server.metric(name).await, 5.0);
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

#[tokio::test]
async fn headers_of_the_largest_statuses_are_below_4_kib() {
    let Setup { server, client, .. } = &setup().await;
    let raw = Raw::connect(&server.address).await;
    let names = |text: &str| UpdateSessionRequest { remove_labels: vec![text.repeat(64); 1_000], ..update() };
    let keys = (0..1_000).filter_map(|_| by_id(&id_of(&new_token()))).collect();
    let requests = [
        ("UpdateSession", framed(&names("A"))),
        ("UpdateSession", framed(&names("\u{1f600}"))),
        ("UpdateSession", framed(&names("\u{1}"))),
        ("Watch", framed(&WatchRequest { namespace: NAMESPACE.into(), keys, ..Default::default() })),
    ];
    for (method, request) in requests {
        let (response, _) = raw.begin(method, &[], Some(request.into())).await;
        let response = timeout(WAIT_LIMIT, response).await.expect("a response").unwrap();
        let bytes = size(response.headers());
        assert!((1_500..MAX_HEADER_BYTES).contains(&bytes), "{method}: {bytes} bytes: {:?}", response.headers());
        assert!(tonic::Status::from_header_map(response.headers()).is_some(), "{method}");
    }
    client.create(&[]).await;
}

#[tokio::test]
async fn watch_by_ids_names_the_ids_that_are_not_alive() {
    let Setup { client, .. } = &setup().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.create(&[]).await.0.id);
    }
    let open = async |ids: &[String]| {
        let keys = ids.iter().filter_map(|id| by_id(id)).collect();
        client.watch(WatchRequest { keys, ..Default::default() }).await
    };
    client.delete(by_id(&ids[1])).await.unwrap();
    let unknown = id_of(&new_token());
    ids.push(unknown.clone());
    let status = expect_error(open(&ids).await.map(drop), Code::NotFound, "SESSION_NOT_FOUND");
    let (named, expected) = (status.metadata_of("ids"), [&ids[1], &unknown]);
    assert!(named.len() == 26 + 1 + 26 && expected.iter().all(|id| named.contains(*id)), "{named}");
    assert_eq!(status.metadata_of("ids_total"), "");
    open(&[ids[0].clone(), ids[2].clone()]).await.unwrap().bookmark().await;
    // More than fit into a status.
    ids.extend((0..100).map(|_| id_of(&new_token())));
    let status = expect_error(open(&ids).await.map(drop), Code::NotFound, "SESSION_NOT_FOUND");
    let listed: Vec<_> = status.metadata_of("ids").split(',').map(str::to_owned).collect();
    assert!(listed.len() == 64 && listed.iter().all(|id| ids.contains(id)), "{listed:?}");
    assert_eq!(status.metadata_of("ids_total"), "102");
}
