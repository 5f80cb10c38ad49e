//! Redis in a write pause (`CLIENT PAUSE WRITE`, as in a planned failover): reads continue, writes wait, connections stay.

use std::{collections::BTreeSet, time::Duration};

use harness::{Client, Redis, Server, Setup, World, client::*, eventually, proxy::Proxy, tokens::*};
use sessiond_client::v1::{CreateSessionRequest, EventType, TokenState};
use tokio::time::{Instant, sleep};
use tonic::Code;

/// Time that the pause lasts at least: longer than any heartbeat takes to find that a server hangs.
const PAUSE: Duration = Duration::from_secs(4);

/// Starts a pause that lasts until [`unpause`].
fn pause(redis: &Redis) {
    redis.must(&["CLIENT", "PAUSE", "600000", "WRITE"]);
}

fn unpause(redis: &Redis) {
    redis.must(&["CLIENT", "UNPAUSE"]);
}

/// Returns the ids of the connections of the servers under test.
fn connections(redis: &Redis) -> BTreeSet<String> {
    let clients = redis.list(&["CLIENT", "LIST"]).concat();
    let of_servers = clients.lines().filter(|line| line.contains(" user=sessiond "));
    of_servers.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Reads in a loop for the time of a pause.
async fn read_on(client: &Client, mut read: impl AsyncFnMut(&Client)) {
    let started = Instant::now();
    while started.elapsed() < PAUSE {
        read(client).await;
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_continue_in_a_write_pause() {
    let toml = "[default_policy]\ntouch_interval = '0s'";
    let Setup { world, client, .. } = &World::dedicated().setup_with(toml).await;
    let (session, token) = client.create(&[("a", text("1"))]).await;
    let (_, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    let (_, ended) = client.create(&[]).await;
    client.delete(by_token(&ended)).await.unwrap();
    let mut watching = client.watch_all().await;
    let before = connections(&world.redis);
    let short = CreateSessionRequest { idle_timeout: millis(1_500), ..Default::default() };
    let (short, expiring) = client.create_with(short).await.unwrap();
    pause(&world.redis);
    let read = async |client: &Client| {
        for key in [by_token(&token), by_id(&session.id)] {
            assert_eq!(client.get(key.clone()).await.unwrap().revision, session.revision);
            // With a touch that is due and cannot be written.
            assert_eq!(client.touch(key).await.unwrap().attributes, session.attributes);
        }
        // The first use of a token that cannot be noted.
        assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
        assert_eq!(client.token_state(&first).await.unwrap(), TokenState::Superseded);
        let wrong = client.get(by_token(&successor_of(&token))).await;
        expect_error(wrong, Code::NotFound, "SESSION_NOT_FOUND");
        expect_error(client.get(by_token(&ended)).await, Code::NotFound, "SESSION_ENDED");
    };
    read_on(client, read).await;
    // Its deadline has passed, and Redis accepts no write that ends it.
    world.redis.wait_for_time(unix_ms(short.expire_time)).await;
    expect_error(client.get(by_token(&expiring)).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(client.list_subject("alice").await, []);
    watching.bookmark().await;
    client.watch(token_watch_request(&second)).await.unwrap().bookmark().await;
    unpause(&world.redis);
    client.set(by_token(&token), &[("a", text("2"))]).await.unwrap();
    watching.wait_for(EventType::Updated, &session.id).await;
    assert!(!client.lives(&short.id).await);
    assert_eq!(connections(&world.redis), before, "connections were replaced");
    // Presented again, the successor is in use.
    client.get(by_token(&second)).await.unwrap();
    expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
}

/// Token reuse ends the session, which needs a write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_reuse_waits_for_the_end_of_a_write_pause() {
    let Setup { world, client, .. } = &World::dedicated().setup_with("[default_policy]\nrotation_grace = '0s'").await;
    let (_, first) = client.create(&[]).await;
    let second = client.rotate_and_use(&first).await;
    pause(&world.redis);
    let reading = async {
        read_on(client, async |client| drop(client.get(by_token(&second)).await.unwrap())).await;
        unpause(&world.redis);
    };
    let (reused, ()) = tokio::join!(client.get(by_token(&first)), reading);
    expect_error(reused, Code::NotFound, "SESSION_ENDED");
    expect_error(client.get(by_token(&second)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_for_the_end_of_a_write_pause() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    let mut watching = client.watch_all().await;
    let (updated, token) = client.create(&[("a", text("1"))]).await;
    let (_, first) = client.create(&[]).await;
    let (deleted, _) = client.create(&[]).await;
    watching.events(3).await;
    let before = connections(&world.redis);
    pause(&world.redis);
    let reading = async {
        read_on(client, async |client| assert_eq!(client.get(by_token(&token)).await.unwrap(), updated)).await;
        unpause(&world.redis);
    };
    let changed = [("a", text("2"))];
    let writes = async {
        tokio::join!(
            client.set(by_token(&token), &changed),
            client.rotate(&first),
            client.delete(by_id(&deleted.id)),
            client.create_with(CreateSessionRequest { subject: "alice".into(), ..Default::default() }),
            client.delete_subject("bob"),
        )
    };
    let ((set, second, ended, created, none), ()) = tokio::join!(writes, reading);
    assert_eq!(set.unwrap().attributes, [("a".to_owned(), text("2"))].into());
    assert_eq!(client.token_state(&second.unwrap()).await.unwrap(), TokenState::Current);
    assert!(ended.unwrap() && !client.lives(&deleted.id).await);
    assert_eq!(client.list_subject("alice").await[0].id, created.unwrap().0.id);
    assert_eq!(none.unwrap(), 0);
    assert_eq!(connections(&world.redis), before, "connections were replaced");
    let mut received: Vec<_> = watching.events_until_now().await.into_iter().map(|event| event.r#type()).collect();
    received.sort();
    let expected = [EventType::Created, EventType::Updated, EventType::Rotated, EventType::Ended];
    assert_eq!(received, expected, "each write is applied once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_whose_deadline_ends_in_a_write_pause_is_not_applied() {
    let toml = "[limits]\ncall_timeout = '700ms'";
    let Setup { world, client, .. } = &World::dedicated().setup_with(toml).await;
    let (session, token) = client.create(&[("a", text("1"))]).await;
    let (_, first) = client.create(&[]).await;
    let late = new_token();
    let before = connections(&world.redis);
    pause(&world.redis);
    let create = CreateSessionRequest { token: late.clone(), ..Default::default() };
    let changed = [("a", text("2"))];
    let writes = async {
        let (set, rotated, created) = tokio::join!(
            client.set(by_token(&token), &changed),
            client.rotate(&first),
            client.create_with(create.clone()),
        );
        [set.map(drop), rotated.map(drop), created.map(drop)]
    };
    let reading = read_on(client, async |client| assert_eq!(client.get(by_token(&token)).await.unwrap(), session));
    let (writes, ()) = tokio::join!(writes, reading);
    for written in writes {
        let status = written.unwrap_err();
        let reasons = ["OUTCOME_UNKNOWN", "STORE_TIMEOUT"];
        assert!(status.code() == Code::DeadlineExceeded && reasons.contains(&&status.reason()[..]), "{status:?}");
    }
    unpause(&world.redis);
    // Redis runs what it held back before a later command on the same connection.
    let written = client.set(by_token(&token), &[("b", text("1"))]).await.unwrap();
    assert_eq!(written.attributes, [("a".to_owned(), text("1")), ("b".into(), text("1"))].into());
    expect_error(client.get(by_token(&late)).await, Code::NotFound, "SESSION_NOT_FOUND");
    assert_eq!(client.token_state(&first).await.unwrap(), TokenState::Current);
    assert_eq!(connections(&world.redis), before, "connections were replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_pause_that_ends_during_a_check_keeps_connections() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "").await;
    let client = server.client().await;
    let (_, token) = client.create(&[]).await;
    let before = connections(&world.redis);
    for n in ["1", "2", "3"] {
        let opened = proxy.connections();
        pause(&world.redis);
        let pausing = async {
            eventually("a second connection checks", async || (proxy.connections() > opened).then_some(())).await;
            // The replies that the pause held back arrive after the reply to the check.
            proxy.hold_replies_of(opened);
            unpause(&world.redis);
            let is_checked = async || (connections(&world.redis).is_subset(&before)).then_some(());
            eventually("the second connection is closed", is_checked).await;
            proxy.release_replies();
        };
        let attributes = [("n", text(n))];
        let (set, ()) = tokio::join!(client.set(by_token(&token), &attributes), pausing);
        assert_eq!(set.unwrap().attributes, [("n".to_owned(), text(n))].into());
        assert_eq!(connections(&world.redis), before, "connections were replaced");
    }
}
