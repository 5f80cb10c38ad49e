//! S6: token reuse. A superseded token that is presented after its grace period while a newer one is in use.

use harness::{Client, Server, Setup, World, client::*, setup_with, tokens::*};
use sessiond_client::v1::{
    Cause, EventType, GetSessionRequest, RotateSessionRequest, SessionEvent, TokenState, UpdateSessionRequest,
};
use tonic::Code;

/// Policy with a rotation grace of zero: a token presented after its granted grace period is token reuse.
const STRICT: &str = "[default_policy]\nrotation_grace = '0s'";
const REPORTS: &str = "[default_policy]\nrotation_grace = '0s'\ntoken_reuse = 'report'";

/// Two servers on one store: under the policy of `strict` the rotation grace is zero.
struct Two {
    _servers: [Server; 2],
    lenient: Client,
    strict: Client,
}

impl Two {
    async fn start(world: &World) -> Self {
        let (server, strict) = (world.server().await, world.server_with(STRICT).await);
        Two { lenient: server.client().await, strict: strict.client().await, _servers: [server, strict] }
    }
}

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

#[tokio::test]
async fn s6_token_reuse_ends_the_session() {
    let Setup { client, .. } = &setup_with(STRICT).await;
    let mut watching = client.watch_all().await;
    for call in REJECTING_CALLS {
        let (session, first) = client.create(&[("cart", text("x"))]).await;
        let second = client.rotate_and_use(&first).await;
        let before = client.get(by_token(&second)).await.unwrap();
        let mut by_second = client.watch(token_watch_request(&second)).await.unwrap();
        by_second.bookmark().await;
        assert_eq!(client.present(call, &first).await, "SESSION_ENDED", "{call:?}");
        for key in [by_token(&first), by_token(&second), by_id(&session.id)] {
            let status = expect_error(client.get(key).await, Code::NotFound, "SESSION_ENDED");
            assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE");
        }
        let event = watching.wait_for(EventType::Ended, &session.id).await;
        assert_eq!((event.cause(), event.session.as_ref()), (Cause::TokenReuse, Some(&before)));
        let status = expect_error(by_second.end().await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE");
        assert_eq!(kinds(&by_second.buffered()), [EventType::Ended]);
    }
}

#[tokio::test]
async fn s6_token_reuse_returns_the_cause_to_its_caller() {
    let Setup { client, .. } = &setup_with(STRICT).await;
    for touch in [false, true] {
        let (_, first) = client.create(&[]).await;
        client.rotate_and_use(&first).await;
        let request =
            GetSessionRequest { namespace: NAMESPACE.into(), key: by_token(&first), touch, ..Default::default() };
        let status = expect_error(client.grpc.clone().get_session(request).await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE");
    }
}

#[tokio::test]
async fn s6_token_reuse_is_detected_only_after_the_policy_grace() {
    let Setup { world, client, .. } = &setup_with("[default_policy]\nrotation_grace = '400ms'").await;
    for grace_period in [None, millis(0), millis(200)] {
        let (_, first) = client.create(&[]).await;
        let request = RotateSessionRequest { grace_period, ..rotation_of(&first) };
        let (session, second) = client.rotate_with(request).await.unwrap();
        client.get(by_token(&second)).await.unwrap();
        let end = unix_ms(session.update_time) + 400;
        let status = loop {
            let before = world.redis.now();
            match client.get(by_token(&first)).await {
                Err(status) if status.reason() == "SESSION_ENDED" => break status,
                Err(status) => assert_eq!(status.reason(), "TOKEN_ROTATED"),
                Ok(_) => {}
            }
            assert!(before < end, "no token reuse after the policy's grace");
        };
        assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE");
        assert!(world.redis.now() >= end, "token reuse within the policy's grace");
    }
}

#[tokio::test]
async fn s6_token_reuse_is_reported_once() {
    let Setup { client, .. } = &setup_with(REPORTS).await;
    let mut watching = client.watch_all().await;
    let (session, first) = client.create(&[("cart", text("x"))]).await;
    let second = client.rotate_and_use(&first).await;
    let third = client.rotate_and_use(&second).await;
    watching.events_until_now().await;
    for old in [&second, &first] {
        let before = client.get(by_token(&third)).await.unwrap();
        for call in [REJECTING_CALLS, REJECTING_CALLS].concat() {
            assert_eq!(client.present(call, old).await, "TOKEN_ROTATED", "{call:?}");
        }
        let events = watching.events_until_now().await;
        assert_eq!(kinds(&events), [EventType::TokenReused]);
        let now = client.get(by_token(&third)).await.unwrap();
        assert_eq!((events[0].revision, events[0].session.as_ref()), (now.revision, Some(&now)));
        assert!(now.revision > before.revision && now.attributes == before.attributes);
        assert_eq!(events[0].cause(), Cause::Unspecified);
        assert!(events[0].changed_attributes.is_empty());
    }
    assert_eq!(client.token_state(&third).await.unwrap(), TokenState::Current);
    client.delete(by_id(&session.id)).await.unwrap();
}

#[tokio::test]
async fn s6_token_reuse_in_any_call_is_reported() {
    let Setup { client, .. } = &setup_with(REPORTS).await;
    let mut watching = client.watch_all().await;
    for call in REJECTING_CALLS {
        let (_, first) = client.create(&[]).await;
        let second = client.rotate_and_use(&first).await;
        watching.events_until_now().await;
        assert_eq!(client.present(call, &first).await, "TOKEN_ROTATED");
        assert_eq!(kinds(&watching.events_until_now().await), [EventType::TokenReused], "{call:?}");
        assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
    }
}

#[tokio::test]
async fn s6_reported_token_ends_the_session_under_an_end_policy() {
    let world = World::shared();
    let (reports, ends) = (world.server_with(REPORTS).await, world.server_with(STRICT).await);
    let (reports, ends) = (reports.client().await, ends.client().await);
    let (_, first) = reports.create(&[]).await;
    reports.rotate_and_use(&first).await;
    expect_error(reports.get(by_token(&first)).await, Code::NotFound, "TOKEN_ROTATED");
    expect_error(ends.get(by_token(&first)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn s6_old_token_without_a_used_successor_is_not_token_reuse() {
    let world = World::shared();
    for policy in [STRICT, REPORTS] {
        let server = world.server_with(policy).await;
        let client = server.client().await;
        let (session, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        let before = client.get(by_id(&session.id)).await.unwrap();
        for call in REJECTING_CALLS {
            assert_eq!(client.present(call, &first).await, "TOKEN_ROTATED", "{call:?}");
        }
        // A call by id does not count as a use of the successor.
        client.set(by_id(&session.id), &[]).await.unwrap();
        assert_eq!(client.present(Call::Get, &first).await, "TOKEN_ROTATED");
        assert_eq!(client.get(by_id(&session.id)).await.unwrap(), before);
        client.get(by_token(&second)).await.unwrap();
    }
}

#[tokio::test]
async fn s6_successor_is_in_use_from_its_first_call_of_any_kind() {
    let Setup { client, .. } = &setup_with(STRICT).await;
    for call in EVERY_CALL.into_iter().filter(|call| *call != Call::Delete) {
        let (_, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        assert_eq!(client.present(Call::Get, &first).await, "TOKEN_ROTATED");
        assert_eq!(client.present(call, &second).await, ACCEPTED);
        assert_eq!(client.present(Call::Get, &first).await, "SESSION_ENDED", "{call:?}");
    }
    // A refused call counts as a use of the token too.
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let update = UpdateSessionRequest { key: by_token(&second), if_revision: Some(1), ..Default::default() };
    expect_error(client.update(update).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(client.present(Call::Get, &first).await, "SESSION_ENDED");
}

#[tokio::test]
async fn s6_old_token_with_any_later_token_in_use_is_token_reuse() {
    let world = World::shared();
    let two = Two::start(&world).await;
    // The first successor was used, the current token was not.
    let (_, first) = two.lenient.create(&[]).await;
    let (_, second) = two.lenient.rotate_with(rotation_without_grace(&first)).await.unwrap();
    two.lenient.rotate(&second).await.unwrap();
    assert_eq!(two.strict.present(Call::Get, &first).await, "SESSION_ENDED");
    // The successor of the second token was not used.
    let (_, first) = two.lenient.create(&[]).await;
    let (_, second) = two.lenient.rotate_with(rotation_without_grace(&first)).await.unwrap();
    let (_, third) = two.lenient.rotate_with(rotation_without_grace(&second)).await.unwrap();
    assert_eq!(two.strict.present(Call::Get, &second).await, "TOKEN_ROTATED");
    assert_eq!(two.strict.token_state(&third).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s6_token_that_is_no_longer_kept_is_not_token_reuse() {
    let Setup { client, .. } = &setup_with(STRICT).await;
    let mut tokens = vec![client.create(&[]).await.1];
    for n in 0..17 {
        tokens.push(client.rotate_and_use(&tokens[n]).await);
    }
    for call in EVERY_CALL {
        assert_eq!(client.present(call, &tokens[0]).await, call.rejection("SESSION_NOT_FOUND"), "{call:?}");
    }
    assert_eq!(client.present(Call::Get, &tokens[17]).await, ACCEPTED);
    assert_eq!(client.present(Call::Get, &tokens[1]).await, "SESSION_ENDED", "the oldest token that is kept");
}

#[tokio::test]
async fn s6_session_ended_by_token_reuse_leaves_the_list() {
    let Setup { client, .. } = &setup_with(STRICT).await;
    for call in EVERY_CALL {
        let (_, first) = client.create_for("alice").await;
        client.rotate_and_use(&first).await;
        client.present(call, &first).await;
        assert!(client.list_subject("alice").await.is_empty(), "{call:?}");
    }
}
