//! A watch by token delivers no event from after the time of its token.

use harness::{Client, Setup, client::*, setup};
use sessiond_client::v1::{
    EventType, RotateSessionRequest, SessionEvent, SessionView, UpdateSessionRequest, WatchRequest,
};
use tonic::Code;

fn full_watch(token: &str) -> WatchRequest {
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
    client.rotate_with(rotate).await.unwrap().1
}

#[tokio::test]
async fn watch_by_token_ended_by_a_login_does_not_receive_it() {
    let Setup { client, .. } = &setup().await;
    for _ in 0..20 {
        let (_, planted) = client.create(&[]).await;
        let mut watching = client.watch(full_watch(&planted)).await.unwrap();
        watching.bookmark().await;
        client.set(by_token(&planted), &[("cart", text("1"))]).await.unwrap();
        let current = log_in(client, &planted).await;
        for round in 0..5 {
            client.set(by_token(&current), &[("secret", text(&round.to_string()))]).await.unwrap();
        }
        expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
        assert_eq!(kinds(&watching.buffered()), [EventType::Updated], "only the events before the login");
    }
}

#[tokio::test]
async fn watch_by_superseded_token_receives_events_until_a_login() {
    let Setup { client, .. } = &setup().await;
    let (session, old) = client.create(&[]).await;
    let mut watching = client.watch(full_watch(&old)).await.unwrap();
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
    assert_eq!(kinds(&watching.buffered()), [EventType::Rotated, EventType::Updated]);
    assert!(client.get(by_id(&session.id)).await.unwrap().attributes.contains_key("secret"));
}

#[tokio::test]
async fn watch_by_an_old_token_replays_no_event() {
    let Setup { client, .. } = &setup().await;
    let (session, old) = client.create(&[]).await;
    let before = client.watch_all().await.token.clone();
    let new = log_in(client, &old).await;
    client.set(by_token(&new), &[("secret", text("1"))]).await.unwrap();
    let replay = WatchRequest { resume_token: before.to_vec(), ..full_watch(&old) };
    expect_error(client.watch(replay.clone()).await, Code::NotFound, "TOKEN_ROTATED");
    assert!(client.delete(by_id(&session.id)).await.unwrap());
    match client.watch(replay).await {
        Err(status) => assert_eq!(status.code(), Code::NotFound),
        Ok(mut watching) => {
            assert_eq!(watching.end().await.unwrap_err().code(), Code::NotFound);
            assert_eq!(kinds(&watching.buffered()), [], "the old token received later events");
        }
    }
    // The last token receives the events up to the end.
    let mut watching = client.watch(WatchRequest { resume_token: before.to_vec(), ..full_watch(&new) }).await.unwrap();
    expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(kinds(&watching.buffered()), [EventType::Rotated, EventType::Updated, EventType::Ended]);
}
