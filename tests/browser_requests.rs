//! Requests that a browser can send for any page, or that are no gRPC calls, have no effect.

use harness::{
    World,
    client::*,
    raw::{Raw, framed},
};
use http::StatusCode;
use sessiond_client::v1::CreateSessionRequest;

#[tokio::test]
async fn request_of_another_kind_has_no_effect() {
    let world = World::dedicated();
    let server = world.server().await;
    let raw = Raw::connect(&server.address).await;
    let body = framed(&CreateSessionRequest { namespace: NAMESPACE.into(), ..Default::default() });
    let grpc = Some("application/grpc");
    type Row<'a> = (&'a str, &'a str, Option<&'a str>, Option<(&'a str, &'a str)>, StatusCode);
    let rows: [Row<'_>; 17] = [
        ("plain text", "POST", Some("text/plain"), None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("form", "POST", Some("application/x-www-form-urlencoded"), None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("multipart", "POST", Some("multipart/form-data; boundary=a"), None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("JSON", "POST", Some("application/json"), None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("none", "POST", None, None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("empty", "POST", Some(""), None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("gRPC-Web", "POST", Some("application/grpc-web+proto"), None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("gRPC-Web text", "POST", Some("application/grpc-web-text"), None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("longer name", "POST", Some("application/grpcx"), None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("origin", "POST", grpc, Some(("origin", "https://evil.example")), StatusCode::FORBIDDEN),
        ("null origin", "POST", grpc, Some(("origin", "null")), StatusCode::FORBIDDEN),
        ("empty origin", "POST", grpc, Some(("origin", "")), StatusCode::FORBIDDEN),
        ("fetch metadata", "POST", grpc, Some(("sec-fetch-site", "cross-site")), StatusCode::FORBIDDEN),
        ("same-origin fetch", "POST", grpc, Some(("sec-fetch-site", "same-origin")), StatusCode::FORBIDDEN),
        ("origin and plain text", "POST", Some("text/plain"), Some(("origin", "a")), StatusCode::FORBIDDEN),
        ("preflight", "OPTIONS", None, Some(("origin", "https://evil.example")), StatusCode::FORBIDDEN),
        ("GET", "GET", None, None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ];
    for (name, method, content_type, header, expected) in rows {
        let mut request =
            http::Request::builder().method(method).uri("http://test/sessiond.v1.SessionService/CreateSession");
        for (name, value) in content_type.map(|value| ("content-type", value)).into_iter().chain(header) {
            request = request.header(name, value);
        }
        let (response, _) = raw.send(request.body(()).unwrap(), Some(body.clone().into())).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), expected, "{name}");
        assert!(response.headers().keys().all(|name| !name.as_str().starts_with("access-control")), "{name}");
    }
    let keys = world.redis.command(&["KEYS", "*:s:*"]);
    assert_eq!(keys, "*0\r\n", "a session was created");
    assert_eq!(server.metric(r#"sessiond_refusals_total{reason="browser"}"#).await, 7.0);
    assert_eq!(server.metric(r#"sessiond_refusals_total{reason="content_type"}"#).await, 10.0);
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
        let (response, _) = raw
            .send(
                http::Request::post("http://test/sessiond.v1.SessionService/CreateSession")
                    .header("content-type", content_type)
                    .body(())
                    .unwrap(),
                Some(body.clone().into()),
            )
            .await;
        assert_eq!(response.await.unwrap().status(), StatusCode::OK, "{content_type}");
    }
}
