//! Corrupt session records: DATA_LOSS for that session only, whatever is damaged.

use harness::{client::*, *};
use sessiond_client::v1::*;
use tonic::Code;

/// A session with all fields whose record the tests damage.
struct Victim {
    world: World,
    key: String,
    id: String,
    token: String,
}

impl Victim {
    async fn create(world: &World, client: &Client) -> Self {
        let request = CreateSessionRequest {
            subject: "alice".into(),
            attributes: [("small".into(), text("x")), ("large".into(), text(&"compressible ".repeat(100)))].into(),
            labels: labels(&[("app", "web")]),
            client: Some(ClientInfo { device_name: "phone".into(), ..Default::default() }),
            authentication: Some(Authentication { level: 2, ..Default::default() }),
            token: new_token(),
            request_id: "~".repeat(16),
            ..Default::default()
        };
        let first = request.token.clone();
        client.create_with(request).await.unwrap();
        let token = client.rotate(&first).await.unwrap();
        let session = client.get(by_token(&token)).await.unwrap();
        let key = world.redis.keys(&format!("{}*:s:*:{}", world.prefix, session.id)).remove(0);
        let world = World { redis: world.redis.clone(), prefix: world.prefix.clone() };
        Victim { world, key, id: session.id, token }
    }

    /// Runs a command and returns the raw reply; panics if it is an error.
    fn redis(&self, words: &[&[u8]]) -> Vec<u8> {
        let reply = self.world.redis.command_bytes(words);
        assert!(!reply.starts_with(b"-"), "{}", String::from_utf8_lossy(&reply));
        reply
    }

    fn record(&self) -> Vec<u8> {
        let reply = self.redis(&[b"GET", self.key.as_bytes()]);
        let start = reply.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
        reply[start..reply.len() - 2].to_vec()
    }

    fn set(&self, record: &[u8]) {
        self.redis(&[b"SET", self.key.as_bytes(), record]);
    }

    fn flip(&self, at: usize, bit: u8) {
        let mut record = self.record();
        record[at] ^= 1 << bit;
        self.set(&record);
    }
}

/// Bytes of the head: the verifier of the current token follows.
const HEAD: usize = 117;
/// Bytes of the tokens after one rotation, with the place of the salt.
const TOKENS: usize = 23 + 29 + 32;
/// Bytes of a request id, the last part of the record.
const REQUEST: usize = 31;

/// Whether the correct token still matches the damaged record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Secret {
    Matches,
    /// The stored token hash is damaged.
    Unknown,
}

type Damage = Box<dyn Fn(&Victim)>;

fn row(what: impl Into<String>, secret: Secret, damage: impl Fn(&Victim) + 'static) -> (String, Secret, Damage) {
    (what.into(), secret, Box::new(damage))
}

fn damages() -> Vec<(String, Secret, Damage)> {
    use Secret::{Matches, Unknown};
    let mut rows = vec![
        row("a byte too many", Matches, |v| v.set(&[v.record(), vec![0]].concat())),
        row("empty", Unknown, |v| v.set(b" ")),
        row("text", Unknown, |v| v.set(b"message")),
        row("a tombstone", Matches, |v| {
            let mut record = v.record();
            record[1] = 2;
            v.set(&record);
        }),
        row("another type: hash", Unknown, |v| {
            v.redis(&[b"DEL", v.key.as_bytes()]);
            v.redis(&[b"HSET", v.key.as_bytes(), b"message", b"x"]);
        }),
        row("another type: list", Unknown, |v| {
            v.redis(&[b"DEL", v.key.as_bytes()]);
            v.redis(&[b"RPUSH", v.key.as_bytes(), b"message", b"x", b"y"]);
        }),
    ];
    for length in [1, 2, 50, HEAD - 1, HEAD, HEAD + 15, HEAD + 16, HEAD + TOKENS - 1, HEAD + TOKENS, HEAD + TOKENS + 1]
    {
        let secret = if length < HEAD + 16 { Unknown } else { Matches };
        rows.push(row(format!("cut to {length}"), secret, move |v| v.set(&v.record()[..length])));
    }
    for missing in [1, REQUEST, REQUEST + 1, REQUEST + 20] {
        rows.push(row(format!("{missing} bytes missing at the end"), Matches, move |v| {
            let record = v.record();
            v.set(&record[..record.len() - missing]);
        }));
    }
    for at in 0..HEAD + TOKENS {
        let secret = if (HEAD..HEAD + 16).contains(&at) { Unknown } else { Matches };
        rows.push(row(format!("a bit flipped in byte {at}"), secret, move |v| v.flip(at, (at % 8) as u8)));
    }
    for from_content in (0..60).step_by(7) {
        rows.push(row(format!("a bit flipped in byte {from_content} of the content"), Matches, move |v| {
            v.flip(HEAD + TOKENS + from_content, 3);
        }));
        rows.push(row(format!("a bit flipped {from_content} bytes before the request ids"), Matches, move |v| {
            let at = v.record().len() - REQUEST - 1 - from_content;
            v.flip(at, 5);
        }));
    }
    rows
}

const NOT_FOUND: (Code, &str) = (Code::NotFound, "SESSION_NOT_FOUND");

/// Checks how the damaged session is reported by id, by its token and by a wrong token.
async fn check(what: &str, secret: Secret, client: &Client, victim: &Victim) {
    let by_its_token = || by_token(&victim.token);
    let mut wrong_secret = victim.token.clone();
    let last_but_one = wrong_secret.len() - 2;
    let other = if wrong_secret.as_bytes()[last_but_one] == b'a' { "b" } else { "a" };
    wrong_secret.replace_range(last_but_one..=last_but_one, other);

    let by_its_id = client.get(by_id(&victim.id)).await.expect_err(what);
    assert_eq!(
        (by_its_id.code(), &by_its_id.reason()[..]),
        (Code::DataLoss, "RECORD_CORRUPT"),
        "{what}: {by_its_id:?}"
    );
    assert_eq!(by_its_id.metadata_of("id"), victim.id, "{what}");

    let right = client.get(by_its_token()).await.expect_err(what);
    let expected = if secret == Secret::Matches { (Code::DataLoss, "RECORD_CORRUPT") } else { NOT_FOUND };
    assert_eq!((right.code(), &right.reason()[..]), expected, "{what}: by the correct token: {right:?}");
    let wrong = client.get(by_token(&wrong_secret)).await.expect_err(what);
    assert_eq!((wrong.code(), &wrong.reason()[..]), NOT_FOUND, "{what}: by a wrong token: {wrong:?}");
    assert!(!client.delete(by_token(&wrong_secret)).await.unwrap(), "{what}: a wrong token ends nothing");
    assert!(
        !format!("{by_its_id:?}{right:?}{wrong:?}").contains(&victim.token[31..]),
        "{what}: an error contains the secret"
    );
}

/// Lists the ids of all live sessions.
async fn live_ids(client: &Client) -> Vec<String> {
    let request = ListSessionsRequest {
        namespace: client.namespace.clone(),
        page_size: 1_000,
        view: SessionView::Full.into(),
        ..Default::default()
    };
    let page = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
    page.sessions.into_iter().map(|session| session.id).collect()
}

#[tokio::test]
async fn corrupt_record_is_data_loss_for_its_session_only() {
    let Setup { world, client, .. } = &setup_with("partitions = 1").await;
    let mut watching = client.watch_all().await;
    let (neighbour, neighbours_token) = client.create(&[("a", text("x"))]).await;
    for (what, secret, damage) in damages() {
        let victim = Victim::create(world, client).await;
        damage(&victim);
        check(&what, secret, client, &victim).await;
        let neighbour = client.set(by_token(&neighbours_token), &[("a", text(&what))]).await.expect(&what);
        assert_eq!(live_ids(client).await, std::slice::from_ref(&neighbour.id), "{what}");

        // A delete by id ends the damaged session, and a retry of it gets the same response.
        let request_id = "!".repeat(16);
        let key = by_id(&victim.id);
        let request =
            DeleteSessionRequest { namespace: client.namespace.clone(), key, request_id, ..Default::default() };
        let deleted = client.grpc.clone().delete_session(request.clone()).await.expect(&what).into_inner();
        assert!(deleted.deleted, "{what}: deleted");
        assert!(
            client.grpc.clone().delete_session(request).await.expect(&what).into_inner().deleted,
            "{what}: retried"
        );
        expect_error(client.get(by_id(&victim.id)).await, Code::NotFound, "SESSION_ENDED");
        let ended =
            tokio::time::timeout(WAIT_LIMIT, watching.wait_for(EventType::Ended, &victim.id)).await.expect(&what);
        assert_eq!(ended.cause(), Cause::Logout, "{what}");
    }
    assert_eq!(client.get(by_id(&neighbour.id)).await.unwrap().id, neighbour.id);
}

#[tokio::test]
async fn corrupt_record_ends_at_its_deadline() {
    let Setup { world, client, .. } = &setup_with("partitions = 1\n[default_policy]\nidle_timeout = '2s'").await;
    let mut watching = client.watch_all().await;
    let mut victims = Vec::new();
    for (what, _, damage) in damages() {
        let victim = Victim::create(world, client).await;
        damage(&victim);
        victims.push((what, victim));
    }
    for (what, victim) in &victims {
        let ended =
            tokio::time::timeout(WAIT_LIMIT, watching.wait_for(EventType::Ended, &victim.id)).await.expect(what);
        assert_eq!(ended.cause(), Cause::IdleTimeout, "{what}");
        expect_error(client.get(by_id(&victim.id)).await, Code::NotFound, "SESSION_ENDED");
    }
    assert_eq!(live_ids(client).await, Vec::<String>::new());
}

#[tokio::test]
async fn tombstone_copied_to_another_key_is_data_loss() {
    let Setup { world, client, .. } = &setup().await;
    let ((ended, _), (session, token)) = (client.create(&[]).await, client.create(&[]).await);
    client.delete(by_id(&ended.id)).await.unwrap();
    let key = |id: &str| world.redis.keys(&format!("{}*:s:web:{id}", world.prefix)).pop().unwrap();
    world.redis.command(&["COPY", &key(&ended.id), &key(&session.id), "REPLACE"]);
    expect_error(client.get(by_id(&session.id)).await, Code::DataLoss, "RECORD_CORRUPT");
    expect_error(client.get(by_token(&token)).await, Code::NotFound, "SESSION_NOT_FOUND");
    expect_error(client.get(by_id(&ended.id)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn corrupt_record_is_ended_by_a_delete_of_its_id_only() {
    let world = World::dedicated();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let victim = Victim::create(&world, &client).await;
    // The session is not one of bob's, whatever his index says.
    let (of_bob, _) = client.create_for("bob").await;
    let added = (world.now_us() - 60_000_000).to_string();
    world.redis.must(&["ZADD", &world.index_key("bob").unwrap(), &added, &victim.id]);
    victim.flip(HEAD - 1, 0);
    let mut watching = client.watch_all().await;
    expect_error(client.delete(by_token(&victim.token)).await, Code::DataLoss, "RECORD_CORRUPT");
    assert!(!client.delete(by_token(&successor_of(&victim.token))).await.unwrap());
    assert_eq!(client.delete_subject("bob").await.unwrap(), 1);
    expect_error(client.get(by_id(&victim.id)).await, Code::DataLoss, "RECORD_CORRUPT");
    assert!(client.delete(by_id(&victim.id)).await.unwrap());
    let ended: Vec<_> = watching.events_until_now().await.into_iter().map(|event| event.id).collect();
    assert_eq!(ended, [of_bob.id, victim.id]);
}

#[tokio::test]
async fn corrupt_tombstone_is_not_ended_again() {
    let world = World::dedicated();
    let server = world.server().await;
    let client = server.client().await;
    let victim = Victim::create(&world, &client).await;
    assert!(client.delete(by_id(&victim.id)).await.unwrap());
    let mut record = victim.record();
    record[HEAD - 1] ^= 1;
    victim.redis(&[b"SET", victim.key.as_bytes(), &record, b"KEEPTTL"]);
    let mut watching = client.watch_all().await;
    assert!(!client.delete(by_id(&victim.id)).await.unwrap());
    assert!(watching.events_until_now().await.is_empty());
    // The record can be read again.
    expect_error(client.get(by_id(&victim.id)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn corrupt_record_counts_for_the_session_limit() {
    let world = World::dedicated();
    let toml = "partitions = 1\n[default_policy]\nsession_limit = 1\nsession_limit_policy = 'reject'";
    let server = world.server_with(toml).await;
    let client = server.client().await;
    let victim = Victim::create(&world, &client).await;
    victim.flip(HEAD - 1, 0);
    for is_old in [false, true] {
        if is_old {
            world.age_index("alice");
        }
        let create = CreateSessionRequest { subject: "alice".into(), ..Default::default() };
        expect_error(client.create_with(create).await, Code::FailedPrecondition, "SUBJECT_SESSION_LIMIT");
        expect_error(client.get(by_id(&victim.id)).await, Code::DataLoss, "RECORD_CORRUPT");
    }
}

#[tokio::test]
async fn update_of_a_corrupt_content_is_data_loss() {
    let world = World::dedicated();
    let server = world.server().await;
    let client = server.client().await;
    for at_end in [false, true] {
        let victim = Victim::create(&world, &client).await;
        let at = if at_end { victim.record().len() - REQUEST - 1 } else { HEAD + TOKENS };
        victim.flip(at, 0);
        let changed = [("small", text("y"))];
        for key in [by_id(&victim.id), by_token(&victim.token)] {
            expect_error(client.set(key, &changed).await, Code::DataLoss, "RECORD_CORRUPT");
        }
        let wrong = by_token(&successor_of(&victim.token));
        expect_error(client.set(wrong, &changed).await, Code::NotFound, "SESSION_NOT_FOUND");
    }
}
