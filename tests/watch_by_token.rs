//! What the holder of a token that is not good any more is told by a watch: nothing from then on.

mod harness;

use harness::{Client, World, client::*};
use sessiond_client::v1::{
    EventType, RotateSessionRequest, SessionEvent, SessionView, UpdateSessionRequest, WatchRequest,
};
use tonic::Code;

fn watching(token: &str) -> WatchRequest {
    WatchRequest {
        keys: by_token(token).into_iter().collect(),
        view: SessionView::Full.into(),
        bookmark_interval: millis(100),
        ..Default::default()
    }
}

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

async fn log_in(client: &Client, token: &str) -> String {
    let rotate = RotateSessionRequest { token: token.into(), subject: Some("alice".into()), ..Default::default() };
    client.rotate_as(rotate).await.unwrap().1
}

#[tokio::test]
async fn a_token_that_a_login_cuts_is_not_told_of_the_login() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    for _ in 0..20 {
        let (_, planted) = client.create(&[]).await;
        let mut watching = client.watch(watching(&planted)).await.unwrap();
        watching.bookmark().await;
        client.set(by_token(&planted), &[("cart", text("1"))]).await.unwrap();
        let good = log_in(&client, &planted).await;
        for round in 0..5 {
            client.set(by_token(&good), &[("secret", text(&round.to_string()))]).await.unwrap();
        }
        expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
        assert_eq!(kinds(&watching.kept()), [EventType::Updated], "what came before the login, and nothing after");
    }
}

#[tokio::test]
async fn a_superseded_token_is_told_what_comes_in_its_grace_and_not_of_the_login_that_ends_it() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, old) = client.create(&[]).await;
    let mut watching = client.watch(watching(&old)).await.unwrap();
    watching.bookmark().await;
    let new = client.rotate(&old).await.unwrap();
    client.set(by_token(&new), &[("cart", text("1"))]).await.unwrap();
    let log_in = UpdateSessionRequest {
        key: by_token(&new),
        subject: Some("alice".into()),
        set_attributes: [("secret".into(), text("1"))].into(),
        ..Default::default()
    };
    client.update(log_in).await.unwrap();
    expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
    assert_eq!(kinds(&watching.kept()), [EventType::Rotated, EventType::Updated]);
    assert!(client.get(by_id(&session.id)).await.unwrap().attributes.contains_key("secret"));
}

#[tokio::test]
async fn an_old_token_replays_nothing_whether_the_session_lives_or_has_ended() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, old) = client.create(&[]).await;
    let before = client.watch_all().await.token.clone();
    let new = log_in(&client, &old).await;
    client.set(by_token(&new), &[("secret", text("1"))]).await.unwrap();
    let replay = WatchRequest { resume_token: before.to_vec(), ..watching(&old) };
    expect_error(client.watch(replay.clone()).await, Code::NotFound, "TOKEN_ROTATED");
    assert!(client.delete(by_id(&session.id)).await.unwrap());
    match client.watch(replay).await {
        Err(status) => assert_eq!(status.code(), Code::NotFound),
        Ok(mut watching) => {
            assert_eq!(watching.end().await.unwrap_err().code(), Code::NotFound);
            assert_eq!(kinds(&watching.kept()), [], "the old token is told of what came after it");
        }
    }
    // The last token is told up to the end.
    let mut watching = client.watch(WatchRequest { resume_token: before.to_vec(), ..watching(&new) }).await.unwrap();
    expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(kinds(&watching.kept()), [EventType::Rotated, EventType::Updated, EventType::Ended]);
}
