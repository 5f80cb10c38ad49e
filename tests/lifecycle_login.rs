//! S5 and S6: which calls a request id lets repeat a rotation, and that a refused token gains nothing by a known request id.

use std::collections::BTreeMap;

use harness::{Client, Server, World, client::*, clock::Clock, tokens::*};
use sessiond_client::v1::{
    CreateSessionRequest, EventType, RotateSessionRequest, Session, SessionEvent, TokenState, UpdateSessionRequest,
};
use tonic::Code;

const REQUEST_ID: &str = "request-0000000001";
const OTHER_ID: &str = "request-0000000002";
/// Policies under which a token presented after its granted grace period is token reuse.
const ENDS: &str = "[default_policy]\nrotation_grace = '0s'";
const REPORTS: &str = "[default_policy]\nrotation_grace = '0s'\ntoken_reuse = 'report'";

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

fn with_id(request_id: &str, rotation: RotateSessionRequest) -> RotateSessionRequest {
    RotateSessionRequest { request_id: request_id.into(), ..rotation }
}

fn login_of(token: &str) -> RotateSessionRequest {
    RotateSessionRequest { subject: Some("alice".into()), authentication: by_password(), ..rotation_of(token) }
}

/// Three servers on one store that differ in their reaction to a late token, and a client for each.
struct Three {
    _servers: [Server; 3],
    lenient: Client,
    ends: Client,
    reports: Client,
}

impl Three {
    async fn start(world: &World) -> Self {
        let servers = [world.server().await, world.server_with(ENDS).await, world.server_with(REPORTS).await];
        let [lenient, ends, reports] =
            [servers[0].client().await, servers[1].client().await, servers[2].client().await];
        Three { _servers: servers, lenient, ends, reports }
    }

    fn all(&self) -> [&Client; 3] {
        [&self.lenient, &self.ends, &self.reports]
    }
}

#[tokio::test]
async fn s5_rotation_without_new_token_is_repeated() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    let mut watching = clients[0].watch_all().await;
    let (_, first) = clients[0].create(&[]).await;
    let set_attributes = [("n".to_owned(), text("1"))].into();
    let rotation = with_id(REQUEST_ID, RotateSessionRequest { set_attributes, ..rotation_of(&first) });
    let (session, second) = clients[0].rotate_with(rotation.clone()).await.unwrap();
    let changed = clients[0].set(by_id(&session.id), &[("n", text("2"))]).await.unwrap();
    for client in &clients {
        // The retry returns the current state and does not set the old value again.
        assert_eq!(client.rotate_with(rotation.clone()).await.unwrap(), (changed.clone(), second.clone()));
    }
    let other = RotateSessionRequest { clear_attributes: true, ..rotation.clone() };
    expect_error(clients[1].rotate_with(other).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let again = clients[1].rotate_with(with_id(OTHER_ID, rotation_of(&first))).await.unwrap();
    assert_eq!(again, (changed, second.clone()), "another request within the grace period");
    assert_eq!(clients[0].get(by_token(&second)).await.unwrap().token_generation, 2);
    let expected = [EventType::Created, EventType::Rotated, EventType::Updated];
    assert_eq!(kinds(&watching.events_until_now().await), expected);
}

#[tokio::test]
async fn s5_login_successor_is_returned_only_to_its_request_id() {
    let world = World::shared();
    let three = Three::start(&world).await;
    let mut watching = three.lenient.watch_all().await;
    for rotation in [login_of as fn(&str) -> RotateSessionRequest, rotation_without_grace] {
        let (_, first) = three.lenient.create(&[]).await;
        let rotation = with_id(REQUEST_ID, rotation(&first));
        let issued = three.lenient.rotate_with(rotation.clone()).await.unwrap();
        for client in three.all() {
            for other in [
                with_id("", rotation.clone()),
                with_id(OTHER_ID, rotation.clone()),
                RotateSessionRequest { clear_attributes: true, ..rotation.clone() },
                RotateSessionRequest { new_token: successor_of(&first), ..rotation.clone() },
                rotation_of(&first),
                with_id(REQUEST_ID, rotation_of(&first)),
            ] {
                expect_error(client.rotate_with(other).await, Code::NotFound, "TOKEN_ROTATED");
            }
            assert_eq!(client.rotate_with(rotation.clone()).await.unwrap(), issued);
            expect_error(client.get(by_token(&first)).await, Code::NotFound, "TOKEN_ROTATED");
        }
        let (session, second) = issued;
        assert_eq!(session.token_generation, 2);
        assert_eq!(three.ends.get(by_token(&second)).await.unwrap(), session);
        let events = watching.events_until_now().await;
        assert_eq!(kinds(&events), [EventType::Created, EventType::Rotated]);
    }
}

#[tokio::test]
async fn s5_login_successor_is_returned_after_other_changes() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\ntouch_interval = '0s'").await;
    let client = server.client().await;
    for rotation in [login_of as fn(&str) -> RotateSessionRequest, rotation_without_grace] {
        let (created, first) = client.create(&[]).await;
        let rotation = with_id(REQUEST_ID, rotation(&first));
        let (_, issued) = client.rotate_with(rotation.clone()).await.unwrap();
        client.set(by_id(&created.id), &[("a", text("1"))]).await.unwrap();
        client.touch(by_id(&created.id)).await.unwrap();
        let again = client.rotate_with(rotation).await.unwrap();
        assert_eq!(again, (client.get(by_id(&created.id)).await.unwrap(), issued.clone()));
        assert_eq!(client.token_state(&issued).await.unwrap(), TokenState::Current);
    }
}

#[tokio::test]
async fn s6_rotation_of_any_kind_with_large_content_is_applied() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    for bytes in [10, 5_000] {
        let value = text(&incompressible(bytes));
        let set_attributes = BTreeMap::from([("a".to_owned(), value.clone())]);
        for rotation in [login_of as fn(&str) -> RotateSessionRequest, rotation_without_grace, rotation_of] {
            for request_id in ["", REQUEST_ID] {
                for of_the_caller in [false, true] {
                    let (created, first) = client.create(&[("b", value.clone())]).await;
                    let new_token = if of_the_caller { successor_of(&first) } else { String::new() };
                    let rotation = RotateSessionRequest { new_token: new_token.clone(), ..rotation(&first) };
                    let rotation = RotateSessionRequest {
                        set_attributes: set_attributes.clone(),
                        ..with_id(request_id, rotation)
                    };
                    let (session, issued) = client.rotate_with(rotation).await.unwrap();
                    let current = if of_the_caller { new_token } else { issued };
                    assert_eq!(
                        session.attributes,
                        [("a".to_owned(), value.clone()), ("b".into(), value.clone())].into()
                    );
                    assert_eq!(client.get(by_token(&current)).await.unwrap(), session);
                    assert_eq!(client.set(by_token(&current), &[("c", text("1"))]).await.unwrap().id, created.id);
                }
            }
        }
    }
}

#[tokio::test]
async fn s5_login_successor_is_returned_for_15_s() {
    let (world, clock) = Clock::world();
    let server = world.server_with("[default_policy]\ntouch_interval = '0s'").await;
    let client = server.client().await;
    for by_touch in [false, true] {
        clock.step_to(0, [&client]).await;
        let (_, first) = client.create(&[]).await;
        let login = with_id(REQUEST_ID, login_of(&first));
        let issued = client.rotate_with(login.clone()).await.unwrap();
        clock.shift_to(5);
        assert_eq!(client.rotate_with(login.clone()).await.unwrap(), issued);
        clock.step_to(20, [&client]).await;
        // The request id is still known; what leads to the token is gone.
        expect_error(client.rotate_with(login.clone()).await, Code::NotFound, "TOKEN_ROTATED");
        // Also if the clock is set back, after any write has removed it.
        if by_touch {
            client.touch(by_id(&issued.0.id)).await.unwrap();
        } else {
            client.set(by_id(&issued.0.id), &[("a", text("1"))]).await.unwrap();
        }
        clock.shift_to(0);
        expect_error(client.rotate_with(login).await, Code::NotFound, "TOKEN_ROTATED");
        assert_eq!(client.token_state(&issued.1).await.unwrap(), TokenState::Current);
    }
}

/// The token is in the request, so the retry returns none.
#[tokio::test]
async fn s5_login_with_a_token_of_the_caller_is_retried_while_current() {
    let (world, clock) = Clock::world();
    let server = world.server().await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let new_token = successor_of(&first);
    let login = with_id(REQUEST_ID, RotateSessionRequest { new_token: new_token.clone(), ..login_of(&first) });
    let applied = client.rotate_with(login.clone()).await.unwrap();
    clock.step_to(60, [&client]).await;
    assert_eq!(client.rotate_with(login.clone()).await.unwrap(), applied);
    client.rotate_and_use(&new_token).await;
    expect_error(client.rotate_with(login).await, Code::NotFound, "TOKEN_ROTATED");
}

#[tokio::test]
async fn s5_rotation_is_not_repeated_after_a_newer_one() {
    let world = World::shared();
    let three = Three::start(&world).await;
    for (of_the_caller, is_login) in [(true, true), (true, false), (false, true), (false, false)] {
        let (_, first) = three.lenient.create(&[]).await;
        let rotation = if is_login { login_of(&first) } else { rotation_without_grace(&first) };
        let new_token = if of_the_caller { successor_of(&first) } else { String::new() };
        let rotation = with_id(REQUEST_ID, RotateSessionRequest { new_token: new_token.clone(), ..rotation });
        let (session, issued) = three.lenient.rotate_with(rotation.clone()).await.unwrap();
        for client in three.all() {
            assert_eq!(client.rotate_with(rotation.clone()).await.unwrap(), (session.clone(), issued.clone()));
        }
        let second = if of_the_caller { new_token } else { issued };
        let third = three.lenient.rotate_and_use(&second).await;
        let before = three.lenient.get(by_token(&third)).await.unwrap();
        for client in three.all() {
            expect_error(client.rotate_with(rotation.clone()).await, Code::NotFound, "TOKEN_ROTATED");
        }
        assert_eq!(three.lenient.get(by_token(&third)).await.unwrap(), before, "the retry had consequences");
    }
}

#[tokio::test]
async fn s6_many_rotations_with_large_content_are_applied() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, mut token) = client.create(&[]).await;
    // More rotations than superseded tokens that a session keeps.
    for n in 0..20 {
        let value = text(&incompressible(5_000 + n));
        let set_attributes = [("a".to_owned(), value.clone())].into();
        let rotation = RotateSessionRequest { set_attributes, ..rotation_of(&token) };
        token = client.rotate_with(rotation).await.unwrap().1;
        assert_eq!(client.get(by_token(&token)).await.unwrap().attributes["a"], value);
    }
}

/// A session whose first token is refused, and an update that was made with this token before.
struct Cut {
    session: Session,
    first: String,
    update: UpdateSessionRequest,
}

/// Ways in which the first token is cut.
const WAYS: [&str; 4] = ["login by rotation", "login by update", "login by id", "end of its grace period"];

/// Creates such a session. A later token was presented.
async fn cut(client: &Client, way: &str) -> Cut {
    let (session, first) = client.create(&[("secret", text("1"))]).await;
    let set_attributes = [("a".to_owned(), text("1"))].into();
    let key = by_token(&first);
    let update = UpdateSessionRequest { key, set_attributes, request_id: REQUEST_ID.into(), ..Default::default() };
    client.update(update.clone()).await.unwrap();
    let current = match way {
        "login by rotation" => client.rotate_with(login_of(&first)).await.unwrap().1,
        "end of its grace period" => client.rotate_with(rotation_without_grace(&first)).await.unwrap().1,
        _ => client.rotate_and_use(&first).await,
    };
    let session = match way {
        "login by update" => client.login(by_token(&current), "alice").await.unwrap(),
        "login by id" => client.login(by_id(&session.id), "alice").await.unwrap(),
        _ => client.get(by_token(&current)).await.unwrap(),
    };
    Cut { session, first, update }
}

#[tokio::test]
async fn s6_known_request_id_under_a_cut_token_is_refused() {
    let world = World::shared();
    let three = Three::start(&world).await;
    let mut watching = three.lenient.watch_all().await;
    for way in WAYS {
        for client in three.all() {
            let Cut { session, first, update } = cut(&three.lenient, way).await;
            watching.events_until_now().await;
            let changed = UpdateSessionRequest { clear_attributes: true, ..update.clone() };
            for update in [&update, &changed] {
                let refused = client.update(update.clone()).await;
                let status = expect_error(refused, Code::NotFound, "TOKEN_ROTATED");
                assert!(!status.message().contains(&session.id), "{way}: {status:?}");
            }
            for rotation in [rotation_of(&first), login_of(&first)] {
                let rotated = client.rotate_with(with_id(REQUEST_ID, rotation)).await;
                expect_error(rotated, Code::NotFound, "TOKEN_ROTATED");
            }
            assert_eq!(client.get(by_id(&session.id)).await.unwrap(), session, "{way}: a retry had consequences");
            assert!(watching.events_until_now().await.is_empty(), "{way}");
        }
    }
}

#[tokio::test]
async fn s6_unknown_request_id_under_a_cut_token_is_token_reuse() {
    let world = World::shared();
    let three = Three::start(&world).await;
    for way in WAYS {
        let Cut { session, update, .. } = cut(&three.lenient, way).await;
        let other = UpdateSessionRequest { request_id: OTHER_ID.into(), ..update.clone() };
        // The known one is checked first, so that it cannot hide token reuse.
        expect_error(three.ends.update(update).await, Code::NotFound, "TOKEN_ROTATED");
        assert!(three.ends.lives(&session.id).await, "{way}");
        expect_error(three.ends.update(other).await, Code::NotFound, "SESSION_ENDED");
        assert!(!three.ends.lives(&session.id).await, "{way}");
    }
}

#[tokio::test]
async fn s6_repeated_create_under_a_cut_token_returns_no_session() {
    let world = World::shared();
    let three = Three::start(&world).await;
    let first = new_token();
    let attributes = [("secret".to_owned(), text("1"))].into();
    let create =
        CreateSessionRequest { token: first.clone(), request_id: REQUEST_ID.into(), attributes, ..Default::default() };
    let (created, _) = three.lenient.create_with(create.clone()).await.unwrap();
    assert_eq!(three.lenient.create_with(create.clone()).await.unwrap().0, created);
    let (session, second) = three.lenient.login_by_rotation(&first, "alice").await.unwrap();
    three.lenient.get(by_token(&second)).await.unwrap();
    for client in three.all() {
        let status = client.create_with(create.clone()).await.unwrap_err();
        assert!(["TOKEN_ROTATED", "SESSION_EXISTS"].contains(&&status.reason()[..]), "{status:?}");
    }
    assert_eq!(three.lenient.get(by_token(&second)).await.unwrap(), session);
}
