//! Sessions on a primary that Sentinels name: failovers without loss, failovers with a rollback, failed Sentinels.

use std::collections::BTreeSet;

use harness::{
    Client, Redis, Server, Status,
    client::*,
    eventually,
    listing::{create_enough_for_cursor, list_first_half, list_rest},
    process::Process,
    sentinel::Sentinels,
    servers::{run_blocking, wait_until},
    writers::{now, wait_for_many_writes, write_sessions_during},
};
use sessiond_client::v1::{EventType, ResyncReason, Session, watch_response};

const PREFIX: &str = "ses:";
const REPLICATED: &str = "[limits]\ncall_timeout = '3s'\n[default_policy]\ndurability = 'replicated'\nreplicas = 1\n";

async fn sentinels(replicas: usize) -> Sentinels {
    run_blocking(move || Sentinels::start(replicas)).await
}

/// Creates this many sessions.
async fn some(client: &Client, count: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        sessions.push(client.create(&[]).await.0);
    }
    sessions
}

/// Returns when the server accepts a write again.
async fn is_served_again(client: &Client) {
    eventually("the server accepts writes", async || client.create_with(Default::default()).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_is_followed_and_keeps_confirmed_writes() {
    let sentinels = sentinels(1).await;
    let (a, b) = (
        Server::start(&sentinels.url(), PREFIX, REPLICATED).await,
        Server::start(&sentinels.url(), PREFIX, REPLICATED).await,
    );
    let clients = [a.client().await, b.client().await];
    let sessions = some(&clients[0], 16).await;
    let servers = [a, b];
    let (mut from, mut until) = (0, 0);
    let fault = async {
        wait_for_many_writes(&servers).await;
        from = now();
        let of = sentinels.clone();
        run_blocking(move || {
            of.fail_over();
            of.wait_until_replicated();
        })
        .await;
        is_served_again(&clients[1]).await;
        until = now();
        wait_for_many_writes(&servers).await;
    };
    let written = write_sessions_during(&clients, &sessions, 0, fault).await;
    written.assert_writes_around(&sessions, from, until);
    written.assert_acknowledged_kept(&clients[0]).await;
    let mut watching = clients[0].watch_all().await;
    for session in &sessions {
        assert!(clients[1].delete(by_id(&session.id)).await.unwrap());
        watching.wait_for(EventType::Ended, &session.id).await;
    }
}

/// Applies the fault to a primary whose two replicas are in sync, and asserts that no session is lost and an open watch
/// continues.
async fn assert_nothing_is_lost(fault: impl FnOnce(&Sentinels, &Redis) + Send + 'static) {
    let sentinels = sentinels(2).await;
    let server = Server::start(&sentinels.url(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = some(&client, 8).await;
    let primary = sentinels.primary();
    for replica in sentinels.replicas() {
        primary.wait_for(&replica);
    }
    let mut watching = client.watch_all().await;
    let of = sentinels.clone();
    run_blocking(move || fault(&of, &primary)).await;
    is_served_again(&client).await;
    for session in &sessions {
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        watching.wait_for(EventType::Updated, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_after_a_kill_keeps_open_watches_running() {
    assert_nothing_is_lost(|sentinels, primary| {
        primary.kill();
        sentinels.wait_for_new_primary(primary);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_primary_that_restarts_empty_is_not_used_as_the_store() {
    // With two Sentinels of the same epoch the result could depend on the order in which they are asked: every Sentinel
    // leads once.
    for leader in 0..3 {
        assert_nothing_is_lost(move |sentinels, primary| {
            sentinels.stall_failovers(&sentinels.replicas()[1]);
            sentinels.fail_over_by(&sentinels.sentinels()[leader]);
            primary.kill();
            primary.restart();
        })
        .await;
    }
}

/// Fails over to a replica that lacks the last writes; the old primary returns as its replica. Returns the sessions that
/// were replicated and those that are lost.
async fn roll_back(sentinels: &Sentinels, client: &Client) -> (Vec<Session>, Vec<Session>) {
    let (primary, replica) = (sentinels.primary(), sentinels.replicas().remove(0));
    let kept = some(client, 8).await;
    let (of, to) = (primary.clone(), replica.clone());
    run_blocking(move || of.wait_for(&to)).await;
    primary.isolate_replica(&replica);
    let lost = some(client, 8).await;
    primary.pause();
    replica.resume();
    let sentinels = sentinels.clone();
    run_blocking(move || {
        sentinels.wait_for_new_primary(&primary);
        primary.resume();
        sentinels.wait_until_replicated();
    })
    .await;
    (kept, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w9_rollback_sends_resync_to_open_and_resumed_watches() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, "").await;
    let client = server.client().await;
    let (mut open, mut left) = (client.watch_all().await, client.watch_all().await);
    let (kept, lost) = roll_back(&sentinels, &client).await;
    // The last events of the lost branch may not have left the primary before it failed.
    let (mut received, mut token) = (0, left.token.clone());
    while received < kept.len() + lost.len() {
        let response = left.response().await.unwrap().expect("the stream is open");
        if let Some(watch_response::Control::Resync(_)) = response.control {
            break;
        }
        received += response.events.len();
        token = response.resume_token;
    }
    drop(left);
    is_served_again(&client).await;

    // The resync names the lost sessions whose events the server had received.
    let ids: BTreeSet<String> = lost.iter().map(|session| session.id.clone()).collect();
    let (mut delivered, mut named) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let resync = open.resync().await;
        assert_eq!(resync.reason(), ResyncReason::Rollback);
        delivered.extend(open.buffered().into_iter().map(|event| event.id).filter(|id| ids.contains(id)));
        named.extend(resync.ids.iter().cloned());
        if resync.ids.is_empty() || named.is_superset(&delivered) {
            break;
        }
    }
    let resync = client.resume(&token).await.resync().await;
    assert_eq!(resync.reason(), ResyncReason::Rollback);
    for session in &kept {
        assert!(client.lives(&session.id).await);
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        let event = open.wait_for(EventType::Updated, &session.id).await;
        assert!(event.revision > session.revision);
    }
    for session in &lost {
        assert!(!client.lives(&session.id).await, "a lost session is back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_continued_after_a_failover_is_complete() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, "partitions = 1").await;
    let client = server.client().await;
    let sessions = create_enough_for_cursor(&client).await;
    let (mut listed, page_token) = list_first_half(&client, &sessions).await;
    let of = sentinels.clone();
    run_blocking(move || {
        of.primary().wait_for(&of.replicas()[0]);
        of.fail_over();
        of.wait_until_replicated();
    })
    .await;
    listed.extend(list_rest(&client, page_token).await);
    assert_eq!(sessions.difference(&listed).count(), 0, "sessions are missing in the list");
    assert_eq!(listed.len(), sessions.len(), "the list has other sessions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_primary_is_not_read_from() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, "").await;
    let client = server.client().await;
    let before = some(&client, 8).await;
    let old = sentinels.primary();
    let of = sentinels.clone();
    run_blocking(move || {
        of.primary().wait_for(&of.replicas()[0]);
        of.fail_over();
        of.wait_until_replicated();
    })
    .await;
    is_served_again(&client).await;
    let mut watching = client.watch_all().await;
    for round in 0..3 {
        // The demoted primary is a replica of no server and serves old data until the Sentinels reconfigure it.
        old.must(&["REPLICAOF", "127.0.0.1", "1"]);
        for session in &before {
            let value = format!("{round}");
            client.set(by_id(&session.id), &[("a", text(&value))]).await.unwrap();
            let read = client.get(by_id(&session.id)).await.unwrap();
            assert_eq!(read.attributes["a"], text(&value));
            watching.wait_for(EventType::Updated, &session.id).await;
        }
        let made = client.create_for("user").await.0;
        assert!(client.list_subject("user").await.iter().any(|session| session.id == made.id));
        let of = sentinels.clone();
        run_blocking(move || of.wait_until_replicated()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_sentinels_do_not_stop_the_service() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, "").await;
    let client = server.client().await;
    sentinels.sentinels()[0].kill();
    sentinels.sentinels()[1].pause();
    some(&client, 8).await;
    // One Sentinel that knows the primary is enough for a server to start.
    let another = Server::start(&sentinels.url(), PREFIX, "").await;
    some(&another.client().await, 8).await;
    sentinels.sentinels()[2].kill();
    some(&client, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicated_write_without_a_replica_is_outcome_unknown() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, REPLICATED).await;
    let client = server.client().await;
    let replica = sentinels.replicas().remove(0);
    for session in some(&client, 20).await {
        assert_eq!(
            replica.keys(&format!("{PREFIX}*:s:*:{}", session.id)).len(),
            1,
            "a confirmed write is not on the replica"
        );
    }
    replica.pause();
    let status = client.create_with(Default::default()).await.unwrap_err();
    assert_eq!(status.reason(), "OUTCOME_UNKNOWN", "{status:?}");
    replica.resume();
    is_served_again(&client).await;
}

#[test]
fn unknown_sentinel_service_name_is_logged_in_one_line() {
    let sentinels = Sentinels::start(0);
    let wrong = sentinels.url().replace("sentinelServiceName=main", "sentinelServiceName=other");
    let (log, code) = Process::expect_start_failure(&[format!("--redis={wrong}")]);
    assert_eq!(code, Some(1));
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"ERROR\"")).collect();
    assert!(errors.len() == 1 && errors[0].contains("other") && !errors[0].contains("change-me"), "{log}");
}

#[test]
fn replica_with_a_plain_url_is_refused_with_a_hint() {
    let sentinels = Sentinels::start(1);
    let replica = sentinels.replicas().remove(0);
    wait_until("the replica is in sync", || replica.info("replication", "master_link_status") == "up");
    let (log, code) = Process::expect_start_failure(&[format!("--redis={}", replica.url())]);
    assert!(code == Some(1) && log.contains("redis-sentinel://"), "{log}");
}
