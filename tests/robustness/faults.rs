//! What may fail, each a small struct that does it and undoes it.

mod connections;
mod readers;
mod replicated;

use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use rustix::process::Signal;
use sessiond_client::v1::CreateSessionRequest;
use tokio::time::{Instant, sleep};

use crate::{
    contract::Call,
    felt::Mark,
    harness::{
        Redis,
        client::{incompressible, text},
        eventually,
    },
    history::Effect,
    recorder::{Caller, now},
    scene::{Scene, Topology},
    workload::{WORKERS, one_for_all},
};

use connections::{ConnectionsCut, PacketsHeld, SmallFeedBuffer, SubscriberKilled, TinyOutputBuffer};
use readers::{LogTrimmed, ReadersStopped};
use replicated::{ClusterPrimaryKilled, ClusterReplicaTakesOver, Gone, SentinelAsked, SentinelPrimaryGone, SlotsMoved};

pub trait Fault {
    fn name(&self) -> &'static str;

    fn topology(&self) -> Topology {
        Topology::Standalone
    }

    /// What the servers' configuration says under [limits].
    fn limits(&self) -> &'static str {
        ""
    }

    /// Whether it is played wherever the tests are: with everything that takes little time, one of each topology.
    fn is_quick(&self) -> bool {
        matches!(self.topology(), Topology::Standalone | Topology::Pair)
    }

    /// What may come of it.
    fn effects(&self) -> &'static [Effect] {
        &[]
    }

    /// How long it is left as it is once it is there.
    fn lasts(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// What shows, each of it, that it was felt; else the history says nothing.
    fn marks(&self) -> &'static [Mark] {
        &[]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()>;

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        let _ = scene;
        Box::pin(async {})
    }
}

/// All of them; a seed chooses one, and how it happens.
pub fn faults() -> Vec<Box<dyn Fault>> {
    vec![
        Box::new(Nothing),
        Box::new(SubscriberKilled),
        Box::new(TinyOutputBuffer),
        Box::new(RedisStopped),
        Box::new(RedisKilled),
        Box::new(LogTrimmed),
        Box::new(ReadersStopped),
        Box::new(InstanceKilled),
        Box::new(PacketsHeld),
        Box::new(ConnectionsCut),
        Box::new(ReplicaPromoted),
        Box::new(Flushed),
        Box::new(ByHand),
        Box::new(SmallFeedBuffer),
        Box::new(SentinelAsked),
        Box::new(SentinelPrimaryGone { way: Gone::Killed }),
        Box::new(SentinelPrimaryGone { way: Gone::Stopped }),
        Box::new(ClusterPrimaryKilled),
        Box::new(ClusterReplicaTakesOver),
        Box::new(SlotsMoved),
    ]
}

/// Makes so many sessions at once, each with so many bytes in it.
async fn crowd(scene: &Scene, count: usize, bytes: usize) {
    let through = scene.clients().await.remove(0);
    let caller = Caller { client: WORKERS, instance: 0 };
    let creates = (0..count).map(|number| {
        let create = one_for_all(scene.seed, format!("request-of-a-crowd-{number}"));
        let attributes = [("large".to_owned(), text(&incompressible(bytes)))].into();
        // Else they are ended with their subject's.
        let create = CreateSessionRequest { subject: String::new(), attributes, ..create };
        scene.recorder.call(caller, &through, Call::Create(create))
    });
    join_all(creates).await;
}

pub struct Nothing;

impl Fault for Nothing {
    fn name(&self) -> &'static str {
        "nothing fails"
    }

    fn inject<'a>(&'a mut self, _scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

/// Redis hangs.
pub struct RedisStopped;

impl Fault for RedisStopped {
    fn name(&self) -> &'static str {
        "Redis stopped (SIGSTOP)"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["STORE_"])]
    }

    fn lasts(&self) -> Duration {
        Duration::from_millis(2500)
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { scene.redis.pause() })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { scene.redis.resume() })
    }
}

/// Redis is killed, and comes back with what its file holds, which is all.
pub struct RedisKilled;

impl Fault for RedisKilled {
    fn name(&self) -> &'static str {
        "Redis killed (SIGKILL), AOF always"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["STORE_"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::OtherRun]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { scene.redis.kill() })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { tokio::task::block_in_place(|| scene.redis.restart()) })
    }
}

/// One of the instances is killed while it tells a watcher the state, and stays away.
pub struct InstanceKilled;

/// Sessions that make a state long.
const CROWD: usize = 100;
/// What was sent is read by then.
const ARRIVES_WITHIN: Duration = Duration::from_millis(50);

impl Fault for InstanceKilled {
    fn name(&self) -> &'static str {
        "instance killed (SIGKILL) amid a state"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["amid the state"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Kills]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            // So many that the state is told in many responses.
            crowd(scene, CROWD, 0).await;
            let instance = scene.addresses().len() - 1;
            let is_amid_state = || scene.recorder.is_amid_state(instance);
            loop {
                eventually("a state is being told", async || is_amid_state().then_some(())).await;
                scene.process.signal(Signal::STOP);
                // What was under way may have been all of it.
                sleep(ARRIVES_WITHIN).await;
                if is_amid_state() {
                    break;
                }
                scene.process.signal(Signal::CONT);
            }
            scene.process.kill();
        })
    }
}

/// A replica is promoted that lacks the last writes; the old primary comes back as its replica.
pub struct ReplicaPromoted;

impl Fault for ReplicaPromoted {
    fn name(&self) -> &'static str {
        "replica promoted without the last writes"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["resync ROLLBACK"])]
    }

    fn topology(&self) -> Topology {
        Topology::Pair
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Loses]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let pair = scene.pair.as_ref().expect("there are two");
            pair.replica.command(&["REPLICAOF", "NO", "ONE"]);
            let before = scene.recorder.writes();
            eventually("writes are going to be lost", async || (scene.recorder.writes() > before + 50).then_some(()))
                .await;
            pair.relay.cut();
            scene.reader.read().await;
        })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let pair = scene.pair.as_ref().expect("there are two");
            scene.reader.turn_to(&pair.replica.url()).await;
            scene.redis.must(&["REPLICAOF", "127.0.0.1", &pair.replica.port().to_string()]);
            pair.relay.turn_to(&pair.replica.address());
        })
    }
}

/// Somebody empties Redis.
pub struct Flushed;

impl Fault for Flushed {
    fn name(&self) -> &'static str {
        "FLUSHALL"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["resync FLUSHED"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Loses]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            scene.reader.read().await;
            scene.redis.command(&["FLUSHALL"]);
            scene.reader.flushed().await;
        })
    }
}

/// Keys of sessions are taken away, renamed, or made to vanish.
pub struct ByHand;

impl Fault for ByHand {
    fn name(&self) -> &'static str {
        "keys deleted by hand"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::ChangedByHand]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let started = Instant::now();
            while scene.by_hand.len() < 4 && started.elapsed() < Duration::from_secs(2) {
                for id in scene.slots.ids() {
                    let way = scene.chance.below(4);
                    if scene.by_hand.iter().all(|(known, _)| *known != id) && take_away(&scene.redis, &id, way) {
                        scene.by_hand.push((id, now() + if way == 3 { 60_000 } else { 0 }));
                    }
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
    }
}

fn take_away(redis: &Redis, id: &str, way: usize) -> bool {
    let Some(key) = redis.keys(&format!("*:s:*:{id}")).pop() else { return false };
    if redis.number(&["HEXISTS", &key, "m"]) == 0 {
        return false;
    }
    match way {
        0 => redis.number(&["DEL", &key]) == 1,
        1 => redis.number(&["UNLINK", &key]) == 1,
        2 => redis.command(&["RENAME", &key, &format!("elsewhere:{id}")]) == "+OK\r\n",
        _ => redis.number(&["PEXPIRE", &key, "50"]) == 1,
    }
}
