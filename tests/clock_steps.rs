//! Steps of the clock of Redis: revisions stay ahead of a clock that was set back.

use harness::{Client, WatchReader, client::*, clock::Clock, eventually, tokens::unix_ms};
use sessiond_client::v1::{EventType, RotateSessionRequest, UpdateSessionRequest, WatchRequest};
use tonic::Code;

const HOUR: i64 = 3_600;

/// Opens a watch by this token and returns after its first bookmark.
async fn watch_by(client: &Client, token: &str) -> WatchReader {
    let keys = by_token(token).into_iter().collect();
    let mut watching =
        client.watch(WatchRequest { keys, bookmark_interval: millis(100), ..Default::default() }).await.unwrap();
    watching.bookmark().await;
    watching
}

#[tokio::test]
async fn watch_by_token_clock_set_back_receives_events_in_grace() {
    let (world, clock) = Clock::world();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let (session, first) = client.create(&[]).await;
    let mut watching = watch_by(&client, &first).await;
    clock.shift_to(-HOUR);
    let second = client.rotate(&first).await.unwrap();
    assert_eq!(watching.event().await.r#type(), EventType::Rotated);
    for n in 0..3 {
        client.set(by_token(&second), &[("n", text(&n.to_string()))]).await.unwrap();
        assert_eq!(watching.event().await.r#type(), EventType::Updated);
    }
    // A watch that resumes with the superseded token gets the same events.
    let mut resumed = watch_by(&client, &first).await;
    client.set(by_token(&second), &[("n", text("4"))]).await.unwrap();
    for watching in [&mut watching, &mut resumed] {
        assert_eq!(watching.event().await.r#type(), EventType::Updated);
    }
    client.delete(by_id(&session.id)).await.unwrap();
    for watching in [&mut watching, &mut resumed] {
        assert_eq!(watching.event().await.r#type(), EventType::Ended);
        expect_error(watching.end().await, Code::NotFound, "SESSION_ENDED");
    }
}

#[tokio::test]
async fn watch_by_token_clock_set_back_receives_no_event_after_grace() {
    let (world, clock) = Clock::world();
    let server = world.server_with("partitions = 1\n[default_policy]\nrotation_grace = '400ms'").await;
    let client = server.client().await;
    for ends_by_login in [false, true] {
        clock.step_to(0, [&client]).await;
        let (_, first) = client.create(&[]).await;
        let mut watching = watch_by(&client, &first).await;
        clock.shift_to(-HOUR);
        let second = client.rotate(&first).await.unwrap();
        assert_eq!(watching.event().await.r#type(), EventType::Rotated);
        if ends_by_login {
            let subject = Some("alice".into());
            let login = UpdateSessionRequest { key: by_token(&second), subject, ..Default::default() };
            client.update(login).await.unwrap();
        } else {
            eventually("the grace period is over", async || {
                client.get(by_token(&first)).await.err().map(|status| assert_eq!(status.reason(), "TOKEN_ROTATED"))
            })
            .await;
        }
        client.set(by_token(&second), &[("secret", text("1"))]).await.unwrap();
        expect_error(watching.end().await, Code::NotFound, "TOKEN_ROTATED");
        assert!(watching.buffered().is_empty(), "an event from after the validity of the token");
    }
}

#[tokio::test]
async fn grace_ended_by_a_login_stays_over_when_the_clock_is_set_back() {
    let (world, clock) = Clock::world();
    let server = world.server().await;
    let client = server.client().await;
    let (_, planted) = client.create(&[]).await;
    let subject = Some("alice".into());
    let login = RotateSessionRequest { token: planted.clone(), subject, ..Default::default() };
    let (_, current) = client.rotate_with(login).await.unwrap();
    expect_error(client.get(by_token(&planted)).await, Code::NotFound, "TOKEN_ROTATED");
    clock.shift_to(-HOUR);
    client.get(by_token(&current)).await.unwrap();
    expect_error(client.get(by_token(&planted)).await, Code::NotFound, "TOKEN_ROTATED");
}

#[tokio::test]
async fn grace_over_before_a_login_stays_over_after_a_clock_step() {
    let (world, clock) = Clock::world();
    let server = world.server_with("[default_policy]\nrotation_grace = '30s'").await;
    let client = server.client().await;
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    clock.step_to(60, [&client]).await;
    let subject = Some("alice".into());
    let login = UpdateSessionRequest { key: by_token(&second), subject, ..Default::default() };
    client.update(login).await.unwrap();
    clock.shift_to(0);
    expect_error(client.get(by_token(&first)).await, Code::NotFound, "TOKEN_ROTATED");
}

#[tokio::test]
async fn touch_by_an_update_clock_set_back_keeps_the_deadline() {
    let (world, clock) = Clock::world();
    let server = world.server_with("[default_policy]\nidle_timeout = '2h'\ntouch_interval = '0s'").await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    clock.shift_to(-HOUR);
    let update = UpdateSessionRequest { key: by_token(&token), touch: true, ..Default::default() };
    let with_content =
        |n: &str| UpdateSessionRequest { set_attributes: [("n".to_owned(), text(n))].into(), ..update.clone() };
    let with_request_id = UpdateSessionRequest { request_id: "request-0000000001".into(), ..update.clone() };
    for update in [with_content("1"), with_request_id, with_content("2")] {
        assert_eq!(client.update(update).await.unwrap().expire_time, session.expire_time);
    }
    assert_eq!(client.touch(by_token(&token)).await.unwrap().expire_time, session.expire_time);
    // A new idle timeout counts from now on by the clock of Redis, with or without a touch.
    for touch in [true, false] {
        let shorter = UpdateSessionRequest { idle_timeout: seconds(HOUR), touch, ..update.clone() };
        let shortened = client.update(shorter).await.unwrap();
        assert!(unix_ms(shortened.expire_time) < unix_ms(session.expire_time) - HOUR * 1_000, "{shortened:?}");
    }
}

#[tokio::test]
async fn log_entries_from_a_clock_ahead_leave_at_their_age() {
    let (world, clock) = Clock::world();
    let server = world.server_with("partitions = 1\nlog_max_age = '1s'").await;
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    // Less than the idle timeout.
    clock.step_to(HOUR / 4, [&client]).await;
    client.set(by_id(&session.id), &[("n", text("0"))]).await.unwrap();
    clock.shift_to(0);
    for n in 1..20 {
        client.set(by_id(&session.id), &[("n", text(&n.to_string()))]).await.unwrap();
    }
    let log = world.redis.keys("*:log").remove(0);
    assert!(world.redis.number(&["XLEN", &log]) > 1);
    eventually("all entries but the last have left", async || (world.redis.number(&["XLEN", &log]) == 1).then_some(()))
        .await;
}

#[tokio::test]
async fn oldest_session_is_replaced_after_the_clock_was_set_back() {
    let (world, clock) = Clock::world();
    let server = world.server_with("[default_policy]\nsession_limit = 2").await;
    let client = server.client().await;
    let (first, _) = client.create_for("alice").await;
    let (second, _) = client.create_for("alice").await;
    clock.shift_to(-HOUR);
    let (third, _) = client.create_for("alice").await;
    let (fourth, _) = client.create_for("alice").await;
    let listed: Vec<_> = client.list_subject("alice").await.into_iter().map(|session| session.id).collect();
    assert_eq!(listed, [fourth.id, third.id]);
    assert!(!client.lives(&first.id).await && !client.lives(&second.id).await);
}

#[tokio::test]
async fn login_after_a_logout_and_a_clock_set_back_succeeds() {
    let (world, clock) = Clock::world();
    let server = world.server_with("[default_policy]\nidle_timeout = '2h'").await;
    let client = server.client().await;
    let (session, _) = client.create_for("alice").await;
    client.login(by_id(&session.id), "").await.unwrap();
    eventually("the session has left the index", async || world.index("alice").is_empty().then_some(())).await;
    clock.shift_to(-HOUR);
    assert_eq!(client.login(by_id(&session.id), "alice").await.unwrap().subject, "alice");
    assert_eq!(client.delete_subject("alice").await.unwrap(), 1);
}

/// A step of the clock looks like time that the call has waited: the write must not be sent once more.
#[tokio::test]
async fn s3_write_late_by_a_step_of_the_clock_is_not_sent_again() {
    let (world, clock) = Clock::world();
    let server = world.server().await;
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    let mut steps = 0;
    // The server may read the clock between the step and the write.
    let refused = eventually("a write is late", async || {
        steps += 1;
        clock.shift_to(steps * 60);
        client.set(by_id(&session.id), &[("step", text(&steps.to_string()))]).await.err()
    })
    .await;
    assert_eq!(refused.reason(), "STORE_TIMEOUT", "{refused:?}");
    let read = client.get(by_id(&session.id)).await.unwrap();
    assert_ne!(read.attributes.get("step"), Some(&text(&steps.to_string())), "a late write was applied");
}

#[tokio::test]
async fn reconciliation_continues_after_the_clock_was_set_back() {
    let (world, clock) = Clock::world();
    let server = world.server_with("reconcile_interval = '1s'\npartitions = 1").await;
    let client = server.client().await;
    clock.step_to(HOUR, [&client]).await;
    let (session, _) = client.create_for("alice").await;
    eventually("the store is reconciled by that clock", async || {
        let meta = world.redis.keys("*:meta").remove(0);
        let claimed = world.redis.list(&["HMGET", &meta, "reconciled"]);
        claimed.first().filter(|at| at.parse::<i64>().unwrap() > world.redis.now() - 5_000).map(drop)
    })
    .await;
    clock.shift_to(0);
    let key = world.index_key("alice").unwrap();
    // The first repair may belong to a reconciliation that was already in progress.
    for _ in 0..2 {
        world.redis.must(&["ZREM", &key, &session.id]);
        eventually("the index is repaired", async || (world.index("alice").len() == 1).then_some(())).await;
    }
}
