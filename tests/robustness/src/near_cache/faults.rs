//! Faults of the histories of the near cache. Each ends before the next one begins.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use super::{
    Kind,
    scene::{Policy, SNAPSHOT, Scene},
    workload::SESSIONS,
};
use crate::{
    recorder::{Caller, now},
    seeded_rng::SeededRng,
};
use harness::{Redis, eventually, proxy::Purpose, servers::run_blocking};

/// Number of the client with which faults change sessions.
const CLIENT: usize = 20;
/// Time in which Redis executes what it has received.
const EXECUTION_TIME: Duration = Duration::from_millis(20);
/// Time in which a restarted Redis has the instances back, at most.
const RECOVERY: Duration = Duration::from_millis(1_500);

/// A fault.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// An instance is suspended (SIGSTOP).
    Suspended,
    /// Redis holds back writes, or all commands (CLIENT PAUSE).
    Paused { writes_only: bool },
    /// Redis is suspended (SIGSTOP).
    RedisSuspended,
    /// All connections of an instance are cut, some with commands in flight.
    Cut,
    /// The subscriber connections of all instances are cut.
    SubscribersCut,
    /// Replies to calls arrive after the events of later changes.
    CallRepliesHeld,
    /// Channel messages of an instance arrive late.
    MessagesHeld,
    /// Channel messages of an instance are lost.
    MessagesDropped,
    /// Replies of Redis to one instance arrive late, or when its calls have failed.
    RepliesHeld,
    /// Channel messages and the replies to the reads of the logs arrive late.
    FeedHeld,
    /// All replies to one instance are delayed.
    RepliesDelayed,
    /// Requests of one instance are held back.
    RequestsHeld,
    /// Messages are lost, and the replies to the reads of the logs arrive late, from the read of the ends on.
    TailReadsHeld,
    /// Messages are lost, and the replies to the reads of the logs arrive late, from the read of the entries on.
    LogReadsHeld,
    /// Redis is killed and restarts with the data of this time.
    RedisKilled(Data),
    /// FLUSHALL.
    Flushed,
    /// A replica without the last writes replaces the primary.
    FailedOver,
    /// An instance is restarted with another policy.
    Restarted(Signal),
    /// The clock of Redis is set.
    ClockStepped,
}

/// Data with which Redis restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// All, or all but the last writes.
    Present,
    /// All that the logs contain. Touches and first uses of tokens are lost.
    Logged,
    /// Without the writes of half a second.
    Earlier,
    None,
}

/// Returns the faults of a history of this kind.
pub fn of_kind(kind: Kind) -> Vec<Fault> {
    use Fault::*;
    let mut faults = vec![
        Suspended,
        Paused { writes_only: true },
        Paused { writes_only: false },
        RedisSuspended,
        Cut,
        SubscribersCut,
        CallRepliesHeld,
        CallRepliesHeld,
        MessagesHeld,
        MessagesDropped,
        RepliesHeld,
        FeedHeld,
        RepliesDelayed,
        RequestsHeld,
        TailReadsHeld,
        LogReadsHeld,
    ];
    faults.extend_from_slice(match kind {
        Kind::Restarts => &[
            RedisKilled(Data::Present),
            RedisKilled(Data::Logged),
            RedisKilled(Data::Earlier),
            RedisKilled(Data::None),
            Flushed,
            Restarted(Signal::TERM),
        ],
        Kind::FailsOver => &[FailedOver, Flushed, Restarted(Signal::KILL)],
        Kind::StepsClock => &[ClockStepped, ClockStepped, ClockStepped, Restarted(Signal::TERM)],
    });
    faults
}

/// Plays a fault, and records it.
pub async fn play(fault: Fault, scene: &mut Scene, rng: &mut SeededRng) {
    let from = now();
    let number = rng.below(scene.instances.len());
    match fault {
        Fault::Suspended => {
            scene.instances[number].signal(Signal::STOP);
            change_all(scene, 1 - number).await;
            pause(rng, 200, 1_800).await;
            scene.instances[number].signal(Signal::CONT);
        }
        Fault::Paused { writes_only } => {
            let ms = 200 + rng.below(1_200);
            let redis = scene.shared.redis.write().await;
            redis.must(&["CLIENT", "PAUSE", &ms.to_string(), if writes_only { "WRITE" } else { "ALL" }]);
            sleep(Duration::from_millis(ms as u64)).await;
        }
        Fault::RedisSuspended => {
            let redis = scene.shared.redis.write().await;
            redis.pause();
            pause(rng, 200, 1_400).await;
            redis.resume();
        }
        Fault::Restarted(signal) => {
            let policy = if rng.one_in(2) { Policy::First } else { Policy::Second };
            scene.restart(number, signal, policy).await;
        }
        Fault::ClockStepped => {
            let seconds = rng.choose(&[0, 3, -3, 3_600, -3_600]);
            let clock = scene.clock.as_ref().expect("the kind has a clock");
            tokio::task::block_in_place(|| clock.shift_to(seconds));
            pause(rng, 500, 2_000).await;
        }
        Fault::RedisKilled(data) => kill_redis(data, scene, rng).await,
        Fault::Flushed => flush(scene).await,
        Fault::FailedOver => fail_over(scene, rng).await,
        fault => play_on_connections(fault, number, scene, rng).await,
    }
    scene.record(format!("{fault:?} {number}"), from);
}

/// Plays a fault of the connections of one instance. The other one changes all sessions.
async fn play_on_connections(fault: Fault, number: usize, scene: &mut Scene, rng: &mut SeededRng) {
    let (proxy, other) = (&scene.proxies[number], 1 - number);
    match fault {
        Fault::Cut => {
            proxy.hold_requests();
            pause(rng, 0, 100).await;
            proxy.cut();
            proxy.release_requests();
        }
        Fault::SubscribersCut => {
            for _ in 0..3 {
                scene.shared.redis.read().await.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                pause(rng, 20, 200).await;
            }
        }
        Fault::CallRepliesHeld => {
            for _ in 0..2 {
                proxy.hold_replies_to(Purpose::Calls);
                // The events drop the copies, so that sessions are read. Then their states are replaced.
                change_all(scene, other).await;
                pause(rng, 20, 60).await;
                change_all(scene, other).await;
                pause(rng, 20, 60).await;
                proxy.release_replies();
                pause(rng, 1_200, 1_500).await;
            }
        }
        Fault::RepliesHeld => {
            proxy.hold_replies();
            change_all(scene, other).await;
            pause(rng, 300, 2_000).await;
            proxy.release_replies();
        }
        Fault::RepliesDelayed => {
            proxy.delay_replies(Duration::from_millis(5 + rng.below(200) as u64));
            change_all(scene, other).await;
            pause(rng, 1_000, 3_000).await;
            proxy.delay_replies(Duration::ZERO);
        }
        Fault::RequestsHeld => {
            proxy.hold_requests();
            change_all(scene, other).await;
            pause(rng, 200, 1_500).await;
            proxy.release_requests();
        }
        fault => play_on_feed(fault, number, scene, rng).await,
    }
}

/// Plays a fault of the feed of one instance, which answers calls. The other one changes all sessions.
async fn play_on_feed(fault: Fault, number: usize, scene: &mut Scene, rng: &mut SeededRng) {
    let (proxy, other) = (&scene.proxies[number], 1 - number);
    match fault {
        Fault::MessagesHeld => {
            proxy.hold_replies_to(Purpose::Messages);
            change_all(scene, other).await;
            pause(rng, 200, 1_800).await;
            proxy.release_replies();
        }
        Fault::MessagesDropped => {
            proxy.drop_messages(true);
            change_all(scene, other).await;
            pause(rng, 200, 2_500).await;
            proxy.drop_messages(false);
        }
        Fault::FeedHeld => {
            proxy.hold_replies_to_feed();
            change_all(scene, other).await;
            pause(rng, 500, 2_500).await;
            proxy.release_replies();
        }
        Fault::TailReadsHeld => {
            proxy.drop_messages(true);
            proxy.hold_replies_after_command("HMGET", Purpose::LogReads);
            eventually("the ends are read", async || proxy.is_holding_replies().then_some(())).await;
            sleep(EXECUTION_TIME).await;
            change_all(scene, other).await;
            pause(rng, 250, 400).await;
            proxy.release_replies();
            // The next read of the ends would find the changes.
            proxy.hold_replies_after_command("HMGET", Purpose::LogReads);
            pause(rng, 1_000, 1_300).await;
            proxy.release_replies();
            proxy.drop_messages(false);
        }
        Fault::LogReadsHeld => {
            proxy.drop_messages(true);
            proxy.hold_replies_after_command("XRANGE", Purpose::LogReads);
            change_all(scene, other).await;
            pause(rng, 1_000, 1_700).await;
            proxy.release_replies();
            proxy.drop_messages(false);
        }
        fault => unreachable!("{fault:?} is not a fault of the feed"),
    }
}

async fn pause(rng: &mut SeededRng, least_ms: usize, most_ms: usize) {
    sleep(Duration::from_millis((least_ms + rng.below(most_ms - least_ms)) as u64)).await;
}

/// Changes every session except the last two, which the log does not show, through this instance.
async fn change_all(scene: &Scene, instance: usize) {
    let caller = Caller { client: CLIENT, instance };
    for number in 0..SESSIONS - 2 {
        scene.shared.update(number, caller, &scene.clients[instance]).await;
    }
}

/// Saves a snapshot. Returns after it was written.
async fn save(redis: &Redis) {
    let redis = redis.clone();
    run_blocking(move || drop(redis.must(&["SAVE"]))).await;
}

async fn kill_redis(data: Data, scene: &mut Scene, rng: &mut SeededRng) {
    let shared = scene.shared.clone();
    let redis = shared.redis.write().await;
    let unchanged = if data == Data::Logged { Some(shared.changes.write().await) } else { None };
    save(&redis).await;
    let saved = if data == Data::None { 0 } else { now() };
    match data {
        Data::Earlier => pause(rng, 300, 800).await,
        // Longer than the touch interval: some touches are lost.
        Data::Logged => pause(rng, 700, 1_200).await,
        Data::Present | Data::None => {}
    }
    let ends = now();
    scene.reader.read().await;
    redis.kill();
    let ended = now();
    drop(unchanged);
    pause(rng, 20, 300).await;
    if data == Data::None {
        std::fs::remove_file(redis.socket().with_file_name(SNAPSHOT)).expect("there is a snapshot");
    }
    let begins = now();
    let restarted = redis.clone();
    run_blocking(move || restarted.restart()).await;
    scene.end_epoch([ends, ended], saved, [begins, now()]);
    if data == Data::None {
        scene.reader.store_flushed().await;
    }
    sleep(RECOVERY).await;
    scene.reader.read().await;
}

async fn flush(scene: &mut Scene) {
    let shared = scene.shared.clone();
    let redis = shared.redis.write().await;
    let ends = now();
    scene.reader.read().await;
    let begins = now();
    redis.must(&["FLUSHALL"]);
    let ended = now();
    scene.end_epoch([ends, ended], 0, [begins, ended]);
    scene.reader.store_flushed().await;
}

async fn fail_over(scene: &mut Scene, rng: &mut SeededRng) {
    // It happens once.
    let Some(replica) = scene.replica.take() else { return };
    let shared = scene.shared.clone();
    let mut redis = shared.redis.write().await;
    replica.must(&["REPLICAOF", "NO", "ONE"]);
    let kept = now();
    pause(rng, 200, 900).await;
    let ends = now();
    scene.reader.read().await;
    let begins = now();
    scene.proxies.iter().for_each(|proxy| proxy.switch_to(&replica));
    // Both relays have closed their connections.
    sleep(EXECUTION_TIME).await;
    let ended = now();
    scene.end_epoch([ends, ended], kept, [begins, ended]);
    scene.reader.switch_to(&replica.unrestricted_url()).await;
    *redis = replica;
    sleep(RECOVERY).await;
    scene.reader.read().await;
}
