//! Compatibility: records, tokens, tombstones and logs of each released storage format are read and updated.

use std::collections::BTreeMap;

use harness::{Client, Redis, Setup, World, client::*, eventually};
use sessiond::{session::Revision, store::Position, watch::ResumeToken};
use sessiond_client::v1::{
    AttributeValue, Authentication, Cause, ClientInfo, CreateSessionRequest, EventType, ListSessionsRequest,
    SessionEvent, TokenState, attribute_value::Kind,
};
use tonic::Code;

const PREFIX: &str = "golden:";
/// Configuration in which nothing in the golden files expires.
const NO_EXPIRY: &str = "log_max_age = '36500d'\n[default_policy]\nmax_idle_timeout = 'never'";
const TOKEN: &str = "ses_aaaaaaaaaaaaaaaaaaaaaaaaaa_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const ENDED: &str = "eaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Decodes a word with `%XX` escapes.
fn decode(word: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    bytes
}

/// Starts a Redis with the contents of this golden file: one command a line.
fn world(format: &str) -> World {
    let world = World { redis: Redis::for_prefix(PREFIX), prefix: PREFIX.into() };
    for line in format.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<Vec<u8>> = line.split(' ').map(decode).collect();
        let reply = world.redis.command_bytes(&words.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert!(!reply.starts_with(b"-"), "{line}: {}", String::from_utf8_lossy(&reply));
    }
    world
}

/// Resumes a watch before the three log entries of a session that was created, updated and ended, and returns them.
async fn events_after(client: &Client, partition: usize, position: Position) -> Vec<SessionEvent> {
    let mut token = ResumeToken::decode(&client.watch_all().await.token).unwrap();
    token.positions[partition] = position;
    let events = client.resume(&token.encode()).await.events(3).await;
    let kinds: Vec<_> = events.iter().map(|event| event.r#type()).collect();
    assert_eq!(kinds, [EventType::Created, EventType::Updated, EventType::Ended]);
    events
}

#[tokio::test]
async fn format_2_session_is_read_and_updated() {
    let Setup { client, .. } = &world(include_str!("golden/format-2.txt")).setup_with(NO_EXPIRY).await;
    let session = client.get(by_token(TOKEN)).await.unwrap();
    assert_eq!((&session.subject[..], session.expire_time, session.token_generation), ("user:1", None, 1));
    assert_eq!(session.labels, labels(&[("device", "phone")]));
    let kind = |name: &str| session.attributes[name].kind.clone();
    let at = prost_types::Timestamp { seconds: 1_767_323_045, nanos: 0 };
    assert_eq!(kind("string"), Some(Kind::StringValue("text".into())));
    assert_eq!(kind("int"), Some(Kind::IntValue(-1)));
    assert_eq!(kind("double"), Some(Kind::DoubleValue(0.5)));
    assert_eq!(kind("bool"), Some(Kind::BoolValue(true)));
    assert_eq!(kind("bytes"), Some(Kind::BytesValue(vec![0, 0xff])));
    assert_eq!(kind("json"), Some(Kind::JsonValue(r#"{"digits": 1.00000000000000000001}"#.into())));
    assert_eq!(kind("timestamp"), Some(Kind::TimestampValue(at)));
    assert_eq!(kind("null"), None);
    assert_eq!(kind("large"), Some(Kind::StringValue("large ".repeat(100))));
    let (ip_address, user_agent, device_name) = ("192.0.2.1".into(), "agent".into(), "phone".into());
    assert_eq!(session.client, Some(ClientInfo { ip_address, user_agent, device_name }));
    let methods = vec!["pwd".into(), "otp".into()];
    assert_eq!(session.authentication, Some(Authentication { level: 2, methods, authentication_time: Some(at) }));

    let list = ListSessionsRequest { namespace: NAMESPACE.into(), ..Default::default() };
    assert_eq!(client.grpc.clone().list_sessions(list).await.unwrap().into_inner().sessions.len(), 1);
    let updated = client.set(by_token(TOKEN), &[("int", text("2"))]).await.unwrap();
    assert!(updated.revision > session.revision && updated.attributes.len() == 9);
    assert!(client.delete(by_token(TOKEN)).await.unwrap());
}

#[tokio::test]
async fn reconciler_indexes_a_session_without_index() {
    let Setup { client, .. } = &world(include_str!("golden/format-2.txt"))
        .setup_with(&format!("reconcile_interval = '1s'\n{NO_EXPIRY}"))
        .await;
    let listed = eventually("the session is indexed", async || client.list_subject("user:1").await.pop()).await;
    assert_eq!(listed.id, id_of(TOKEN));
}

#[tokio::test]
async fn format_2_tokens_keep_their_state() {
    const GENERATIONS: [&str; 3] = ["a", "b", "c"];
    const LIVE: &str = "iaaaaaaaaaaaaaaaaaaaaaaaaa";
    const DEAD: &str = "maaaaaaaaaaaaaaaaaaaaaaaaa";
    let token = |id: &str, generation: &str| format!("ses_{id}_{generation}{}", "a".repeat(51));
    let Setup { client, .. } = &world(include_str!("golden/format-2-rotated.txt")).setup_with(NO_EXPIRY).await;
    for generation in GENERATIONS {
        let status = client.get(by_token(&token(DEAD, generation))).await;
        let status = expect_error(status, Code::NotFound, "SESSION_ENDED");
        assert_eq!(status.metadata_of("cause"), "LOGOUT");
    }
    expect_error(client.get(by_token(&token(DEAD, "d"))).await, Code::NotFound, "SESSION_NOT_FOUND");

    let listed = client.list_subject("user:2").await;
    assert_eq!((listed.len(), &listed[0].id[..], listed[0].token_generation), (1, LIVE, 3));
    expect_error(client.get(by_token(&token(LIVE, "d"))).await, Code::NotFound, "SESSION_NOT_FOUND");
    // Token b is rejected without an alarm, because its successor was never presented.
    expect_error(client.get(by_token(&token(LIVE, "b"))).await, Code::NotFound, "TOKEN_ROTATED");
    assert_eq!(client.token_state(&token(LIVE, "c")).await.unwrap(), TokenState::Current);
    // Token c has been presented now, so token b is token reuse.
    let reused = expect_error(client.get(by_token(&token(LIVE, "b"))).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(reused.metadata_of("cause"), "TOKEN_REUSE");
}

#[tokio::test]
async fn format_2_tombstone_rejects_a_create() {
    let Setup { client, .. } = &world(include_str!("golden/format-2.txt")).setup_with(NO_EXPIRY).await;
    let token = TOKEN.replacen("aaaaaaaaaaaaaaaaaaaaaaaaaa", ENDED, 1);
    let status = expect_error(client.get(by_token(&token)).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(status.metadata_of("cause"), "REVOKED");
    let create = CreateSessionRequest { token, ..Default::default() };
    expect_error(client.create_with(create).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn format_2_log_is_delivered() {
    let Setup { client, .. } = &world(include_str!("golden/format-2.txt")).setup_with(NO_EXPIRY).await;
    let position = Position { revision: Revision(1_795_989_721_439_571), nonce: 6_720_390_361_019_317 };
    let events = events_after(client, 8, position).await;
    assert_eq!((events[1].changed_attributes.clone(), events[2].cause()), (vec!["a".into()], Cause::Revoked));
    let last = events[2].session.as_ref().unwrap();
    assert_eq!((&last.id[..], &last.labels), (ENDED, &labels(&[("device", "lap")])));
}

#[tokio::test]
async fn format_2_large_content_is_read_and_delivered() {
    const LIVE: &str = "qaaaaaaaaaaaaaaaaaaaaaaaaa";
    let letters = |attributes: &BTreeMap<String, AttributeValue>| match &attributes["letters"].kind {
        Some(Kind::StringValue(letters)) => (letters.len(), letters[..6].to_owned(), letters[4_994..].to_owned()),
        other => panic!("{other:?}"),
    };
    let Setup { client, .. } = &world(include_str!("golden/format-2-large.txt")).setup_with(NO_EXPIRY).await;
    let session = client.get(by_id(LIVE)).await.unwrap();
    assert_eq!(letters(&session.attributes), (5_000, "ujzdeg".to_owned(), "qvkko6".to_owned()));
    let updated = client.set(by_id(LIVE), &[("n", text("3"))]).await.unwrap();
    assert_eq!(letters(&updated.attributes), letters(&session.attributes));

    let position = Position { revision: Revision(1_796_004_842_559_412), nonce: 3_611_173_293_111_076 };
    let events = events_after(client, 12, position).await;
    let of_event = |index: usize| letters(&events[index].session.as_ref().unwrap().attributes);
    assert_eq!((of_event(0), of_event(1)), (of_event(1), of_event(2)));
}
