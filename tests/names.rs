//! Names and values that look like the Redis protocol or like keys are data: they change no key and no other call.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use harness::{client::*, *};
use sessiond::watch::ResumeToken;
use sessiond_client::v1::{attribute_value::Kind, *};

/// Texts with a meaning in the Redis protocol, in Redis clients, in the key schema, or on a terminal.
const PROTOCOL_WORDS: [&str; 27] = [
    "message",
    "smessage",
    "pmessage",
    "subscribe",
    "ssubscribe",
    "unsubscribe",
    "invalidate",
    "MOVED 1 127.0.0.1:1",
    "ASK 1 127.0.0.1:1",
    "MOVED 1 x",
    "-ERR no",
    "NOSCRIPT",
    "OOM",
    "QUEUED",
    "{",
    "}",
    "{00:120}",
    ":",
    "web:{ses}:log",
    "\0",
    "\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "\n",
    "\u{1f600}\u{202e}",
    "\u{f0}\u{f1}\u{10ffff}",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "READONLY",
];

/// Valid namespaces and label names that are words of the protocol or of the key schema.
const PROTOCOL_NAMES: [&str; 8] = ["message", "smessage", "subscribe", "ns", "log", "meta", "s", "0"];

/// Returns the attributes of session `n`: every word as a name, with the word `n` positions later as its value.
fn attributes(n: usize) -> BTreeMap<String, AttributeValue> {
    let value = |text: &str| match text.len() % 2 {
        0 => AttributeValue { kind: Some(Kind::StringValue(text.to_owned())) },
        _ => AttributeValue { kind: Some(Kind::BytesValue(text.into())) },
    };
    PROTOCOL_WORDS
        .iter()
        .enumerate()
        .map(|(at, name)| ((*name).to_owned(), value(PROTOCOL_WORDS[(at + n) % PROTOCOL_WORDS.len()])))
        .collect()
}

fn protocol_labels(n: usize) -> BTreeMap<String, String> {
    PROTOCOL_NAMES
        .iter()
        .enumerate()
        .map(|(at, name)| ((*name).to_owned(), PROTOCOL_WORDS[(at + n) % PROTOCOL_WORDS.len()].to_owned()))
        .collect()
}

/// Creates a session in the namespace of the client, makes every kind of call on it and ends it; returns its id and the
/// events after CREATED.
async fn run_session(client: Client, n: usize) -> (String, Vec<SessionEvent>) {
    let subject = PROTOCOL_WORDS[n % PROTOCOL_WORDS.len()].to_owned();
    // A client token is text from the caller too.
    let token = format!("{n:0>24}{subject}");
    let request = CreateSessionRequest {
        subject: subject.clone(),
        attributes: attributes(n),
        labels: protocol_labels(n),
        token: token.clone(),
        request_id: format!("{:~>16}", format!("message{n}")),
        ..Default::default()
    };
    let (created, _) = client.create_with(request.clone()).await.unwrap();
    assert_eq!(
        (&created.subject, &created.attributes, &created.labels),
        (&subject, &attributes(n), &protocol_labels(n))
    );
    let mut watching = client
        .watch(WatchRequest {
            keys: by_id(&created.id).into_iter().collect(),
            view: SessionView::Full.into(),
            ..Default::default()
        })
        .await
        .unwrap();
    watching.bookmark().await;

    let (again, by_token_too) = tokio::join!(client.create_with(request), client.get(by_token(&token)));
    assert_eq!((&again.unwrap().0, &by_token_too.unwrap()), (&created, &created));
    let change = UpdateSessionRequest {
        key: by_token(&token),
        set_attributes: attributes(n + 1)
            .into_iter()
            .filter(|(name, _)| PROTOCOL_WORDS[..14].contains(&&name[..]))
            .collect(),
        remove_attributes: PROTOCOL_WORDS[14..].iter().map(|name| (*name).to_owned()).collect(),
        set_labels: labels(&[(PROTOCOL_NAMES[0], PROTOCOL_WORDS[(n + 7) % PROTOCOL_WORDS.len()])]),
        remove_labels: vec![PROTOCOL_NAMES[2].into()],
        ..Default::default()
    };
    let removed = change.remove_attributes.clone();
    let changed = client.update(change.clone()).await.unwrap();
    let mut expected = created.attributes.clone();
    expected.extend(change.set_attributes);
    removed.iter().for_each(|name| drop(expected.remove(name)));
    assert_eq!((&changed.subject, &changed.attributes), (&subject, &expected));
    assert_eq!(client.get(by_id(&created.id)).await.unwrap(), changed);

    let filter = ListSessionsRequest {
        namespace: client.namespace.clone(),
        labels: changed.labels.clone(),
        page_size: 1_000,
        view: SessionView::Full.into(),
        ..Default::default()
    };
    let listed = client.grpc.clone().list_sessions(filter).await.unwrap().into_inner().sessions;
    assert!(listed.contains(&changed), "{n}: {listed:?}");
    assert!(client.delete(by_token(&token)).await.unwrap());
    assert!(watching.end().await.is_ok());
    let events = watching.buffered();
    assert_eq!(
        events.iter().map(|event| event.session.clone().unwrap()).collect::<Vec<_>>(),
        [changed.clone(), changed]
    );
    (created.id, events)
}

#[tokio::test]
async fn protocol_words_are_data_in_every_field() {
    let world = World::dedicated();
    let server = world.server().await;
    check_words_are_data(&server).await;
    expect_no_unexpected_keys(|| world.redis.keys("*")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protocol_words_are_data_in_every_field_on_a_cluster() {
    let cluster = servers::run_blocking(|| cluster::Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), "ses:", "").await;
    check_words_are_data(&server).await;
    expect_no_unexpected_keys(|| cluster.keys("*")).await;
}

async fn check_words_are_data(server: &Server) {
    let client = server.client().await;
    let mut watchings = Vec::new();
    for namespace in PROTOCOL_NAMES {
        watchings.push(client.in_namespace(namespace).watch_all().await);
    }
    // All at once on one connection.
    let sessions = (0..96).map(|n| run_session(client.in_namespace(PROTOCOL_NAMES[n % PROTOCOL_NAMES.len()]), n));
    let sessions = join_all(sessions).await;
    for (at, watching) in watchings.iter_mut().enumerate() {
        let delivered = watching.events(3 * sessions.len() / PROTOCOL_NAMES.len()).await;
        for (id, events) in sessions.iter().skip(at).step_by(PROTOCOL_NAMES.len()) {
            let received: Vec<_> = delivered.iter().filter(|event| event.id == *id).cloned().collect();
            assert_eq!((received.len(), received[0].r#type(), &received[1..]), (3, EventType::Created, &events[..]));
        }
    }
}

/// Checks the keys after all sessions have ended. Their ids leave the subject indexes after the calls.
async fn expect_no_unexpected_keys(keys: impl Fn() -> Vec<String>) {
    let has_index = || keys().iter().any(|key| key.contains("}:u:"));
    eventually("the subject indexes are empty", async || (!has_index()).then_some(())).await;
    assert_eq!(unexpected_keys(keys()), Vec::<String>::new());
}

/// Returns the keys that sessiond does not keep after all sessions have ended.
fn unexpected_keys(mut keys: Vec<String>) -> Vec<String> {
    let allowed = ["due", "s", "ns", "log", "meta"];
    keys.retain(|key| {
        let rest = key.strip_prefix("ses:{").and_then(|rest| rest.split_once("}:"));
        let Some((tag, rest)) = rest else { return true };
        let parts: Vec<&str> = rest.split(':').collect();
        let count = match parts[0] {
            "s" => 3,
            "due" => 2,
            _ => 1,
        };
        !tag.chars().all(|letter| letter.is_ascii_digit() || letter == ':')
            || !allowed.contains(&parts[0])
            || parts.len() != count
            || parts.get(1).is_some_and(|namespace| !PROTOCOL_NAMES.contains(namespace))
    });
    keys
}

#[tokio::test]
async fn session_is_unknown_in_other_namespaces() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    for namespace in PROTOCOL_NAMES {
        let other = client.in_namespace(namespace);
        for key in [by_id(&session.id), by_token(&token)] {
            expect_error(other.get(key.clone()).await, tonic::Code::NotFound, "SESSION_NOT_FOUND");
            expect_error(other.set(key.clone(), &[]).await, tonic::Code::NotFound, "SESSION_NOT_FOUND");
            assert!(!other.delete(key).await.unwrap());
        }
    }
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
}

#[tokio::test]
async fn resume_token_outside_the_log_causes_resync() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    client.create(&[]).await;
    let own = ResumeToken::decode(&client.watch_all().await.token).unwrap();
    let other_world = World::shared();
    let other_server = other_world.server().await;
    let foreign = ResumeToken::decode(&other_server.client().await.watch_all().await.token).unwrap();

    let altered = |change: &dyn Fn(&mut ResumeToken)| {
        let mut token = own.clone();
        change(&mut token);
        token
    };
    const LARGEST: u64 = (1 << 53) - 1;
    use ResyncReason::{Flushed, Rollback};
    let rows = [
        ("another store", foreign, Flushed),
        ("fewer partitions", altered(&|token| token.positions.truncate(8)), Flushed),
        ("no partition", altered(&|token| token.positions.clear()), Flushed),
        ("ahead of the log", altered(&|token| token.positions[3].revision.0 += 1_000_000_000), Rollback),
        ("largest revision", altered(&|token| token.positions[3].revision.0 = LARGEST), Rollback),
        ("tail of another branch", altered(&|token| token.positions[3].nonce ^= 1), Rollback),
        ("older than the store", altered(&|token| token.positions[3].revision.0 = 0), Flushed),
    ];
    for (case, token, reason) in rows {
        let mut watching = client.resume(&token.encode()).await;
        assert_eq!(watching.resync().await.reason(), reason, "{case}");
        let (session, _) = client.create(&[]).await;
        watching.wait_for(EventType::Created, &session.id).await;
    }
}
