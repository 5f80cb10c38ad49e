//! S6 for watchers: a watch by token lasts as long as its token is accepted, and tells nothing of after.

mod harness;

use harness::{Client, Watching, World, client::*, eventually, tokens::*};
use sessiond_client::v1::{
    CreateSessionRequest, EventType, RotateSessionRequest, SessionEvent, SessionView, TokenState, WatchRequest,
};
use tonic::Code;

/// A watch by this token, in full, at its end.
async fn watch_by(client: &Client, token: &str) -> Watching {
    let request = WatchRequest { view: SessionView::Full.into(), ..by_token_request(token) };
    let mut watching = client.watch(request).await.unwrap();
    watching.bookmark().await;
    watching
}

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

#[tokio::test]
async fn s6_a_watch_lasts_through_its_tokens_grace_and_not_longer() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nrotation_grace = '400ms'").await;
    let client = server.client().await;
    for successor_is_used in [false, true] {
        let (_, first) = client.create(&[]).await;
        let mut watching = watch_by(&client, &first).await;
        let (session, second) = client.rotate_as(rotation_of(&first)).await.unwrap();
        if successor_is_used {
            client.get(by_token(&second)).await.unwrap();
        }
        expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
        assert!(world.redis.now() >= in_ms(session.update_time) + 400, "it ended within its grace");
        assert_eq!(kinds(&watching.kept()), [EventType::Rotated]);
        // That the watch looked after its token has presented it to nobody.
        assert_eq!(client.standing(&second).await.unwrap(), TokenState::Current);
        assert_eq!(client.get(by_token(&second)).await.unwrap().revision, session.revision);
    }
}

#[tokio::test]
async fn s6_a_watch_by_an_old_token_tells_what_happens_within_its_grace() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let mut before = watch_by(&client, &first).await;
    let second = client.rotate(&first).await.unwrap();
    let mut after = watch_by(&client, &first).await;
    client.set(by_token(&second), &[("a", text("1"))]).await.unwrap();
    assert_eq!(kinds(&before.everything_so_far().await), [EventType::Rotated, EventType::Updated]);
    assert_eq!(kinds(&after.everything_so_far().await), [EventType::Updated]);
    client.delete(by_token(&second)).await.unwrap();
    for watching in [&mut before, &mut after] {
        expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(kinds(&watching.kept()), [EventType::Ended]);
    }
}

#[tokio::test]
async fn s6_a_watch_by_the_current_token_goes_on_through_a_login() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let mut watching = watch_by(&client, &second).await;
    client.update(login(&second, "alice")).await.unwrap();
    client.set(by_token(&second), &[("a", text("1"))]).await.unwrap();
    assert_eq!(kinds(&watching.everything_so_far().await), [EventType::Updated, EventType::Updated]);
}

#[tokio::test]
async fn s6_a_watch_by_an_old_token_ends_with_a_login_and_hears_nothing_of_it() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    for rotates in [false, true] {
        let (_, first) = client.create(&[]).await;
        let mut watchings = vec![watch_by(&client, &first).await];
        let second = client.rotate(&first).await.unwrap();
        watchings.push(watch_by(&client, &first).await);
        watchings.extend(if rotates { Some(watch_by(&client, &second).await) } else { None });
        if rotates {
            let request = RotateSessionRequest {
                subject: Some("alice".into()),
                set_attributes: [("csrf".to_owned(), text("secret"))].into(),
                ..rotation_of(&second)
            };
            client.rotate_as(request).await.unwrap();
        } else {
            client.update(login(&second, "alice")).await.unwrap();
        }
        for (n, mut watching) in watchings.into_iter().enumerate() {
            expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
            let told = kinds(&watching.kept());
            assert_eq!(told, if n == 0 { vec![EventType::Rotated] } else { vec![] }, "{n}");
        }
    }
}

#[tokio::test]
async fn s6_a_token_that_was_cut_off_hears_nothing_of_the_end_either() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    // Both come in one response of Redis at the earliest: the watch goes on from here.
    let position = client.watch_all().await.token;
    client.update(login(&second, "alice")).await.unwrap();
    client.delete(by_id(&session.id)).await.unwrap();
    for (token, told) in [(&first, vec![]), (&second, vec![EventType::Updated, EventType::Ended])] {
        let request = WatchRequest { resume_token: position.clone(), ..by_token_request(token) };
        let mut watching = client.watch(request).await.unwrap();
        expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(kinds(&watching.kept()), told);
    }
}

#[tokio::test]
async fn s6_a_watch_goes_on_with_the_successor_where_the_old_token_ended_it() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let mut watching = watch_by(&client, &first).await;
    let request = RotateSessionRequest { subject: Some("alice".into()), ..rotation_of(&first) };
    let (session, second) = client.rotate_as(request).await.unwrap();
    expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
    let request = WatchRequest { resume_token: watching.token.clone(), ..by_token_request(&second) };
    let mut resumed = client.watch(request).await.unwrap();
    let event = resumed.event().await;
    assert_eq!((event.r#type(), event.revision), (EventType::Rotated, session.revision));
    client.set(by_token(&second), &[("a", text("1"))]).await.unwrap();
    assert_eq!(resumed.event().await.r#type(), EventType::Updated);
}

#[tokio::test]
async fn s6_a_watch_by_a_token_that_is_over_is_not_opened() {
    let world = World::shared();
    let server = world.server().await;
    let strict = world.server_with("[default_policy]\nrotation_grace = '0s'").await;
    let (client, strict) = (server.client().await, strict.client().await);
    let (session, first) = client.create(&[]).await;
    let mut all = client.watch_all().await;
    let (_, second) = client.rotate_as(graceless(&first)).await.unwrap();
    let resumed = |token: &str| WatchRequest { resume_token: all.token.clone(), ..by_token_request(token) };
    for request in [by_token_request(&first), resumed(&first)] {
        expect_error(client.watch(request.clone()).await.map(drop), Code::NotFound, "TOKEN_ROTATED");
        expect_error(strict.watch(request).await.map(drop), Code::NotFound, "TOKEN_ROTATED");
    }
    client.get(by_token(&second)).await.unwrap();
    let stolen = expect_error(strict.watch(by_token_request(&first)).await.map(drop), Code::NotFound, "SESSION_ENDED");
    assert_eq!(stolen.metadata_of("cause"), "TOKEN_REUSE");
    all.wait_for(EventType::Ended, &session.id).await;
}

#[tokio::test]
async fn s6_a_watch_ends_when_its_token_is_forgotten() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let mut watching = watch_by(&client, &first).await;
    let mut token = first;
    for _ in 0..17 {
        token = client.rotate(&token).await.unwrap();
    }
    expect_error(watching.end().await, Code::NotFound, "SESSION_NOT_FOUND");
    assert!(watching.kept().len() < 17, "what came after its time is not told");
}

#[tokio::test]
async fn s6_a_reader_that_stalls_is_told_nothing_of_after_its_tokens_time() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nrotation_grace = '300ms'").await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let large = incompressible(60_000);
    let mut stalled = watch_by(&client, &first).await;
    let (session, second) = client.rotate_as(rotation_of(&first)).await.unwrap();
    let over = in_ms(session.update_time) + 300;
    // More than its connection takes while it does not read.
    for n in 0.. {
        client.set(by_token(&second), &[("large", text(&format!("{n}{large}")))]).await.unwrap();
        if world.redis.now() > over && n > 20 {
            break;
        }
    }
    let after = client.set(by_token(&second), &[("after", text("1"))]).await.unwrap();
    client.delete(by_token(&second)).await.unwrap();
    eventually("it is over", async || (world.redis.now() > in_ms(after.update_time)).then_some(())).await;
    assert!(stalled.end().await.is_err());
    for event in stalled.kept() {
        assert!(in_ms(event.event_time) < over, "{:?} of after its time", event.r#type());
    }
}

#[tokio::test]
async fn s6_a_watch_whose_end_cannot_be_written_yet_asks_redis_ever_less_often() {
    let world = World::own();
    let server = world.server_with("[default_policy]\nrotation_grace = '1s'").await;
    let client = server.client().await;
    let request = CreateSessionRequest { absolute_timeout: millis(500), ..Default::default() };
    let (session, first) = client.create_as(request).await.unwrap();
    client.rotate(&first).await.unwrap();
    let mut watching = watch_by(&client, &first).await;
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    // The session's deadline, then the token's time.
    let over = in_ms(session.create_time) + 2_000;
    eventually("it is over", async || (world.redis.now() > over).then_some(())).await;
    watching.everything_so_far().await;
    let scripts = || -> u64 {
        let told = world.redis.info("commandstats", "cmdstat_evalsha");
        told.split(['=', ',']).nth(1).unwrap().parse().unwrap()
    };
    let before = scripts();
    for _ in 0..10 {
        watching.bookmark().await;
    }
    let asked = scripts() - before;
    assert!(asked < 100, "{asked} scripts in ten bookmarks");
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
}
