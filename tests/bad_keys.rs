//! Invalid keys, tokens, numbers and enum values: rejected before any command is sent to Redis.
//!
//! Redis hangs in these tests, so every response is made without it.

use harness::{client::*, refusals::*, tokens::rotation_of, *};
use prost_types::Duration;
use sessiond::watch::ResumeToken;
use sessiond_client::v1::{session_key::Key, *};
use tonic::Code;

fn get() -> GetSessionRequest {
    GetSessionRequest { namespace: NAMESPACE.into(), key: by_id(SOME_ID), ..Default::default() }
}

fn delete() -> DeleteSessionRequest {
    DeleteSessionRequest { namespace: NAMESPACE.into(), key: by_id(SOME_ID), ..Default::default() }
}

#[tokio::test]
async fn invalid_update_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut rows = vec![
        row("no key", UpdateSessionRequest { key: None, ..update() }, &["key"]),
        row("key without a kind", UpdateSessionRequest { key: Some(SessionKey { key: None }), ..update() }, &["key"]),
        row(
            "attribute set and removed",
            UpdateSessionRequest {
                set_attributes: [("n".to_owned(), text("")), ("m".to_owned(), text(""))].into(),
                remove_attributes: names(&["n", "other"]),
                ..update()
            },
            &["remove_attributes[\"n\"]"],
        ),
        row(
            "label set and removed",
            UpdateSessionRequest { set_labels: labels(&[("n", "")]), remove_labels: names(&["n"]), ..update() },
            &["remove_labels[\"n\"]"],
        ),
        row(
            "invalid names to remove",
            UpdateSessionRequest { remove_attributes: names(&["", &a(129), &a(128)]), ..update() },
            &["remove_attributes[\"\"]", &format!("remove_attributes[\"{}\"]", a(64))],
        ),
        row(
            "invalid labels to remove",
            UpdateSessionRequest { remove_labels: names(&["", "A", "a"]), ..update() },
            &["remove_labels[\"\"]", "remove_labels[\"A\"]"],
        ),
        row("subject of 257 bytes", UpdateSessionRequest { subject: Some(a(257)), ..update() }, &["subject"]),
        row(
            "level 4",
            UpdateSessionRequest {
                authentication: Some(Authentication { level: 4, ..Default::default() }),
                ..update()
            },
            &["authentication.level"],
        ),
    ];
    for revision in [0, -1, i64::MIN] {
        let request = UpdateSessionRequest { if_revision: Some(revision), ..update() };
        rows.push(row(format!("if_revision {revision}"), request, &["if_revision"]));
    }
    for id in [a(15), a(65), "a b".repeat(6)] {
        let request = UpdateSessionRequest { request_id: id.clone(), ..update() };
        rows.push(row(format!("request id {id:?}"), request, &["request_id"]));
    }
    for view in [3, -1, i32::MAX] {
        rows.push(row(format!("view {view}"), UpdateSessionRequest { view, ..update() }, &["view"]));
    }
    check_rows(rows, async |request| client.grpc.clone().update_session(request).await).await;
}

/// Rotations with several invalid fields.
fn rotations_with_many_violations(token: &str) -> Vec<Row<RotateSessionRequest>> {
    vec![
        row(
            "all fields",
            RotateSessionRequest {
                namespace: "A".into(),
                token: String::new(),
                new_token: "garbage".into(),
                subject: Some(a(257)),
                authentication: Some(Authentication { level: 9, ..Default::default() }),
                set_attributes: [(String::new(), text(""))].into(),
                remove_attributes: vec![a(129)],
                clear_attributes: true,
                grace_period: Some(Duration { seconds: -1, nanos: 0 }),
                if_revision: Some(-1),
                request_id: "short".into(),
            },
            &[
                "namespace",
                "token",
                "new_token",
                "subject",
                "authentication.level",
                "set_attributes[\"\"]",
                &format!("remove_attributes[\"{}\"]", a(64)),
                "grace_period",
                "if_revision",
                "request_id",
            ],
        ),
        row(
            "malformed fields and violations of the policy",
            RotateSessionRequest {
                new_token: token.to_owned(),
                grace_period: Some(Duration { seconds: 31, nanos: 0 }),
                namespace: NAMESPACE.into(),
                ..rotation_of(token)
            },
            &["new_token", "grace_period"],
        ),
    ]
}

#[tokio::test]
async fn invalid_rotation_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let token = new_token();
    let rotate = || RotateSessionRequest { namespace: NAMESPACE.into(), ..rotation_of(&token) };
    let to = |new_token: &str| RotateSessionRequest { new_token: new_token.into(), ..rotate() };
    let grace = |seconds, nanos| RotateSessionRequest { grace_period: Some(Duration { seconds, nanos }), ..rotate() };
    let successor = successor_of(&token);
    let request_id = |id: &str| RotateSessionRequest { request_id: id.into(), ..to(&successor) };
    let set = || [("n".to_owned(), text(""))].into();
    let mut rows = vec![
        row("no token", RotateSessionRequest { token: String::new(), ..rotate() }, &["token"]),
        row("successor equal to the token", to(&token), &["new_token"]),
        row("successor with another id", to(&new_token()), &["new_token"]),
        row("client token as successor", to("a-client-token-of-enough-bytes"), &["new_token"]),
        row(
            "successor with non-zero spare bits",
            to(&format!("{}b", &successor[..successor.len() - 1])),
            &["new_token"],
        ),
        row("truncated successor", to(&successor[..successor.len() - 1]), &["new_token"]),
        row("id as successor", to(&id_of(&token)), &["new_token"]),
        row("negative", grace(-1, 0), &["grace_period"]),
        row("opposite signs", grace(1, -1), &["grace_period"]),
        row("maximum", grace(i64::MAX, i32::MAX), &["grace_period"]),
        row("longer than the maximum of the policy", grace(30, 1_000_000), &["grace_period"]),
        row(
            "grace period with a new subject",
            RotateSessionRequest { subject: Some(String::new()), ..grace(1, 0) },
            &["grace_period"],
        ),
        row(
            "grace period with a new authentication",
            RotateSessionRequest { authentication: Some(Authentication::default()), ..grace(0, 1_000_000) },
            &["grace_period"],
        ),
        row("long subject", RotateSessionRequest { subject: Some(a(257)), ..rotate() }, &["subject"]),
        row("if_revision 0", RotateSessionRequest { if_revision: Some(0), ..rotate() }, &["if_revision"]),
        row(
            "level 4",
            RotateSessionRequest {
                authentication: Some(Authentication { level: 4, ..Default::default() }),
                ..rotate()
            },
            &["authentication.level"],
        ),
        row(
            "attribute set and removed",
            RotateSessionRequest { set_attributes: set(), remove_attributes: vec!["n".into()], ..rotate() },
            &["remove_attributes[\"n\"]"],
        ),
    ];
    rows.extend(rotations_with_many_violations(&token));
    for id in [a(15), a(65), "a b".repeat(6)] {
        rows.push(row(format!("request id {id:?}"), request_id(&id), &["request_id"]));
    }
    check_rows(rows, async |request| client.grpc.clone().rotate_session(request).await).await;
    // No session has a malformed token, so the server needs no round trip.
    for token in ["ses_", "garbage", &format!("ses_{SOME_ID}")] {
        let request = RotateSessionRequest { namespace: NAMESPACE.into(), ..rotation_of(token) };
        let answer = client.grpc.clone().rotate_session(request).await;
        expect_error(answer, Code::NotFound, "SESSION_NOT_FOUND");
    }
}

#[tokio::test]
async fn number_or_enum_value_out_of_range_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let rows = vec![
        row("min_revision -1", GetSessionRequest { min_revision: Some(-1), ..get() }, &["min_revision"]),
        row("view 3", GetSessionRequest { view: 3, ..get() }, &["view"]),
        row(
            "both, and no key",
            GetSessionRequest { min_revision: Some(i64::MIN), view: -1, key: None, ..get() },
            &["key", "min_revision", "view"],
        ),
    ];
    check_rows(rows, async |request| client.grpc.clone().get_session(request).await).await;

    let mut rows = Vec::new();
    for cause in [Cause::TokenReuse, Cause::IdleTimeout, Cause::AbsoluteTimeout, Cause::OutOfBand] {
        rows.push(row(format!("{cause:?}"), DeleteSessionRequest { cause: cause.into(), ..delete() }, &["cause"]));
    }
    for cause in [8, -1, i32::MAX] {
        rows.push(row(format!("cause {cause}"), DeleteSessionRequest { cause, ..delete() }, &["cause"]));
    }
    rows.push(row("short request id", DeleteSessionRequest { request_id: a(15), ..delete() }, &["request_id"]));
    check_rows(rows, async |request| client.grpc.clone().delete_session(request).await).await;

    let mut rows = Vec::new();
    for page_size in [-1, 1_001, i32::MIN, i32::MAX] {
        rows.push(row(format!("{page_size}"), ListSessionsRequest { page_size, ..list() }, &["page_size"]));
    }
    rows.push(row("view 3", ListSessionsRequest { view: 3, ..list() }, &["view"]));
    rows.push(row("empty subject", ListSessionsRequest { subject: Some(String::new()), ..list() }, &["subject"]));
    rows.push(row("long subject", ListSessionsRequest { subject: Some(a(257)), ..list() }, &["subject"]));
    check_rows(rows, async |request| client.grpc.clone().list_sessions(request).await).await;
}

#[tokio::test]
async fn malformed_id_is_rejected_and_not_echoed() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let token = new_token();
    let spare_bits = SOME_ID[1..].to_owned() + "b";
    let bad = [
        token.as_str(),
        &token[31..],
        &SOME_ID[1..],
        "aaaaaaaaaaaaaaaaaaaaaaaaaaa",
        &spare_bits,
        "AAAAAAAAAAAAAAAAAAAAAAAAAA",
        "web:aaaaaaaaaaaaaaaaaaaaaa",
        "{ses}aaaaaaaaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaaaaaaaaaaa\0",
        "aaaaaaaaaaaaaaaaaaaaaaaaa\n",
        "MOVED 1 127.0.0.1:1",
        "\u{1f600}",
        "smessage",
        "",
    ];
    for id in bad {
        let (key, field) = (|| by_id(id), || vec!["key.id".to_owned()]);
        let grpc = || client.grpc.clone();
        let statuses = [
            check(id, grpc().get_session(GetSessionRequest { key: key(), ..get() }).await, field()),
            check(id, grpc().update_session(UpdateSessionRequest { key: key(), ..update() }).await, field()),
            check(id, grpc().delete_session(DeleteSessionRequest { key: key(), ..delete() }).await, field()),
            check(
                id,
                grpc().touch_session(TouchSessionRequest { namespace: NAMESPACE.into(), key: key() }).await,
                field(),
            ),
            check(
                id,
                grpc().watch(WatchRequest { keys: vec![key().unwrap()], whole_namespace: false, ..watch() }).await,
                vec!["keys[0].id".into()],
            ),
        ];
        for status in statuses.iter().filter(|_| id.len() > 4) {
            assert!(!status.message().contains(id), "{id}: {status:?}");
            assert!(!status.details().windows(id.len()).any(|part| part == id.as_bytes()), "{id}: {status:?}");
        }
    }
}

#[tokio::test]
async fn malformed_token_gets_the_status_of_an_unknown_one() {
    let world = World::dedicated();
    let server = world.server_with(CEILINGS).await;
    let client = server.client().await;
    let grpc = || client.grpc.clone();
    let token = new_token();
    let get_by = |token: &str| GetSessionRequest { key: by_token(token), ..get() };
    let unknown_token = grpc().get_session(get_by(&token)).await.unwrap_err();
    assert_eq!((unknown_token.code(), &unknown_token.reason()[..]), (Code::NotFound, "SESSION_NOT_FOUND"));
    world.redis.pause();
    let malformed = [
        String::new(),
        "ses_".into(),
        "ses__".into(),
        token[..token.len() - 1].into(),
        token[..token.len() - 1].to_owned() + "b",
        token.clone() + "a",
        token.to_uppercase(),
        token.replacen('_', "-", 2),
        a(21),
        a(257),
        "{00:120}:s:web:x".into(),
        "\0".into(),
    ];
    for token in malformed.iter().filter(|token| !token.starts_with("SES_") && !token.starts_with("ses-")) {
        let key = by_token(token);
        let statuses = [
            grpc().get_session(get_by(token)).await.unwrap_err(),
            grpc().get_session(GetSessionRequest { touch: true, ..get_by(token) }).await.unwrap_err(),
            grpc().update_session(UpdateSessionRequest { key: key.clone(), ..update() }).await.unwrap_err(),
            grpc()
                .touch_session(TouchSessionRequest { namespace: NAMESPACE.into(), key: key.clone() })
                .await
                .unwrap_err(),
            grpc()
                .watch(WatchRequest { keys: vec![key.clone().unwrap()], whole_namespace: false, ..watch() })
                .await
                .unwrap_err(),
        ];
        for status in statuses {
            assert_eq!(status.code(), unknown_token.code(), "{token:?}");
            assert_eq!(status.message(), unknown_token.message(), "{token:?}");
            assert_eq!(status.details(), unknown_token.details(), "{token:?}");
        }
        assert!(!client.delete(key).await.unwrap(), "{token:?}");
    }
}

#[tokio::test]
async fn invalid_watch_is_rejected() {
    let hung = hung_redis().await;
    let client = &hung.client;
    let (id, token) = (by_id(SOME_ID).unwrap(), by_token(&new_token()).unwrap());
    let with_keys = |keys: Vec<SessionKey>| WatchRequest { keys, whole_namespace: false, ..watch() };
    let subject = |subject: &str| WatchRequest { subject: Some(subject.into()), whole_namespace: false, ..watch() };
    let both = |request: WatchRequest| WatchRequest { whole_namespace: true, ..request };
    let mut rows = vec![
        row("no selector", with_keys(Vec::new()), &["keys"]),
        row("keys and namespace", both(with_keys(vec![id.clone()])), &["keys"]),
        row("subject and namespace", both(subject("alice")), &["keys"]),
        row("keys and subject", WatchRequest { keys: vec![id.clone()], ..subject("alice") }, &["keys"]),
        row("all three selectors", WatchRequest { keys: vec![id.clone()], ..both(subject("alice")) }, &["keys"]),
        row("empty subject", subject(""), &["subject"]),
        row("empty subject and namespace", both(subject("")), &["keys", "subject"]),
        row("long subject", subject(&a(257)), &["subject"]),
        row("1,001 keys", with_keys(vec![id.clone(); 1_001]), &["keys"]),
        row("two tokens", with_keys(vec![token.clone(), token.clone()]), &["keys"]),
        row("token and id", with_keys(vec![token.clone(), id.clone()]), &["keys"]),
        row("id and malformed token", with_keys(vec![id.clone(), by_token("x").unwrap()]), &["keys"]),
        row("key without a kind", with_keys(vec![id.clone(), SessionKey { key: None }]), &["keys[1]"]),
        row(
            "two malformed ids",
            with_keys(vec![SessionKey { key: Some(Key::Id("x".into())) }, id, by_id("y").unwrap()]),
            &["keys[0].id", "keys[2].id"],
        ),
        row(
            "invalid types",
            WatchRequest { types: vec![1, 0, 99, -1], ..watch() },
            &["types[1]", "types[2]", "types[3]"],
        ),
        row("view 3", WatchRequest { view: 3, ..watch() }, &["view"]),
    ];
    let intervals = [(0, 0), (0, 99_999_999), (60, 1), (-1, 0), (0, -1), (i64::MAX, 0), (1, 1_000_000_000)];
    for (seconds, nanos) in intervals {
        let request = WatchRequest { bookmark_interval: Some(Duration { seconds, nanos }), ..watch() };
        rows.push(row(format!("bookmark interval of {seconds} s {nanos} ns"), request, &["bookmark_interval"]));
    }
    check_rows(rows, async |request| client.grpc.clone().watch(request).await).await;
}

#[tokio::test]
async fn invalid_page_token_or_resume_token_is_rejected() {
    let world = World::dedicated();
    let server = world.server_with(CEILINGS).await;
    let client = server.client().await;
    for _ in 0..3 {
        client.create(&[]).await;
    }
    let (page, resume) = page_and_resume_token(&client).await;
    // A page token of another store and one of another subject: to continue there would end the list early.
    let other = World { redis: world.redis.clone(), prefix: "ses:other:".into() };
    let other_server = other.server_with(CEILINGS).await;
    let other_client = other_server.client().await;
    for _ in 0..3 {
        other_client.create(&[]).await;
        let request = CreateSessionRequest { subject: "alice".into(), ..create() };
        client.create_with(request).await.unwrap();
    }
    let other_page = first_page_token(&other_client, list()).await;
    let of_alice = first_page_token(&client, ListSessionsRequest { subject: Some("alice".into()), ..list() }).await;
    world.redis.pause();

    let mut pages = vec!["x".to_owned(), "====".into(), "\0".into(), "MOVED 1 x".into(), a(10_000), page.clone() + "A"];
    pages.extend([other_page, of_alice]);
    pages.extend((1..page.len()).map(|length| page[..length].to_owned()));
    // With one character replaced, at every index: the checksum detects it.
    pages.extend((0..page.len()).map(|at| {
        let other = if &page[at..=at] == "Q" { "R" } else { "Q" };
        format!("{}{other}{}", &page[..at], &page[at + 1..])
    }));
    let rows = pages.into_iter().map(|page_token| {
        let name = format!("page token {page_token:?}");
        row(name, ListSessionsRequest { page_token, ..list() }, &["page_token"])
    });
    check_rows(rows.collect(), async |request| client.grpc.clone().list_sessions(request).await).await;

    let mut resumes =
        vec![b"x".to_vec(), vec![0; 64], vec![0; 8 * 1024], vec![0; 8 * 1024 + 1], [&resume[..], b"x"].concat()];
    resumes.extend((1..resume.len()).step_by(7).map(|length| resume[..length].to_vec()));
    resumes.extend((0..resume.len()).step_by(7).map(|at| {
        let mut altered = resume.clone();
        altered[at] ^= 1;
        altered
    }));
    // Valid checksum, but positions that no log can have.
    let mut beyond = ResumeToken::decode(&resume).unwrap();
    for position in &mut beyond.positions {
        position.revision.0 = u64::MAX;
        position.nonce = u64::MAX;
    }
    resumes.push(beyond.encode().to_vec());
    let rows = resumes.into_iter().map(|resume_token| {
        let name = format!("resume token of {} bytes", resume_token.len());
        row(name, WatchRequest { resume_token, ..watch() }, &["resume_token"])
    });
    check_rows(rows.collect(), async |request| client.grpc.clone().watch(request).await).await;
}

/// Returns the page token after the first session of a list.
async fn first_page_token(client: &Client, request: ListSessionsRequest) -> String {
    let request = ListSessionsRequest { page_size: 1, ..request };
    let page = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
    assert!(!page.next_page_token.is_empty());
    page.next_page_token
}

async fn page_and_resume_token(client: &Client) -> (String, Vec<u8>) {
    (first_page_token(client, list()).await, client.watch_all().await.token)
}
