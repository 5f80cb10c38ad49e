//! Invalid requests: INVALID_ARGUMENT names every invalid field, and no command is sent to Redis.
//!
//! Redis hangs in these tests, so every response is made without it. The last test is about invalid input from Redis.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use harness::{client::*, redis::socket_url, refusals::*, *};
use prost_types::{Duration, Timestamp};
use sessiond_client::v1::{attribute_value::Kind, *};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use tonic::Code;

fn value(kind: Kind) -> AttributeValue {
    AttributeValue { kind: Some(kind) }
}

fn single(name: &str, value: AttributeValue) -> BTreeMap<String, AttributeValue> {
    BTreeMap::from([(name.to_owned(), value)])
}

fn create_many(count: usize) -> BTreeMap<String, AttributeValue> {
    (0..count).map(|n| (n.to_string(), AttributeValue::default())).collect()
}

fn many_labels(count: usize) -> BTreeMap<String, String> {
    (0..count).map(|n| (n.to_string(), String::new())).collect()
}

/// Texts that are neither a namespace nor a label name.
fn invalid_label_names() -> Vec<String> {
    let short =
        ["-a", "A", "a_b", "a:b", "{a}", "a}", "a b", "a\n", "a\0", "\u{1f600}", "\u{e9}", "MOVED 1 x", "ASK 1 x"];
    short.into_iter().map(str::to_owned).chain([a(64)]).collect()
}

#[tokio::test]
async fn every_call_with_an_invalid_namespace_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let grpc = || client.grpc.clone();
    for namespace in invalid_label_names().into_iter().chain([String::new()]) {
        let name = format!("namespace {namespace:?}");
        let (namespace, fields, key) = (|| namespace.clone(), || vec!["namespace".to_owned()], by_id(SOME_ID));
        check(
            &name,
            grpc().create_session(CreateSessionRequest { namespace: namespace(), ..create() }).await,
            fields(),
        );
        let get = GetSessionRequest { namespace: namespace(), key: key.clone(), ..Default::default() };
        check(&name, grpc().get_session(get).await, fields());
        check(
            &name,
            grpc().update_session(UpdateSessionRequest { namespace: namespace(), ..update() }).await,
            fields(),
        );
        let touch = TouchSessionRequest { namespace: namespace(), key: key.clone() };
        check(&name, grpc().touch_session(touch).await, fields());
        let delete = DeleteSessionRequest { namespace: namespace(), key, ..Default::default() };
        check(&name, grpc().delete_session(delete).await, fields());
        check(&name, grpc().list_sessions(ListSessionsRequest { namespace: namespace(), ..list() }).await, fields());
        check(&name, grpc().watch(WatchRequest { namespace: namespace(), ..watch() }).await, fields());
    }
}

#[tokio::test]
async fn empty_request_is_rejected_with_all_required_fields() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let grpc = || client.grpc.clone();
    let (alone, with_key) = (["namespace".to_owned()], ["key".to_owned(), "namespace".to_owned()]);
    check("create", grpc().create_session(CreateSessionRequest::default()).await, alone.to_vec());
    check("get", grpc().get_session(GetSessionRequest::default()).await, with_key.to_vec());
    check("update", grpc().update_session(UpdateSessionRequest::default()).await, with_key.to_vec());
    check("touch", grpc().touch_session(TouchSessionRequest::default()).await, with_key.to_vec());
    check(
        "rotate",
        grpc().rotate_session(RotateSessionRequest::default()).await,
        ["namespace", "token"].map(String::from).to_vec(),
    );
    check(
        "delete all",
        grpc().delete_subject_sessions(DeleteSubjectSessionsRequest::default()).await,
        ["namespace", "subject"].map(String::from).to_vec(),
    );
    check("delete", grpc().delete_session(DeleteSessionRequest::default()).await, with_key.to_vec());
    check("list", grpc().list_sessions(ListSessionsRequest::default()).await, alone.to_vec());
    check("watch", grpc().watch(WatchRequest::default()).await, vec!["keys".into(), "namespace".into()]);
}

/// Durations that are not valid timeouts under the policy.
fn invalid_timeouts() -> Vec<(&'static str, Duration)> {
    let duration = |seconds, nanos| Duration { seconds, nanos };
    vec![
        ("negative", duration(-1, 0)),
        ("negative nanos", duration(0, -1)),
        ("opposite signs", duration(1, -1)),
        ("minimum", duration(i64::MIN, i32::MIN)),
        ("maximum", duration(i64::MAX, i32::MAX)),
        ("beyond the range of protobuf", duration(315_576_000_001, 0)),
        ("nanos of a whole second", duration(1, 1_000_000_000)),
        ("below 1 ms", duration(0, 999_999)),
        ("1 ns", duration(0, 1)),
        ("longer than 100 years", duration(36_526 * 86_400, 0)),
        ("above the maximum of the policy", duration(31 * 86_400, 0)),
        ("no timeout, though the policy has a maximum", duration(0, 0)),
    ]
}

#[tokio::test]
async fn timeout_out_of_range_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let both = ["idle_timeout", "absolute_timeout"];
    for (name, timeout) in invalid_timeouts() {
        let timeout = Some(timeout);
        let request = CreateSessionRequest { idle_timeout: timeout, absolute_timeout: timeout, ..create() };
        check_rows(vec![row(name, request, &both)], async |r| client.grpc.clone().create_session(r).await).await;
        let request = UpdateSessionRequest { idle_timeout: timeout, absolute_timeout: timeout, ..update() };
        check_rows(vec![row(name, request, &both)], async |r| client.grpc.clone().update_session(r).await).await;
    }
}

/// Invalid values of the attribute `n`, and the end of the path of the violation.
fn invalid_values() -> Vec<(&'static str, AttributeValue, &'static str)> {
    let json = |text: &str| value(Kind::JsonValue(text.to_owned()));
    let at = |seconds, nanos| value(Kind::TimestampValue(Timestamp { seconds, nanos }));
    vec![
        ("empty JSON", json(""), ".json_value"),
        ("not JSON", json("no"), ".json_value"),
        ("truncated JSON", json(r#"{"a":[1,"#), ".json_value"),
        ("JSON with a second value", json("1 1"), ".json_value"),
        ("JSON with a lone surrogate", json("\"\\ud800"), ".json_value"),
        ("JSON with 33 levels", json(&("[".repeat(33) + &"]".repeat(33))), ".json_value"),
        ("time before year 1", at(-62_135_596_801, 0), ".timestamp_value"),
        ("time after year 9999", at(253_402_300_800, 0), ".timestamp_value"),
        ("negative nanos", at(0, -1), ".timestamp_value"),
        ("nanos of a whole second", at(0, 1_000_000_000), ".timestamp_value"),
        ("minimum time", at(i64::MIN, i32::MIN), ".timestamp_value"),
    ]
}

#[tokio::test]
async fn invalid_attribute_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let mut maps: Vec<(String, BTreeMap<String, AttributeValue>, String)> = Vec::new();
    for (name, value, bad) in invalid_values() {
        maps.push((name.into(), single("n", value), format!("[\"n\"]{bad}")));
    }
    maps.push(("empty name".into(), single("", text("")), "[\"\"]".into()));
    maps.push(("name of 129 bytes".into(), single(&a(129), text("")), format!("[\"{}\"]", a(64))));
    maps.push((
        "name of 129 bytes in 65 characters".into(),
        single(&("\u{e9}".repeat(64) + "a"), text("")),
        format!("[\"{}\"]", "\u{e9}".repeat(64)),
    ));
    // An update may set them if the session has as many already, because the limit was lowered.
    let above_the_policy = [
        ("257 attributes", create_many(257)),
        ("payload above the maximum of the policy", single("n", text(&a(1024)))),
    ];
    for (name, map) in above_the_policy {
        let rows = vec![row(name, CreateSessionRequest { attributes: map, ..create() }, &["attributes"])];
        check_rows(rows, async |r| client.grpc.clone().create_session(r).await).await;
    }
    for (name, map, bad) in maps {
        let request = CreateSessionRequest { attributes: map.clone(), ..create() };
        let rows = vec![row(&name, request, &[&format!("attributes{bad}")])];
        check_rows(rows, async |r| client.grpc.clone().create_session(r).await).await;
        let request = UpdateSessionRequest { set_attributes: map, ..update() };
        let rows = vec![row(&name, request, &[&format!("set_attributes{bad}")])];
        check_rows(rows, async |r| client.grpc.clone().update_session(r).await).await;
    }
}

#[tokio::test]
async fn invalid_label_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let mut maps: Vec<(String, BTreeMap<String, String>, String)> = Vec::new();
    for name in invalid_label_names().into_iter().chain([String::new()]) {
        maps.push((format!("label {name:?}"), BTreeMap::from([(name.clone(), "x".into())]), format!("[{name:?}]")));
    }
    maps.push(("value of 257 bytes".into(), labels(&[("n", &a(257))]), "[\"n\"]".into()));
    maps.push(("17 labels".into(), many_labels(17), String::new()));
    for (name, map, bad) in maps {
        let field = format!("labels{bad}");
        let request = CreateSessionRequest { labels: map.clone(), ..create() };
        check_rows(vec![row(&name, request, &[&field])], async |r| client.grpc.clone().create_session(r).await).await;
        let request = ListSessionsRequest { labels: map.clone(), ..list() };
        check_rows(vec![row(&name, request, &[&field])], async |r| client.grpc.clone().list_sessions(r).await).await;
        let request = WatchRequest { labels: map.clone(), ..watch() };
        check_rows(vec![row(&name, request, &[&field])], async |r| client.grpc.clone().watch(r).await).await;
        let request = UpdateSessionRequest { set_labels: map, ..update() };
        let rows = vec![row(&name, request, &[&format!("set_{field}")])];
        check_rows(rows, async |r| client.grpc.clone().update_session(r).await).await;
    }
}

#[tokio::test]
async fn invalid_create_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let token = new_token();
    let methods = |methods: Vec<String>| CreateSessionRequest {
        authentication: Some(Authentication { methods, ..Default::default() }),
        ..create()
    };
    let level = |level| CreateSessionRequest {
        authentication: Some(Authentication { level, ..Default::default() }),
        ..create()
    };
    let invalid_time =
        Authentication { authentication_time: Some(Timestamp { seconds: i64::MAX, nanos: 0 }), ..Default::default() };
    let request_id = |id: &str| CreateSessionRequest { request_id: id.into(), token: token.clone(), ..create() };
    let with_token = |token: &str| CreateSessionRequest { token: token.into(), ..create() };
    let mut rows = vec![
        row("subject of 257 bytes", CreateSessionRequest { subject: a(257), ..create() }, &["subject"]),
        row("level 4", level(4), &["authentication.level"]),
        row("level -1", level(-1), &["authentication.level"]),
        row("17 methods", methods(vec!["pwd".into(); 17]), &["authentication.methods"]),
        row("empty method", methods(vec![String::new()]), &["authentication.methods[\"\"]"]),
        row("long method", methods(vec![a(33)]), &[&format!("authentication.methods[\"{}\"]", a(33))]),
        row(
            "invalid time",
            CreateSessionRequest { authentication: Some(invalid_time), ..create() },
            &["authentication.authentication_time"],
        ),
        row("request id without token", CreateSessionRequest { request_id: a(16), ..create() }, &["request_id"]),
    ];
    for id in [a(15), a(65), "a b".repeat(6), "\u{e9}".repeat(10), a(16) + "\n", a(16) + "\0"] {
        rows.push(row(format!("request id {id:?}"), request_id(&id), &["request_id"]));
    }
    let without_last = &token[..token.len() - 1];
    for bad in [
        a(21),
        a(257),
        "ses_".into(),
        without_last.into(),
        format!("{without_last}b"),
        token.to_uppercase().replace("SES", "ses"),
    ] {
        rows.push(row(format!("token of {} bytes", bad.len()), with_token(&bad), &["token"]));
    }
    check_rows(rows, async |request| client.grpc.clone().create_session(request).await).await;
}

#[tokio::test]
async fn status_names_all_invalid_fields() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let year = Some(Duration { seconds: 365 * 86_400, nanos: 0 });
    let all = CreateSessionRequest {
        namespace: "A".into(),
        subject: a(257),
        attributes: single("", value(Kind::JsonValue("{".into()))),
        labels: labels(&[("A", &a(257))]),
        idle_timeout: Some(Duration { seconds: -1, nanos: 0 }),
        absolute_timeout: Some(Duration { seconds: 0, nanos: 1 }),
        // Too long, but cut.
        client: Some(ClientInfo { ip_address: a(65), ..Default::default() }),
        authentication: Some(Authentication { level: 9, ..Default::default() }),
        token: "short".into(),
        request_id: "short".into(),
    };
    let all_fields = [
        "namespace",
        "subject",
        "attributes[\"\"]",
        "attributes[\"\"].json_value",
        "labels[\"A\"]",
        "labels[\"A\"]",
        "idle_timeout",
        "absolute_timeout",
        "authentication.level",
        "token",
        "request_id",
    ];
    // Violations of the policy are in the same status as malformed fields.
    let mixed = CreateSessionRequest {
        subject: a(257),
        attributes: create_many(257),
        idle_timeout: year,
        absolute_timeout: year,
        ..create()
    };
    let mixed_fields = ["subject", "attributes", "idle_timeout", "absolute_timeout"];
    let rows = vec![
        row("all fields", all, &all_fields),
        row("malformed fields and violations of the policy", mixed, &mixed_fields),
    ];
    check_rows(rows, async |request| client.grpc.clone().create_session(request).await).await;

    let mixed =
        UpdateSessionRequest { set_labels: labels(&[("A", "")]), idle_timeout: year, if_revision: Some(0), ..update() };
    let fields = ["set_labels[\"A\"]", "idle_timeout", "if_revision"];
    let rows = vec![row("malformed fields and violations of the policy", mixed, &fields)];
    check_rows(rows, async |request| client.grpc.clone().update_session(request).await).await;
}

/// Replaces the outcome, the integer at the start of every script reply, with one that no script returns.
fn with_unknown_outcomes(replies: &[u8]) -> Vec<u8> {
    let (mut rewritten, mut is_after_array) = (Vec::new(), false);
    for line in replies.split_inclusive(|byte| *byte == b'\n') {
        let is_outcome = is_after_array && line.starts_with(b":");
        rewritten.extend_from_slice(if is_outcome { b":99\r\n" } else { line });
        is_after_array = line.starts_with(b"*");
    }
    rewritten
}

async fn relay(client: UnixStream, redis: UnixStream, is_rewriting: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_redis, mut to_redis) = redis.into_split();
    let replies = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_redis.read(&mut buffer).await {
            let read = &buffer[..count];
            let is_rewriting = is_rewriting.load(Ordering::Relaxed);
            let replies = if is_rewriting { with_unknown_outcomes(read) } else { read.to_vec() };
            if to_client.write_all(&replies).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_redis) => {}
        () = replies => {}
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test's runtime owns the tasks")]
async fn unexpected_reply_of_redis_is_unknown_for_writes_only() {
    let world = World::shared();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let is_rewriting = Arc::new(AtomicBool::new(false));
    let (socket, flag) = (world.redis.socket(), is_rewriting.clone());
    tokio::spawn(async move {
        while let (Ok((client, _)), Ok(redis)) = (listener.accept().await, UnixStream::connect(&socket).await) {
            tokio::spawn(relay(client, redis, flag.clone()));
        }
    });
    let server = Server::start(&socket_url(&path), &world.prefix, "").await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    client.rotate(&token).await.unwrap();
    is_rewriting.store(true, Ordering::Relaxed);
    // A script reads a session by its superseded token. Nothing was applied, so the read is not OUTCOME_UNKNOWN.
    expect_error(client.get(by_token(&token)).await, Code::Unavailable, "STORE_UNAVAILABLE");
    expect_error(client.delete(by_id(&session.id)).await, Code::Unknown, "OUTCOME_UNKNOWN");
    is_rewriting.store(false, Ordering::Relaxed);
    expect_error(client.get(by_token(&token)).await, Code::NotFound, "SESSION_ENDED");
}
