//! S6 for watchers: a watch by token lasts as long as its token is accepted, and delivers no later event.

use harness::{Client, Setup, WatchReader, World, client::*, eventually, setup, setup_with, tokens::*};
use sessiond_client::v1::{
    CreateSessionRequest, EventType, RotateSessionRequest, SessionEvent, SessionView, TokenState, WatchRequest,
};
use tonic::Code;

/// Opens a watch by this token in the FULL view; returns after its first bookmark.
async fn watch_by(client: &Client, token: &str) -> WatchReader {
    let request = WatchRequest { view: SessionView::Full.into(), ..token_watch_request(token) };
    let mut watching = client.watch(request).await.unwrap();
    watching.bookmark().await;
    watching
}

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

#[tokio::test]
async fn s6_watch_by_token_ends_with_its_tokens_grace_period() {
    let Setup { world, client, .. } = &setup_with("[default_policy]\nrotation_grace = '400ms'").await;
    for successor_is_used in [false, true] {
        let (_, first) = client.create(&[]).await;
        let mut watching = watch_by(client, &first).await;
        let (session, second) = client.rotate_with(rotation_of(&first)).await.unwrap();
        if successor_is_used {
            client.get(by_token(&second)).await.unwrap();
        }
        expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
        assert!(world.redis.now() >= unix_ms(session.update_time) + 400, "the watch ended within the grace period");
        assert_eq!(kinds(&watching.buffered()), [EventType::Rotated]);
        // The watch's checks of its token do not count as a use of the token.
        assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
        assert_eq!(client.get(by_token(&second)).await.unwrap().revision, session.revision);
    }
}

#[tokio::test]
async fn s6_watch_by_a_superseded_token_receives_events_in_its_grace() {
    let Setup { client, .. } = &setup().await;
    let (_, first) = client.create(&[]).await;
    let mut before = watch_by(client, &first).await;
    let second = client.rotate(&first).await.unwrap();
    let mut after = watch_by(client, &first).await;
    client.set(by_token(&second), &[("a", text("1"))]).await.unwrap();
    assert_eq!(kinds(&before.events_until_now().await), [EventType::Rotated, EventType::Updated]);
    assert_eq!(kinds(&after.events_until_now().await), [EventType::Updated]);
    client.delete(by_token(&second)).await.unwrap();
    for watching in [&mut before, &mut after] {
        expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(kinds(&watching.buffered()), [EventType::Ended]);
    }
}

#[tokio::test]
async fn s6_watch_by_the_current_token_continues_through_a_login() {
    let Setup { client, .. } = &setup().await;
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let mut watching = watch_by(client, &second).await;
    client.update(login(&second, "alice")).await.unwrap();
    client.set(by_token(&second), &[("a", text("1"))]).await.unwrap();
    assert_eq!(kinds(&watching.events_until_now().await), [EventType::Updated, EventType::Updated]);
}

#[tokio::test]
async fn s6_watch_by_a_superseded_token_ends_without_the_login_event() {
    let Setup { client, .. } = &setup().await;
    for rotates in [false, true] {
        let (_, first) = client.create(&[]).await;
        let mut watches = vec![watch_by(client, &first).await];
        let second = client.rotate(&first).await.unwrap();
        watches.push(watch_by(client, &first).await);
        watches.extend(if rotates { Some(watch_by(client, &second).await) } else { None });
        if rotates {
            let request = RotateSessionRequest {
                subject: Some("alice".into()),
                set_attributes: [("csrf".to_owned(), text("secret"))].into(),
                ..rotation_of(&second)
            };
            client.rotate_with(request).await.unwrap();
        } else {
            client.update(login(&second, "alice")).await.unwrap();
        }
        for (n, mut watching) in watches.into_iter().enumerate() {
            expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
            let received = kinds(&watching.buffered());
            assert_eq!(received, if n == 0 { vec![EventType::Rotated] } else { vec![] }, "{n}");
        }
    }
}

#[tokio::test]
async fn s6_watch_by_a_cut_off_token_does_not_receive_the_end() {
    let Setup { client, .. } = &setup().await;
    let (session, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    // The watch resumes before both changes, so it can read them from Redis in one reply.
    let position = client.watch_all().await.token;
    client.update(login(&second, "alice")).await.unwrap();
    client.delete(by_id(&session.id)).await.unwrap();
    for (token, expected) in [(&first, vec![]), (&second, vec![EventType::Updated, EventType::Ended])] {
        let request = WatchRequest { resume_token: position.clone(), ..token_watch_request(token) };
        let mut watching = client.watch(request).await.unwrap();
        expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(kinds(&watching.buffered()), expected);
    }
}

#[tokio::test]
async fn s6_watch_ended_by_a_login_resumes_with_the_successor() {
    let Setup { client, .. } = &setup().await;
    let (_, first) = client.create(&[]).await;
    let mut watching = watch_by(client, &first).await;
    let request = RotateSessionRequest { subject: Some("alice".into()), ..rotation_of(&first) };
    let (session, second) = client.rotate_with(request).await.unwrap();
    expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
    let request = WatchRequest { resume_token: watching.token.clone(), ..token_watch_request(&second) };
    let mut resumed = client.watch(request).await.unwrap();
    let event = resumed.event().await;
    assert_eq!((event.r#type(), event.revision), (EventType::Rotated, session.revision));
    client.set(by_token(&second), &[("a", text("1"))]).await.unwrap();
    assert_eq!(resumed.event().await.r#type(), EventType::Updated);
}

#[tokio::test]
async fn s6_watch_by_a_token_after_its_grace_is_refused() {
    let world = World::shared();
    let server = world.server().await;
    let strict = world.server_with("[default_policy]\nrotation_grace = '0s'").await;
    let (client, strict) = (server.client().await, strict.client().await);
    let (session, first) = client.create(&[]).await;
    let mut all = client.watch_all().await;
    let (_, second) = client.rotate_with(rotation_without_grace(&first)).await.unwrap();
    let resumed = |token: &str| WatchRequest { resume_token: all.token.clone(), ..token_watch_request(token) };
    for request in [token_watch_request(&first), resumed(&first)] {
        expect_error(client.watch(request.clone()).await.map(drop), Code::NotFound, "TOKEN_ROTATED");
        expect_error(strict.watch(request).await.map(drop), Code::NotFound, "TOKEN_ROTATED");
    }
    client.get(by_token(&second)).await.unwrap();
    let reuse =
        expect_error(strict.watch(token_watch_request(&first)).await.map(drop), Code::NotFound, "SESSION_ENDED");
    assert_eq!(reuse.metadata_of("cause"), "TOKEN_REUSE");
    all.wait_for(EventType::Ended, &session.id).await;
}

#[tokio::test]
async fn s6_watch_ends_when_its_token_is_no_longer_kept() {
    let Setup { client, .. } = &setup().await;
    let (_, first) = client.create(&[]).await;
    let mut watching = watch_by(client, &first).await;
    let mut token = first;
    for _ in 0..17 {
        token = client.rotate(&token).await.unwrap();
    }
    expect_error(watching.end().await, Code::NotFound, "SESSION_NOT_FOUND");
    assert!(watching.buffered().len() < 17, "events after the token was dropped were delivered");
}

#[tokio::test]
async fn s6_stalled_watcher_receives_no_event_after_its_tokens_grace() {
    let Setup { world, client, .. } = &setup_with("[default_policy]\nrotation_grace = '300ms'").await;
    let (_, first) = client.create(&[]).await;
    let large = incompressible(60_000);
    let mut stalled = watch_by(client, &first).await;
    let (session, second) = client.rotate_with(rotation_of(&first)).await.unwrap();
    let end = unix_ms(session.update_time) + 300;
    // Writes more than the connection buffers while the client does not read.
    for n in 0.. {
        client.set(by_token(&second), &[("large", text(&format!("{n}{large}")))]).await.unwrap();
        if world.redis.now() > end && n > 20 {
            break;
        }
    }
    let after = client.set(by_token(&second), &[("after", text("1"))]).await.unwrap();
    client.delete(by_token(&second)).await.unwrap();
    eventually("the grace period is over", async || (world.redis.now() > unix_ms(after.update_time)).then_some(()))
        .await;
    assert!(stalled.end().await.is_err());
    for event in stalled.buffered() {
        assert!(unix_ms(event.event_time) < end, "{:?} after the grace period", event.r#type());
    }
}

#[tokio::test]
async fn s6_watch_whose_end_cannot_be_written_backs_off() {
    let world = World::dedicated();
    let server = world.server_with("[default_policy]\nrotation_grace = '1s'").await;
    let client = server.client().await;
    let request = CreateSessionRequest { absolute_timeout: millis(500), ..Default::default() };
    let (session, first) = client.create_with(request).await.unwrap();
    client.rotate(&first).await.unwrap();
    let mut watching = watch_by(&client, &first).await;
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    // The session's deadline passes, then the token's grace period.
    let end = unix_ms(session.create_time) + 2_000;
    eventually("both deadlines pass", async || (world.redis.now() > end).then_some(())).await;
    watching.events_until_now().await;
    let scripts = || -> u64 {
        let stats = world.redis.info("commandstats", "cmdstat_evalsha");
        stats.split(['=', ',']).nth(1).unwrap().parse().unwrap()
    };
    let before = scripts();
    for _ in 0..10 {
        watching.bookmark().await;
    }
    let calls = scripts() - before;
    assert!(calls < 100, "{calls} scripts in ten bookmarks");
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
}
