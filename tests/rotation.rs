//! S6: a token rotates atomically. How long superseded tokens are accepted, and in which calls.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use harness::{Setup, World, client::*, setup, setup_with, tokens::*};
use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, EventType, RotateSessionRequest, SessionView, TokenState,
    UpdateSessionRequest, WatchRequest,
};
use tonic::Code;

const REQUEST_ID: &str = "request-0000000001";

/// Policy with a rotation grace of zero: a token presented after its granted grace period is token reuse.
const STRICT: &str = "[default_policy]\nrotation_grace = '0s'";

#[tokio::test]
async fn s6_rotation_returns_a_new_token_for_the_same_session() {
    let Setup { client, .. } = &setup().await;
    let (created, first) = client.create(&[("cart", text("x"))]).await;
    assert_eq!(client.token_state(&first).await.unwrap(), TokenState::Current);
    let second = client.rotate(&first).await.unwrap();
    assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
    assert_eq!(client.token_state(&first).await.unwrap(), TokenState::Superseded);
    let session = client.get(by_token(&second)).await.unwrap();
    assert_eq!((&session.id, session.token_generation), (&created.id, 2));
    assert_eq!(session.attributes, created.attributes);
    expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
}

#[tokio::test]
async fn s6_superseded_token_works_in_its_grace_but_cannot_rotate() {
    let Setup { client, .. } = &setup().await;
    let (session, first) = client.create(&[]).await;
    let second = client.rotate_and_use(&first).await;
    for call in EVERY_CALL {
        let expected = if call == Call::Rotate { "TOKEN_ROTATED" } else { ACCEPTED };
        assert_eq!(client.present(call, &first).await, expected, "{call:?}");
    }
    let ended = expect_error(client.get(by_token(&second)).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(ended.metadata_of("cause"), "LOGOUT", "the superseded token did not end {}", session.id);
}

#[tokio::test]
async fn s6_each_of_the_last_16_tokens_has_its_own_grace_period() {
    let Setup { client, .. } = &setup().await;
    let mut tokens = vec![client.create(&[]).await.1];
    for n in 0..17 {
        let request = if n % 2 == 0 { rotation_of(&tokens[n]) } else { rotation_without_grace(&tokens[n]) };
        let (session, token) = client.rotate_with(request).await.unwrap();
        assert_eq!(session.token_generation as usize, n + 2);
        tokens.push(token);
    }
    expect_error(client.get(by_token(&tokens[0])).await, Code::NotFound, "SESSION_NOT_FOUND");
    for (n, token) in tokens[1..17].iter().enumerate() {
        if n % 2 == 1 {
            assert_eq!(client.token_state(token).await.unwrap(), TokenState::Superseded, "{n}");
        } else {
            expect_error(client.get(by_token(token)).await, Code::NotFound, "TOKEN_ROTATED");
        }
    }
    assert_eq!(client.token_state(&tokens[17]).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s6_superseded_token_is_accepted_only_in_its_grace_period() {
    let Setup { world, client, .. } = &setup_with("[default_policy]\nrotation_grace = '400ms'").await;
    for (requested, grace) in [(None, 400), (millis(150), 150)] {
        let (_, first) = client.create(&[]).await;
        let request = RotateSessionRequest { grace_period: requested, ..rotation_of(&first) };
        let (session, second) = client.rotate_with(request).await.unwrap();
        let end = unix_ms(session.update_time) + grace;
        loop {
            let before = world.redis.now();
            match client.get(by_token(&first)).await {
                Ok(_) => assert!(before < end, "accepted after its grace period"),
                Err(status) => {
                    assert_eq!(status.reason(), "TOKEN_ROTATED");
                    break assert!(world.redis.now() >= end, "refused within its grace period");
                }
            }
        }
        assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
    }
}

#[tokio::test]
async fn s6_granted_grace_period_is_not_shortened_by_a_new_policy() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    let (_, first) = client.create(&[]).await;
    client.rotate_and_use(&first).await;
    assert_eq!(strict.token_state(&first).await.unwrap(), TokenState::Superseded);
}

#[tokio::test]
async fn s6_late_token_within_the_policy_grace_is_not_token_reuse() {
    let Setup { client, .. } = &setup().await;
    let (session, first) = client.create(&[]).await;
    let (_, second) = client.rotate_with(rotation_without_grace(&first)).await.unwrap();
    let before = client.get(by_token(&second)).await.unwrap();
    for call in REJECTING_CALLS {
        assert_eq!(client.present(call, &first).await, "TOKEN_ROTATED", "{call:?}");
    }
    assert_eq!(client.get(by_id(&session.id)).await.unwrap(), before, "a late token changed the session");
}

#[tokio::test]
async fn s6_rotation_retry_after_the_successor_was_used_is_refused() {
    let Setup { client, .. } = &setup().await;
    for call in EVERY_CALL.into_iter().filter(|call| *call != Call::Delete) {
        let (_, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        assert_eq!(client.present(call, &second).await, ACCEPTED);
        assert_eq!(client.present(Call::Rotate, &first).await, "TOKEN_ROTATED", "{call:?}");
    }
    // A refused call counts as a use of the token too.
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let update = UpdateSessionRequest { key: by_token(&second), if_revision: Some(1), ..Default::default() };
    expect_error(client.update(update).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(client.present(Call::Rotate, &first).await, "TOKEN_ROTATED");
}

/// Logs in with the current token in one of nine ways. Returns the successor if the way rotates the token.
async fn log_in(client: &Client, way: usize, id: &str, token: &str) -> Option<String> {
    let rotation = rotation_of(token);
    let of = |subject: &str| Some(subject.to_owned());
    let rotation = match way {
        0 => RotateSessionRequest { subject: of("alice"), ..rotation },
        1 => RotateSessionRequest { subject: of("bob"), grace_period: millis(0), ..rotation },
        2 => RotateSessionRequest { subject: of(""), ..rotation },
        3 => RotateSessionRequest { authentication: by_password(), ..rotation },
        _ => {
            let update = match way {
                4 => login(token, "alice"),
                5 => login(token, "bob"),
                6 => login(token, ""),
                7 => UpdateSessionRequest { authentication: by_password(), subject: None, ..login(token, "") },
                _ => UpdateSessionRequest { key: by_id(id), ..login(token, "bob") },
            };
            client.update(update).await.unwrap();
            return None;
        }
    };
    Some(client.rotate_with(rotation).await.unwrap().1)
}

#[tokio::test]
async fn s6_login_ends_every_grace_period_at_once() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    for way in 0..9 {
        // From anonymous to alice; or bob again, or from bob to anonymous.
        let subject = if matches!(way, 0 | 4) { "" } else { "bob" };
        let request = CreateSessionRequest {
            subject: subject.into(),
            authentication: by_password().filter(|_| way % 2 == 1),
            ..Default::default()
        };
        let (session, first) = client.create_with(request).await.unwrap();
        let second = client.rotate_and_use(&first).await;
        let third = client.rotate_and_use(&second).await;
        for old in [&first, &second] {
            assert_eq!(client.token_state(old).await.unwrap(), TokenState::Superseded);
        }
        let fourth = log_in(&client, way, &session.id, &third).await;
        for old in [Some(&first), Some(&second), fourth.as_ref().map(|_| &third)].into_iter().flatten() {
            for call in REJECTING_CALLS {
                assert_eq!(client.present(call, old).await, "TOKEN_ROTATED", "way {way}, {call:?}");
            }
        }
        let current = fourth.unwrap_or(third);
        assert_eq!(client.token_state(&current).await.unwrap(), TokenState::Current, "way {way}");
        // Under a policy whose grace is over as well it is token reuse.
        expect_error(strict.get(by_token(&first)).await, Code::NotFound, "SESSION_ENDED");
    }
}

#[tokio::test]
async fn s6_superseded_token_cannot_log_in() {
    let Setup { client, .. } = &setup().await;
    for successor_is_used in [false, true] {
        let (_, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        if successor_is_used {
            client.get(by_token(&second)).await.unwrap();
        }
        let authenticated =
            UpdateSessionRequest { key: by_token(&first), authentication: by_password(), ..Default::default() };
        for update in [login(&first, "mallory"), login(&first, ""), authenticated] {
            expect_error(client.update(update).await, Code::NotFound, "TOKEN_ROTATED");
        }
        for (subject, authentication) in
            [(Some("mallory".into()), None), (Some(String::new()), None), (None, by_password())]
        {
            let rotation = RotateSessionRequest { subject, authentication, ..rotation_of(&first) };
            expect_error(client.rotate_with(rotation).await, Code::NotFound, "TOKEN_ROTATED");
        }
        assert_eq!(client.token_state(&first).await.unwrap(), TokenState::Superseded);
        let session = client.get(by_token(&second)).await.unwrap();
        assert_eq!((&session.subject[..], session.authentication, session.token_generation), ("", None, 2));
    }
}

#[tokio::test]
async fn s6_login_with_a_lost_response_is_retried_only_by_request_id() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    let (_, first) = client.create(&[]).await;
    let as_alice = |token: &str| RotateSessionRequest { subject: Some("alice".into()), ..rotation_of(token) };
    client.rotate_with(as_alice(&first)).await.unwrap();
    for again in [as_alice(&first), rotation_of(&first)] {
        expect_error(client.rotate_with(again).await, Code::NotFound, "TOKEN_ROTATED");
    }

    let (_, first) = client.create(&[]).await;
    let second = successor_of(&first);
    let request = RotateSessionRequest { new_token: second.clone(), request_id: REQUEST_ID.into(), ..as_alice(&first) };
    let (session, returned) = client.rotate_with(request.clone()).await.unwrap();
    assert_eq!((&session.subject[..], &returned[..]), ("alice", ""), "the caller's token is returned");
    assert_eq!(client.rotate_with(request.clone()).await.unwrap().0, session);
    client.get(by_token(&second)).await.unwrap();
    // The retry works even if the token itself would be token reuse by now.
    assert_eq!(strict.rotate_with(request).await.unwrap().0, session);
    assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s5_retried_rotation_is_applied_once() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    let mut watching = client.watch_all().await;
    let (_, first) = client.create(&[]).await;
    let second = successor_of(&first);
    let request = RotateSessionRequest {
        new_token: second.clone(),
        request_id: REQUEST_ID.into(),
        set_attributes: [("n".to_owned(), text("1"))].into(),
        grace_period: millis(0),
        ..rotation_of(&first)
    };
    let (session, _) = client.rotate_with(request.clone()).await.unwrap();
    assert_eq!(session.token_generation, 2);
    assert_eq!(client.rotate_with(request.clone()).await.unwrap().0, session);
    let changed = client.set(by_token(&second), &[("n", text("2"))]).await.unwrap();
    for again in [&client, &strict] {
        assert_eq!(again.rotate_with(request.clone()).await.unwrap().0, changed, "a retry returns the present state");
    }
    let third = client.rotate_and_use(&second).await;
    let other = RotateSessionRequest { clear_attributes: true, ..request.clone() };
    for refused in [&request, &other] {
        // The successor of its token is not the current token any more.
        expect_error(strict.rotate_with(refused.clone()).await, Code::NotFound, "TOKEN_ROTATED");
    }
    let update = UpdateSessionRequest { request_id: REQUEST_ID.into(), ..login(&third, "alice") };
    expect_error(client.update(update).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let kinds: Vec<_> = watching.events_until_now().await.iter().map(|event| event.r#type()).collect();
    assert_eq!(kinds, [EventType::Created, EventType::Rotated, EventType::Updated, EventType::Rotated]);
    client.delete(by_token(&third)).await.unwrap();
    expect_error(client.rotate_with(request).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn s6_earlier_token_of_the_session_is_refused_as_successor() {
    let Setup { client, .. } = &setup().await;
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let third = client.rotate(&second).await.unwrap();
    for earlier in [&first, &second, &third] {
        let request = RotateSessionRequest { new_token: earlier.clone(), ..rotation_of(&third) };
        let status = expect_error(client.rotate_with(request).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["new_token"]);
    }
    let session = client.get(by_token(&third)).await.unwrap();
    assert_eq!(session.token_generation, 3);
}

#[tokio::test]
async fn s6_session_id_is_refused_as_a_token() {
    let Setup { client, .. } = &setup().await;
    let (session, token) = client.create(&[]).await;
    for invalid in [session.id.clone(), format!("ses_{}", session.id), "garbage".into(), successor_of(&token)] {
        expect_error(client.rotate(&invalid).await, Code::NotFound, "SESSION_NOT_FOUND");
    }
    let in_other_namespace = client.in_namespace("other").rotate(&token).await;
    expect_error(in_other_namespace, Code::NotFound, "SESSION_NOT_FOUND");
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
}

#[tokio::test]
async fn s6_refused_rotation_changes_nothing() {
    let Setup { client, .. } = &setup_with("[default_policy]\nmax_attributes = 2\nmax_payload_bytes = '1 KiB'").await;
    let (_, token) = client.create(&[("a", text("1")), ("b", text(&a(600)))]).await;
    let session = client.update(login(&token, "alice")).await.unwrap();
    let rotation = rotation_of(&token);
    let set = |name: &str, value: &str| RotateSessionRequest {
        set_attributes: [(name.to_owned(), text(value))].into(),
        ..rotation.clone()
    };
    for too_much in [set("c", ""), set("a", &a(600))] {
        let status = expect_error(client.rotate_with(too_much).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["set_attributes"]);
    }
    let mismatch = RotateSessionRequest { if_revision: Some(session.revision - 1), ..rotation.clone() };
    let status = expect_error(client.rotate_with(mismatch).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(status.metadata_of("current_revision"), session.revision.to_string());
    let as_bob = RotateSessionRequest { subject: Some("bob".into()), ..rotation.clone() };
    expect_error(client.rotate_with(as_bob).await, Code::FailedPrecondition, "SUBJECT_CHANGE");
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
    assert_eq!(client.token_state(&token).await.unwrap(), TokenState::Current);
    let matching = RotateSessionRequest { if_revision: Some(session.revision), ..rotation };
    client.rotate_with(matching).await.unwrap();
}

fn a(length: usize) -> String {
    "a".repeat(length)
}

#[tokio::test]
async fn s6_rotation_changes_content_and_token_in_one_step() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let basic = WatchRequest { view: SessionView::Basic.into(), ..whole_namespace() };
    let mut basic = client.watch(basic).await.unwrap();
    basic.bookmark().await;
    let (created, first) = client.create(&[("a", text("1")), ("b", text("2")), ("c", text("3"))]).await;
    let request = RotateSessionRequest {
        set_attributes: [("d".to_owned(), text("4")), ("c".into(), text("3"))].into(),
        remove_attributes: vec!["a".into(), "missing".into()],
        subject: Some("alice".into()),
        authentication: by_password(),
        ..rotation_of(&first)
    };
    let (session, second) = client.rotate_with(request).await.unwrap();
    assert_eq!(session.attributes.keys().collect::<Vec<_>>(), ["b", "c", "d"]);
    assert_eq!((&session.subject[..], &session.authentication), ("alice", &by_password()));
    assert_eq!((session.token_generation, session.revision > created.revision), (2, true));
    assert_eq!(client.get(by_token(&second)).await.unwrap(), session);
    let event = watching.wait_for(EventType::Rotated, &created.id).await;
    assert_eq!((event.revision, event.session.as_ref()), (session.revision, Some(&session)));
    let mut changed = event.changed_attributes;
    changed.sort();
    assert_eq!(changed, ["a", "d"]);
    let event = basic.wait_for(EventType::Rotated, &created.id).await;
    assert!(event.session.unwrap().attributes.is_empty() && event.changed_attributes.len() == 2);
    let clear = RotateSessionRequest { clear_attributes: true, ..rotation_of(&second) };
    let clear = RotateSessionRequest { set_attributes: [("e".to_owned(), text("5"))].into(), ..clear };
    let (cleared, _) = client.rotate_with(clear).await.unwrap();
    assert_eq!(cleared.attributes.keys().collect::<Vec<_>>(), ["e"]);
}

#[tokio::test]
async fn s6_rotation_that_changes_the_subject_is_sent_to_watchers() {
    let Setup { client, .. } = &setup().await;
    let of_alice = WatchRequest { subject: Some("alice".into()), whole_namespace: false, ..whole_namespace() };
    let mut alices = client.watch(of_alice).await.unwrap();
    alices.bookmark().await;
    let (session, first) = client.create(&[]).await;
    let to = |token: &str, subject: &str| RotateSessionRequest { subject: Some(subject.into()), ..rotation_of(token) };
    let (_, second) = client.rotate_with(to(&first, "alice")).await.unwrap();
    let third = client.rotate(&second).await.unwrap();
    let (_, fourth) = client.rotate_with(to(&third, "")).await.unwrap();
    client.rotate(&fourth).await.unwrap();
    let received: Vec<_> =
        alices.events_until_now().await.iter().map(|event| (event.r#type(), event.id.clone())).collect();
    let kinds = [EventType::Rotated, EventType::Rotated, EventType::Left];
    assert_eq!(received, kinds.map(|kind| (kind, session.id.clone())));
}

#[tokio::test]
async fn s6_client_token_rotates_into_the_servers_form() {
    let Setup { client, .. } = &setup().await;
    let client_token = "a-client-token-of-enough-bytes".to_owned();
    let create = CreateSessionRequest { token: client_token.clone(), ..Default::default() };
    let (session, _) = client.create_with(create).await.unwrap();
    // The id is right, the secret is not one of the session.
    let guess = format!("ses_{}_{}", session.id, &new_token()[31..]);
    expect_error(client.get(by_token(&guess)).await, Code::NotFound, "SESSION_NOT_FOUND");
    let to_client_token =
        RotateSessionRequest { new_token: "another-client-token-of-enough-bytes".into(), ..rotation_of(&client_token) };
    let status = expect_error(client.rotate_with(to_client_token).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(status.bad_fields(), ["new_token"]);
    let issued = client.rotate(&client_token).await.unwrap();
    assert!(issued.starts_with(&format!("ses_{}_", session.id)) && issued.len() == guess.len());
    assert_eq!(client.token_state(&issued).await.unwrap(), TokenState::Current);
    assert_eq!(client.token_state(&client_token).await.unwrap(), TokenState::Superseded);
    assert_eq!(client.present(Call::Rotate, &client_token).await, "TOKEN_ROTATED");
    expect_error(client.get(by_token(&guess)).await, Code::NotFound, "SESSION_NOT_FOUND");
    let last = RotateSessionRequest { new_token: guess.clone(), ..rotation_without_grace(&issued) };
    client.rotate_with(last).await.unwrap();
    assert_eq!(client.token_state(&guess).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s6_client_token_that_the_policy_forbids_can_be_rotated() {
    let world = World::shared();
    let (before, server) = (world.server().await, world.server_with("[default_policy]\nclient_tokens = false").await);
    let client = server.client().await;
    let token = "a-client-token-of-enough-bytes".to_owned();
    let create = CreateSessionRequest { token: token.clone(), ..Default::default() };
    expect_error(client.create_with(create.clone()).await, Code::FailedPrecondition, "CLIENT_TOKENS_FORBIDDEN");
    let (session, _) = before.client().await.create_with(create).await.unwrap();
    let issued = client.rotate(&token).await.unwrap();
    assert!(issued.starts_with(&format!("ses_{}_", session.id)));
    assert_eq!(client.token_state(&issued).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s6_token_older_than_the_renewal_timeout_is_rotation_due() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nrenewal_timeout = '1h'").await;
    let short = world.server_with("[default_policy]\nrenewal_timeout = '300ms'").await;
    let (client, short) = (server.client().await, short.client().await);
    let (session, first) = client.create(&[]).await;
    world.redis.wait_for_time(unix_ms(session.create_time) + 300).await;
    assert_eq!(short.token_state(&first).await.unwrap(), TokenState::RotationDue);
    assert_eq!(client.token_state(&first).await.unwrap(), TokenState::Current);
    let (rotated, second) = short.rotate_with(rotation_of(&first)).await.unwrap();
    assert_eq!(short.token_state(&first).await.unwrap(), TokenState::Superseded);
    // The renewal timeout of each token starts when the token is issued.
    let before = short.token_state(&second).await.unwrap();
    assert!(before == TokenState::Current || world.redis.now() >= unix_ms(rotated.update_time) + 300, "{before:?}");
    world.redis.wait_for_time(unix_ms(rotated.update_time) + 300).await;
    assert_eq!(short.token_state(&second).await.unwrap(), TokenState::RotationDue);
    // A token that is due is still accepted.
    for call in EVERY_CALL.into_iter().filter(|call| !matches!(call, Call::Rotate)) {
        assert_eq!(short.present(call, &second).await, ACCEPTED, "{call:?}");
    }
}

#[tokio::test]
async fn session_read_by_id_has_no_token_state() {
    let Setup { client, .. } = &setup().await;
    let (session, token) = client.create(&[]).await;
    client.rotate(&token).await.unwrap();
    let by_id = sessiond_client::v1::GetSessionRequest {
        namespace: NAMESPACE.into(),
        key: by_id(&session.id),
        ..Default::default()
    };
    let state = client.grpc.clone().get_session(by_id).await.unwrap().into_inner().token_state();
    assert_eq!(state, TokenState::Unspecified);
}

#[tokio::test]
async fn every_token_of_an_ended_session_returns_its_cause() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    let (session, first) = client.create(&[]).await;
    let (_, second) = client.rotate_with(rotation_without_grace(&first)).await.unwrap();
    let third = client.rotate_and_use(&second).await;
    let delete =
        DeleteSessionRequest { namespace: NAMESPACE.into(), key: by_id(&session.id), cause: 2, ..Default::default() };
    client.grpc.clone().delete_session(delete).await.unwrap();
    for token in [&first, &second, &third] {
        for (client, call) in [&client, &strict].into_iter().flat_map(|client| EVERY_CALL.map(|call| (client, call))) {
            assert_eq!(client.present(call, token).await, call.rejection("SESSION_ENDED"), "{call:?}");
        }
        let status = client.get(by_token(token)).await.unwrap_err();
        assert_eq!(status.metadata_of("cause"), "REVOKED", "token reuse is reported for an ended session");
    }
    for call in EVERY_CALL {
        let wrong = successor_of(&third);
        assert_eq!(client.present(call, &wrong).await, call.rejection("SESSION_NOT_FOUND"), "{call:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_parallel_rotations_and_updates_lose_no_attribute() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let (session, first) = clients[0].create(&[]).await;
    let rotating = async {
        let mut token = first.clone();
        for n in 0..40 {
            let set_attributes = [("rotated".to_owned(), text(&n.to_string())), (format!("r{n}"), text("1"))].into();
            let request = RotateSessionRequest { set_attributes, ..rotation_of(&token) };
            token = clients[n % 2].rotate_with(request).await.unwrap().1;
        }
        token
    };
    let updating = join_all((0..4).map(async |worker: usize| {
        for n in 0..40 {
            let name = format!("w{worker}-{n}");
            clients[(worker + n) % 2].set(by_id(&session.id), &[(&name, text("1"))]).await.unwrap();
        }
    }));
    let (last, _) = tokio::join!(rotating, updating);
    let session = clients[0].get(by_token(&last)).await.unwrap();
    assert_eq!(session.token_generation, 41);
    let mut expected: BTreeMap<_, _> = (0..40).map(|n| (format!("r{n}"), text("1"))).collect();
    expected.extend((0..160).map(|n| (format!("w{}-{}", n / 40, n % 40), text("1"))));
    expected.insert("rotated".into(), text("39"));
    assert_eq!(session.attributes, expected);
}
