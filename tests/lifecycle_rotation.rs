//! S6: further rotations of a token whose successor was not presented yet return the same successor.

use harness::{Setup, World, client::*, clock::Clock, setup, setup_with, tokens::*};
use sessiond_client::v1::{
    CreateSessionRequest, EventType, RotateSessionRequest, SessionEvent, TokenState, UpdateSessionRequest,
};
use tonic::Code;

const HOUR: i64 = 3_600;
/// Policy whose grace period is long enough for steps of the clock within it.
const HOURS: &str = "[default_policy]\nrotation_grace = '1h'\nidle_timeout = '5d'\nabsolute_timeout = '10d'";

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

#[tokio::test]
async fn s6_repeated_rotation_returns_the_same_token() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    let mut watching = clients[0].watch_all().await;
    let (_, first) = clients[0].create(&[("a", text("1"))]).await;
    let issued = clients[0].rotate_with(rotation_of(&first)).await.unwrap();
    for n in 0..6 {
        assert_eq!(clients[n % 2].rotate_with(rotation_of(&first)).await.unwrap(), issued, "rotation {n}");
    }
    let (session, second) = issued;
    assert_eq!(session.token_generation, 2);
    assert_eq!(clients[0].token_state(&first).await.unwrap(), TokenState::Superseded);
    assert_eq!(clients[1].token_state(&second).await.unwrap(), TokenState::Current);
    for client in &clients {
        expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
    }
    assert_eq!(clients[0].get(by_token(&second)).await.unwrap(), session);
    assert_eq!(kinds(&watching.events_until_now().await), [EventType::Created, EventType::Rotated]);
}

#[tokio::test]
async fn s6_repeated_rotation_with_large_content_is_applied() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    let (created, first) = clients[0].create(&[("a", text("1"))]).await;
    let second = clients[0].rotate(&first).await.unwrap();
    // More than scripts copy, and not compressible.
    let large = text(&(0..200).map(|_| new_token()).collect::<String>());
    let again =
        RotateSessionRequest { set_attributes: [("large".to_owned(), large.clone())].into(), ..rotation_of(&first) };
    assert_eq!(clients[1].rotate_with(again).await.unwrap().1, second);
    let expected = [("a".to_owned(), text("1")), ("large".into(), large)].into();
    let read = clients[0].get(by_token(&second)).await.unwrap();
    assert_eq!((&read.id, &read.attributes), (&created.id, &expected));
    assert_eq!(clients[0].get(by_id(&created.id)).await.unwrap(), read);
}

#[tokio::test]
async fn s6_salt_takes_memory_until_the_next_change() {
    let Setup { world, client, .. } = &setup().await;
    for bytes in [10, 5_000] {
        let value = text(&incompressible(bytes));
        let (created, first) = client.create(&[("a", value.clone())]).await;
        let key = world.redis.keys(&format!("{}*:s:*:{}", world.prefix, created.id)).remove(0);
        let record_bytes = || world.redis.number(&["STRLEN", &key]);
        let of_new = record_bytes();
        let second = client.rotate(&first).await.unwrap();
        assert_eq!(record_bytes(), of_new + 29 + 32, "{bytes}");
        // Another tab changes the content before the successor is presented: the salt stays.
        client.set(by_token(&first), &[("a", value.clone()), ("b", text("1"))]).await.unwrap();
        let of_two = record_bytes();
        assert_eq!(client.rotate(&first).await.unwrap(), second);
        client.get(by_token(&second)).await.unwrap();
        assert_eq!(record_bytes(), of_two, "{bytes}: the first use is written in place");
        client.set(by_token(&second), &[("b", text("2"))]).await.unwrap();
        assert_eq!(record_bytes(), of_two - 32, "{bytes}");
        assert_eq!(client.get(by_token(&second)).await.unwrap().attributes["a"], value);
        let request_id = "~".repeat(16);
        let third = client.rotate_with(RotateSessionRequest { request_id, ..rotation_of(&second) }).await.unwrap().1;
        client.get(by_token(&third)).await.unwrap();
        assert_eq!(record_bytes(), of_two + 29 + 31, "{bytes}: a token, a request id and a salt more");
        let update = UpdateSessionRequest {
            key: by_token(&third),
            set_attributes: [("b".to_owned(), text("3"))].into(),
            request_id: "~".repeat(17),
            ..Default::default()
        };
        client.update(update).await.unwrap();
        assert_eq!(record_bytes(), of_two - 32 + 29 + 31 + 31, "{bytes}");
    }
}

#[tokio::test]
async fn s6_tabs_that_rotate_together_stay_logged_in() {
    let (world, clock) = Clock::world();
    let (_servers, clients) = world.pair_with(HOURS).await;
    let (created, mut token) = clients[0].create(&[]).await;
    for round in 0..4 {
        let one = clients[0].rotate(&token).await.unwrap();
        let other = clients[1].rotate(&token).await.unwrap();
        // Presented first in the grace period, or only after it.
        if round % 2 == 0 {
            clients[0].get(by_token(&other)).await.unwrap();
        }
        clock.step_to((round + 1) * 2 * HOUR, &clients).await;
        for tab in [&one, &other, &one] {
            let read = clients[1].get(by_token(tab)).await;
            let session = read.unwrap_or_else(|status| panic!("round {round}: a tab is logged out: {status:?}"));
            assert_eq!((&session.id, i64::from(session.token_generation)), (&created.id, round + 2));
        }
        token = one;
    }
}

#[tokio::test]
async fn s6_repeated_rotation_keeps_the_grace_period() {
    for requested in [None, seconds(HOUR), seconds(0)] {
        let (world, clock) = Clock::world();
        let server = world.server_with(HOURS).await;
        let client = server.client().await;
        let (_, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        clock.step_to(HOUR / 2, [&client]).await;
        let again = RotateSessionRequest { grace_period: requested, ..rotation_of(&first) };
        assert_eq!(client.rotate_with(again.clone()).await.unwrap().1, second, "{requested:?}");
        assert_eq!(client.token_state(&first).await.unwrap(), TokenState::Superseded, "{requested:?}: shortened");
        clock.step_to(HOUR * 5 / 6, [&client]).await;
        assert_eq!(client.rotate_with(again.clone()).await.unwrap().1, second, "{requested:?}");
        clock.step_to(HOUR + 60, [&client]).await;
        expect_error(client.rotate_with(again).await, Code::NotFound, "TOKEN_ROTATED");
        expect_error(client.get(by_token(&first)).await, Code::NotFound, "TOKEN_ROTATED");
        assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
    }
}

#[tokio::test]
async fn s6_repeated_rotation_applies_its_attributes() {
    let Setup { client, .. } = &setup_with("[default_policy]\nmax_payload_bytes = '1 KiB'").await;
    let mut watching = client.watch_all().await;
    let (_, first) = client.create(&[("a", text("1")), ("b", text("1"))]).await;
    let set = |name: &str, value: &str| RotateSessionRequest {
        set_attributes: [(name.to_owned(), text(value))].into(),
        ..rotation_of(&first)
    };
    let (rotated, second) = client.rotate_with(set("a", "2")).await.unwrap();
    let change = RotateSessionRequest { remove_attributes: vec!["b".into()], ..set("c", "3") };
    let (changed, again) = client.rotate_with(change.clone()).await.unwrap();
    assert_eq!((&again, changed.token_generation), (&second, 2));
    assert!(changed.revision > rotated.revision);
    assert_eq!(changed.attributes, [("a".to_owned(), text("2")), ("c".into(), text("3"))].into());
    // What changes nothing creates no event; what is too large is refused and applies nothing.
    assert_eq!(client.rotate_with(change).await.unwrap(), (changed.clone(), second.clone()));
    let too_large = client.rotate_with(set("large", &"x".repeat(2_000))).await;
    expect_error(too_large, Code::InvalidArgument, "FIELD_INVALID");
    let clear = RotateSessionRequest { clear_attributes: true, ..set("d", "4") };
    let (cleared, again) = client.rotate_with(clear).await.unwrap();
    assert_eq!((&again, cleared.attributes.len()), (&second, 1));
    assert_eq!(client.get(by_token(&second)).await.unwrap(), cleared);
    let events = watching.events_until_now().await;
    let updated = EventType::Updated;
    assert_eq!(kinds(&events), [EventType::Created, EventType::Rotated, updated, updated]);
    let mut names = events[2].changed_attributes.clone();
    names.sort();
    assert_eq!(names, ["b", "c"]);
}

#[tokio::test]
async fn s6_repeated_rotation_with_a_login_applies_nothing() {
    let Setup { client, .. } = &setup().await;
    let (_, first) = client.create(&[]).await;
    let issued = client.rotate_with(rotation_of(&first)).await.unwrap();
    let set_attributes = [("role".to_owned(), text("admin"))].into();
    let rotation = RotateSessionRequest { set_attributes, ..rotation_of(&first) };
    let of = |subject: &str| Some(subject.to_owned());
    for login in [
        RotateSessionRequest { subject: of("mallory"), ..rotation.clone() },
        RotateSessionRequest { subject: of(""), ..rotation.clone() },
        RotateSessionRequest { authentication: by_password(), ..rotation.clone() },
        RotateSessionRequest { subject: of("mallory"), request_id: "request-0000000001".into(), ..rotation.clone() },
        RotateSessionRequest { subject: of("mallory"), new_token: successor_of(&first), ..rotation.clone() },
    ] {
        expect_error(client.rotate_with(login).await, Code::NotFound, "TOKEN_ROTATED");
    }
    assert_eq!(client.rotate_with(rotation_of(&first)).await.unwrap(), issued);
    assert_eq!(client.get(by_token(&issued.1)).await.unwrap(), issued.0);
}

#[tokio::test]
async fn s6_repeated_rotation_checks_its_if_revision() {
    let Setup { client, .. } = &setup().await;
    let (created, first) = client.create(&[]).await;
    let with = |revision: i64| RotateSessionRequest {
        if_revision: Some(revision),
        set_attributes: [("a".to_owned(), text("1"))].into(),
        ..rotation_of(&first)
    };
    let (rotated, second) = client.rotate_with(rotation_of(&first)).await.unwrap();
    let status = expect_error(client.rotate_with(with(created.revision)).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(status.metadata_of("current_revision"), rotated.revision.to_string());
    let (changed, again) = client.rotate_with(with(rotated.revision)).await.unwrap();
    assert_eq!((again, changed.attributes.len()), (second, 1));
    expect_error(client.rotate_with(with(rotated.revision)).await, Code::Aborted, "REVISION_MISMATCH");
}

#[tokio::test]
async fn s6_repeated_rotation_to_another_token_is_refused() {
    let Setup { client, .. } = &setup().await;
    for first_is_of_the_caller in [true, false] {
        let (_, first) = client.create(&[]).await;
        let of_the_caller = || RotateSessionRequest { new_token: successor_of(&first), ..rotation_of(&first) };
        let rotation = if first_is_of_the_caller { of_the_caller() } else { rotation_of(&first) };
        let (session, issued) = client.rotate_with(rotation.clone()).await.unwrap();
        let current = if first_is_of_the_caller { rotation.new_token } else { issued };
        expect_error(client.rotate_with(of_the_caller()).await, Code::NotFound, "TOKEN_ROTATED");
        if first_is_of_the_caller {
            // The server cannot return a token that it did not generate.
            expect_error(client.rotate_with(rotation_of(&first)).await, Code::NotFound, "TOKEN_ROTATED");
        } else {
            assert_eq!(client.rotate(&first).await.unwrap(), current);
        }
        assert_eq!(client.get(by_token(&current)).await.unwrap(), session);
        assert_eq!(client.token_state(&first).await.unwrap(), TokenState::Superseded);
    }
}

#[tokio::test]
async fn s6_repeated_rotation_of_a_client_token_returns_one_token() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    let client_token = "a-client-token-of-enough-bytes".to_owned();
    let create = CreateSessionRequest { token: client_token.clone(), ..Default::default() };
    let (session, _) = clients[0].create_with(create).await.unwrap();
    let issued = clients[0].rotate(&client_token).await.unwrap();
    assert!(issued.starts_with(&format!("ses_{}_", session.id)) && issued.len() == new_token().len());
    assert_eq!(clients[1].rotate(&client_token).await.unwrap(), issued);
    assert_eq!(clients[1].token_state(&issued).await.unwrap(), TokenState::Current);
    expect_error(clients[0].rotate(&client_token).await, Code::NotFound, "TOKEN_ROTATED");
}

#[tokio::test]
async fn s6_successor_is_returned_again_after_other_changes() {
    let Setup { client, .. } = &setup_with("[default_policy]\ntouch_interval = '0s'").await;
    let (session, first) = client.create(&[("a", text("1"))]).await;
    let second = client.rotate(&first).await.unwrap();
    let by_id = by_id(&session.id);
    let update = |key| UpdateSessionRequest { key, ..Default::default() };
    // Larger and smaller records, with another number of request ids, touched, and read by the superseded token.
    for n in 0..4 {
        client.set(by_id.clone(), &[("large", text(&incompressible(1 << (4 * n))))]).await.unwrap();
        let set_labels = labels(&[("round", &n.to_string())]);
        client.update(UpdateSessionRequest { set_labels, ..update(by_token(&first)) }).await.unwrap();
        let request_id = format!("request-{n:010}");
        client.update(UpdateSessionRequest { request_id, ..update(by_id.clone()) }).await.unwrap();
        client.update(UpdateSessionRequest { idle_timeout: seconds(600 + n), ..update(by_id.clone()) }).await.unwrap();
        client.touch(by_token(&first)).await.unwrap();
        client.get(by_token(&first)).await.unwrap();
        assert_eq!(client.rotate(&first).await.unwrap(), second, "round {n}");
    }
    let session = client.get(by_token(&second)).await.unwrap();
    assert_eq!((session.token_generation, session.attributes.len()), (2, 2));
}

#[tokio::test]
async fn s6_repeated_rotations_displace_no_stored_token() {
    let Setup { client, .. } = &setup().await;
    let mut tokens = vec![client.create(&[]).await.1];
    for n in 0..16 {
        let successors =
            [client.rotate(&tokens[n]).await, client.rotate(&tokens[n]).await, client.rotate(&tokens[n]).await]
                .map(Result::unwrap);
        assert_eq!(successors[1..], [&successors[0][..]; 2], "generation {n}");
        tokens.push(successors[0].clone());
    }
    for token in &tokens[..16] {
        assert_eq!(client.token_state(token).await.unwrap(), TokenState::Superseded);
    }
    assert_eq!(client.get(by_token(&tokens[16])).await.unwrap().token_generation, 17);
}

#[tokio::test]
async fn s6_successor_is_not_returned_once_a_login_ended_the_grace() {
    let Setup { client, .. } = &setup().await;
    for by_rotation in [false, true] {
        let (session, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        assert_eq!(client.rotate(&first).await.unwrap(), second);
        let current = if by_rotation {
            client.login_by_rotation(&second, "alice").await.unwrap().1
        } else {
            // By id: the successor is not presented.
            client.login(by_id(&session.id), "alice").await.unwrap();
            second.clone()
        };
        for rotation in [rotation_of(&first), rotation_without_grace(&first)] {
            expect_error(client.rotate_with(rotation).await, Code::NotFound, "TOKEN_ROTATED");
        }
        if by_rotation {
            // A login without a request_id: the token of before must not lead to the one after it.
            expect_error(client.rotate(&second).await, Code::NotFound, "TOKEN_ROTATED");
        }
        assert_eq!(client.token_state(&current).await.unwrap(), TokenState::Current);
    }
}

#[tokio::test]
async fn s6_watch_by_a_token_rotated_twice_ends_with_its_grace() {
    let Setup { client, .. } = &setup_with("[default_policy]\nrotation_grace = '3s'").await;
    let (_, first) = client.create(&[]).await;
    let mut watching = client.watch(token_watch_request(&first)).await.unwrap();
    watching.bookmark().await;
    let second = client.rotate(&first).await.unwrap();
    assert_eq!(client.rotate(&first).await.unwrap(), second);
    expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
    assert_eq!(kinds(&watching.buffered()), [EventType::Rotated]);
    let mut by_second = client.watch(token_watch_request(&second)).await.unwrap();
    by_second.bookmark().await;
    client.set(by_token(&second), &[("a", text("1"))]).await.unwrap();
    assert_eq!(by_second.event().await.r#type(), EventType::Updated);
}

#[tokio::test]
async fn s6_shared_successor_presented_after_its_rotation_is_reuse() {
    let world = World::shared();
    let strict = world.server_with("[default_policy]\nrotation_grace = '0s'").await;
    let server = world.server().await;
    let (client, strict) = (server.client().await, strict.client().await);
    for owner_rotates_first in [false, true] {
        let (session, first) = client.create(&[]).await;
        // An attacker with a copy of the old token and the owner rotate it: both hold the successor.
        let [of_the_owner, copied] = [client.rotate(&first).await.unwrap(), client.rotate(&first).await.unwrap()];
        assert_eq!(of_the_owner, copied);
        let (rotated, late) = if owner_rotates_first { (of_the_owner, copied) } else { (copied, of_the_owner) };
        let (_, third) = client.rotate_with(rotation_without_grace(&rotated)).await.unwrap();
        client.get(by_token(&third)).await.unwrap();
        let status = expect_error(strict.get(by_token(&late)).await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE");
        assert!(!client.lives(&session.id).await);
    }
}
