//! No name and no value forges a key, or disturbs another call: what looks like the protocol of Redis is data.

mod harness;

use std::collections::BTreeMap;

use futures_util::future::join_all;
use harness::{client::*, *};
use sessiond::watch::ResumeToken;
use sessiond_client::v1::{attribute_value::Kind, *};

/// Texts that mean something to Redis, to its clients, to the key schema, or to those who print them.
const ODD: [&str; 27] = [
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
    "{ses:00:0}",
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

/// Namespaces and names of labels that are valid, and words of the protocol.
const ODD_LABELS: [&str; 8] = ["message", "smessage", "subscribe", "ns", "log", "meta", "s", "0"];

/// The attributes of session `n`: each odd text as a name and, turned by `n`, as a value.
fn attributes(n: usize) -> BTreeMap<String, AttributeValue> {
    let value = |text: &str| match text.len() % 2 {
        0 => AttributeValue { kind: Some(Kind::StringValue(text.to_owned())) },
        _ => AttributeValue { kind: Some(Kind::BytesValue(text.into())) },
    };
    ODD.iter().enumerate().map(|(at, name)| ((*name).to_owned(), value(ODD[(at + n) % ODD.len()]))).collect()
}

fn odd_labels(n: usize) -> BTreeMap<String, String> {
    ODD_LABELS.iter().enumerate().map(|(at, name)| ((*name).to_owned(), ODD[(at + n) % ODD.len()].to_owned())).collect()
}

/// One session through every call; the client is of this session's namespace.
async fn live_and_end(client: Client, n: usize) -> (String, Vec<SessionEvent>) {
    let subject = ODD[n % ODD.len()].to_owned();
    // A foreign token is text of the caller's too.
    let token = format!("{n:0>24}{subject}");
    let request = CreateSessionRequest {
        subject: subject.clone(),
        attributes: attributes(n),
        labels: odd_labels(n),
        token: token.clone(),
        request_id: format!("{:~>16}", format!("message{n}")),
        ..Default::default()
    };
    let (made, _) = client.create_as(request.clone()).await.unwrap();
    assert_eq!((&made.subject, &made.attributes, &made.labels), (&subject, &attributes(n), &odd_labels(n)));
    let mut watching = client
        .watch(WatchRequest {
            keys: by_id(&made.id).into_iter().collect(),
            view: SessionView::Full.into(),
            ..Default::default()
        })
        .await
        .unwrap();
    watching.bookmark().await;

    let (again, by_token_too) = tokio::join!(client.create_as(request), client.get(by_token(&token)));
    assert_eq!((&again.unwrap().0, &by_token_too.unwrap()), (&made, &made));
    let change = UpdateSessionRequest {
        key: by_token(&token),
        set_attributes: attributes(n + 1).into_iter().filter(|(name, _)| ODD[..14].contains(&&name[..])).collect(),
        remove_attributes: ODD[14..].iter().map(|name| (*name).to_owned()).collect(),
        set_labels: labels(&[(ODD_LABELS[0], ODD[(n + 7) % ODD.len()])]),
        remove_labels: vec![ODD_LABELS[2].into()],
        ..Default::default()
    };
    let removed = change.remove_attributes.clone();
    let changed = client.update(change.clone()).await.unwrap();
    let mut expected = made.attributes.clone();
    expected.extend(change.set_attributes);
    removed.iter().for_each(|name| drop(expected.remove(name)));
    assert_eq!((&changed.subject, &changed.attributes), (&subject, &expected));
    assert_eq!(client.get(by_id(&made.id)).await.unwrap(), changed);

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
    let events = watching.kept();
    assert_eq!(
        events.iter().map(|event| event.session.clone().unwrap()).collect::<Vec<_>>(),
        [changed.clone(), changed]
    );
    (made.id, events)
}

#[tokio::test]
async fn words_of_the_protocol_are_data_in_every_place() {
    let world = World::own();
    words_are_data(&world.server().await).await;
    assert_eq!(forged(world.redis.keys("*")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_of_the_protocol_are_data_in_every_place_of_a_cluster() {
    let cluster = servers::aside(|| cluster::Cluster::start(0)).await;
    words_are_data(&Server::start(&cluster.url(), "sessiond:", "").await).await;
    assert_eq!(forged(cluster.keys("*")), Vec::<String>::new());
}

async fn words_are_data(server: &Server) {
    let client = server.client().await;
    let mut watchings = Vec::new();
    for namespace in ODD_LABELS {
        watchings.push(client.in_namespace(namespace).watch_all().await);
    }
    // All on one connection at once.
    let lives = (0..96).map(|n| live_and_end(client.in_namespace(ODD_LABELS[n % ODD_LABELS.len()]), n));
    let lives = join_all(lives).await;
    for (at, watching) in watchings.iter_mut().enumerate() {
        let told = watching.events(3 * lives.len() / ODD_LABELS.len()).await;
        for (id, events) in lives.iter().skip(at).step_by(ODD_LABELS.len()) {
            let of_it: Vec<_> = told.iter().filter(|event| event.id == *id).cloned().collect();
            assert_eq!((of_it.len(), of_it[0].r#type(), &of_it[1..]), (3, EventType::Created, &events[..]));
        }
    }
}

/// The keys that are none of ours after all sessions have ended.
fn forged(mut keys: Vec<String>) -> Vec<String> {
    let allowed = ["due", "s", "ns", "log", "meta"];
    keys.retain(|key| {
        let rest = key.strip_prefix("sessiond:{ses:").and_then(|rest| rest.split_once("}:"));
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
            || parts.get(1).is_some_and(|namespace| !ODD_LABELS.contains(namespace))
    });
    keys
}

#[tokio::test]
async fn a_session_is_told_only_in_its_own_namespace() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    for namespace in ODD_LABELS {
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
async fn a_resume_token_that_does_not_fit_is_answered_by_resync() {
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
        ("of another store", foreign, Flushed),
        ("of a store of fewer partitions", altered(&|token| token.positions.truncate(8)), Flushed),
        ("of a store of none", altered(&|token| token.positions.clear()), Flushed),
        ("ahead of the log", altered(&|token| token.positions[3].revision.0 += 1_000_000_000), Rollback),
        ("as far ahead as can be", altered(&|token| token.positions[3].revision.0 = LARGEST), Rollback),
        ("at the tail, of another branch", altered(&|token| token.positions[3].nonce ^= 1), Rollback),
        ("from before the store was made", altered(&|token| token.positions[3].revision.0 = 0), Flushed),
    ];
    for (what, token, reason) in rows {
        let mut watching = client.resume(&token.encode()).await;
        assert_eq!(watching.resync().await.reason(), reason, "{what}");
        let (session, _) = client.create(&[]).await;
        watching.wait_for(EventType::Created, &session.id).await;
    }
}
