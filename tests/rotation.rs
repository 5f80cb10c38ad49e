//! S6: a session's token rotates atomically; how long the tokens before it are good, and for what.

mod harness;

use std::collections::BTreeMap;

use futures_util::future::join_all;
use harness::{World, client::*, tokens::*};
use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, EventType, RotateSessionRequest, SessionView, TokenState,
    UpdateSessionRequest, WatchRequest,
};
use tonic::Code;

const REQUEST_ID: &str = "request-0000000001";

/// On whose server a token is late as soon as its own grace is over.
const STRICT: &str = "[default_policy]\nrotation_grace = '0s'";

#[tokio::test]
async fn s6_a_rotation_gives_the_same_session_a_new_token() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (created, first) = client.create(&[("cart", text("x"))]).await;
    assert_eq!(client.standing(&first).await.unwrap(), TokenState::Current);
    let second = client.rotate(&first).await.unwrap();
    assert_eq!(client.standing(&second).await.unwrap(), TokenState::Current);
    assert_eq!(client.standing(&first).await.unwrap(), TokenState::Superseded);
    let session = client.get(by_token(&second)).await.unwrap();
    assert_eq!((&session.id, session.token_generation), (&created.id, 2));
    assert_eq!(session.attributes, created.attributes);
    expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
}

#[tokio::test]
async fn s6_an_old_token_works_through_its_grace_but_does_not_rotate() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, first) = client.create(&[]).await;
    let second = client.rotate_and_use(&first).await;
    for call in EVERY_CALL {
        let expected = if call == Call::Rotate { "TOKEN_ROTATED" } else { ACCEPTED };
        assert_eq!(client.present(call, &first).await, expected, "{call:?}");
    }
    let ended = expect_error(client.get(by_token(&second)).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(ended.metadata_of("cause"), "LOGOUT", "the old token ended {}", session.id);
}

#[tokio::test]
async fn s6_each_of_the_last_sixteen_tokens_has_a_grace_of_its_own() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut tokens = vec![client.create(&[]).await.1];
    for n in 0..17 {
        let request = if n % 2 == 0 { rotation_of(&tokens[n]) } else { graceless(&tokens[n]) };
        let (session, token) = client.rotate_as(request).await.unwrap();
        assert_eq!(session.token_generation as usize, n + 2);
        tokens.push(token);
    }
    expect_error(client.get(by_token(&tokens[0])).await, Code::NotFound, "SESSION_NOT_FOUND");
    for (n, token) in tokens[1..17].iter().enumerate() {
        if n % 2 == 1 {
            assert_eq!(client.standing(token).await.unwrap(), TokenState::Superseded, "{n}");
        } else {
            expect_error(client.get(by_token(token)).await, Code::NotFound, "TOKEN_ROTATED");
        }
    }
    assert_eq!(client.standing(&tokens[17]).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s6_an_old_token_is_good_until_its_grace_is_over_and_not_after() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nrotation_grace = '400ms'").await;
    let client = server.client().await;
    for (asked_for, grace) in [(None, 400), (millis(150), 150)] {
        let (_, first) = client.create(&[]).await;
        let request = RotateSessionRequest { grace_period: asked_for, ..rotation_of(&first) };
        let (session, second) = client.rotate_as(request).await.unwrap();
        let end = in_ms(session.update_time) + grace;
        loop {
            let before = world.redis.now();
            match client.get(by_token(&first)).await {
                Ok(_) => assert!(before < end, "used after its grace"),
                Err(status) => {
                    assert_eq!(status.reason(), "TOKEN_ROTATED");
                    break assert!(world.redis.now() >= end, "refused within its grace");
                }
            }
        }
        assert_eq!(client.standing(&second).await.unwrap(), TokenState::Current);
    }
}

#[tokio::test]
async fn s6_a_grace_that_was_given_is_not_shortened_by_a_new_policy() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    let (_, first) = client.create(&[]).await;
    client.rotate_and_use(&first).await;
    assert_eq!(strict.standing(&first).await.unwrap(), TokenState::Superseded);
}

#[tokio::test]
async fn s6_a_token_that_is_late_within_the_policys_grace_raises_no_alarm() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, first) = client.create(&[]).await;
    let (_, second) = client.rotate_as(graceless(&first)).await.unwrap();
    let before = client.get(by_token(&second)).await.unwrap();
    for call in EVERY_CALL {
        assert_eq!(client.present(call, &first).await, call.rotated(), "{call:?}");
    }
    assert_eq!(client.get(by_id(&session.id)).await.unwrap(), before, "nothing came of it");
}

#[tokio::test]
async fn s6_a_lost_answer_is_made_good_once() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let lost = client.rotate(&first).await.unwrap();
    let second = client.rotate(&first).await.unwrap();
    expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
    // All three work: whoever holds one is let in.
    let standings = [&first, &lost, &second].map(async |token| client.standing(token).await.unwrap());
    let superseded = TokenState::Superseded;
    assert_eq!(join_all(standings).await, [superseded, superseded, TokenState::Current]);
    expect_error(client.rotate(&lost).await, Code::NotFound, "TOKEN_ROTATED");
    assert_eq!(client.get(by_token(&second)).await.unwrap().token_generation, 3);
}

#[tokio::test]
async fn s6_no_answer_is_made_good_once_the_successor_was_presented() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    for call in EVERY_CALL.into_iter().filter(|call| *call != Call::Delete) {
        let (_, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        assert_eq!(client.present(call, &second).await, ACCEPTED);
        assert_eq!(client.present(Call::Rotate, &first).await, "TOKEN_ROTATED", "{call:?}");
    }
    // To be refused for another reason is to be presented, too.
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let update = UpdateSessionRequest { key: by_token(&second), if_revision: Some(1), ..Default::default() };
    expect_error(client.update(update).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(client.present(Call::Rotate, &first).await, "TOKEN_ROTATED");
}

#[tokio::test]
async fn s6_a_displaced_successor_that_was_presented_stops_no_rotation_of_the_present_token() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let displaced = client.rotate(&first).await.unwrap();
    let second = client.rotate(&first).await.unwrap();
    client.get(by_token(&displaced)).await.unwrap();
    expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
    let third = client.rotate(&second).await.unwrap();
    assert_eq!(client.standing(&third).await.unwrap(), TokenState::Current);
}

/// Ways to log in with the current token; the successor where there is one.
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
    Some(client.rotate_as(rotation).await.unwrap().1)
}

#[tokio::test]
async fn s6_a_login_ends_every_grace_at_once() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    for way in 0..9 {
        // From nobody to alice; and bob, who is so already, again, or not any more.
        let subject = if matches!(way, 0 | 4) { "" } else { "bob" };
        let request = CreateSessionRequest {
            subject: subject.into(),
            authentication: by_password().filter(|_| way % 2 == 1),
            ..Default::default()
        };
        let (session, first) = client.create_as(request).await.unwrap();
        let second = client.rotate_and_use(&first).await;
        let third = client.rotate_and_use(&second).await;
        for old in [&first, &second] {
            assert_eq!(client.standing(old).await.unwrap(), TokenState::Superseded);
        }
        let fourth = log_in(&client, way, &session.id, &third).await;
        for old in [Some(&first), Some(&second), fourth.as_ref().map(|_| &third)].into_iter().flatten() {
            for call in EVERY_CALL {
                assert_eq!(client.present(call, old).await, call.rotated(), "way {way}, {call:?}");
            }
        }
        let current = fourth.unwrap_or(third);
        assert_eq!(client.standing(&current).await.unwrap(), TokenState::Current, "way {way}");
        // Once the policy's grace is over, too, it is theft.
        expect_error(strict.get(by_token(&first)).await, Code::NotFound, "SESSION_ENDED");
    }
}

#[tokio::test]
async fn s6_an_old_token_may_not_log_in() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
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
            expect_error(client.rotate_as(rotation).await, Code::NotFound, "TOKEN_ROTATED");
        }
        assert_eq!(client.standing(&first).await.unwrap(), TokenState::Superseded);
        let session = client.get(by_token(&second)).await.unwrap();
        assert_eq!((&session.subject[..], session.authentication, session.token_generation), ("", None, 2));
    }
}

#[tokio::test]
async fn s6_a_lost_answer_of_a_login_is_made_good_by_its_request_id_alone() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    let (_, first) = client.create(&[]).await;
    let as_alice = |token: &str| RotateSessionRequest { subject: Some("alice".into()), ..rotation_of(token) };
    client.rotate_as(as_alice(&first)).await.unwrap();
    for again in [as_alice(&first), rotation_of(&first)] {
        expect_error(client.rotate_as(again).await, Code::NotFound, "TOKEN_ROTATED");
    }

    let (_, first) = client.create(&[]).await;
    let second = successor_of(&first);
    let request = RotateSessionRequest { new_token: second.clone(), request_id: REQUEST_ID.into(), ..as_alice(&first) };
    let (session, told) = client.rotate_as(request.clone()).await.unwrap();
    assert_eq!((&session.subject[..], &told[..]), ("alice", ""), "the caller's token is not told");
    assert_eq!(client.rotate_as(request.clone()).await.unwrap().0, session);
    client.get(by_token(&second)).await.unwrap();
    // Also where the token itself would raise the alarm by now.
    assert_eq!(strict.rotate_as(request).await.unwrap().0, session);
    assert_eq!(client.standing(&second).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s5_a_repeated_rotation_has_its_effect_once() {
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
    let (session, _) = client.rotate_as(request.clone()).await.unwrap();
    assert_eq!(session.token_generation, 2);
    assert_eq!(client.rotate_as(request.clone()).await.unwrap().0, session);
    let changed = client.set(by_token(&second), &[("n", text("2"))]).await.unwrap();
    for again in [&client, &strict] {
        assert_eq!(again.rotate_as(request.clone()).await.unwrap().0, changed, "the same outcome, the present state");
    }
    let third = client.rotate_and_use(&second).await;
    assert_eq!(strict.rotate_as(request.clone()).await.unwrap().0.token_generation, 3);
    let other = RotateSessionRequest { clear_attributes: true, ..request.clone() };
    expect_error(client.rotate_as(other).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let update = UpdateSessionRequest { request_id: REQUEST_ID.into(), ..login(&third, "alice") };
    expect_error(client.update(update).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let kinds: Vec<_> = watching.everything_so_far().await.iter().map(|event| event.r#type()).collect();
    assert_eq!(kinds, [EventType::Created, EventType::Rotated, EventType::Updated, EventType::Rotated]);
    client.delete(by_token(&third)).await.unwrap();
    expect_error(client.rotate_as(request).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn s6_a_token_that_the_session_had_is_no_successor() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let third = client.rotate(&second).await.unwrap();
    for had in [&first, &second, &third] {
        let request = RotateSessionRequest { new_token: had.clone(), ..rotation_of(&third) };
        let status = expect_error(client.rotate_as(request).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["new_token"]);
    }
    let session = client.get(by_token(&third)).await.unwrap();
    assert_eq!(session.token_generation, 3);
}

#[tokio::test]
async fn s6_an_id_never_yields_a_token() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    for no_token in [session.id.clone(), format!("ses_{}", session.id), "garbage".into(), successor_of(&token)] {
        expect_error(client.rotate(&no_token).await, Code::NotFound, "SESSION_NOT_FOUND");
    }
    let elsewhere = client.in_namespace("other").rotate(&token).await;
    expect_error(elsewhere, Code::NotFound, "SESSION_NOT_FOUND");
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
}

#[tokio::test]
async fn s6_a_rotation_that_is_refused_leaves_everything_as_it_was() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nmax_attributes = 2\nmax_payload_bytes = '1 KiB'").await;
    let client = server.client().await;
    let (_, token) = client.create(&[("a", text("1")), ("b", text(&a(600)))]).await;
    let session = client.update(login(&token, "alice")).await.unwrap();
    let rotation = rotation_of(&token);
    let set = |name: &str, value: &str| RotateSessionRequest {
        set_attributes: [(name.to_owned(), text(value))].into(),
        ..rotation.clone()
    };
    for too_much in [set("c", ""), set("a", &a(600))] {
        let status = expect_error(client.rotate_as(too_much).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["set_attributes"]);
    }
    let mismatch = RotateSessionRequest { if_revision: Some(session.revision - 1), ..rotation.clone() };
    let status = expect_error(client.rotate_as(mismatch).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(status.metadata_of("current_revision"), session.revision.to_string());
    let as_bob = RotateSessionRequest { subject: Some("bob".into()), ..rotation.clone() };
    expect_error(client.rotate_as(as_bob).await, Code::FailedPrecondition, "SUBJECT_CHANGE");
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
    assert_eq!(client.standing(&token).await.unwrap(), TokenState::Current);
    let matching = RotateSessionRequest { if_revision: Some(session.revision), ..rotation };
    client.rotate_as(matching).await.unwrap();
}

fn a(length: usize) -> String {
    "a".repeat(length)
}

#[tokio::test]
async fn s6_a_rotation_changes_content_and_token_in_one_step() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
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
    let (session, second) = client.rotate_as(request).await.unwrap();
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
    let (cleared, _) = client.rotate_as(clear).await.unwrap();
    assert_eq!(cleared.attributes.keys().collect::<Vec<_>>(), ["e"]);
}

#[tokio::test]
async fn s6_a_rotation_that_changes_the_subject_is_told_to_watchers_of_both() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let of_alice = WatchRequest { subject: Some("alice".into()), whole_namespace: false, ..whole_namespace() };
    let mut alices = client.watch(of_alice).await.unwrap();
    alices.bookmark().await;
    let (session, first) = client.create(&[]).await;
    let to = |token: &str, subject: &str| RotateSessionRequest { subject: Some(subject.into()), ..rotation_of(token) };
    let (_, second) = client.rotate_as(to(&first, "alice")).await.unwrap();
    let third = client.rotate(&second).await.unwrap();
    let (_, fourth) = client.rotate_as(to(&third, "")).await.unwrap();
    client.rotate(&fourth).await.unwrap();
    let told: Vec<_> =
        alices.everything_so_far().await.iter().map(|event| (event.r#type(), event.id.clone())).collect();
    let kinds = [EventType::Rotated, EventType::Rotated, EventType::Left];
    assert_eq!(told, kinds.map(|kind| (kind, session.id.clone())));
}

#[tokio::test]
async fn s6_a_foreign_token_gives_way_to_one_in_the_servers_form() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let foreign = "a-foreign-token-of-enough-bytes".to_owned();
    let create = CreateSessionRequest { token: foreign.clone(), ..Default::default() };
    let (session, _) = client.create_as(create).await.unwrap();
    // What has the right id, and no secret that the session was given.
    let guess = format!("ses_{}_{}", session.id, &new_token()[31..]);
    expect_error(client.get(by_token(&guess)).await, Code::NotFound, "SESSION_NOT_FOUND");
    let to_foreign =
        RotateSessionRequest { new_token: "another-foreign-token-of-enough-bytes".into(), ..rotation_of(&foreign) };
    let status = expect_error(client.rotate_as(to_foreign).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(status.bad_fields(), ["new_token"]);
    let given = client.rotate(&foreign).await.unwrap();
    assert!(given.starts_with(&format!("ses_{}_", session.id)) && given.len() == guess.len());
    assert_eq!(client.standing(&given).await.unwrap(), TokenState::Current);
    assert_eq!(client.standing(&foreign).await.unwrap(), TokenState::Superseded);
    assert_eq!(client.present(Call::Rotate, &foreign).await, "TOKEN_ROTATED");
    expect_error(client.get(by_token(&guess)).await, Code::NotFound, "SESSION_NOT_FOUND");
    let last = RotateSessionRequest { new_token: guess.clone(), ..graceless(&given) };
    client.rotate_as(last).await.unwrap();
    assert_eq!(client.standing(&guess).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s6_where_foreign_tokens_are_forbidden_none_is_rotated() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nclient_tokens = false").await;
    let rotated = server.client().await.rotate("a-foreign-token-of-enough-bytes").await;
    expect_error(rotated, Code::FailedPrecondition, "CLIENT_TOKENS_FORBIDDEN");
}

#[tokio::test]
async fn s6_a_token_older_than_the_renewal_timeout_is_due() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nrenewal_timeout = '1h'").await;
    let hasty = world.server_with("[default_policy]\nrenewal_timeout = '300ms'").await;
    let (client, hasty) = (server.client().await, hasty.client().await);
    let (session, first) = client.create(&[]).await;
    world.redis.reaches(in_ms(session.create_time) + 300).await;
    assert_eq!(hasty.standing(&first).await.unwrap(), TokenState::RotationDue);
    assert_eq!(client.standing(&first).await.unwrap(), TokenState::Current);
    let (rotated, second) = hasty.rotate_as(rotation_of(&first)).await.unwrap();
    assert_eq!(hasty.standing(&first).await.unwrap(), TokenState::Superseded);
    // The time of each token counts from when it was made.
    let before = hasty.standing(&second).await.unwrap();
    assert!(before == TokenState::Current || world.redis.now() >= in_ms(rotated.update_time) + 300, "{before:?}");
    world.redis.reaches(in_ms(rotated.update_time) + 300).await;
    assert_eq!(hasty.standing(&second).await.unwrap(), TokenState::RotationDue);
    // A due token works on.
    for call in EVERY_CALL.into_iter().filter(|call| !matches!(call, Call::Rotate)) {
        assert_eq!(hasty.present(call, &second).await, ACCEPTED, "{call:?}");
    }
}

#[tokio::test]
async fn a_session_named_by_its_id_has_no_token_state() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
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
async fn every_token_of_an_ended_session_learns_that_it_ended() {
    let world = World::shared();
    let (server, strict) = (world.server().await, world.server_with(STRICT).await);
    let (client, strict) = (server.client().await, strict.client().await);
    let (session, first) = client.create(&[]).await;
    let (_, second) = client.rotate_as(graceless(&first)).await.unwrap();
    let third = client.rotate_and_use(&second).await;
    let delete =
        DeleteSessionRequest { namespace: NAMESPACE.into(), key: by_id(&session.id), cause: 2, ..Default::default() };
    client.grpc.clone().delete_session(delete).await.unwrap();
    for token in [&first, &second, &third] {
        for (asked, call) in [&client, &strict].into_iter().flat_map(|asked| EVERY_CALL.map(|call| (asked, call))) {
            assert_eq!(asked.present(call, token).await, call.turned_away("SESSION_ENDED"), "{call:?}");
        }
        let status = client.get(by_token(token)).await.unwrap_err();
        assert_eq!(status.metadata_of("cause"), "REVOKED", "no alarm is raised for what is over");
    }
    for call in EVERY_CALL {
        let stranger = successor_of(&third);
        assert_eq!(client.present(call, &stranger).await, call.turned_away("SESSION_NOT_FOUND"), "{call:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_no_attribute_is_lost_where_rotations_and_updates_meet() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let (session, first) = clients[0].create(&[]).await;
    let rotating = async {
        let mut token = first.clone();
        for n in 0..40 {
            let set_attributes = [("rotated".to_owned(), text(&n.to_string())), (format!("r{n}"), text("1"))].into();
            let request = RotateSessionRequest { set_attributes, ..rotation_of(&token) };
            token = clients[n % 2].rotate_as(request).await.unwrap().1;
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
