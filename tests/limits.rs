//! Limits of requests and sessions: a value at the limit is accepted, a value beyond it is rejected with its field.

use std::collections::BTreeMap;

use harness::{client::*, raw::*, refusals::*, *};
use prost::Message;
use sessiond_client::v1::{attribute_value::Kind, session_key::Key, *};
use tonic::Code;

const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

fn value(kind: Kind) -> AttributeValue {
    AttributeValue { kind: Some(kind) }
}

fn bytes(length: usize) -> AttributeValue {
    value(Kind::BytesValue(vec![7; length]))
}

fn numbered(count: usize) -> BTreeMap<String, AttributeValue> {
    (0..count).map(|n| (n.to_string(), AttributeValue::default())).collect()
}

fn numbered_labels(count: usize) -> BTreeMap<String, String> {
    (0..count).map(|n| (n.to_string(), a(256))).collect()
}

/// Returns a create request whose message has exactly this length.
fn create_with_length(length: usize) -> CreateSessionRequest {
    let with =
        |payload: usize| CreateSessionRequest { attributes: [("a".to_owned(), bytes(payload))].into(), ..create() };
    let overhead = with(length).encoded_len() - length;
    let request = with(length - overhead);
    assert_eq!(request.encoded_len(), length);
    request
}

#[tokio::test]
async fn message_above_4_mib_is_rejected() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let rejected = client.grpc.clone().create_session(create_with_length(MAX_MESSAGE_BYTES)).await;
    check("4 MiB", rejected, vec!["attributes".into()]);
    for length in [MAX_MESSAGE_BYTES + 1, 2 * MAX_MESSAGE_BYTES, 8 * MAX_MESSAGE_BYTES] {
        let rejected = client.grpc.clone().create_session(create_with_length(length)).await;
        expect_error(rejected, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    }
    // The connection still works.
    client.create(&[]).await;
}

#[tokio::test]
async fn body_that_is_not_one_message_is_rejected() {
    let world = World::shared();
    let server = world.server().await;
    let raw = Raw::connect(&server.address).await;
    let good = framed(&create());
    let with = |header: Vec<u8>, body: &[u8]| [&header, body].concat();
    let invalid_utf8 = [0x0a, 2, 0xff, 0xfe];
    let rows: [(&str, Vec<u8>); 10] = [
        ("empty body", Vec::new()),
        ("truncated header", good[..4].to_vec()),
        ("truncated message", good[..good.len() - 1].to_vec()),
        ("header without its message", header(false, 100)),
        ("two messages", [&good[..], &good].concat()),
        ("a message and a truncated one", [&good[..], &good[..3]].concat()),
        ("namespace that is not UTF-8", with(header(false, 4), &invalid_utf8)),
        ("truncated field", with(header(false, 2), &[0x0a, 9])),
        ("not protobuf", with(header(false, 3), &[0xff, 0xff, 0xff])),
        ("compressed without negotiation", with(header(true, good.len() - 5), &good[5..])),
    ];
    let mut wrong = Vec::new();
    for (name, body) in rows {
        for method in ["CreateSession", "GetSession", "Watch"] {
            let (answer, status) = raw.call(method, &[], body.clone()).await;
            let reason = tonic_types::StatusExt::get_details_error_info(&status).map(|info| info.reason);
            if status.code() != Code::InvalidArgument
                || reason.as_deref() != Some("FIELD_INVALID")
                || !answer.is_empty()
            {
                wrong.push((name, method, status));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let (answer, status) = raw.call("CreateSession", &[], good).await;
    assert!(status.code() == Code::Ok && !answer.is_empty(), "{status:?}");
}

#[tokio::test]
async fn status_of_very_many_violations_arrives() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    for count in [1_000, 100_000] {
        let request = UpdateSessionRequest { remove_labels: vec!["A".into(); count], ..update() };
        let status = client.grpc.clone().update_session(request).await.unwrap_err();
        assert_eq!((status.code(), &status.reason()[..]), (Code::InvalidArgument, "FIELD_INVALID"), "{status:?}");
        assert!(status.bad_fields().contains(&"remove_labels[\"A\"]".to_owned()));
    }
}

#[tokio::test]
async fn value_at_the_limit_is_accepted() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let json = |depth| value(Kind::JsonValue("[".repeat(depth) + &"]".repeat(depth)));
    let at = |seconds| value(Kind::TimestampValue(prost_types::Timestamp { seconds, nanos: 999_999_999 }));
    let full = CreateSessionRequest {
        namespace: a(63),
        subject: a(256),
        attributes: [
            (a(128), json(32)),
            ("\u{e9}".repeat(64), at(-62_135_596_800)),
            ("c".into(), at(253_402_300_799)),
            ("n".into(), AttributeValue::default()),
        ]
        .into(),
        labels: numbered_labels(16).into_iter().map(|(name, value)| (name + &"-".repeat(61), value)).collect(),
        idle_timeout: millis(1),
        absolute_timeout: seconds(36_525 * 86_400),
        client: Some(ClientInfo { ip_address: a(64), user_agent: a(1024), device_name: a(128) }),
        authentication: Some(Authentication { level: 3, methods: vec![a(32); 16], authentication_time: None }),
        token: a(256),
        request_id: "~".repeat(64),
    };
    let least = CreateSessionRequest { token: a(22), request_id: "!".repeat(16), ..create() };
    for request in [full, least] {
        let made = client.grpc.clone().create_session(request.clone()).await.unwrap().into_inner().session.unwrap();
        assert_eq!(
            (&made.subject, &made.attributes, &made.labels),
            (&request.subject, &request.attributes, &request.labels)
        );
        assert_eq!((&made.client, &made.authentication), (&request.client, &request.authentication));
    }
    for page_size in [1, 1_000] {
        client.grpc.clone().list_sessions(ListSessionsRequest { page_size, ..list() }).await.unwrap();
    }
    for bookmark_interval in [millis(100), seconds(60)] {
        client.grpc.clone().watch(WatchRequest { bookmark_interval, ..watch() }).await.unwrap();
    }
    let (session, _) = client.create(&[]).await;
    let remove_attributes = (0..1_024).map(|n| n.to_string()).collect();
    client.update(UpdateSessionRequest { key: by_id(&session.id), remove_attributes, ..update() }).await.unwrap();
}

#[tokio::test]
async fn update_beyond_the_policy_is_rejected() {
    let world = World::shared();
    let toml = "[default_policy]\nmax_payload_bytes = '1 KiB'\n[namespace.most]\nmax_payload_bytes = '1 MiB'\n\
                max_attributes = 1024";
    let server = world.server_with(toml).await;
    let client = server.client().await;
    // The name takes one byte, the protobuf encoding three.
    let (full, _) = client.create(&[("a", bytes(1024 - 1 - 3))]).await;
    let (with_256, _) =
        client.create_with(CreateSessionRequest { attributes: numbered(256), ..create() }).await.unwrap();
    let labelled = CreateSessionRequest { labels: numbered_labels(16), ..create() };
    let (labelled, _) = client.create_with(labelled).await.unwrap();
    let one = || [("b".to_owned(), AttributeValue::default())].into();
    let label = || labels(&[("b", "")]);
    let rows = [
        (
            "one byte more",
            UpdateSessionRequest { key: by_id(&full.id), set_attributes: one(), ..update() },
            "set_attributes",
        ),
        (
            "a 257th attribute",
            UpdateSessionRequest { key: by_id(&with_256.id), set_attributes: one(), ..update() },
            "set_attributes",
        ),
        (
            "a 17th label",
            UpdateSessionRequest { key: by_id(&labelled.id), set_labels: label(), ..update() },
            "set_labels",
        ),
    ];
    for (name, request, field) in rows {
        let before = client.get(request.key.clone()).await.unwrap();
        check(name, client.update(request.clone()).await, vec![field.into()]);
        assert_eq!(client.get(request.key.clone()).await.unwrap(), before, "{name}");
        // An update that removes enough may set the same values.
        let room = UpdateSessionRequest {
            clear_attributes: true,
            remove_labels: labelled.labels.keys().take(1).cloned().collect(),
            ..request
        };
        client.update(room).await.unwrap();
    }
    let most = client.in_namespace("most");
    let attributes: BTreeMap<_, _> = (0..1024).map(|n| (format!("{n:04}"), bytes(1024 - 4 - 3))).collect();
    let (largest, token) = most.create_with(CreateSessionRequest { attributes, ..create() }).await.unwrap();
    assert_eq!(most.get(by_token(&token)).await.unwrap(), largest);
    let request = UpdateSessionRequest { key: by_id(&largest.id), set_attributes: one(), ..update() };
    check("one more", most.update(request).await, vec!["set_attributes".into()]);
}

#[tokio::test]
async fn watch_with_1000_keys_is_accepted_and_1001_rejected() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let made = futures_util::future::join_all((0..1_000).map(|_| client.create(&[]))).await;
    let keys = made.iter().map(|(session, _)| SessionKey { key: Some(Key::Id(session.id.clone())) }).collect();
    let request = WatchRequest { keys, ..Default::default() };
    let mut watching = client.watch(request.clone()).await.unwrap();
    watching.bookmark().await;
    assert!(client.delete(by_id(&made[999].0.id)).await.unwrap());
    assert_eq!(watching.event().await.id, made[999].0.id);
    let key = by_id(SOME_ID).unwrap();
    let keys = request.keys.into_iter().chain([key]).collect();
    check("1,001 keys", client.watch(WatchRequest { keys, ..request }).await.map(|_| ()), vec!["keys".into()]);
}

#[tokio::test]
async fn list_page_never_exceeds_its_page_size_or_2_mib() {
    let world = World::shared();
    let server = world.server_with("partitions = 1\n[default_policy]\nmax_payload_bytes = '1 MiB'").await;
    let client = server.client().await;
    // Enough sessions to list them with a cursor, few enough to list them without, and a few of the maximum size.
    for (namespace, count, size, page_size) in [
        ("many", 1_200, 16, 7),
        ("cursor", 1_100, 8 * 1024, 1_000),
        ("whole", 100, 64_000, 100),
        ("large", 6, 1_048_000, 5),
    ] {
        let client = client.in_namespace(namespace);
        let value = bytes(size);
        let mut made = std::collections::BTreeSet::new();
        for _ in 0..count / 50 + 1 {
            let some = (0..50.min(count)).map(async |_| client.create(&[("a", value.clone())]).await);
            made.extend(futures_util::future::join_all(some).await.into_iter().map(|(session, _)| session.id));
        }
        let mut listed = std::collections::BTreeSet::new();
        let mut page_token = String::new();
        loop {
            let view = SessionView::Full.into();
            let request = ListSessionsRequest { namespace: namespace.into(), view, page_size, page_token, ..list() };
            let page = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
            assert!(page.encoded_len() <= 2 * 1024 * 1024, "{namespace}: {} bytes", page.encoded_len());
            assert!(page.sessions.len() <= page_size as usize, "{namespace}: {} sessions", page.sessions.len());
            listed.extend(page.sessions.into_iter().map(|session| session.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(listed, made, "{namespace}");
    }
}
