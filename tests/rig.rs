//! What the tests of Cluster, Sentinel and TLS stand on does what they take it for.

mod harness;

use harness::{
    cluster::{Cluster, Promotion},
    process::Process,
    sentinel::Sentinels,
    tls::Tls,
};

#[test]
fn a_slot_is_moved_in_steps_and_every_key_arrives() {
    let cluster = Cluster::start(0);
    let slot = cluster.slot_of("{a}");
    let from = cluster.primary_of_slot(slot);
    let to = cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
    for n in 0..25 {
        from.must(&["SET", &format!("{{a}}{n}\r\n"), "1"]);
    }
    let moving = cluster.begin_to_move(slot, &to);
    assert_eq!(moving.step(7), 7);
    assert_eq!((from.keys("*").len(), to.keys("*").len()), (18, 7));
    moving.finish();
    assert_eq!((from.keys("*").len(), to.keys("*").len()), (0, 25));
    assert_eq!(cluster.primary_of_slot(slot).port(), to.port());
    cluster.move_slot(slot, &from);
    assert_eq!((from.keys("*").len(), to.keys("*").len()), (25, 0));
    cluster.wait_until_well();
    assert_eq!(cluster.keys("*").len(), 25);
}

#[test]
fn the_replica_of_a_primary_that_is_killed_goes_on_and_it_comes_back_as_replica() {
    let cluster = Cluster::start(1);
    let primary = cluster.primaries().remove(0);
    let replica = cluster.replicas_of(&primary).remove(0);
    primary.kill();
    cluster.wait_for_primary(&replica);
    primary.restart();
    cluster.wait_until_well();
    assert!(cluster.is_primary(&replica) && !cluster.is_primary(&primary));
    cluster.promote(&primary, Promotion::Agreed);
    cluster.wait_until_well();
    assert!(cluster.is_primary(&primary) && !cluster.is_primary(&replica));
}

#[test]
fn a_replica_that_lost_touch_with_its_primary_takes_over_without_the_last_writes() {
    let cluster = Cluster::start(1);
    let key = "a";
    let primary = cluster.primary_of_slot(cluster.slot_of(key));
    let replica = cluster.replicas_of(&primary).remove(0);
    primary.must(&["SET", key, "kept"]);
    primary.wait_for(&replica);
    primary.lose_touch_with(&replica);
    primary.must(&["SET", key, "lost"]);
    primary.pause();
    replica.resume();
    cluster.promote(&replica, Promotion::TakenOver);
    assert_eq!(replica.list(&["GET", key]), ["kept"]);
    primary.resume();
    cluster.wait_until_well();
    assert_eq!(cluster.primary_of_slot(cluster.slot_of(key)).port(), replica.port());
}

#[test]
fn sentinels_fail_over_when_asked_and_when_the_primary_is_killed() {
    let sentinels = Sentinels::start(2);
    let first = sentinels.primary();
    let second = sentinels.fail_over();
    assert_ne!(first.port(), second.port());
    sentinels.wait_until_followed();
    second.kill();
    let third = sentinels.wait_for_another_than(&second);
    second.restart();
    sentinels.wait_until_followed();
    assert_ne!(second.port(), third.port());
}

#[test]
fn sentinels_promote_a_replica_that_has_not_the_last_writes() {
    let sentinels = Sentinels::start(1);
    let primary = sentinels.primary();
    let replica = sentinels.replicas().remove(0);
    primary.must(&["SET", "a", "kept"]);
    primary.wait_for(&replica);
    primary.lose_touch_with(&replica);
    primary.must(&["SET", "a", "lost"]);
    primary.pause();
    replica.resume();
    assert_eq!(sentinels.wait_for_another_than(&primary).port(), replica.port());
    primary.resume();
    sentinels.wait_until_followed();
    assert_eq!(primary.list(&["GET", "a"]), ["kept"]);
}

#[test]
fn tls_a_redis_with_our_certificates_takes_no_plain_text() {
    let tls = Tls::start();
    let plain = tls.url().replace("rediss:", "redis:");
    let (log, code) = Process::start_in_vain_in(&tls.certificates.trust(), &[format!("--redis={plain}")]);
    assert_eq!(code, Some(1), "{log}");
}
