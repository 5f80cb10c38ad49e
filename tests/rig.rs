//! Tests of the test fixtures for Redis Cluster, Sentinel and TLS.

use harness::{
    cluster::{Cluster, Promotion},
    process::Process,
    sentinel::Sentinels,
    tls::Tls,
};

#[test]
fn slot_moved_in_steps_keeps_every_key() {
    let cluster = Cluster::start(0);
    let slot = cluster.slot_of("{a}");
    let from = cluster.primary_of_slot(slot);
    let to = cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
    for n in 0..25 {
        from.must(&["SET", &format!("{{a}}{n}\r\n"), "1"]);
    }
    let moving = cluster.start_slot_move(slot, &to);
    assert_eq!(moving.step(7), 7);
    assert_eq!((from.keys("*").len(), to.keys("*").len()), (18, 7));
    moving.finish();
    assert_eq!((from.keys("*").len(), to.keys("*").len()), (0, 25));
    assert_eq!(cluster.primary_of_slot(slot).port(), to.port());
    cluster.move_slot(slot, &from);
    assert_eq!((from.keys("*").len(), to.keys("*").len()), (25, 0));
    cluster.wait_until_healthy();
    assert_eq!(cluster.keys("*").len(), 25);
}

#[test]
fn killed_cluster_primary_returns_as_replica() {
    let cluster = Cluster::start(1);
    let primary = cluster.primaries().remove(0);
    let replica = cluster.replicas_of(&primary).remove(0);
    primary.kill();
    cluster.wait_for_primary(&replica);
    primary.restart();
    cluster.wait_until_healthy();
    assert!(cluster.is_primary(&replica) && !cluster.is_primary(&primary));
    cluster.promote(&primary, Promotion::Coordinated);
    cluster.wait_until_healthy();
    assert!(cluster.is_primary(&primary) && !cluster.is_primary(&replica));
}

#[test]
fn isolated_replica_takeover_loses_last_writes() {
    let cluster = Cluster::start(1);
    let key = "a";
    let primary = cluster.primary_of_slot(cluster.slot_of(key));
    let replica = cluster.replicas_of(&primary).remove(0);
    primary.must(&["SET", key, "kept"]);
    primary.wait_for(&replica);
    primary.isolate_replica(&replica);
    primary.must(&["SET", key, "lost"]);
    primary.pause();
    replica.resume();
    cluster.promote(&replica, Promotion::Takeover);
    assert_eq!(replica.list(&["GET", key]), ["kept"]);
    primary.resume();
    cluster.wait_until_healthy();
    assert_eq!(cluster.primary_of_slot(cluster.slot_of(key)).port(), replica.port());
}

#[test]
fn sentinels_on_request_or_killed_primary_fail_over() {
    let sentinels = Sentinels::start(2);
    let first = sentinels.primary();
    let second = sentinels.fail_over();
    assert_ne!(first.port(), second.port());
    sentinels.wait_until_replicated();
    second.kill();
    let third = sentinels.wait_for_new_primary(&second);
    second.restart();
    sentinels.wait_until_replicated();
    assert_ne!(second.port(), third.port());
}

#[test]
fn sentinels_promote_a_replica_without_the_last_writes() {
    let sentinels = Sentinels::start(1);
    let primary = sentinels.primary();
    let replica = sentinels.replicas().remove(0);
    primary.must(&["SET", "a", "kept"]);
    primary.wait_for(&replica);
    primary.isolate_replica(&replica);
    primary.must(&["SET", "a", "lost"]);
    primary.pause();
    replica.resume();
    assert_eq!(sentinels.wait_for_new_primary(&primary).port(), replica.port());
    primary.resume();
    sentinels.wait_until_replicated();
    assert_eq!(primary.list(&["GET", "a"]), ["kept"]);
}

#[test]
fn tls_redis_rejects_plaintext_connections() {
    let tls = Tls::start();
    let plain = tls.url().replace("rediss:", "redis:");
    let (log, code) =
        Process::expect_start_failure_with_env(&tls.certificates.trusted_env(), &[format!("--redis={plain}")]);
    assert_eq!(code, Some(1), "{log}");
}
