//! S5: how many request ids a session stores, for how long, and what happens beyond that.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use harness::{Client, Setup, World, client::*, clock::Clock, eventually, setup, tokens::*};
use sessiond::store::scripts;
use sessiond_client::v1::{
    Cause, CreateSessionRequest, DeleteSessionRequest, RotateSessionRequest, Session, TokenState, UpdateSessionRequest,
};
use tonic::Code;
use tonic_types::StatusExt;

/// Number of request ids that a session stores.
const STORED: usize = 64;

fn id(n: usize) -> String {
    format!("request-{n:010}")
}

/// Request that sets the attribute `n` to this number, with the request id of this number.
fn update(token: &str, n: usize) -> UpdateSessionRequest {
    UpdateSessionRequest {
        key: by_token(token),
        set_attributes: [("n".to_owned(), text(&n.to_string()))].into(),
        request_id: id(n),
        ..Default::default()
    }
}

/// Creates a session and stores the request ids 0 to 63.
async fn filled(client: &Client) -> (Session, String) {
    let (_, token) = client.create(&[]).await;
    let mut session = None;
    for n in 0..STORED {
        session = Some(client.update(update(&token, n)).await.unwrap());
    }
    (session.unwrap(), token)
}

fn expect_limit<T>(answer: CallResult<T>) {
    let status = expect_error(answer, Code::ResourceExhausted, "REQUEST_ID_LIMIT");
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay).expect("a RetryInfo with a delay");
    assert!(delay > Duration::ZERO && delay <= Duration::from_secs(15), "{delay:?}");
}

#[tokio::test]
async fn s5_last_64_request_ids_are_known() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    let (session, token) = filled(&clients[0]).await;
    for n in 0..STORED {
        assert_eq!(clients[n % 2].update(update(&token, n)).await.unwrap(), session, "{n} was applied again");
        let other = UpdateSessionRequest { clear_attributes: true, ..update(&token, n) };
        expect_error(clients[n % 2].update(other).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    }
    assert_eq!(clients[0].get(by_token(&token)).await.unwrap(), session);
}

#[tokio::test]
async fn s5_request_id_of_a_create_is_not_displaced() {
    let Setup { client, .. } = &setup().await;
    let token = new_token();
    let create = CreateSessionRequest { token: token.clone(), request_id: id(1_000), ..Default::default() };
    client.create_with(create.clone()).await.unwrap();
    for n in 1..STORED {
        client.update(update(&token, n)).await.unwrap();
    }
    let session = client.get(by_token(&token)).await.unwrap();
    assert_eq!(client.create_with(create).await.unwrap().0, session);
    expect_limit(client.update(update(&token, STORED)).await);
}

#[tokio::test]
async fn s5_65th_request_id_within_15_s_is_refused() {
    let Setup { client, .. } = &setup().await;
    let (session, token) = filled(client).await;
    let unchanged = UpdateSessionRequest { key: by_token(&token), request_id: id(STORED), ..Default::default() };
    let rotation = RotateSessionRequest { request_id: id(STORED), ..rotation_of(&token) };
    let to_new_token = RotateSessionRequest { new_token: successor_of(&token), ..rotation.clone() };
    expect_limit(client.update(update(&token, STORED)).await);
    expect_limit(client.update(UpdateSessionRequest { key: by_id(&session.id), ..update(&token, STORED) }).await);
    expect_limit(client.update(unchanged).await);
    expect_limit(client.rotate_with(rotation).await);
    expect_limit(client.rotate_with(to_new_token).await);
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session, "a refused call was applied");
    assert_eq!(client.token_state(&token).await.unwrap(), TokenState::Current);
    // A stored id is still known, and a call without one is served.
    assert_eq!(client.update(update(&token, 0)).await.unwrap(), session);
    client.set(by_token(&token), &[("a", text("1"))]).await.unwrap();
    client.rotate(&token).await.unwrap();
}

#[tokio::test]
async fn s5_refused_request_id_replaces_no_session() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nsession_limit = 1").await;
    let client = server.client().await;
    let (oldest, _) = client.create_for("alice").await;
    let (guest, token) = filled(&client).await;
    let as_alice = UpdateSessionRequest { subject: Some("alice".into()), ..update(&token, STORED) };
    expect_limit(client.update(as_alice).await);
    let subject = Some("alice".into());
    let rotation = RotateSessionRequest { subject, request_id: id(STORED), ..rotation_of(&token) };
    expect_limit(client.rotate_with(rotation).await);
    let listed: Vec<_> = client.list_subject("alice").await.into_iter().map(|session| session.id).collect();
    assert_eq!(listed, [oldest.id]);
    assert_eq!(client.get(by_token(&token)).await.unwrap(), guest);
    client.login(by_token(&token), "alice").await.unwrap();
}

#[tokio::test]
async fn s5_delete_is_never_refused_for_its_request_id() {
    let Setup { client, .. } = &setup().await;
    for by_superseded in [false, true] {
        let (session, token) = filled(client).await;
        if by_superseded {
            client.rotate_and_use(&token).await;
        }
        expect_limit(client.update(UpdateSessionRequest { key: by_id(&session.id), ..update(&token, STORED) }).await);
        let delete = DeleteSessionRequest { key: by_token(&token), request_id: id(STORED), ..Default::default() };
        for _ in 0..3 {
            assert!(client.delete_with(delete.clone()).await.unwrap(), "a retry has the same response");
        }
        expect_error(client.get(by_token(&token)).await, Code::NotFound, "SESSION_ENDED");
    }
}

#[tokio::test]
async fn s5_new_request_id_displaces_the_oldest_after_15_s() {
    let (world, clock) = Clock::world();
    let server = world.server().await;
    let client = server.client().await;
    let (_, token) = filled(&client).await;
    expect_limit(client.update(update(&token, STORED)).await);
    clock.step_to(16, [&client]).await;
    let session = client.update(update(&token, STORED)).await.unwrap();
    for n in 1..=STORED {
        assert_eq!(client.update(update(&token, n)).await.unwrap(), session, "{n} was applied again");
    }
    // The oldest one is a new request now, and displaces the next one.
    let applied = client.update(update(&token, 0)).await.unwrap();
    assert!(applied.revision > session.revision);
    let applied_again = client.update(update(&token, 1)).await.unwrap();
    assert!(applied_again.revision > applied.revision);
    for n in [0, 1, STORED] {
        assert_eq!(client.update(update(&token, n)).await.unwrap(), applied_again, "{n}");
    }
}

#[tokio::test]
async fn s5_shorter_retry_window_frees_request_ids() {
    let (world, clock) = Clock::world();
    let server =
        world.server_with("[default_policy]\nretry_window = '10s'\n[namespace.off]\nretry_window = '0s'").await;
    let client = server.client().await;
    let (session, token) = filled(&client).await;
    expect_limit(client.update(update(&token, STORED)).await);
    clock.step_to(11, [&client]).await;
    for n in STORED..2 * STORED {
        assert!(client.update(update(&token, n)).await.unwrap().revision > session.revision);
    }
    expect_limit(client.update(update(&token, 2 * STORED)).await);
    // Without a window nothing is stored, so nothing is refused.
    let off = client.in_namespace("off");
    let (_, token) = off.create(&[]).await;
    for n in 0..2 * STORED {
        off.update(update(&token, n)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_parallel_request_ids_beyond_64_are_refused() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    let (session, token) = clients[0].create(&[]).await;
    let request =
        |n: usize| UpdateSessionRequest { set_attributes: [(n.to_string(), text("1"))].into(), ..update(&token, n) };
    let answers = join_all((0..150).map(|n| clients[n % 2].update(request(n)))).await;
    let mut applied = BTreeSet::new();
    for (n, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(_) => drop(applied.insert(n.to_string())),
            refused => expect_limit(refused),
        }
    }
    let kept = clients[1].get(by_id(&session.id)).await.unwrap();
    assert_eq!(applied.len(), STORED);
    assert_eq!(kept.attributes.keys().cloned().collect::<BTreeSet<_>>(), applied);
    for n in &applied {
        assert_eq!(clients[0].update(request(n.parse().unwrap())).await.unwrap(), kept, "{n} was applied again");
    }
}

/// Between the read and the write of an update another call stores its request id and changes nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_update_across_a_new_request_id_forgets_no_known_one() {
    let (world, clock) = Clock::world();
    let (proxy, _servers, clients) = world.proxied_pair().await;
    let (session, token) = clients[1].create(&[]).await;
    clients[1].update(update(&token, 0)).await.unwrap();
    // The id could make room for another one, but there is no need.
    clock.step_to(20, &clients).await;
    proxy.hold_requests_at(&scripts::UPDATE);
    let other = async {
        eventually("the write is held back", async || proxy.is_holding_requests().then_some(())).await;
        let unchanged = UpdateSessionRequest { key: by_token(&token), request_id: id(1), ..Default::default() };
        clients[1].update(unchanged).await.unwrap();
        proxy.release_requests();
    };
    let set = [("n", text("changed"))];
    let (changed, ()) = tokio::join!(clients[0].set(by_id(&session.id), &set), other);
    let changed = changed.unwrap();
    for n in [0, 1] {
        let retried = UpdateSessionRequest { key: by_token(&token), request_id: id(1), ..Default::default() };
        let retried = if n == 0 { update(&token, 0) } else { retried };
        assert_eq!(clients[1].update(retried).await.unwrap(), changed, "{n} was applied again");
    }
}

#[tokio::test]
async fn s5_update_after_a_clock_step_forgets_no_known_request_id() {
    let (world, clock) = Clock::world();
    let server = world.server_with("[default_policy]\nretry_window = '10s'").await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    client.update(update(&token, 0)).await.unwrap();
    clock.step_to(60, [&client]).await;
    clock.shift_to(0);
    // The server does not know yet that the id is not as old as it was.
    let changed = client.set(by_id(&session.id), &[("n", text("changed"))]).await.unwrap();
    assert_eq!(client.update(update(&token, 0)).await.unwrap(), changed, "the request was applied again");
}

#[tokio::test]
async fn s5_request_id_is_new_again_after_the_retry_window() {
    let (world, clock) = Clock::world();
    let server = world.server_with("[default_policy]\nretry_window = '10s'").await;
    let client = server.client().await;
    let (_, token) = client.create(&[]).await;
    let first = client.update(update(&token, 0)).await.unwrap();
    client.update(update(&token, 1)).await.unwrap();
    clock.step_to(12, [&client]).await;
    let again = client.update(update(&token, 0)).await.unwrap();
    assert!(again.revision > first.revision, "the request was not applied again");
    // The record may have both: the last one counts.
    let changed = client.set(by_token(&token), &[("n", text("changed"))]).await.unwrap();
    assert_eq!(client.update(update(&token, 0)).await.unwrap(), changed);
    let other = UpdateSessionRequest { clear_attributes: true, ..update(&token, 1) };
    client.update(other).await.unwrap();
}

#[tokio::test]
async fn s5_request_ids_from_a_clock_ahead_refuse_no_new_one() {
    let (world, clock) = Clock::world();
    let server = world.server().await;
    let client = server.client().await;
    clock.step_to(60, [&client]).await;
    let (session, token) = filled(&client).await;
    expect_limit(client.update(update(&token, STORED)).await);
    clock.shift_to(0);
    assert!(client.update(update(&token, STORED)).await.unwrap().revision > session.revision);
}

#[tokio::test]
async fn s5_request_id_without_changes_displaces_the_oldest() {
    let (world, clock) = Clock::world();
    let server = world.server().await;
    let client = server.client().await;
    let (session, token) = filled(&client).await;
    clock.step_to(16, [&client]).await;
    let unchanged = UpdateSessionRequest { key: by_token(&token), request_id: id(STORED), ..Default::default() };
    assert_eq!(client.update(unchanged).await.unwrap(), session);
    assert_eq!(client.update(update(&token, 1)).await.unwrap(), session);
    assert!(client.update(update(&token, 0)).await.unwrap().revision > session.revision);
}

#[tokio::test]
async fn s5_delete_with_a_known_id_of_another_request_ends_nothing() {
    let Setup { client, .. } = &setup().await;
    let (session, token) = client.create(&[]).await;
    client.update(update(&token, 0)).await.unwrap();
    let delete = DeleteSessionRequest { key: by_token(&token), request_id: id(0), ..Default::default() };
    expect_error(client.delete_with(delete.clone()).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    assert!(client.lives(&session.id).await);
    let delete = DeleteSessionRequest { request_id: id(1), ..delete };
    assert!(client.delete_with(delete.clone()).await.unwrap());
    let altered = DeleteSessionRequest { cause: Cause::Revoked.into(), ..delete.clone() };
    let of_the_update = DeleteSessionRequest { request_id: id(0), ..delete };
    for other in [altered, of_the_update] {
        expect_error(client.delete_with(other).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    }
}
