//! What bad input gets: INVALID_ARGUMENT that names every bad field, before Redis is asked.
//!
//! Redis hangs throughout: whatever is answered here is answered without it.

mod harness;

use std::collections::BTreeMap;

use harness::{client::*, refusals::*};
use prost_types::{Duration, Timestamp};
use sessiond_client::v1::{attribute_value::Kind, *};

fn value(kind: Kind) -> AttributeValue {
    AttributeValue { kind: Some(kind) }
}

fn one(name: &str, value: AttributeValue) -> BTreeMap<String, AttributeValue> {
    BTreeMap::from([(name.to_owned(), value)])
}

fn many(count: usize) -> BTreeMap<String, AttributeValue> {
    (0..count).map(|n| (n.to_string(), AttributeValue::default())).collect()
}

fn many_labels(count: usize) -> BTreeMap<String, String> {
    (0..count).map(|n| (n.to_string(), String::new())).collect()
}

/// No namespace, and no name of a label.
fn no_label_names() -> Vec<String> {
    let short =
        ["-a", "A", "a_b", "a:b", "{a}", "a}", "a b", "a\n", "a\0", "\u{1f600}", "\u{e9}", "MOVED 1 x", "ASK 1 x"];
    short.into_iter().map(str::to_owned).chain([a(64)]).collect()
}

#[tokio::test]
async fn every_call_refuses_a_namespace_that_is_none() {
    let deaf = deaf().await;
    let client = &deaf.client;
    let grpc = || client.grpc.clone();
    for namespace in no_label_names().into_iter().chain([String::new()]) {
        let what = format!("namespace {namespace:?}");
        let (namespace, fields, key) = (|| namespace.clone(), || vec!["namespace".to_owned()], by_id(SOME_ID));
        check(
            &what,
            grpc().create_session(CreateSessionRequest { namespace: namespace(), ..create() }).await,
            fields(),
        );
        let get = GetSessionRequest { namespace: namespace(), key: key.clone(), ..Default::default() };
        check(&what, grpc().get_session(get).await, fields());
        check(
            &what,
            grpc().update_session(UpdateSessionRequest { namespace: namespace(), ..update() }).await,
            fields(),
        );
        let touch = TouchSessionRequest { namespace: namespace(), key: key.clone() };
        check(&what, grpc().touch_session(touch).await, fields());
        let delete = DeleteSessionRequest { namespace: namespace(), key, ..Default::default() };
        check(&what, grpc().delete_session(delete).await, fields());
        check(&what, grpc().list_sessions(ListSessionsRequest { namespace: namespace(), ..list() }).await, fields());
        check(&what, grpc().watch(WatchRequest { namespace: namespace(), ..watch() }).await, fields());
    }
}

#[tokio::test]
async fn an_empty_request_is_told_what_it_lacks() {
    let deaf = deaf().await;
    let client = &deaf.client;
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

/// Durations that are none for a timeout; the policy allows a day.
fn no_timeouts() -> Vec<(&'static str, Duration)> {
    let duration = |seconds, nanos| Duration { seconds, nanos };
    vec![
        ("negative", duration(-1, 0)),
        ("negative nanos", duration(0, -1)),
        ("of two signs", duration(1, -1)),
        ("the least", duration(i64::MIN, i32::MIN)),
        ("the greatest", duration(i64::MAX, i32::MAX)),
        ("beyond protobuf's range", duration(315_576_000_001, 0)),
        ("a second of nanos", duration(1, 1_000_000_000)),
        ("below 1 ms", duration(0, 999_999)),
        ("1 ns", duration(0, 1)),
        ("longer than a hundred years", duration(36_526 * 86_400, 0)),
        ("above the ceiling", duration(31 * 86_400, 0)),
        ("none, where there is a ceiling", duration(0, 0)),
    ]
}

#[tokio::test]
async fn timeouts_out_of_range_are_refused() {
    let deaf = deaf().await;
    let client = &deaf.client;
    let both = ["idle_timeout", "absolute_timeout"];
    for (what, timeout) in no_timeouts() {
        let timeout = Some(timeout);
        let request = CreateSessionRequest { idle_timeout: timeout, absolute_timeout: timeout, ..create() };
        refuses(vec![row(what, request, &both)], async |r| client.grpc.clone().create_session(r).await).await;
        let request = UpdateSessionRequest { idle_timeout: timeout, absolute_timeout: timeout, ..update() };
        refuses(vec![row(what, request, &both)], async |r| client.grpc.clone().update_session(r).await).await;
    }
}

/// Values that are none, and what is bad about them in the attribute `n`.
fn no_values() -> Vec<(&'static str, AttributeValue, &'static str)> {
    let json = |text: &str| value(Kind::JsonValue(text.to_owned()));
    let at = |seconds, nanos| value(Kind::TimestampValue(Timestamp { seconds, nanos }));
    vec![
        ("empty text for JSON", json(""), ".json_value"),
        ("no JSON", json("no"), ".json_value"),
        ("JSON that is cut", json(r#"{"a":[1,"#), ".json_value"),
        ("JSON and more", json("1 1"), ".json_value"),
        ("JSON with a lone surrogate's half", json("\"\\ud800"), ".json_value"),
        ("JSON 33 deep", json(&("[".repeat(33) + &"]".repeat(33))), ".json_value"),
        ("an instant before year 1", at(-62_135_596_801, 0), ".timestamp_value"),
        ("an instant after year 9999", at(253_402_300_800, 0), ".timestamp_value"),
        ("negative nanos", at(0, -1), ".timestamp_value"),
        ("a second of nanos", at(0, 1_000_000_000), ".timestamp_value"),
        ("the least instant", at(i64::MIN, i32::MIN), ".timestamp_value"),
    ]
}

#[tokio::test]
async fn attributes_that_are_none_are_refused() {
    let deaf = deaf().await;
    let client = &deaf.client;
    let mut maps: Vec<(String, BTreeMap<String, AttributeValue>, String)> = Vec::new();
    for (what, value, bad) in no_values() {
        maps.push((what.into(), one("n", value), format!("[\"n\"]{bad}")));
    }
    maps.push(("an empty name".into(), one("", text("")), "[\"\"]".into()));
    maps.push(("a name of 129 bytes".into(), one(&a(129), text("")), format!("[\"{}\"]", a(64))));
    maps.push((
        "a name of 129 bytes in fewer letters".into(),
        one(&("\u{e9}".repeat(64) + "a"), text("")),
        format!("[\"{}\"]", "\u{e9}".repeat(64)),
    ));
    maps.push(("257 attributes".into(), many(257), String::new()));
    maps.push(("a payload above the policy's".into(), one("n", text(&a(1024))), String::new()));
    for (what, map, bad) in maps {
        let request = CreateSessionRequest { attributes: map.clone(), ..create() };
        let rows = vec![row(&what, request, &[&format!("attributes{bad}")])];
        refuses(rows, async |r| client.grpc.clone().create_session(r).await).await;
        let request = UpdateSessionRequest { set_attributes: map, ..update() };
        let rows = vec![row(&what, request, &[&format!("set_attributes{bad}")])];
        refuses(rows, async |r| client.grpc.clone().update_session(r).await).await;
    }
}

#[tokio::test]
async fn labels_that_are_none_are_refused() {
    let deaf = deaf().await;
    let client = &deaf.client;
    let mut maps: Vec<(String, BTreeMap<String, String>, String)> = Vec::new();
    for name in no_label_names().into_iter().chain([String::new()]) {
        maps.push((format!("label {name:?}"), BTreeMap::from([(name.clone(), "x".into())]), format!("[{name:?}]")));
    }
    maps.push(("a value of 257 bytes".into(), labels(&[("n", &a(257))]), "[\"n\"]".into()));
    maps.push(("17 labels".into(), many_labels(17), String::new()));
    for (what, map, bad) in maps {
        let field = format!("labels{bad}");
        let request = CreateSessionRequest { labels: map.clone(), ..create() };
        refuses(vec![row(&what, request, &[&field])], async |r| client.grpc.clone().create_session(r).await).await;
        let request = ListSessionsRequest { labels: map.clone(), ..list() };
        refuses(vec![row(&what, request, &[&field])], async |r| client.grpc.clone().list_sessions(r).await).await;
        let request = WatchRequest { labels: map.clone(), ..watch() };
        refuses(vec![row(&what, request, &[&field])], async |r| client.grpc.clone().watch(r).await).await;
        let request = UpdateSessionRequest { set_labels: map, ..update() };
        let rows = vec![row(&what, request, &[&format!("set_{field}")])];
        refuses(rows, async |r| client.grpc.clone().update_session(r).await).await;
    }
}

#[tokio::test]
async fn a_bad_create_is_refused() {
    let deaf = deaf().await;
    let client = &deaf.client;
    let token = new_token();
    let client_info = |ip, agent, name| {
        let client = ClientInfo { ip_address: a(ip), user_agent: a(agent), device_name: a(name) };
        CreateSessionRequest { client: Some(client), ..create() }
    };
    let methods = |methods: Vec<String>| CreateSessionRequest {
        authentication: Some(Authentication { methods, ..Default::default() }),
        ..create()
    };
    let level = |level| CreateSessionRequest {
        authentication: Some(Authentication { level, ..Default::default() }),
        ..create()
    };
    let at =
        Authentication { authentication_time: Some(Timestamp { seconds: i64::MAX, nanos: 0 }), ..Default::default() };
    let request_id = |id: &str| CreateSessionRequest { request_id: id.into(), token: token.clone(), ..create() };
    let with_token = |token: &str| CreateSessionRequest { token: token.into(), ..create() };
    let mut rows = vec![
        row("a subject of 257 bytes", CreateSessionRequest { subject: a(257), ..create() }, &["subject"]),
        row("a long address", client_info(65, 0, 0), &["client.ip_address"]),
        row("a long agent and device", client_info(0, 1025, 129), &["client.user_agent", "client.device_name"]),
        row("level 4", level(4), &["authentication.level"]),
        row("level -1", level(-1), &["authentication.level"]),
        row("17 methods", methods(vec!["pwd".into(); 17]), &["authentication.methods"]),
        row("an empty method", methods(vec![String::new()]), &["authentication.methods[\"\"]"]),
        row("a long method", methods(vec![a(33)]), &[&format!("authentication.methods[\"{}\"]", a(33))]),
        row(
            "an instant that is none",
            CreateSessionRequest { authentication: Some(at), ..create() },
            &["authentication.authentication_time"],
        ),
        row("a request id alone", CreateSessionRequest { request_id: a(16), ..create() }, &["request_id"]),
    ];
    for id in [a(15), a(65), "a b".repeat(6), "\u{e9}".repeat(10), a(16) + "\n", a(16) + "\0"] {
        rows.push(row(format!("request id {id:?}"), request_id(&id), &["request_id"]));
    }
    for bad in
        [a(21), a(257), "ses_".into(), token[..token.len() - 1].into(), token.to_uppercase().replace("SES", "ses")]
    {
        rows.push(row(format!("a token of {} bytes", bad.len()), with_token(&bad), &["token"]));
    }
    refuses(rows, async |request| client.grpc.clone().create_session(request).await).await;
}

#[tokio::test]
async fn all_bad_fields_are_told_at_once() {
    let deaf = deaf().await;
    let client = &deaf.client;
    let year = Some(Duration { seconds: 365 * 86_400, nanos: 0 });
    let all = CreateSessionRequest {
        namespace: "A".into(),
        subject: a(257),
        attributes: one("", value(Kind::JsonValue("{".into()))),
        labels: labels(&[("A", &a(257))]),
        idle_timeout: Some(Duration { seconds: -1, nanos: 0 }),
        absolute_timeout: Some(Duration { seconds: 0, nanos: 1 }),
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
        "client.ip_address",
        "authentication.level",
        "token",
        "request_id",
    ];
    // What the policy forbids stands beside what is malformed.
    let mixed = CreateSessionRequest {
        subject: a(257),
        attributes: many(257),
        idle_timeout: year,
        absolute_timeout: year,
        ..create()
    };
    let mixed_fields = ["subject", "attributes", "idle_timeout", "absolute_timeout"];
    let rows = vec![row("everything", all, &all_fields), row("form and policy", mixed, &mixed_fields)];
    refuses(rows, async |request| client.grpc.clone().create_session(request).await).await;

    let mixed = UpdateSessionRequest {
        set_attributes: one("n", text(&a(1024))),
        set_labels: labels(&[("A", "")]),
        idle_timeout: year,
        if_revision: Some(0),
        ..update()
    };
    let fields = ["set_attributes", "set_labels[\"A\"]", "idle_timeout", "if_revision"];
    let rows = vec![row("form and policy", mixed, &fields)];
    refuses(rows, async |request| client.grpc.clone().update_session(request).await).await;
}
