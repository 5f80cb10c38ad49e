//! Sessions on a primary that Sentinels name: another takes its place, with all that was written or without the last of it.

mod harness;

use std::collections::BTreeSet;

use harness::{
    Client, Redis, Server, Status,
    client::*,
    eventually,
    listing::{half_of_the_list, made_for_a_cursor, rest_of_the_list},
    process::Process,
    sentinel::Sentinels,
    servers::{aside, until},
    writers::{many_are_acknowledged, now, write_to},
};
use sessiond_client::v1::{EventType, ResyncReason, Session};

const PREFIX: &str = "sessiond:";
const REPLICATED: &str = "[limits]\ncall_timeout = '3s'\n[default_policy]\ndurability = 'replicated'\nreplicas = 1\n";

async fn sentinels(replicas: usize) -> Sentinels {
    aside(move || Sentinels::start(replicas)).await
}

async fn some(client: &Client, count: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        sessions.push(client.create(&[]).await.0);
    }
    sessions
}

/// Returns when the server writes again.
async fn is_served_again(client: &Client) {
    eventually("it is served again", async || client.create_as(Default::default()).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_followed_and_keeps_what_was_confirmed() {
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
        many_are_acknowledged(&servers).await;
        from = now();
        let of = sentinels.clone();
        aside(move || {
            of.fail_over();
            of.wait_until_followed();
        })
        .await;
        is_served_again(&clients[1]).await;
        until = now();
        many_are_acknowledged(&servers).await;
    };
    let written = write_to(&clients, &sessions, 0, fault).await;
    written.assert_many_around(&sessions, from, until);
    written.assert_kept(&clients[0]).await;
    let mut watching = clients[0].watch_all().await;
    for session in &sessions {
        assert!(clients[1].delete(by_id(&session.id)).await.unwrap());
        watching.wait_for(EventType::Ended, &session.id).await;
    }
}

/// A fault befalls a primary whose two replicas have everything: nothing is lost, and an open watch goes on.
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
    aside(move || fault(&of, &primary)).await;
    is_served_again(&client).await;
    for session in &sessions {
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        watching.wait_for(EventType::Updated, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_replaced_and_open_watches_go_on() {
    assert_nothing_is_lost(|sentinels, primary| {
        primary.kill();
        sentinels.wait_for_another_than(primary);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_comes_back_empty_is_not_the_store_whoever_leads_the_failover() {
    // Of two that know of the same epoch the one asked last could outvote the other.
    for leader in 0..3 {
        assert_nothing_is_lost(move |sentinels, primary| {
            sentinels.hold_up_failovers(&sentinels.replicas()[1]);
            sentinels.fail_over_by(&sentinels.sentinels()[leader]);
            primary.kill();
            primary.restart();
        })
        .await;
    }
}

/// A primary goes without its replica having the last writes, and comes back as the replica of that one. Answers the
/// sessions that were made before and those that were made last.
async fn history_is_rewound(sentinels: &Sentinels, client: &Client) -> (Vec<Session>, Vec<Session>) {
    let (primary, replica) = (sentinels.primary(), sentinels.replicas().remove(0));
    let kept = some(client, 8).await;
    let (of, to) = (primary.clone(), replica.clone());
    aside(move || of.wait_for(&to)).await;
    primary.lose_touch_with(&replica);
    let lost = some(client, 8).await;
    primary.pause();
    replica.resume();
    let sentinels = sentinels.clone();
    aside(move || {
        sentinels.wait_for_another_than(&primary);
        primary.resume();
        sentinels.wait_until_followed();
    })
    .await;
    (kept, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w9_a_rewound_history_is_told_to_open_watches_and_to_those_that_resume() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, "").await;
    let client = server.client().await;
    let (mut open, mut left) = (client.watch_all().await, client.watch_all().await);
    let (kept, lost) = history_is_rewound(&sentinels, &client).await;
    left.events(kept.len() + lost.len()).await;
    let token = left.token.clone();
    drop(left);
    is_served_again(&client).await;

    let ids: BTreeSet<&String> = lost.iter().map(|session| &session.id).collect();
    let mut named = BTreeSet::new();
    while !ids.iter().all(|id| named.contains(*id)) {
        let resync = open.resync().await;
        assert_eq!(resync.reason(), ResyncReason::Rollback);
        if resync.ids.is_empty() {
            break;
        }
        named.extend(resync.ids);
    }
    let resync = client.resume(&token).await.resync().await;
    assert_eq!(resync.reason(), ResyncReason::Rollback);
    for session in &kept {
        assert!(client.lives(&session.id).await);
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        let told = open.wait_for(EventType::Updated, &session.id).await;
        assert!(told.revision > session.revision);
    }
    for session in &lost {
        assert!(!client.lives(&session.id).await, "it was lost with its primary");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_goes_on_at_the_new_primary_and_lacks_nothing() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, "partitions = 1").await;
    let client = server.client().await;
    let sessions = made_for_a_cursor(&client).await;
    let (mut listed, page_token) = half_of_the_list(&client, &sessions).await;
    let of = sentinels.clone();
    aside(move || {
        of.primary().wait_for(&of.replicas()[0]);
        of.fail_over();
        of.wait_until_followed();
    })
    .await;
    listed.extend(rest_of_the_list(&client, page_token).await);
    assert_eq!(sessions.difference(&listed).count(), 0, "some are not listed");
    assert_eq!(listed.len(), sessions.len(), "others are listed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_primary_is_not_read_from() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, "").await;
    let client = server.client().await;
    let before = some(&client, 8).await;
    let old = sentinels.primary();
    let of = sentinels.clone();
    aside(move || {
        of.primary().wait_for(&of.replicas()[0]);
        of.fail_over();
        of.wait_until_followed();
    })
    .await;
    is_served_again(&client).await;
    let mut watching = client.watch_all().await;
    for round in 0..3 {
        // It serves what it has, and follows nobody, until the Sentinels put that right.
        old.must(&["REPLICAOF", "127.0.0.1", "1"]);
        for session in &before {
            let value = format!("{round}");
            client.set(by_id(&session.id), &[("a", text(&value))]).await.unwrap();
            let read = client.get(by_id(&session.id)).await.unwrap();
            assert_eq!(read.attributes["a"], text(&value));
            watching.wait_for(EventType::Updated, &session.id).await;
        }
        let made = client.create_of("user").await.0;
        assert!(client.list_of("user").await.iter().any(|session| session.id == made.id));
        let of = sentinels.clone();
        aside(move || of.wait_until_followed()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_are_gone_stop_nothing() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, "").await;
    let client = server.client().await;
    sentinels.sentinels()[0].kill();
    sentinels.sentinels()[1].pause();
    some(&client, 8).await;
    // One that knows the primary is enough to begin.
    let another = Server::start(&sentinels.url(), PREFIX, "").await;
    some(&another.client().await, 8).await;
    sentinels.sentinels()[2].kill();
    some(&client, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_replica_an_outcome_is_unknown() {
    let sentinels = sentinels(1).await;
    let server = Server::start(&sentinels.url(), PREFIX, REPLICATED).await;
    let client = server.client().await;
    let replica = sentinels.replicas().remove(0);
    for session in some(&client, 20).await {
        assert_eq!(
            replica.keys(&format!("{PREFIX}*:s:*:{}", session.id)).len(),
            1,
            "what was answered is on the replica"
        );
    }
    replica.pause();
    let status = client.create_as(Default::default()).await.unwrap_err();
    assert_eq!(status.reason(), "OUTCOME_UNKNOWN", "{status:?}");
    replica.resume();
    is_served_again(&client).await;
}

#[test]
fn a_name_that_no_sentinel_knows_is_told_in_one_line() {
    let sentinels = Sentinels::start(0);
    let wrong = sentinels.url().replace("sentinelServiceName=main", "sentinelServiceName=other");
    let (log, code) = Process::start_in_vain(&[format!("--redis={wrong}")]);
    assert_eq!(code, Some(1));
    let told: Vec<&str> = log.lines().filter(|line| line.contains("\"ERROR\"")).collect();
    assert!(told.len() == 1 && told[0].contains("other") && !told[0].contains("change-me"), "{log}");
}

#[test]
fn a_replica_by_itself_is_refused_with_the_remedy() {
    let sentinels = Sentinels::start(1);
    let replica = sentinels.replicas().remove(0);
    until("it follows", || replica.info("replication", "master_link_status") == "up");
    let (log, code) = Process::start_in_vain(&[format!("--redis={}", replica.url())]);
    assert!(code == Some(1) && log.contains("redis-sentinel://"), "{log}");
}
