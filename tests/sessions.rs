//! Guarantees S1 to S5 and S8: reads, writes, deadlines and retries of one session.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use harness::{
    Server, Setup, World,
    client::*,
    clock::Clock,
    eventually,
    process::Process,
    proxy::Proxy,
    setup, setup_with,
    tokens::{rotation_of, unix_ms},
};
use sessiond::store::scripts;
use sessiond_client::v1::{
    AttributeValue, Cause, ClientInfo, CreateSessionRequest, DeleteSessionRequest, EventType, GetSessionRequest,
    ListSessionsRequest, RotateSessionRequest, SessionView, TouchSessionRequest, UpdateSessionRequest,
    attribute_value::Kind,
};
use tonic::Code;

fn with_request_id(token: &str, request_id: &str) -> CreateSessionRequest {
    CreateSessionRequest { token: token.into(), request_id: request_id.into(), ..Default::default() }
}

const REQUEST_ID: &str = "request-0000000001";

#[tokio::test]
async fn session_after_create_is_read_back_unchanged() {
    let Setup { client, .. } = &setup().await;
    let kinds = [
        Kind::StringValue("text".repeat(300)),
        Kind::IntValue(i64::MIN),
        Kind::DoubleValue(f64::NEG_INFINITY),
        Kind::BoolValue(false),
        Kind::BytesValue((0..=255).collect()),
        Kind::JsonValue(r#"{ "digits": 1.00000000000000000001 }"#.into()),
        Kind::TimestampValue(prost_types::Timestamp { seconds: -1, nanos: 5 }),
    ];
    let mut attributes: BTreeMap<String, AttributeValue> = BTreeMap::new();
    for (index, kind) in kinds.into_iter().enumerate() {
        attributes.insert(format!("a{index}"), AttributeValue { kind: Some(kind) });
    }
    attributes.insert("null".into(), AttributeValue { kind: None });
    let request = CreateSessionRequest {
        subject: "user:1".into(),
        attributes: attributes.clone(),
        labels: labels(&[("device", "phone")]),
        client: Some(ClientInfo { user_agent: "test".into(), ..Default::default() }),
        idle_timeout: seconds(60),
        absolute_timeout: seconds(0),
        ..Default::default()
    };
    let (session, token) = client.create_with(request).await.unwrap();
    assert_eq!(session.attributes, attributes);
    assert_eq!((session.absolute_expire_time, session.idle_timeout, session.token_generation), (None, seconds(60), 1));
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
    assert_eq!(client.get(by_id(&session.id)).await.unwrap(), session);
}

#[tokio::test]
async fn update_without_changes_keeps_the_revision() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let (created, token) = client.create(&[("a", text("1")), ("b", text("2"))]).await;
    let key = by_token(&token);
    let request = UpdateSessionRequest {
        key: key.clone(),
        set_attributes: [("c".to_owned(), text("3"))].into(),
        remove_attributes: vec!["b".into(), "missing".into()],
        set_labels: labels(&[("tier", "gold")]),
        ..Default::default()
    };
    let updated = client.update(request.clone()).await.unwrap();
    assert_eq!(updated.attributes.keys().collect::<Vec<_>>(), ["a", "c"]);
    assert!(updated.revision > created.revision);
    assert_eq!(client.update(request).await.unwrap().revision, updated.revision);
    let only_the_deadline =
        UpdateSessionRequest { key: key.clone(), idle_timeout: seconds(1800), ..Default::default() };
    let moved = client.update(only_the_deadline).await.unwrap();
    assert_eq!(moved.revision, updated.revision);
    assert!(moved.expire_time.unwrap().seconds >= updated.expire_time.unwrap().seconds);
    let cleared = UpdateSessionRequest {
        key,
        clear_attributes: true,
        set_attributes: [("d".to_owned(), text("4"))].into(),
        remove_labels: vec!["tier".into()],
        ..Default::default()
    };
    let cleared = client.update(cleared).await.unwrap();
    assert_eq!((cleared.attributes.len(), cleared.labels.len()), (1, 0));
    let events = watching.events_until_now().await;
    let changed: Vec<_> = events.iter().map(|event| event.changed_attributes.clone()).collect();
    let mut sorted = changed.clone();
    sorted.iter_mut().for_each(|names| names.sort());
    assert_eq!(sorted[1..], [vec!["b".to_owned(), "c".into()], vec!["a".into(), "c".into(), "d".into()]]);
}

/// One read or write: its start and end, and the revision and value that it returned.
struct Operation {
    began: Instant,
    ended: Instant,
    is_write: bool,
    revision: i64,
    value: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_concurrent_reads_and_writes_are_linearizable() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let (created, token) = clients[0].create(&[("register", text("start"))]).await;
    let work = (0..8).map(async |worker: usize| {
        let mut history = Vec::new();
        let client = &clients[worker % 2];
        for turn in 0..60 {
            let (began, is_write) = (Instant::now(), (turn + worker).is_multiple_of(3));
            let session = if is_write {
                client.set(by_token(&token), &[("register", text(&format!("{worker}/{turn}")))]).await.unwrap()
            } else {
                client.get(by_token(&token)).await.unwrap()
            };
            let Some(Kind::StringValue(value)) = session.attributes["register"].kind.clone() else { panic!() };
            history.push(Operation { began, ended: Instant::now(), is_write, revision: session.revision, value });
        }
        history
    });
    let history: Vec<Operation> = join_all(work).await.into_iter().flatten().collect();
    // Revisions order the writes. A read must return a value whose write has started, and no older revision than any
    // operation that ended before the read.
    let writes: BTreeMap<i64, &Operation> =
        history.iter().filter(|one| one.is_write).map(|one| (one.revision, one)).collect();
    assert_eq!(writes.len(), history.iter().filter(|one| one.is_write).count(), "every write has another revision");
    for one in &history {
        let newest = history.iter().filter(|earlier| earlier.ended < one.began).map(|earlier| earlier.revision).max();
        assert!(Some(one.revision) >= newest, "a stale revision");
        match writes.get(&one.revision) {
            Some(write) => {
                assert!(write.value == one.value && write.began <= one.ended, "a value that no write has set")
            }
            None => assert_eq!((one.revision, &one.value[..]), (created.revision, "start")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_parallel_writers_lose_no_attribute() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let (session, token) = clients[0].create(&[]).await;
    let writes = (0..64).map(async |n: usize| {
        let name = format!("attribute-{n}");
        clients[n % 2].set(by_token(&token), &[(&name, text(&name))]).await.unwrap();
    });
    join_all(writes).await;
    let written = clients[0].get(by_id(&session.id)).await.unwrap();
    assert_eq!(written.attributes.len(), 64);

    let conditional = (0..16).map(async |n: usize| {
        let request = UpdateSessionRequest {
            key: by_token(&token),
            set_attributes: [("winner".to_owned(), text(&n.to_string()))].into(),
            if_revision: Some(written.revision),
            ..Default::default()
        };
        clients[n % 2].update(request).await
    });
    let (won, lost): (Vec<_>, Vec<_>) = join_all(conditional).await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    let current = won.into_iter().next().unwrap().unwrap().revision.to_string();
    for status in lost {
        let status = expect_error(status, Code::Aborted, "REVISION_MISMATCH");
        assert_eq!(status.metadata_of("current_revision"), current);
    }
}

#[tokio::test]
async fn s3_deleted_session_is_never_revived() {
    let Setup { client, .. } = &setup().await;
    let token = new_token();
    let create = CreateSessionRequest { token: token.clone(), ..Default::default() };
    client.create_with(create.clone()).await.unwrap();
    assert!(client.delete(by_token(&token)).await.unwrap());
    for key in [by_token(&token), by_id(&id_of(&token))] {
        let expect_ended = |result: CallResult<()>| {
            let status = expect_error(result, Code::NotFound, "SESSION_ENDED");
            assert_eq!(status.metadata_of("cause"), "LOGOUT");
        };
        expect_ended(client.get(key.clone()).await.map(drop));
        expect_ended(client.set(key.clone(), &[("a", text("1"))]).await.map(drop));
        let touch = TouchSessionRequest { namespace: NAMESPACE.into(), key: key.clone() };
        expect_ended(client.grpc.clone().touch_session(touch).await.map(drop));
        assert!(!client.delete(key).await.unwrap());
    }
    expect_error(client.create_with(create).await, Code::NotFound, "SESSION_ENDED");
    // A wrong secret gets no information about the session.
    let wrong_secret = format!("{}{}", &token[..31], &new_token()[31..]);
    expect_error(client.get(by_token(&wrong_secret)).await, Code::NotFound, "SESSION_NOT_FOUND");
}

#[tokio::test]
async fn s3_expired_session_is_never_revived() {
    let Setup { client, .. } = &setup().await;
    let token = new_token();
    let create = CreateSessionRequest { token: token.clone(), idle_timeout: millis(50), ..Default::default() };
    client.create_with(create.clone()).await.unwrap();
    let status = eventually("the session expires", async || client.get(by_token(&token)).await.err()).await;
    assert_eq!((&status.reason()[..], &status.metadata_of("cause")[..]), ("SESSION_ENDED", "IDLE_TIMEOUT"));
    expect_error(client.create_with(create).await, Code::NotFound, "SESSION_ENDED");
    expect_error(client.set(by_token(&token), &[("a", text("1"))]).await, Code::NotFound, "SESSION_ENDED");
}

/// The call reaches Redis after the deadline of its session, and before any other script.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_call_reaching_redis_after_the_deadline_changes_nothing() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "").await;
    let client = &server.client().await;
    for script in [&scripts::UPDATE, &scripts::ROTATE, &scripts::END, &scripts::CREATE] {
        let mut watching = client.watch_all().await;
        let token = new_token();
        let create = CreateSessionRequest { token: token.clone(), idle_timeout: millis(800), ..Default::default() };
        let (session, _) = client.create_with(create.clone()).await.unwrap();
        proxy.hold_requests_at(script);
        let call = async {
            let key = by_token(&token);
            match script.name {
                "update" => client.set(key, &[("a", text("1"))]).await.map(|_| true),
                "rotate" => client.rotate(&token).await.map(|_| true),
                "create" => client.create_with(create).await.map(|_| true),
                _ => client.delete(key).await,
            }
        };
        let deadline = async {
            eventually("the call is held back", async || proxy.is_holding_requests().then_some(())).await;
            world.redis.wait_for_time(unix_ms(session.expire_time)).await;
            proxy.release_requests();
        };
        match tokio::join!(call, deadline).0 {
            Ok(deleted) => assert!(script.name == "end" && !deleted, "{}: the session was not over", script.name),
            late => {
                let status = expect_error(late, Code::NotFound, "SESSION_ENDED");
                assert_eq!(status.metadata_of("cause"), "IDLE_TIMEOUT", "{}", script.name);
            }
        }
        let events = watching.events_until_now().await;
        let received: Vec<_> = events.iter().map(|event| (event.r#type(), event.cause())).collect();
        let expected = [(EventType::Created, Cause::Unspecified), (EventType::Ended, Cause::IdleTimeout)];
        assert_eq!(received, expected, "{}", script.name);
    }
}

#[tokio::test]
async fn s3_delete_of_unknown_id_rejects_a_later_create() {
    let Setup { client, .. } = &setup().await;
    let token = new_token();
    assert!(!client.delete(by_token(&token)).await.unwrap());
    let create = CreateSessionRequest { token, ..Default::default() };
    expect_error(client.create_with(create).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn delete_without_id_or_correct_secret_ends_nothing() {
    let Setup { client, .. } = &setup().await;
    let (session, token) = client.create(&[]).await;
    let wrong_secret = format!("{}{}", &token[..31], &new_token()[31..]);
    assert!(!client.delete(by_token(&wrong_secret)).await.unwrap());
    assert!(!client.in_namespace("other").delete(by_id(&session.id)).await.unwrap());
    assert!(!client.delete(by_token("garbage")).await.unwrap());
    assert_eq!(client.get(by_token(&token)).await.unwrap().id, session.id);
    assert!(client.delete(by_id(&session.id)).await.unwrap());
}

#[tokio::test]
async fn s4_session_is_accepted_exactly_until_its_deadline() {
    let Setup { world, client, .. } = &setup().await;
    let request = CreateSessionRequest { idle_timeout: millis(300), ..Default::default() };
    let (session, token) = client.create_with(request).await.unwrap();
    let expires = session.expire_time.unwrap();
    let expires = expires.seconds * 1000 + i64::from(expires.nanos) / 1_000_000;
    let redis_ms = || {
        let time = world.redis.list(&["TIME"]);
        time[0].parse::<i64>().unwrap() * 1000 + time[1].parse::<i64>().unwrap() / 1000
    };
    loop {
        let before = redis_ms();
        match client.get(by_token(&token)).await {
            Ok(_) => assert!(before < expires, "accepted after its deadline"),
            Err(status) => {
                assert_eq!(status.reason(), "SESSION_ENDED");
                break assert!(redis_ms() >= expires, "ended before its deadline");
            }
        }
    }
}

#[tokio::test]
async fn s4_touch_does_not_move_the_absolute_deadline() {
    let Setup { client, .. } = &setup_with("[default_policy]\ntouch_interval = '0s'").await;
    let request =
        CreateSessionRequest { idle_timeout: millis(1_500), absolute_timeout: millis(3_000), ..Default::default() };
    let (session, token) = client.create_with(request).await.unwrap();
    let key = by_token(&token);
    let status = eventually("the session ends", async || {
        let touch = TouchSessionRequest { namespace: NAMESPACE.into(), key: key.clone() };
        match client.grpc.clone().touch_session(touch).await {
            Ok(touched) => {
                let expires = touched.into_inner().expire_time.unwrap();
                let absolute = session.absolute_expire_time.unwrap();
                assert!((expires.seconds, expires.nanos) <= (absolute.seconds, absolute.nanos));
                None
            }
            Err(status) => Some(status),
        }
    })
    .await;
    assert_eq!(status.metadata_of("cause"), "ABSOLUTE_TIMEOUT");
}

#[tokio::test]
async fn new_idle_timeout_before_absolute_deadline_counts_from_now() {
    let Setup { client, .. } = &setup().await;
    let request =
        CreateSessionRequest { idle_timeout: seconds(600), absolute_timeout: seconds(60), ..Default::default() };
    let (session, _) = client.create_with(request).await.unwrap();
    let update = |update: UpdateSessionRequest| UpdateSessionRequest { key: by_id(&session.id), ..update };
    let again = update(UpdateSessionRequest { idle_timeout: seconds(600), ..Default::default() });
    let later = update(UpdateSessionRequest { absolute_timeout: seconds(6_000), ..Default::default() });
    let created = session.create_time.unwrap();
    let since = |at: prost_types::Timestamp| {
        (at.seconds - created.seconds) * 1_000 + i64::from(at.nanos - created.nanos) / 1_000_000
    };
    // Polled, because some time has to pass before the two results differ.
    eventually("the timeout counts from now", async || {
        client.update(again.clone()).await.unwrap();
        let after = client.update(later.clone()).await.unwrap().expire_time.unwrap();
        client
            .update(update(UpdateSessionRequest { absolute_timeout: seconds(60), ..Default::default() }))
            .await
            .unwrap();
        (since(after) > 600_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn new_absolute_timeout_counts_from_the_creation() {
    let (world, clock) = Clock::world();
    let server = world.server().await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    clock.step_to(600, [&client]).await;
    let update = UpdateSessionRequest { key: by_token(&token), absolute_timeout: seconds(1_000), ..Default::default() };
    let updated = client.update(update).await.unwrap();
    assert_eq!(unix_ms(updated.expire_time), unix_ms(session.create_time) + 1_000_000);
}

/// Content that is the same needs no write; everything else that the call asks for does.
#[tokio::test]
async fn update_to_the_same_content_has_its_other_effects() {
    let Setup { world, client, .. } =
        &setup_with("[default_policy]\ntouch_interval = '0s'\nrotation_grace = '0s'").await;
    let (session, first) = client.create(&[("a", text("1"))]).await;
    let set_attributes: BTreeMap<_, _> = [("a".to_owned(), text("1"))].into();
    let same = |token: &str| UpdateSessionRequest {
        key: by_token(token),
        set_attributes: set_attributes.clone(),
        ..Default::default()
    };
    world.redis.wait_for_time(unix_ms(session.access_time) + 1).await;
    let touched = client.update(UpdateSessionRequest { touch: true, ..same(&first) }).await.unwrap();
    assert!(unix_ms(touched.access_time) > unix_ms(session.access_time), "no touch");
    let limited = UpdateSessionRequest { absolute_timeout: seconds(60), ..same(&first) };
    let limited = client.update(limited).await.unwrap();
    assert_eq!(unix_ms(limited.expire_time), unix_ms(session.create_time) + 60_000);
    let rotation = RotateSessionRequest { set_attributes: set_attributes.clone(), ..rotation_of(&first) };
    let (rotated, second) = client.rotate_with(rotation).await.unwrap();
    assert_eq!(rotated.token_generation, 2);
    // The call presents the token for the first time: the one before it is token reuse from then on.
    expect_error(client.get(by_token(&first)).await, Code::NotFound, "TOKEN_ROTATED");
    client.update(same(&second)).await.unwrap();
    expect_error(client.get(by_token(&first)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn session_with_a_shortened_timeout_ends_in_time() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let (session, token) = client.create(&[]).await;
    assert_eq!(watching.event().await.r#type(), EventType::Created);
    let update = UpdateSessionRequest { key: by_token(&token), idle_timeout: millis(200), ..Default::default() };
    client.update(update).await.unwrap();
    assert_eq!(watching.event().await.r#type(), EventType::Updated);
    // No call presents the session again.
    let ended = watching.event().await;
    assert_eq!((ended.r#type(), ended.cause(), ended.id), (EventType::Ended, Cause::IdleTimeout, session.id));
}

#[tokio::test]
async fn s5_retried_mutation_is_applied_once() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let token = new_token();
    let create = with_request_id(&token, REQUEST_ID);
    let (first, _) = client.create_with(create.clone()).await.unwrap();
    assert_eq!(client.create_with(create.clone()).await.unwrap().0, first);

    let update = UpdateSessionRequest {
        key: by_token(&token),
        set_attributes: [("a".to_owned(), text("1"))].into(),
        request_id: "request-0000000002".into(),
        ..Default::default()
    };
    let updated = client.update(update.clone()).await.unwrap();
    let second = client.set(by_token(&token), &[("a", text("2"))]).await.unwrap();
    assert!(second.revision > updated.revision);
    // The retry returns the current state and does not set the old value again.
    assert_eq!(client.update(update.clone()).await.unwrap(), second);
    let other = UpdateSessionRequest { set_attributes: [("a".to_owned(), text("3"))].into(), ..update.clone() };
    expect_error(client.update(other).await, Code::InvalidArgument, "REQUEST_ID_REUSED");

    let delete = DeleteSessionRequest {
        namespace: NAMESPACE.into(),
        key: by_token(&token),
        request_id: "request-0000000003".into(),
        ..Default::default()
    };
    let mut grpc = client.grpc.clone();
    assert!(grpc.delete_session(delete.clone()).await.unwrap().into_inner().deleted);
    assert!(grpc.delete_session(delete).await.unwrap().into_inner().deleted, "a retry gets the same response");
    expect_error(client.update(update).await, Code::NotFound, "SESSION_ENDED");
    expect_error(client.create_with(create).await, Code::NotFound, "SESSION_ENDED");
    let events = watching.events_until_now().await;
    assert_eq!(events.len(), 4, "created, updated twice, ended: {events:?}");
}

#[tokio::test]
async fn s5_request_id_without_changes_is_remembered() {
    let Setup { client, .. } = &setup().await;
    let (_, token) = client.create(&[("a", text("1"))]).await;
    let update = UpdateSessionRequest {
        key: by_token(&token),
        set_attributes: [("a".to_owned(), text("1"))].into(),
        request_id: REQUEST_ID.into(),
        ..Default::default()
    };
    client.update(update.clone()).await.unwrap();
    let changed = client.set(by_token(&token), &[("a", text("2"))]).await.unwrap();
    assert_eq!(client.update(update).await.unwrap(), changed);
}

#[tokio::test]
async fn large_content_stays_through_calls_that_do_not_change_it() {
    let Setup { world, client, .. } = &setup().await;
    for bytes in [10, 5_000] {
        let attributes = [("a".to_owned(), text(&incompressible(bytes)))].into();
        let create = CreateSessionRequest { subject: "alice".into(), attributes, ..Default::default() };
        let (session, first) = client.create_with(create).await.unwrap();
        let with_id = UpdateSessionRequest {
            key: by_id(&session.id),
            request_id: REQUEST_ID.into(),
            view: SessionView::Full.into(),
            ..Default::default()
        };
        for _ in 0..2 {
            assert_eq!(client.update(with_id.clone()).await.unwrap(), session);
        }
        let second = client.rotate(&first).await.unwrap();
        let longer = UpdateSessionRequest { key: by_token(&second), idle_timeout: seconds(700), ..Default::default() };
        client.update(longer).await.unwrap();
        let read = client.get(by_token(&second)).await.unwrap();
        assert_eq!((&read.attributes, &read.subject), (&session.attributes, &session.subject));
        // At the end of the session its subject is read from the record.
        client.delete(by_token(&second)).await.unwrap();
        eventually("the session leaves the index", async || world.index("alice").is_empty().then_some(())).await;
    }
}

#[tokio::test]
async fn session_whose_timeouts_end_together_ends_by_the_absolute_one() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let create =
        CreateSessionRequest { idle_timeout: millis(100), absolute_timeout: millis(100), ..Default::default() };
    let (_, token) = client.create_with(create).await.unwrap();
    assert_eq!(watching.event().await.r#type(), EventType::Created);
    let status = eventually("the session expires", async || client.get(by_token(&token)).await.err()).await;
    assert_eq!(status.metadata_of("cause"), "ABSOLUTE_TIMEOUT");
    assert_eq!(watching.event().await.cause(), Cause::AbsoluteTimeout);
}

#[tokio::test]
async fn s8_secret_appears_only_in_the_creating_response() {
    let world = World::dedicated();
    let arguments = [format!("--redis={}", world.redis.url()), "--log-level=trace".into()];
    let process = Process::start(&arguments);
    let client = process.client().await;
    let mut watching = client.watch_all().await;
    let foreign = "a-foreign-token-of-enough-bytes";
    let create = CreateSessionRequest { token: foreign.into(), ..with_request_id(foreign, REQUEST_ID) };
    client.create_with(create.clone()).await.unwrap();
    let (_, token) = client.create(&[("a", text("1"))]).await;
    let server_made = new_token();
    client.create_with(with_request_id(&server_made, REQUEST_ID)).await.unwrap();
    let mut output = String::new();
    for secret in [foreign, &token, &server_made] {
        client.get(by_token(secret)).await.unwrap();
        client.set(by_token(secret), &[("b", text("2"))]).await.unwrap();
        // The error for a token in the id field must not repeat it.
        output += &format!("{:?}", client.get(by_id(secret)).await.unwrap_err());
        output +=
            &format!("{:?}", client.create_with(with_request_id(secret, "request-0000000009")).await.unwrap_err());
        client.delete(by_token(secret)).await.unwrap();
        output += &format!("{:?}", client.get(by_token(secret)).await.unwrap_err());
    }
    output += &format!("{:?}", watching.events_until_now().await);
    output += &process.log.lock().unwrap();
    output += &process.metrics().await;
    output += &String::from_utf8_lossy(&world.redis.contents());
    assert!(output.len() > 10_000, "too little output to search");
    for secret in [foreign, &token[31..], &server_made[31..]] {
        assert!(!output.contains(secret), "the secret is in: {output}");
    }
}

#[tokio::test]
async fn touch_within_the_touch_interval_is_skipped() {
    let Setup { client, .. } = &setup().await;
    let (session, token) = client.create(&[]).await;
    let touch = GetSessionRequest {
        namespace: NAMESPACE.into(),
        key: by_token(&token),
        touch: true,
        view: SessionView::Basic.into(),
        min_revision: Some(session.revision),
    };
    let touched = client.grpc.clone().get_session(touch).await.unwrap().into_inner().session.unwrap();
    assert_eq!((touched.access_time, touched.expire_time), (session.access_time, session.expire_time));
}

#[tokio::test]
async fn touch_moves_the_idle_deadline_without_revision_or_event() {
    let Setup { client, .. } = &setup_with("[default_policy]\ntouch_interval = '0s'").await;
    let mut watching = client.watch_all().await;
    let (session, token) = client.create(&[]).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let touch = TouchSessionRequest { namespace: NAMESPACE.into(), key: by_token(&token) };
    let touched = client.grpc.clone().touch_session(touch).await.unwrap().into_inner().expire_time.unwrap();
    let before = session.expire_time.unwrap();
    assert!((touched.seconds, touched.nanos) > (before.seconds, before.nanos));
    let read = client.get(by_token(&token)).await.unwrap();
    assert_eq!((read.revision, read.expire_time), (session.revision, Some(touched)));
    assert_eq!(watching.events_until_now().await.len(), 1);
}

#[tokio::test]
async fn subject_change_requires_an_empty_subject() {
    let Setup { client, .. } = &setup().await;
    let (_, token) = client.create(&[]).await;
    let to = |subject: &str| UpdateSessionRequest {
        key: by_token(&token),
        subject: Some(subject.into()),
        ..Default::default()
    };
    assert_eq!(client.update(to("1")).await.unwrap().subject, "1");
    expect_error(client.update(to("2")).await, Code::FailedPrecondition, "SUBJECT_CHANGE");
    assert_eq!(client.update(to("")).await.unwrap().subject, "");
    assert_eq!(client.update(to("2")).await.unwrap().subject, "2");
}

#[tokio::test]
async fn create_beyond_the_policy_is_rejected() {
    let world = World::shared();
    let toml = "allow_unlisted_namespaces = false\n[namespace.web]\nmax_idle_timeout = '1h'\nclient_tokens = false\n";
    let server = world.server_with(toml).await;
    let client = server.client().await;
    for timeout in [seconds(3601), seconds(0)] {
        let request = CreateSessionRequest { idle_timeout: timeout, ..Default::default() };
        let status = expect_error(client.create_with(request).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["idle_timeout"]);
    }
    let foreign = CreateSessionRequest { token: "f".repeat(22), ..Default::default() };
    expect_error(client.create_with(foreign).await, Code::FailedPrecondition, "CLIENT_TOKENS_FORBIDDEN");
    let unlisted = client.in_namespace("other").create_with(CreateSessionRequest::default()).await;
    expect_error(unlisted, Code::NotFound, "NAMESPACE_UNKNOWN");
}

#[tokio::test]
async fn list_with_labels_returns_all_matching_sessions() {
    let Setup { client, .. } = &setup().await;
    let creates = (0..250).map(async |n: usize| {
        let labels = labels(&[("parity", if n.is_multiple_of(2) { "even" } else { "odd" })]);
        client.create_with(CreateSessionRequest { labels, ..Default::default() }).await.unwrap().0.id
    });
    let mut ids = join_all(creates).await;
    let list = async |labels: &[(&str, &str)], page_size| {
        let mut request = ListSessionsRequest {
            namespace: NAMESPACE.into(),
            labels: harness::client::labels(labels),
            page_size,
            ..Default::default()
        };
        let mut found = Vec::new();
        loop {
            let page = client.grpc.clone().list_sessions(request.clone()).await.unwrap().into_inner();
            assert!(page.sessions.len() <= page_size as usize);
            found.extend(page.sessions.into_iter().map(|session| session.id));
            if page.next_page_token.is_empty() {
                found.sort();
                return found;
            }
            request.page_token = page.next_page_token;
        }
    };
    ids.sort();
    assert_eq!(list(&[], 7).await, ids);
    assert_eq!(list(&[("parity", "odd")], 1000).await.len(), 125);
    assert_eq!(list(&[("parity", "odd"), ("other", "x")], 1000).await.len(), 0);
}

#[tokio::test]
async fn page_token_of_another_list_is_rejected() {
    let Setup { client, .. } = &setup().await;
    join_all((0..3).map(async |_| client.create(&[]).await)).await;
    let list = ListSessionsRequest { namespace: NAMESPACE.into(), page_size: 1, ..Default::default() };
    let mut grpc = client.grpc.clone();
    let page_token = grpc.list_sessions(list.clone()).await.unwrap().into_inner().next_page_token;
    for other in [
        ListSessionsRequest { namespace: "other".into(), page_token: page_token.clone(), ..list.clone() },
        ListSessionsRequest { labels: labels(&[("a", "b")]), page_token: page_token.clone(), ..list.clone() },
    ] {
        let status = expect_error(grpc.list_sessions(other).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["page_token"]);
    }
    grpc.list_sessions(ListSessionsRequest { page_token, ..list }).await.unwrap();
}

#[tokio::test]
async fn delete_with_cause_is_reported_in_the_error() {
    let Setup { client, .. } = &setup().await;
    let (session, _) = client.create(&[]).await;
    let delete = DeleteSessionRequest {
        namespace: NAMESPACE.into(),
        key: by_id(&session.id),
        cause: Cause::Revoked.into(),
        ..Default::default()
    };
    client.grpc.clone().delete_session(delete).await.unwrap();
    let status = expect_error(client.get(by_id(&session.id)).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(status.metadata_of("cause"), "REVOKED");
}
