//! S4: a session in use lives, whatever touch interval its policy has, and settings that contradict each other are refused.

use harness::{Client, ConfigFile, cli, client::*, clock::Clock, eventually};
use sessiond_client::v1::{CreateSessionRequest, SessionKey, TouchSessionRequest, UpdateSessionRequest};

/// Policy with a touch interval that is longer than the idle timeout of the sessions in these tests.
const LONG_INTERVAL: &str = "[default_policy]\nidle_timeout = '2h'\nabsolute_timeout = '2d'\ntouch_interval = '1h'";
/// Idle timeout in these tests in seconds. The machine may take most of it for one step.
const IDLE: i64 = 600;

/// Calls that touch a session.
#[derive(Clone, Copy, Debug)]
enum Way {
    Get,
    Touch,
    Update,
}

async fn touch(client: &Client, how: Way, key: Option<SessionKey>) {
    let namespace = client.namespace.clone();
    match how {
        Way::Get => drop(client.touch(key).await.unwrap()),
        Way::Touch => drop(client.grpc.clone().touch_session(TouchSessionRequest { namespace, key }).await.unwrap()),
        Way::Update => {
            client.update(UpdateSessionRequest { key, touch: true, ..Default::default() }).await.unwrap();
        }
    }
}

#[tokio::test]
async fn s4_session_in_use_lives_under_a_long_touch_interval() {
    let (world, clock) = Clock::world();
    let server = world.server_with(LONG_INTERVAL).await;
    let client = server.client().await;
    let idle_timeout = seconds(IDLE);
    let mut sessions = Vec::new();
    for how in [Way::Get, Way::Touch, Way::Update] {
        let create = CreateSessionRequest { idle_timeout, ..Default::default() };
        sessions.push((how, client.create_with(create).await.unwrap().1));
        // The idle timeout of a live session can be lowered below the interval too.
        let (session, token) = client.create(&[]).await;
        client
            .update(UpdateSessionRequest { key: by_id(&session.id), idle_timeout, ..Default::default() })
            .await
            .unwrap();
        sessions.push((how, token));
    }
    for step in 1..=3 {
        let mut before = Vec::new();
        for (_, token) in &sessions {
            before.push(client.get(by_token(token)).await.unwrap().access_time);
        }
        clock.step_to(step * IDLE * 2 / 3, [&client]).await;
        for ((how, token), before) in sessions.iter().zip(before) {
            // The server may notice the step of the clock a heartbeat later.
            eventually("the touch is stored", async || {
                touch(&client, *how, by_token(token)).await;
                (client.get(by_token(token)).await.unwrap().access_time != before).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn touch_interval_is_at_most_a_twentieth_of_the_idle_timeout() {
    let (world, clock) = Clock::world();
    let server = world.server_with(LONG_INTERVAL).await;
    let client = server.client().await;
    // A twentieth of the policy's 2 h is 6 min.
    let (session, token) = client.create(&[]).await;
    clock.shift_to(4 * 60);
    client.touch(by_token(&token)).await.unwrap();
    assert_eq!(client.get(by_token(&token)).await.unwrap().access_time, session.access_time);
    clock.shift_to(8 * 60);
    eventually("the touch is stored", async || {
        let touched = client.touch(by_token(&token)).await.unwrap();
        (touched.access_time != session.access_time && touched.expire_time != session.expire_time).then_some(())
    })
    .await;
}

/// Runs `sessiond config` with this file; returns its exit code and its errors.
async fn check(toml: &str) -> (Option<i32>, String) {
    let file = ConfigFile::new(toml);
    let finished = cli::run(cli::command(&["config", &file.flag()]), "").await;
    (finished.code, finished.errors)
}

#[tokio::test]
async fn touch_interval_above_the_idle_timeout_is_refused() {
    for section in ["default_policy", "namespace.web"] {
        for (idle, interval) in [("2s", "30s"), ("1h", "1h 1s"), ("30m", "1d")] {
            let toml = format!("[{section}]\nidle_timeout = '{idle}'\ntouch_interval = '{interval}'");
            let (code, errors) = check(&toml).await;
            assert_ne!(code, Some(0), "{toml}: was accepted");
            let expected = format!("{section}.touch_interval: must be at most idle_timeout");
            assert!(errors.contains(&expected), "{toml}: {errors}");
        }
        for (idle, interval) in [("2s", "2s"), ("never", "30d"), ("1h", "0s")] {
            let toml = format!(
                "[{section}]\nidle_timeout = '{idle}'\nmax_idle_timeout = 'never'\ntouch_interval = '{interval}'"
            );
            let (code, errors) = check(&toml).await;
            assert_eq!(code, Some(0), "{toml}: {errors}");
        }
    }
}
