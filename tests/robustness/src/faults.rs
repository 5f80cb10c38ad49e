//! The faults. Each is a small struct that injects the fault and heals it.

mod clients;
mod clocks;
mod connections;
mod instances;
mod keys;
mod load;
mod readers;
mod replicated;
mod settings;

use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use rustix::process::Signal;
use sessiond_client::v1::CreateSessionRequest;
use tokio::time::{Instant, sleep};

use crate::history::{Effect, Outcome};
use crate::validate::FAILURES;
use crate::{
    environment::{Environment, Topology},
    fault_observed::Evidence,
    recorder::{Caller, now},
    workload::WORKERS,
};
use harness::contract::{Call, Reply};
use harness::{
    Redis,
    client::{incompressible, text},
    eventually,
};

use clients::{DeletesOfUnknownTokens, ForgedMessages, IdleConnections, ListsUnread, WatchesUnread};
use clocks::ClockStepped;
use connections::{ConnectionsCut, PacketsDelayed, SmallFeedBuffer, SubscriberKilled, TinyOutputBuffer};
use instances::{Ending, Hangup, InstanceRestarted, InstanceSuspended, LogUnread};
use keys::{BrokenKey, Damage, KeyBroken};
use load::{LargeSessions, SessionLimitReached};
pub use load::{SESSION_LIMIT, SIDE_NAMESPACE};
use readers::{LogTrimmed, ReadersStalled};
use replicated::{
    ClusterPrimaryKilled, ClusterTakeover, PrimaryFailure, SentinelFailover, SentinelPrimaryFails, SlotsMigrated,
};
use settings::{ConnectionsRefused, EvictionEnabled, MemoryFull, REPLICAS_MISSING, SavesFail, WritesPaused};

/// A fault, its possible effects, and the evidence that proves that it had one.
pub trait Fault {
    /// Returns the name in the table and in the reports.
    fn name(&self) -> &'static str;

    /// Returns the Redis topology of its histories.
    fn topology(&self) -> Topology {
        Topology::Standalone
    }

    /// Returns additional lines for `[limits]` in the configuration of the servers.
    fn limits(&self) -> &'static str {
        ""
    }

    /// Returns whether the integration test plays it: the faults that take little time, and one of each topology.
    fn is_quick(&self) -> bool {
        matches!(self.topology(), Topology::Standalone | Topology::Pair)
    }

    /// Returns the effects that the fault may have. Validators accept no others.
    fn effects(&self) -> &'static [Effect] {
        &[]
    }

    /// Returns the errors that calls may get because of the fault.
    fn failures(&self) -> &'static [&'static str] {
        &FAILURES
    }

    /// Returns whether it steps the clock of Redis.
    fn steps_clock(&self) -> bool {
        false
    }

    /// Returns the time between injecting and healing the fault.
    fn duration(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// Returns the evidence that the fault had an effect. All of it must be found, else the history proves nothing.
    fn evidence(&self) -> &'static [Evidence] {
        &[]
    }

    /// Starts the fault, under load.
    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()>;

    /// Ends the fault. Does nothing by default.
    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        let _ = env;
        Box::pin(async {})
    }
}

/// Returns the faults of the soak. All of them leave the servers as they were, and none loses an acknowledged write.
pub fn soak_faults() -> Vec<Box<dyn Fault>> {
    let mut faults: Vec<Box<dyn Fault>> = vec![
        Box::new(SubscriberKilled),
        Box::new(TinyOutputBuffer),
        Box::new(RedisStopped),
        Box::new(RedisKilled),
        Box::new(LogTrimmed),
        Box::new(ReadersStalled),
        Box::new(PacketsDelayed),
        Box::new(ConnectionsCut),
        Box::new(KeysDeleted),
        Box::new(ConnectionsRefused::default()),
        Box::new(MemoryFull),
        Box::new(WritesPaused),
        Box::new(SavesFail),
        Box::new(REPLICAS_MISSING),
        Box::new(InstanceSuspended),
        Box::new(EvictionEnabled),
        Box::new(IdleConnections::default()),
        Box::new(ListsUnread::default()),
        Box::new(WatchesUnread::default()),
        Box::new(DeletesOfUnknownTokens),
        Box::new(ForgedMessages),
        Box::new(InstanceRestarted { ending: Ending::Killed }),
        Box::new(InstanceRestarted { ending: Ending::Drained }),
        Box::new(Hangup),
        Box::new(LogUnread),
        Box::new(SessionLimitReached),
        Box::new(LargeSessions),
    ];
    faults.extend(settings::CHANGES.map(|change| Box::new(change) as Box<dyn Fault>));
    for key in [BrokenKey::Log, BrokenKey::DueSet, BrokenKey::NamespaceSet] {
        let damages = [Damage::Deleted, Damage::Replaced];
        faults.extend(damages.map(|damage| Box::new(KeyBroken { key, damage }) as Box<dyn Fault>));
    }
    faults
}

/// Returns all faults of the histories. A seed selects one.
pub fn faults() -> Vec<Box<dyn Fault>> {
    vec![
        Box::new(NoFault),
        Box::new(SubscriberKilled),
        Box::new(TinyOutputBuffer),
        Box::new(RedisStopped),
        Box::new(RedisKilled),
        Box::new(LogTrimmed),
        Box::new(ReadersStalled),
        Box::new(InstanceKilled),
        Box::new(PacketsDelayed),
        Box::new(ConnectionsCut),
        Box::new(ReplicaPromoted),
        Box::new(Flushed),
        Box::new(KeysDeleted),
        Box::new(SmallFeedBuffer),
        Box::new(SentinelFailover),
        Box::new(SentinelPrimaryFails { failure: PrimaryFailure::Killed }),
        Box::new(SentinelPrimaryFails { failure: PrimaryFailure::Stopped }),
        Box::new(ClusterPrimaryKilled),
        Box::new(ClusterTakeover),
        Box::new(SlotsMigrated),
        Box::new(WritesPaused),
        Box::new(SavesFail),
        Box::new(REPLICAS_MISSING),
        Box::new(MemoryFull),
        Box::new(InstanceSuspended),
        Box::new(ClockStepped { seconds: 3_600 }),
        Box::new(ClockStepped { seconds: -3_600 }),
        Box::new(ClockStepped { seconds: 3 }),
    ]
}

/// Returns whether the selection contains the fault with this name: parts of names of the faults to play, or, with the prefix
/// `-`, not to play. Empty: all faults.
pub fn is_selected(name: &str, selection: &[String]) -> bool {
    let (excluded, included): (Vec<&String>, Vec<&String>) = selection.iter().partition(|part| part.starts_with('-'));
    let has = |part: &str| name.to_lowercase().contains(&part.to_lowercase());
    (included.is_empty() || included.iter().any(|part| has(part))) && !excluded.iter().any(|part| has(&part[1..]))
}

/// Creates `count` sessions concurrently, each with an attribute of this many bytes; returns how many were created.
async fn create_many(env: &Environment, count: usize, bytes: usize) -> usize {
    let through = env.clients().await.remove(0);
    let caller = Caller { client: WORKERS, instance: 0 };
    let creates = (0..count).map(|_| {
        let create = env.new_probe();
        let attributes = [("large".to_owned(), text(&incompressible(bytes)))].into();
        // Without a subject, because the workload ends all sessions of its subjects.
        let create = CreateSessionRequest { subject: String::new(), attributes, ..create };
        env.recorder.call(caller, &through, Call::Create(create))
    });
    let outcomes = join_all(creates).await;
    outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Answered(Reply::Session(..)))).count()
}

/// Injects nothing: the validators also check histories without a fault.
pub struct NoFault;

impl Fault for NoFault {
    fn name(&self) -> &'static str {
        "no fault"
    }

    fn inject<'a>(&'a mut self, _scene: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

/// Redis hangs (SIGSTOP), then continues.
pub struct RedisStopped;

impl Fault for RedisStopped {
    fn name(&self) -> &'static str {
        "Redis stopped (SIGSTOP)"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_"])]
    }

    fn duration(&self) -> Duration {
        Duration::from_millis(2500)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.redis.pause() })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.redis.resume() })
    }
}

/// Redis is killed and restarts. With `appendfsync always` it loses no acknowledged write.
pub struct RedisKilled;

impl Fault for RedisKilled {
    fn name(&self) -> &'static str {
        "Redis killed (SIGKILL), AOF always"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::RestartsOrMoves]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.redis.kill() })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { tokio::task::block_in_place(|| env.redis.restart()) })
    }
}

/// The third instance is killed while it sends a snapshot, and does not restart.
pub struct InstanceKilled;

/// Number of additional sessions. They make a snapshot span many responses.
const SNAPSHOT_SESSIONS: usize = 100;
/// Time in which a watcher reads all responses that were sent.
const READ_TIME: Duration = Duration::from_millis(50);

impl Fault for InstanceKilled {
    fn name(&self) -> &'static str {
        "instance killed (SIGKILL) during a snapshot"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["during the snapshot"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::KillsInstance]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            create_many(env, SNAPSHOT_SESSIONS, 0).await;
            let instance = env.instances.len() - 1;
            let is_in_snapshot = || env.recorder.is_in_snapshot(instance);
            loop {
                eventually("an instance sends a snapshot", async || is_in_snapshot().then_some(())).await;
                env.instances[instance].signal(Signal::STOP);
                // The responses in flight may complete the snapshot.
                sleep(READ_TIME).await;
                if is_in_snapshot() {
                    break;
                }
                env.instances[instance].signal(Signal::CONT);
            }
            env.instances[instance].kill();
        })
    }
}

/// A replica without the last writes is promoted; the old primary becomes its replica.
pub struct ReplicaPromoted;

impl Fault for ReplicaPromoted {
    fn name(&self) -> &'static str {
        "replica promoted without the last writes"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["resync ROLLBACK"])]
    }

    fn topology(&self) -> Topology {
        Topology::Pair
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::LosesWrites]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let pair = env.pair.as_ref().expect("the topology has a pair");
            pair.replica.command(&["REPLICAOF", "NO", "ONE"]);
            let before = env.recorder.writes();
            eventually("writes that the replica does not have", async || {
                (env.recorder.writes() > before + 50).then_some(())
            })
            .await;
            pair.relay.cut();
            env.reader.read().await;
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let pair = env.pair.as_ref().expect("the topology has a pair");
            env.reader.switch_to(&pair.replica.url()).await;
            env.redis.must(&["REPLICAOF", "127.0.0.1", &pair.replica.port().to_string()]);
            pair.relay.set_target(&pair.replica.address());
        })
    }
}

/// Redis is emptied.
pub struct Flushed;

impl Fault for Flushed {
    fn name(&self) -> &'static str {
        "FLUSHALL"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["resync FLUSHED"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::LosesWrites]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.reader.read().await;
            env.redis.command(&["FLUSHALL"]);
            env.reader.store_flushed().await;
        })
    }
}

/// Session keys are deleted, renamed, or given a TTL, directly in Redis.
pub struct KeysDeleted;

impl Fault for KeysDeleted {
    fn name(&self) -> &'static str {
        "keys deleted out of band"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::KeysDeleted]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let started = Instant::now();
            while env.trace.deleted_keys.len() < 4 && started.elapsed() < Duration::from_secs(2) {
                for id in env.slots.ids() {
                    let method = env.rng.below(4);
                    let is_known = env.trace.deleted_keys.iter().any(|(known, _)| *known == id);
                    if is_known || !remove_key(&env.redis, &id, method) {
                        continue;
                    }
                    if method == EXPIRES {
                        sleep(Duration::from_millis(70)).await;
                        // A write of the session sets its key without TTL.
                        if lives(&env.redis, &id) {
                            continue;
                        }
                    }
                    // Until then a session with such a key can also end in any other way.
                    let deleted_at = now();
                    env.trace.deleted_keys.push((id, deleted_at));
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
    }
}

/// Method of [`remove_key`] that sets a TTL.
const EXPIRES: usize = 3;

/// Returns whether the record of this id is that of a live session.
fn lives(redis: &Redis, id: &str) -> bool {
    let key = redis.keys(&format!("*:s:*:{id}")).pop();
    key.is_some_and(|key| redis.command(&["GETRANGE", &key, "1", "1"]).contains('\u{1}'))
}

/// Deletes a session key with DEL (0), UNLINK (1), RENAME (2) or a TTL of 50 ms (3). Returns whether it was deleted.
///
/// One script checks and deletes: between two commands the session can end, and the second would delete its tombstone,
/// after which a session may have the id again.
fn remove_key(redis: &Redis, id: &str, method: usize) -> bool {
    // The second byte of a record is its kind: 1 = a live session.
    const REMOVE: &str = "if redis.call('GETRANGE', KEYS[1], 1, 1) ~= '\\1' then return 0 end \
        if ARGV[1] == '0' then return redis.call('DEL', KEYS[1]) end \
        if ARGV[1] == '1' then return redis.call('UNLINK', KEYS[1]) end \
        if ARGV[1] == '2' then redis.call('RENAME', KEYS[1], KEYS[2]) return 1 end \
        return redis.call('PEXPIRE', KEYS[1], 50)";
    let Some(key) = redis.keys(&format!("*:s:*:{id}")).pop() else { return false };
    redis.number(&["EVAL", REMOVE, "2", &key, &format!("elsewhere:{id}"), &method.to_string()]) == 1
}
