//! S6: an old token that comes back after its time, while a newer one is in use, is stolen.

mod harness;

use harness::{Client, Server, World, client::*, tokens::*};
use sessiond_client::v1::{
    Cause, EventType, GetSessionRequest, RotateSessionRequest, SessionEvent, TokenState, UpdateSessionRequest,
};
use tonic::Code;

/// On whose server a token is late as soon as its own grace is over.
const STRICT: &str = "[default_policy]\nrotation_grace = '0s'";
const REPORTS: &str = "[default_policy]\nrotation_grace = '0s'\ntoken_reuse = 'report'";

/// Two servers on one store: on the second one, which is strict, no late token is explained by the policy's grace.
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
async fn s6_a_stolen_token_ends_the_session() {
    let world = World::shared();
    let server = world.server_with(STRICT).await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    for call in EVERY_CALL {
        let (session, first) = client.create(&[("cart", text("x"))]).await;
        let second = client.rotate_and_use(&first).await;
        let before = client.get(by_token(&second)).await.unwrap();
        let mut by_second = client.watch(by_token_request(&second)).await.unwrap();
        by_second.bookmark().await;
        assert_eq!(client.present(call, &first).await, call.turned_away("SESSION_ENDED"), "{call:?}");
        for key in [by_token(&first), by_token(&second), by_id(&session.id)] {
            let status = expect_error(client.get(key).await, Code::NotFound, "SESSION_ENDED");
            assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE");
        }
        let event = watching.wait_for(EventType::Ended, &session.id).await;
        assert_eq!((event.cause(), event.session.as_ref()), (Cause::TokenReuse, Some(&before)));
        let status = expect_error(by_second.end().await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE");
        assert_eq!(kinds(&by_second.kept()), [EventType::Ended]);
    }
}

#[tokio::test]
async fn s6_the_thief_is_told_why_the_session_ended() {
    let world = World::shared();
    let server = world.server_with(STRICT).await;
    let client = server.client().await;
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
async fn s6_a_token_is_stolen_only_when_the_policys_grace_is_over_too() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nrotation_grace = '400ms'").await;
    let client = server.client().await;
    for grace_period in [None, millis(0), millis(200)] {
        let (_, first) = client.create(&[]).await;
        let request = RotateSessionRequest { grace_period, ..rotation_of(&first) };
        let (session, second) = client.rotate_as(request).await.unwrap();
        client.get(by_token(&second)).await.unwrap();
        let end = in_ms(session.update_time) + 400;
        let status = loop {
            let before = world.redis.now();
            match client.get(by_token(&first)).await {
                Err(status) if status.reason() == "SESSION_ENDED" => break status,
                Err(status) => assert_eq!(status.reason(), "TOKEN_ROTATED"),
                Ok(_) => {}
            }
            assert!(before < end, "no alarm after the policy's grace");
        };
        assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE");
        assert!(world.redis.now() >= end, "an alarm within the policy's grace");
    }
}

#[tokio::test]
async fn s6_a_stolen_token_is_reported_once() {
    let world = World::shared();
    let server = world.server_with(REPORTS).await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let (session, first) = client.create(&[("cart", text("x"))]).await;
    let second = client.rotate_and_use(&first).await;
    let third = client.rotate_and_use(&second).await;
    watching.everything_so_far().await;
    for old in [&second, &first] {
        let before = client.get(by_token(&third)).await.unwrap();
        for call in [EVERY_CALL, EVERY_CALL].concat() {
            assert_eq!(client.present(call, old).await, call.rotated(), "{call:?}");
        }
        let events = watching.everything_so_far().await;
        assert_eq!(kinds(&events), [EventType::TokenReused]);
        let now = client.get(by_token(&third)).await.unwrap();
        assert_eq!((events[0].revision, events[0].session.as_ref()), (now.revision, Some(&now)));
        assert!(now.revision > before.revision && now.attributes == before.attributes);
        assert_eq!(events[0].cause(), Cause::Unspecified);
        assert!(events[0].changed_attributes.is_empty());
    }
    assert_eq!(client.standing(&third).await.unwrap(), TokenState::Current);
    client.delete(by_id(&session.id)).await.unwrap();
}

#[tokio::test]
async fn s6_each_call_reports_a_stolen_token() {
    let world = World::shared();
    let server = world.server_with(REPORTS).await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    for call in EVERY_CALL {
        let (_, first) = client.create(&[]).await;
        let second = client.rotate_and_use(&first).await;
        watching.everything_so_far().await;
        assert_eq!(client.present(call, &first).await, call.rotated());
        assert_eq!(kinds(&watching.everything_so_far().await), [EventType::TokenReused], "{call:?}");
        assert_eq!(client.standing(&second).await.unwrap(), TokenState::Current);
    }
}

#[tokio::test]
async fn s6_a_reported_token_ends_the_session_where_the_policy_has_become_to_end_it() {
    let world = World::shared();
    let (reports, ends) = (world.server_with(REPORTS).await, world.server_with(STRICT).await);
    let (reports, ends) = (reports.client().await, ends.client().await);
    let (_, first) = reports.create(&[]).await;
    reports.rotate_and_use(&first).await;
    expect_error(reports.get(by_token(&first)).await, Code::NotFound, "TOKEN_ROTATED");
    expect_error(ends.get(by_token(&first)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn s6_where_no_successor_was_ever_presented_nothing_is_stolen() {
    let world = World::shared();
    for policy in [STRICT, REPORTS] {
        let server = world.server_with(policy).await;
        let client = server.client().await;
        let (session, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        let before = client.get(by_id(&session.id)).await.unwrap();
        for call in EVERY_CALL {
            assert_eq!(client.present(call, &first).await, call.rotated(), "{call:?}");
        }
        // Neither does who names the id present a token.
        client.set(by_id(&session.id), &[]).await.unwrap();
        assert_eq!(client.present(Call::Get, &first).await, "TOKEN_ROTATED");
        assert_eq!(client.get(by_id(&session.id)).await.unwrap(), before);
        client.get(by_token(&second)).await.unwrap();
    }
}

#[tokio::test]
async fn s6_a_successor_is_in_use_from_its_first_presentation_in_any_call() {
    let world = World::shared();
    let server = world.server_with(STRICT).await;
    let client = server.client().await;
    for call in EVERY_CALL.into_iter().filter(|call| *call != Call::Delete) {
        let (_, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        assert_eq!(client.present(Call::Get, &first).await, "TOKEN_ROTATED");
        assert_eq!(client.present(call, &second).await, ACCEPTED);
        assert_eq!(client.present(Call::Get, &first).await, "SESSION_ENDED", "{call:?}");
    }
    // A call that is refused for what it asks for has shown the token all the same.
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let update = UpdateSessionRequest { key: by_token(&second), if_revision: Some(1), ..Default::default() };
    expect_error(client.update(update).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(client.present(Call::Get, &first).await, "SESSION_ENDED");
}

#[tokio::test]
async fn s6_any_later_token_in_use_makes_an_earlier_one_stolen() {
    let world = World::shared();
    let two = Two::start(&world).await;
    // The first successor was used, the present token not yet.
    let (_, first) = two.lenient.create(&[]).await;
    let (_, second) = two.lenient.rotate_as(graceless(&first)).await.unwrap();
    two.lenient.rotate(&second).await.unwrap();
    assert_eq!(two.strict.present(Call::Get, &first).await, "SESSION_ENDED");
    // Of the token before the present one no successor was used.
    let (_, first) = two.lenient.create(&[]).await;
    let (_, second) = two.lenient.rotate_as(graceless(&first)).await.unwrap();
    let (_, third) = two.lenient.rotate_as(graceless(&second)).await.unwrap();
    assert_eq!(two.strict.present(Call::Get, &second).await, "TOKEN_ROTATED");
    assert_eq!(two.strict.standing(&third).await.unwrap(), TokenState::Current);
}

#[tokio::test]
async fn s6_a_displaced_successor_that_returns_late_is_stolen() {
    let world = World::shared();
    let two = Two::start(&world).await;
    for (is_used, is_stolen) in [(true, true), (false, false)] {
        let (_, first) = two.lenient.create(&[]).await;
        let displaced = two.lenient.rotate(&first).await.unwrap();
        // The token that was issued instead; the displaced one's grace is over at once.
        let (_, second) = two.lenient.rotate_as(graceless(&first)).await.unwrap();
        if is_used {
            two.lenient.get(by_token(&second)).await.unwrap();
        }
        for call in EVERY_CALL {
            assert_eq!(two.lenient.present(call, &displaced).await, call.rotated(), "{call:?}");
        }
        let reason = if is_stolen { "SESSION_ENDED" } else { "TOKEN_ROTATED" };
        assert_eq!(two.strict.present(Call::Get, &displaced).await, reason);
        assert_eq!(two.strict.present(Call::Get, &second).await, if is_stolen { reason } else { ACCEPTED });
    }
}

#[tokio::test]
async fn s6_a_token_that_was_issued_again_is_stolen_when_it_returns_late() {
    let world = World::shared();
    let two = Two::start(&world).await;
    let (_, first) = two.lenient.create(&[]).await;
    two.lenient.rotate(&first).await.unwrap();
    let second = two.lenient.rotate(&first).await.unwrap();
    // Ends the first one's grace; the displaced one was never seen.
    two.lenient.update(login(&second, "alice")).await.unwrap();
    assert_eq!(two.lenient.present(Call::Get, &first).await, "TOKEN_ROTATED");
    assert_eq!(two.strict.present(Call::Get, &first).await, "SESSION_ENDED");
}

#[tokio::test]
async fn s6_a_displaced_successor_in_use_counts_as_one_of_the_first_token() {
    let world = World::shared();
    let two = Two::start(&world).await;
    let (_, first) = two.lenient.create(&[]).await;
    let displaced = two.lenient.rotate(&first).await.unwrap();
    let second = two.lenient.rotate(&first).await.unwrap();
    two.lenient.get(by_token(&displaced)).await.unwrap();
    // Cuts every grace; nobody but the displaced one has been seen.
    let subject = UpdateSessionRequest { key: by_id(&id_of(&second)), ..login(&second, "alice") };
    two.lenient.update(subject).await.unwrap();
    assert_eq!(two.strict.present(Call::Get, &displaced).await, "TOKEN_ROTATED");
    assert_eq!(two.strict.present(Call::Get, &first).await, "SESSION_ENDED");
}

#[tokio::test]
async fn s6_a_forgotten_token_raises_no_alarm() {
    let world = World::shared();
    let server = world.server_with(STRICT).await;
    let client = server.client().await;
    let mut tokens = vec![client.create(&[]).await.1];
    for n in 0..17 {
        tokens.push(client.rotate_and_use(&tokens[n]).await);
    }
    for call in EVERY_CALL {
        assert_eq!(client.present(call, &tokens[0]).await, call.turned_away("SESSION_NOT_FOUND"), "{call:?}");
    }
    assert_eq!(client.present(Call::Get, &tokens[17]).await, ACCEPTED);
    assert_eq!(client.present(Call::Get, &tokens[1]).await, "SESSION_ENDED", "the oldest that is kept");
}

#[tokio::test]
async fn s6_a_session_that_was_ended_for_theft_leaves_its_subjects_list() {
    let world = World::shared();
    let server = world.server_with(STRICT).await;
    let client = server.client().await;
    for call in EVERY_CALL {
        let (_, first) = client.create_of("alice").await;
        client.rotate_and_use(&first).await;
        client.present(call, &first).await;
        assert!(client.list_of("alice").await.is_empty(), "{call:?}");
    }
}
