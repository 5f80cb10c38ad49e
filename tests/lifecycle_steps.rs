//! Calls of several steps: which sessions DeleteSubjectSessions ends, and what happens if the client gives up in between.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use harness::{Client, Server, World, client::*, clock::Clock, eventually, proxy::Proxy, tokens::*};
use sessiond::store::scripts;
use sessiond_client::v1::{CreateSessionRequest, EventType, RotateSessionRequest};
use tokio::time::sleep;
use tonic::Code;

/// Number of sessions that the subject has when the call begins.
const OLD: usize = 20;

/// Logs alice in until `done`, and at least once after `begun`. Returns the ids of the sessions whose login started after
/// `begun`.
async fn log_in_until(client: &Client, begun: &AtomicBool, done: &AtomicBool) -> Vec<String> {
    let mut later = Vec::new();
    while !done.load(Ordering::SeqCst) || later.is_empty() {
        let has_begun = begun.load(Ordering::SeqCst);
        let (guest, token) = client.create(&[]).await;
        let logged_in = match later.len() % 3 {
            0 => client.login(by_id(&guest.id), "alice").await.map(|session| session.id),
            1 => client.login_by_rotation(&token, "alice").await.map(|(session, _)| session.id),
            _ => {
                let request = CreateSessionRequest { subject: "alice".into(), ..Default::default() };
                client.create_with(request).await.map(|(session, _)| session.id)
            }
        };
        match logged_in {
            Ok(id) if has_begun => later.push(id),
            Ok(_) => {}
            // A session that was about to get the subject when the call began may end.
            Err(status) => assert!(!has_begun && status.reason() == "SESSION_ENDED", "{status:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
    later
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_delete_subject_sessions_ends_no_later_login() {
    // The entries of the index can be ahead of a clock that was set back.
    for created_at in [0, 3_600] {
        let (world, clock) = Clock::world();
        let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
        let mut watching = client.watch_all().await;
        clock.step_to(created_at, [&client]).await;
        let mut old = Vec::new();
        for _ in 0..OLD {
            old.push(client.create_for("alice").await.0.id);
        }
        clock.step_to(0, [&client]).await;
        slow.create(&[]).await;
        proxy.delay_replies(Duration::from_millis(50));
        let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let deleting = async {
            let ended = slow.delete_subject("alice").await;
            done.store(true, Ordering::SeqCst);
            ended
        };
        let noticing = async {
            while watching.event().await.r#type() != EventType::Ended {}
            begun.store(true, Ordering::SeqCst);
        };
        let (ended, (), later) = tokio::join!(deleting, noticing, log_in_until(&client, &begun, &done));
        assert!(ended.expect("the call ends") as usize >= OLD);
        for id in &old {
            assert!(!client.lives(id).await, "a session from before the call lives");
        }
        for id in &later {
            assert!(client.lives(id).await, "a login after the begin of the call was ended");
        }
        assert!(client.list_subject("alice").await.len() >= later.len());
    }
}

/// A create with the id of a live session reserves the id again, and then finds the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_session_whose_id_is_reserved_again_is_ended() {
    let world = World::dedicated();
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.create_for("alice").await.0.id);
    }
    slow.create(&[]).await;
    let key = world.index_key("alice").unwrap();
    client.list_subject("alice").await;
    let reads = || world.redis.info("commandstats", "cmdstat_zrange");
    proxy.delay_replies(Duration::from_millis(100));
    let before = reads();
    let reserving = async {
        eventually("the index is read", async || (reads() != before).then_some(())).await;
        for id in &ids {
            world.redis.must(&["ZADD", &key, &world.now_us().to_string(), id]);
        }
    };
    let (ended, ()) = tokio::join!(slow.delete_subject("alice"), reserving);
    assert_eq!(ended.unwrap(), 3);
    for id in &ids {
        assert!(!client.lives(id).await, "a session of before the call lives");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_delete_subject_sessions_that_is_cancelled_is_finished() {
    /// More sessions than the call ends at the same time.
    const SESSIONS: usize = 250;
    let world = World::dedicated();
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
    let mut watching = client.watch_all().await;
    let created = futures_util::future::join_all((0..SESSIONS).map(|_| client.create_for("alice"))).await;
    slow.create(&[]).await;
    proxy.delay_replies(Duration::from_millis(300));
    let first_end = async { while watching.event().await.r#type() != EventType::Ended {} };
    tokio::select! {
        finished = slow.delete_subject("alice") => panic!("finished before the client gave up: {finished:?}"),
        () = first_end => {}
    }
    for (session, _) in &created {
        eventually("the session has ended", async || (!client.lives(&session.id).await).then_some(())).await;
    }
}

/// Calls that end alice's oldest session before their last step.
const WAYS: [&str; 3] = ["create", "login", "login by rotation"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_call_cancelled_at_the_session_limit_is_finished() {
    for way in WAYS {
        let world = World::dedicated();
        let proxy = Proxy::start(&world.redis);
        let toml = "[default_policy]\nsession_limit = 1";
        let server = Server::start(&proxy.url(), &world.prefix, toml).await;
        let direct = world.server_with(toml).await;
        let (slow, client) = (server.client().await, direct.client().await);
        slow.create_for("bob").await;
        let mut watching = client.watch_all().await;
        let (oldest, _) = client.create_for("alice").await;
        let (guest, guest_token) = client.create(&[]).await;
        let token = new_token();
        proxy.delay_replies(Duration::from_millis(300));
        let call = async {
            match way {
                "create" => {
                    let (token, subject) = (token.clone(), "alice".into());
                    slow.create_with(CreateSessionRequest { token, subject, ..Default::default() }).await.map(drop)
                }
                "login" => slow.login(by_id(&guest.id), "alice").await.map(drop),
                _ => {
                    let subject = Some("alice".into());
                    let rotation = RotateSessionRequest { subject, ..rotation_of(&guest_token) };
                    slow.rotate_with(rotation).await.map(drop)
                }
            }
        };
        // The reply to the script that ended the oldest session is still under way when the client resets the call.
        tokio::select! {
            finished = call => finished.unwrap(),
            _ = watching.wait_for(EventType::Ended, &oldest.id) => {}
        }
        let expected = if way == "create" { id_of(&token) } else { guest.id };
        let what = format!("{way}: alice has her new session");
        eventually(&what, async || {
            let listed = client.list_subject("alice").await;
            listed.iter().map(|session| &session.id).eq([&expected]).then_some(())
        })
        .await;
    }
}

/// The session that had to make room has ended: the call is applied in part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_create_refused_after_it_ended_another_is_unknown() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "[default_policy]\nsession_limit = 1").await;
    let client = server.client().await;
    let (first, _) = client.create_for("alice").await;
    proxy.hold_requests_at(&scripts::CREATE);
    let refusing = async {
        eventually("the create is held back", async || proxy.is_holding_requests().then_some(())).await;
        world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
        proxy.release_requests();
    };
    let create = CreateSessionRequest { subject: "alice".into(), ..Default::default() };
    let (created, ()) = tokio::join!(client.create_with(create), refusing);
    expect_error(created, Code::Unknown, "OUTCOME_UNKNOWN");
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    expect_error(client.get(by_id(&first.id)).await, Code::NotFound, "SESSION_ENDED");
}
