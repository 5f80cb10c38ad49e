//! S7: a subject has no more sessions than its namespace's policy allows, whichever calls and servers create them.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use harness::{Client, Server, World, client::*, eventually, index::max_concurrent};
use sessiond_client::v1::{
    AttributeValue, Cause, CreateSessionRequest, EventType, RotateSessionRequest, Session, SessionEvent,
    UpdateSessionRequest, WatchRequest,
};
use tonic::Code;

fn limit(sessions: u32) -> String {
    format!("partitions = 1\n[default_policy]\nsession_limit = {sessions}\n")
}

fn rejecting(sessions: u32) -> String {
    limit(sessions) + "session_limit_policy = 'reject'\n"
}

/// Two servers on one store, and a client for each.
async fn pair(world: &World, toml: &str) -> ([Server; 2], [Client; 2]) {
    let servers = [world.server_with(toml).await, world.server_with(toml).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    (servers, clients)
}

fn create_request(subject: &str) -> CreateSessionRequest {
    CreateSessionRequest { subject: subject.into(), ..Default::default() }
}

async fn ids_of(client: &Client, subject: &str) -> BTreeSet<String> {
    client.list_subject(subject).await.into_iter().map(|session| session.id).collect()
}

fn set_of(sessions: &[&Session]) -> BTreeSet<String> {
    sessions.iter().map(|session| session.id.clone()).collect()
}

fn expect_limit<T>(answer: CallResult<T>) {
    let status = expect_error(answer, Code::FailedPrecondition, "SUBJECT_SESSION_LIMIT");
    assert!(!status.metadata_of("session_limit").is_empty());
}

#[tokio::test]
async fn s7_oldest_session_is_replaced_and_watchers_receive_the_cause() {
    let world = World::shared();
    let (_servers, [client, other]) = pair(&world, &limit(2)).await;
    let (first, token) = client.create_for("alice").await;
    let (second, _) = other.create_for("alice").await;
    let by_subject = WatchRequest { subject: Some("alice".into()), whole_namespace: false, ..whole_namespace() };
    let by_token =
        WatchRequest { keys: by_token(&token).into_iter().collect(), whole_namespace: false, ..whole_namespace() };
    let (mut by_subject, mut by_token) =
        (client.watch(by_subject).await.unwrap(), client.watch(by_token).await.unwrap());
    by_subject.bookmark().await;
    by_token.bookmark().await;
    let (third, _) = other.create_for("alice").await;
    assert_eq!(ids_of(&client, "alice").await, set_of(&[&second, &third]));
    for watching in [&mut by_subject, &mut by_token] {
        let event = watching.wait_for(EventType::Ended, &first.id).await;
        assert_eq!((event.cause(), &event.session.unwrap().subject[..]), (Cause::Replaced, "alice"));
    }
    expect_error(by_token.end().await, Code::NotFound, "SESSION_ENDED");
    let status = expect_error(client.get(harness::client::by_token(&token)).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(status.metadata_of("cause"), "REPLACED");
    // The order is that of becoming the subject's session, not that of the last use.
    client.set(by_id(&second.id), &[("a", text("1"))]).await.unwrap();
    let (fourth, _) = client.create_for("alice").await;
    assert_eq!(ids_of(&other, "alice").await, set_of(&[&third, &fourth]));
}

#[tokio::test]
async fn s7_login_has_the_same_limit_as_a_create() {
    let world = World::shared();
    let (_servers, [client, other]) = pair(&world, &limit(2)).await;
    let (old_guest, token) = client.create(&[]).await;
    let (guest, _) = client.create(&[]).await;
    let (first, _) = client.create_for("alice").await;
    let (second, _) = other.create_for("alice").await;
    other.login(by_id(&guest.id), "alice").await.unwrap();
    assert_eq!(ids_of(&client, "alice").await, set_of(&[&second, &guest]), "{}", first.id);
    client.login_by_rotation(&token, "alice").await.unwrap();
    assert_eq!(ids_of(&client, "alice").await, set_of(&[&guest, &old_guest]));

    let world = World::shared();
    let (_servers, [client, other]) = pair(&world, &rejecting(1)).await;
    let (guest, token) = client.create(&[]).await;
    let (first, _) = client.create_for("alice").await;
    expect_limit(other.login(by_id(&guest.id), "alice").await);
    expect_limit(other.login_by_rotation(&token, "alice").await);
    let kept = client.get(by_token(&token)).await.unwrap();
    assert_eq!((kept.subject, kept.token_generation), (String::new(), 1), "a refused login was applied");
    client.delete(by_id(&first.id)).await.unwrap();
    other.login_by_rotation(&token, "alice").await.unwrap();
}

#[tokio::test]
async fn s7_sessions_of_others_and_anonymous_ones_do_not_count() {
    let world = World::shared();
    for toml in [limit(1), rejecting(1)] {
        let world = World { redis: world.redis.clone(), prefix: format!("{}{}:", world.prefix, toml.len()) };
        let (_servers, [client, other]) = pair(&world, &toml).await;
        let mut sessions = Vec::new();
        for n in 0..4 {
            sessions.push(client.create(&[]).await.0);
            sessions.push(other.create_for(&format!("user{n}")).await.0);
            sessions.push(other.in_namespace(&format!("other{n}")).create_for("user0").await.0);
        }
        for session in sessions {
            assert!(client.in_namespace(&session.namespace).lives(&session.id).await);
        }
    }
}

#[tokio::test]
async fn s7_create_at_the_limit_is_refused_until_a_session_ends() {
    let world = World::shared();
    let (_servers, [client, other]) = pair(&world, &rejecting(2)).await;
    client.create_for("alice").await;
    let (mut last, mut token) = client.create_for("alice").await;
    for turn in 0..6 {
        for client in [&client, &other] {
            expect_limit(client.create_with(create_request("alice")).await);
        }
        match turn {
            0 => drop(other.delete(by_id(&last.id)).await.unwrap()),
            1 => drop(other.delete(by_token(&token)).await.unwrap()),
            2 => drop(other.login(by_id(&last.id), "").await.unwrap()),
            3 => {
                let idle_timeout = millis(1);
                let key = by_id(&last.id);
                let update = UpdateSessionRequest { key, idle_timeout, ..Default::default() };
                other.update(update).await.unwrap();
                eventually("the session expires", async || (!other.lives(&last.id).await).then_some(())).await;
            }
            4 => {
                let absolute_timeout = millis(1);
                let key = by_id(&last.id);
                let update = UpdateSessionRequest { key, absolute_timeout, ..Default::default() };
                other.update(update).await.unwrap();
            }
            _ => {
                assert_eq!(other.delete_subject("alice").await.unwrap(), 2);
                client.create_for("alice").await;
            }
        }
        // The next create succeeds at once.
        let made = client.create_with(create_request("alice")).await;
        (last, token) = made.unwrap_or_else(|status| panic!("turn {turn}: {status:?}"));
        assert_eq!(client.list_subject("alice").await.len(), 2, "turn {turn}");
    }
}

#[tokio::test]
async fn s7_failed_and_retried_calls_replace_no_session() {
    let world = World::shared();
    let toml = limit(1) + "max_attributes = 2\n";
    let (_servers, [client, other]) = pair(&world, &toml).await;
    let token = new_token();
    let request = CreateSessionRequest {
        token: token.clone(),
        request_id: "request-id-000001".into(),
        ..create_request("alice")
    };
    let (alice, _) = client.create_with(request.clone()).await.unwrap();
    let (guest, guest_token) = client.create(&[("a", text("1"))]).await;
    let (_, successor) = client.create(&[]).await;
    let before = world.index("alice");

    // A retry, and tokens of live and ended sessions.
    assert_eq!(other.create_with(request.clone()).await.unwrap().0, alice);
    let taken = CreateSessionRequest { request_id: String::new(), ..request.clone() };
    expect_error(other.create_with(taken).await, Code::AlreadyExists, "SESSION_EXISTS");
    let taken = CreateSessionRequest { token: guest_token.clone(), ..create_request("alice") };
    expect_error(other.create_with(taken).await, Code::AlreadyExists, "SESSION_EXISTS");
    let reused = CreateSessionRequest { subject: "bob".into(), ..request };
    expect_error(other.create_with(reused).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let (_, gone) = client.create(&[]).await;
    client.delete(by_token(&gone)).await.unwrap();
    let ended = CreateSessionRequest { token: gone.clone(), ..create_request("alice") };
    expect_error(other.create_with(ended).await, Code::NotFound, "SESSION_ENDED");

    let login = |key| UpdateSessionRequest { key, subject: Some("alice".into()), ..Default::default() };
    let mismatch = UpdateSessionRequest { if_revision: Some(1), ..login(by_id(&guest.id)) };
    expect_error(client.update(mismatch).await, Code::Aborted, "REVISION_MISMATCH");
    let attributes = |names: &[&str]| -> std::collections::BTreeMap<String, AttributeValue> {
        names.iter().map(|name| ((*name).to_owned(), text("1"))).collect()
    };
    let too_many = UpdateSessionRequest { set_attributes: attributes(&["b", "c"]), ..login(by_id(&guest.id)) };
    expect_error(client.update(too_many).await, Code::InvalidArgument, "FIELD_INVALID");
    let wrong = format!("{}{}", &guest_token[..31], &successor[31..]);
    for key in [by_token(&wrong), by_token(&new_token()), by_token("x"), by_id("aaaaaaaaaaaaaaaaaaaaaaaaaa")] {
        expect_error(client.update(login(key)).await, Code::NotFound, "SESSION_NOT_FOUND");
    }
    expect_error(client.update(login(by_token(&gone))).await, Code::NotFound, "SESSION_ENDED");
    let known = RotateSessionRequest {
        token: guest_token.clone(),
        new_token: guest_token.clone(),
        subject: Some("alice".into()),
        ..Default::default()
    };
    expect_error(client.rotate_with(known).await, Code::InvalidArgument, "FIELD_INVALID");
    let (of_bob, _) = client.create_for("bob").await;
    expect_error(client.update(login(by_id(&of_bob.id))).await, Code::FailedPrecondition, "SUBJECT_CHANGE");
    // The session is already alice's.
    client.update(login(by_id(&alice.id))).await.unwrap();
    client.delete_subject("alice's sister").await.unwrap();

    assert!(client.lives(&alice.id).await && client.lives(&guest.id).await);
    assert_eq!(world.index("alice"), before, "a failed call reserved a place in the index");
    assert_eq!(client.get(by_id(&guest.id)).await.unwrap(), guest, "a failed call changed the session");
}

#[tokio::test]
async fn s7_login_retried_with_its_request_id_replaces_once() {
    let world = World::shared();
    let (_servers, [client, other]) = pair(&world, &limit(1)).await;
    let (guest, _) = client.create(&[]).await;
    let login = UpdateSessionRequest {
        key: by_id(&guest.id),
        subject: Some("alice".into()),
        request_id: "request-id-000001".into(),
        ..Default::default()
    };
    client.create_for("alice").await;
    client.update(login.clone()).await.unwrap();
    let (newer, _) = other.create_for("alice").await;
    let status = expect_error(client.update(login).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(status.metadata_of("cause"), "REPLACED");
    assert_eq!(ids_of(&client, "alice").await, set_of(&[&newer]));
}

#[tokio::test]
async fn s7_ended_sessions_do_not_count() {
    let world = World::shared();
    let (_servers, [client, other]) = pair(&world, &limit(2)).await;
    for turn in 0..6 {
        let (keeps, _) = client.create_for("alice").await;
        let idle_timeout = if turn == 0 { millis(1) } else { None };
        let request = CreateSessionRequest { idle_timeout, ..create_request("alice") };
        let (ends, token) = client.create_with(request).await.unwrap();
        match turn {
            0 => eventually("the session expires", async || (!client.lives(&ends.id).await).then_some(())).await,
            1 => drop(other.delete(by_token(&token)).await.unwrap()),
            2 => drop(client.login(by_id(&ends.id), "").await.unwrap()),
            3 => {
                let except_id = keeps.id.clone();
                let request = sessiond_client::v1::DeleteSubjectSessionsRequest {
                    subject: "alice".into(),
                    except_id,
                    ..Default::default()
                };
                assert_eq!(other.delete_subject_with(request).await.unwrap(), 1);
            }
            _ => drop(client.delete(by_id(&ends.id)).await.unwrap()),
        }
        let (next, _) = other.create_for("alice").await;
        assert_eq!(ids_of(&client, "alice").await, set_of(&[&keeps, &next]), "turn {turn}");
        client.delete_subject("alice").await.unwrap();
    }
}

#[tokio::test]
async fn s7_lowered_limit_applies_from_the_next_session_on() {
    let world = World::shared();
    let server = world.server_with(&limit(5)).await;
    let mut made = Vec::new();
    let client = server.client().await;
    for _ in 0..5 {
        made.push(client.create_for("alice").await.0);
    }
    let refusing = world.server_with(&rejecting(2)).await;
    expect_limit(refusing.client().await.create_with(create_request("alice")).await);
    assert_eq!(client.list_subject("alice").await.len(), 5, "a refused create ended a session");
    let low = world.server_with(&limit(2)).await;
    let (newest, _) = low.client().await.create_for("alice").await;
    assert_eq!(ids_of(&client, "alice").await, set_of(&[&made[4], &newest]));
}

#[tokio::test]
async fn s7_each_namespace_has_its_own_limit() {
    let world = World::shared();
    let toml = "[default_policy]\nsession_limit = 2\n[namespace.web]\nsession_limit = 1\n\
        [namespace.strict]\nsession_limit = 1\nsession_limit_policy = 'reject'\n[namespace.free]\nsession_limit = 0\n";
    let (_servers, [client, other]) = pair(&world, toml).await;
    for (namespace, count) in [("web", 1), ("strict", 1), ("free", 4), ("other", 2)] {
        for turn in 0..4 {
            let answer = [&client, &other][turn % 2].in_namespace(namespace).create_with(create_request("alice")).await;
            if namespace == "strict" && turn > 0 {
                expect_limit(answer);
            } else {
                answer.unwrap();
            }
        }
        assert_eq!(client.in_namespace(namespace).list_subject("alice").await.len(), count, "{namespace}");
    }
}

// ---- in parallel ----

/// Asserts that by these events, in order, the subject had the limit's number of live sessions at most, and reached it.
fn assert_limit(events: &[SessionEvent], subject: &str, limit: usize) {
    let most = max_concurrent(events, subject);
    assert_eq!(most, limit, "the limit must be reached and never exceeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_parallel_creates_reach_and_never_exceed_the_limit() {
    let world = World::shared();
    let (_servers, clients) = pair(&world, &limit(3)).await;
    let mut watching = clients[0].watch_all().await;
    for round in 0..8 {
        let subject = &format!("user{round}");
        let answers = join_all((0..64).map(|n| clients[n % 2].create_with(create_request(subject)))).await;
        let mut made = BTreeSet::new();
        for answer in answers {
            match answer {
                Ok((session, _)) => drop(made.insert(session.id)),
                // Replaced before it was created.
                Err(status) => assert_eq!(status.metadata_of("cause"), "REPLACED", "{status:?}"),
            }
        }
        let live = ids_of(&clients[1], subject).await;
        assert_eq!(live.len(), 3, "round {round}");
        assert!(live.is_subset(&made));
        let events = watching.events_until_now().await;
        assert_limit(&events, subject, 3);
        let ended: BTreeSet<_> =
            events.iter().filter(|event| event.cause() == Cause::Replaced).map(|event| event.id.clone()).collect();
        assert_eq!(made.difference(&live).cloned().collect::<BTreeSet<_>>(), ended, "an ended session has no event");
        eventually("the index is exact", async || (world.index(subject) == live).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_parallel_creates_beyond_the_limit_are_refused() {
    let world = World::shared();
    let (_servers, clients) = pair(&world, &rejecting(3)).await;
    let mut watching = clients[0].watch_all().await;
    for round in 0..8 {
        let subject = &format!("user{round}");
        let answers = join_all((0..64).map(|n| clients[n % 2].create_with(create_request(subject)))).await;
        let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        refused.into_iter().for_each(expect_limit);
        let made: BTreeSet<_> = made.into_iter().map(|answer| answer.unwrap().0.id).collect();
        assert_eq!((made.len(), ids_of(&clients[1], subject).await), (3, made));
        let events = watching.events_until_now().await;
        assert_limit(&events, subject, 3);
        assert!(events.iter().all(|event| event.r#type() == EventType::Created), "a session was ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_parallel_logins_never_exceed_the_limit() {
    let world = World::shared();
    for toml in [limit(3), rejecting(3)] {
        let world = World { redis: world.redis.clone(), prefix: format!("{}{}:", world.prefix, toml.len()) };
        let (_servers, clients) = pair(&world, &toml).await;
        let mut watching = clients[0].watch_all().await;
        for round in 0..6 {
            let subject = &format!("user{round}");
            let guests = join_all((0..64).map(|n: usize| clients[n % 2].create(&[]))).await;
            let logins = guests.iter().enumerate().map(async |(n, (guest, token))| {
                let client = &clients[(n / 2) % 2];
                match n % 2 {
                    0 => client.login(by_id(&guest.id), subject).await,
                    _ => client.login_by_rotation(token, subject).await.map(|(session, _)| session),
                }
            });
            let answers = join_all(logins).await;
            let mut accepted = 0;
            for answer in answers {
                match answer {
                    Ok(_) => accepted += 1,
                    Err(status) if status.reason() == "SESSION_ENDED" => {
                        assert_eq!(status.metadata_of("cause"), "REPLACED", "{status:?}");
                    }
                    Err(status) => assert_eq!(status.reason(), "SUBJECT_SESSION_LIMIT", "{status:?}"),
                }
            }
            let live = ids_of(&clients[1], subject).await;
            assert!(live.len() == 3 && accepted >= 3, "round {round}: {} of {accepted}", live.len());
            assert_limit(&watching.events_until_now().await, subject, 3);
        }
    }
}

/// Runs creates, logins, updates, deletes and calls of DeleteSubjectSessions for one subject in parallel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_parallel_calls_of_all_kinds_never_exceed_the_limit() {
    let world = World::shared();
    let (_servers, clients) = pair(&world, &limit(3)).await;
    let mut watching = clients[0].watch_all().await;
    let tolerate = |answer: Result<(), tonic::Status>| {
        if let Err(status) = answer {
            let expected = ["SESSION_ENDED", "SUBJECT_CHANGE"];
            assert!(expected.contains(&&status.reason()[..]), "{status:?}");
        }
    };
    for round in 0..6 {
        let subject = &format!("user{round}");
        let guests = join_all((0..4).map(|n: usize| clients[n % 2].create(&[]))).await;
        let work = (0..16).map(async |worker: usize| {
            let client = &clients[worker % 2];
            let (guest, _) = &guests[worker % 4];
            for turn in 0..8 {
                let answer = match (worker + turn) % 8 {
                    0..=2 => client.create_with(create_request(subject)).await.map(drop),
                    3 | 4 => client.login(by_id(&guest.id), subject).await.map(drop),
                    5 => client.login(by_id(&guest.id), "").await.map(drop),
                    6 => client.set(by_id(&guest.id), &[("a", text(&turn.to_string()))]).await.map(drop),
                    _ if worker == 7 => client.delete_subject(subject).await.map(drop),
                    _ => match client.list_subject(subject).await.pop() {
                        Some(session) => client.delete(by_id(&session.id)).await.map(drop),
                        None => Ok(()),
                    },
                };
                tolerate(answer);
            }
        });
        join_all(work).await;
        clients[0].create_for(subject).await;
        let events = watching.events_until_now().await;
        let most = max_concurrent(&events, subject);
        assert!(most <= 3, "round {round}: {most} at once");
        let live = ids_of(&clients[0], subject).await;
        let index = world.index(subject);
        assert!(live.is_subset(&index), "round {round}: {live:?} in {index:?}");
    }
}
