//! S3: DeleteSession ends the session with every token that the session stores, whichever rotations run at the same time.

use harness::{Client, Setup, World, client::*, setup, setup_with, tokens::*};
use sessiond_client::v1::{Cause, DeleteSessionRequest, EventType, RotateSessionRequest, SessionEvent};
use tonic::Code;

const ENDS: &str = "[default_policy]\nrotation_grace = '0s'";
const REPORTS: &str = "[default_policy]\nrotation_grace = '0s'\ntoken_reuse = 'report'";

fn delete_by(token: &str, cause: Cause) -> DeleteSessionRequest {
    DeleteSessionRequest { key: by_token(token), cause: cause.into(), ..Default::default() }
}

fn ends(events: &[SessionEvent]) -> Vec<(EventType, Cause)> {
    let tail = events.iter().filter(|event| !matches!(event.r#type(), EventType::Created | EventType::Rotated));
    tail.map(|event| (event.r#type(), event.cause())).collect()
}

/// Checks that the session has ended with this cause, for each of these tokens and for its id.
async fn assert_ended(client: &Client, tokens: &[&String], id: &str, cause: &str) {
    for key in tokens.iter().map(|token| by_token(token)).chain([by_id(id)]) {
        let status = expect_error(client.get(key).await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(status.metadata_of("cause"), cause);
    }
}

/// How the presented token was superseded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Superseded {
    InGrace,
    GraceOver,
    ByLogin,
    UnusedSuccessor,
    SixteenGenerationsAgo,
}

const EVERY_WAY: [Superseded; 5] = [
    Superseded::InGrace,
    Superseded::GraceOver,
    Superseded::ByLogin,
    Superseded::UnusedSuccessor,
    Superseded::SixteenGenerationsAgo,
];

/// Supersedes the token and returns the current one.
async fn supersede(client: &Client, token: &str, way: Superseded) -> String {
    match way {
        Superseded::InGrace => client.rotate_and_use(token).await,
        Superseded::GraceOver => {
            let (_, successor) = client.rotate_with(rotation_without_grace(token)).await.unwrap();
            client.get(by_token(&successor)).await.unwrap();
            successor
        }
        Superseded::ByLogin => client.login_by_rotation(token, "alice").await.unwrap().1,
        Superseded::UnusedSuccessor => client.rotate_with(rotation_without_grace(token)).await.unwrap().1,
        Superseded::SixteenGenerationsAgo => {
            let mut current = token.to_owned();
            for _ in 0..16 {
                current = client.rotate_with(rotation_without_grace(&current)).await.unwrap().1;
            }
            current
        }
    }
}

#[tokio::test]
async fn s3_delete_by_any_stored_token_ends_the_session() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    for way in EVERY_WAY {
        for cause in [Cause::Logout, Cause::Revoked, Cause::Replaced] {
            let (session, first) = client.create(&[]).await;
            let current = supersede(client, &first, way).await;
            assert!(client.delete_with(delete_by(&first, cause)).await.unwrap(), "{way:?}: nothing ended");
            let name = cause.as_str_name().trim_start_matches("CAUSE_");
            assert_ended(client, &[&first, &current], &session.id, name).await;
            assert!(!client.delete_with(delete_by(&first, cause)).await.unwrap(), "{way:?}: ended twice");
            assert_eq!(ends(&watching.events_until_now().await), [(EventType::Ended, cause)], "{way:?}");
        }
    }
    assert!(client.list_subject("alice").await.is_empty());
}

#[tokio::test]
async fn s3_delete_by_a_token_that_is_not_stored_ends_nothing() {
    let Setup { client, .. } = &setup().await;
    let (session, first) = client.create(&[]).await;
    let second = supersede(client, &first, Superseded::GraceOver).await;
    let current = supersede(client, &second, Superseded::SixteenGenerationsAgo).await;
    for wrong in [&first, &successor_of(&first), &new_token(), &session.id] {
        assert!(!client.delete(by_token(wrong)).await.unwrap());
    }
    assert!(!client.in_namespace("other").delete(by_token(&second)).await.unwrap());
    assert!(client.lives(&session.id).await);
    assert!(client.delete(by_token(&second)).await.unwrap(), "the oldest stored token");
    assert_ended(client, &[&second, &current], &session.id, "LOGOUT").await;
}

#[tokio::test]
async fn s6_delete_that_is_token_reuse_ends_with_that_cause() {
    let Setup { client, .. } = &setup_with(ENDS).await;
    let mut watching = client.watch_all().await;
    for (way, cause) in [
        (Superseded::GraceOver, Cause::TokenReuse),
        (Superseded::InGrace, Cause::TokenReuse),
        // No later token was presented, so the presentation is not token reuse.
        (Superseded::ByLogin, Cause::Revoked),
        (Superseded::UnusedSuccessor, Cause::Revoked),
    ] {
        for request_id in ["", "request-0000000001"] {
            let (session, first) = client.create(&[]).await;
            let current = supersede(client, &first, way).await;
            let delete = DeleteSessionRequest { request_id: request_id.into(), ..delete_by(&first, Cause::Revoked) };
            assert!(client.delete_with(delete.clone()).await.unwrap(), "{way:?}: nothing ended");
            assert_eq!(client.delete_with(delete).await.unwrap(), !request_id.is_empty(), "{way:?}: a retry");
            let name = cause.as_str_name().trim_start_matches("CAUSE_");
            assert_ended(client, &[&first, &current], &session.id, name).await;
            assert_eq!(ends(&watching.events_until_now().await), [(EventType::Ended, cause)], "{way:?}");
        }
    }
}

#[tokio::test]
async fn s6_delete_with_a_reported_token_ends_as_requested() {
    let Setup { client, .. } = &setup_with(REPORTS).await;
    let mut watching = client.watch_all().await;
    for was_reported in [false, true] {
        let (session, first) = client.create(&[]).await;
        let current = client.rotate_and_use(&first).await;
        let mut expected = vec![(EventType::Ended, Cause::Revoked)];
        if was_reported {
            expect_error(client.get(by_token(&first)).await, Code::NotFound, "TOKEN_ROTATED");
            expected.insert(0, (EventType::TokenReused, Cause::Unspecified));
        }
        assert!(client.delete_with(delete_by(&first, Cause::Revoked)).await.unwrap());
        assert_ended(client, &[&first, &current], &session.id, "REVOKED").await;
        assert_eq!(ends(&watching.events_until_now().await), expected);
    }
}

/// Rotations that can run in parallel with a logout, as a web framework sends them at a login.
fn parallel_rotation(n: usize, token: &str) -> RotateSessionRequest {
    match n % 4 {
        0 => rotation_of(token),
        1 => rotation_without_grace(token),
        2 => RotateSessionRequest { authentication: by_password(), ..rotation_of(token) },
        _ => RotateSessionRequest { subject: Some("alice".into()), ..rotation_of(token) },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_delete_in_parallel_with_rotations_ends_the_session() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    for round in 0..80 {
        let (session, first) = clients[0].create(&[]).await;
        let (one, other) = (&clients[round % 2], &clients[(round + 1) % 2]);
        let rotating = async {
            let (_, second) = one.rotate_with(parallel_rotation(round, &first)).await?;
            let third = other.rotate_with(parallel_rotation(round / 4, &second)).await?.1;
            one.get(by_token(&third)).await
        };
        let (_, deleted) = tokio::join!(rotating, other.delete(by_token(&first)));
        assert!(deleted.unwrap(), "round {round}: the logout ended nothing");
        assert!(!clients[0].lives(&session.id).await, "round {round}");
    }
    assert!(clients[0].list_subject("alice").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_delete_that_reaches_redis_after_rotations_ends() {
    for n in 0..4 {
        let world = World::dedicated();
        let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
        slow.delete(by_token(&slow.create(&[]).await.1)).await.unwrap();
        let (session, first) = client.create(&[]).await;
        proxy.hold_requests();
        let rotating = async {
            let (_, second) = client.rotate_with(parallel_rotation(n, &first)).await.unwrap();
            let (_, third) = client.rotate_with(parallel_rotation(n, &second)).await.unwrap();
            client.get(by_token(&third)).await.unwrap();
            proxy.release_requests();
            third
        };
        let (deleted, third) = tokio::join!(slow.delete(by_token(&first)), rotating);
        assert!(deleted.unwrap(), "rotation {n}: the logout ended nothing");
        assert_ended(&client, &[&first, &third], &session.id, "LOGOUT").await;
    }
}
