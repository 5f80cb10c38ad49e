//! What may fail, each a small struct that does it and undoes it.

mod replicated;

use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use sessiond_client::v1::CreateSessionRequest;
use tokio::time::{Instant, sleep};

use crate::{
    contract::Call,
    harness::{Redis, eventually},
    recorder::{Caller, now},
    scene::{Scene, Topology},
    workload::{WORKERS, one_for_all},
};

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

    /// Whether it takes little time.
    fn is_quick(&self) -> bool {
        matches!(self.topology(), Topology::Standalone | Topology::Pair)
    }

    /// Whether Redis may lose what it acknowledged.
    fn loses(&self) -> bool {
        false
    }

    /// Whether an instance is killed.
    fn kills(&self) -> bool {
        false
    }

    /// How long it is left as it is once it is there.
    fn lasts(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// What at least one watcher was told, or a client; else nobody felt it.
    fn leaves(&self) -> &'static str {
        ""
    }

    /// Whether keys are changed by hand.
    fn is_by_hand(&self) -> bool {
        false
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

pub struct Nothing;

impl Fault for Nothing {
    fn name(&self) -> &'static str {
        "nothing fails"
    }

    fn inject<'a>(&'a mut self, _scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

/// The connections that bring the events are killed again and again.
pub struct SubscriberKilled;

impl Fault for SubscriberKilled {
    fn name(&self) -> &'static str {
        "subscriber connections killed"
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            for _ in 0..5 + scene.chance.below(10) {
                scene.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                sleep(Duration::from_millis(20 + scene.chance.below(80) as u64)).await;
            }
        })
    }
}

/// Redis cuts off a subscriber as soon as a little is waiting for it.
pub struct TinyOutputBuffer;

impl Fault for TinyOutputBuffer {
    fn name(&self) -> &'static str {
        "output buffer of subscribers tiny"
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { output_buffer(&scene.redis, "pubsub 1kb 1kb 1") })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { output_buffer(&scene.redis, "pubsub 32mb 8mb 60") })
    }
}

fn output_buffer(redis: &Redis, limit: &str) {
    let answer = redis.command(&["CONFIG", "SET", "client-output-buffer-limit", limit]);
    assert_eq!(answer, "+OK\r\n");
}

/// Redis hangs.
pub struct RedisStopped;

impl Fault for RedisStopped {
    fn name(&self) -> &'static str {
        "Redis stopped (SIGSTOP)"
    }

    fn leaves(&self) -> &'static str {
        "STORE_"
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

    fn leaves(&self) -> &'static str {
        "STORE_"
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { scene.redis.kill() })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { tokio::task::block_in_place(|| scene.redis.restart()) })
    }
}

/// Of every log ten entries are kept, so that who lags finds no way on.
pub struct LogTrimmed;

const KEPT: usize = 10;

impl Fault for LogTrimmed {
    fn name(&self) -> &'static str {
        "logs trimmed to 10 entries every 100 ms, readers stopped"
    }

    fn leaves(&self) -> &'static str {
        "resync COMPACTED"
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            scene.stopped.send_replace(true);
            for _ in 0..15 {
                scene.reader.read().await;
                for (partition, position) in scene.reader.positions_before_last(KEPT) {
                    let log = scene.redis.keys(&format!("*{{ses:{partition:02}:*}}:log")).remove(0);
                    let oldest = format!("{}-{}", position.revision, position.nonce);
                    scene.redis.command(&["XTRIM", &log, "MINID", &oldest]);
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            scene.stopped.send_replace(false);
        })
    }
}

/// Some watchers read nothing for a while.
pub struct ReadersStopped;

impl Fault for ReadersStopped {
    fn name(&self) -> &'static str {
        "readers slow and stopped"
    }

    fn limits(&self) -> &'static str {
        "slow_consumer_timeout = '1s'"
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            scene.stopped.send_replace(true);
        })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            scene.stopped.send_replace(false);
        })
    }
}

/// One of the instances is killed while it tells a watcher the state, and stays away.
pub struct InstanceKilled;

/// Sessions that make a state long.
const CROWD: usize = 100;

impl Fault for InstanceKilled {
    fn name(&self) -> &'static str {
        "instance killed (SIGKILL) amid a state"
    }

    fn leaves(&self) -> &'static str {
        "without a reason"
    }

    fn kills(&self) -> bool {
        true
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            // So many that the state is told in many responses.
            let through = scene.clients().await.remove(0);
            let caller = Caller { client: WORKERS, instance: 0 };
            let creates = (0..CROWD).map(|number| {
                let create = one_for_all(format!("request-of-a-crowd-{number}"));
                // Else they are ended with their subject's.
                let create = CreateSessionRequest { subject: String::new(), ..create };
                scene.recorder.call(caller, &through, Call::Create(create))
            });
            join_all(creates).await;
            let instance = scene.addresses().len() - 1;
            eventually("a state is being told", async || scene.recorder.is_amid_state(instance).then_some(())).await;
            scene.process.kill();
        })
    }
}

/// What one instance sends to Redis arrives later.
pub struct PacketsHeld;

impl Fault for PacketsHeld {
    fn name(&self) -> &'static str {
        "packets of one instance held back"
    }

    fn lasts(&self) -> Duration {
        Duration::from_millis(1800)
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { scene.proxy.hold() })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { scene.proxy.let_go() })
    }
}

/// The connections of one instance are cut, some with what was under way.
pub struct ConnectionsCut;

impl Fault for ConnectionsCut {
    fn name(&self) -> &'static str {
        "connections of one instance cut"
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            for _ in 0..3 {
                scene.proxy.hold();
                sleep(Duration::from_millis(scene.chance.below(100) as u64)).await;
                scene.proxy.cut();
                scene.proxy.let_go();
                sleep(Duration::from_millis(200)).await;
            }
        })
    }
}

/// A replica is promoted that lacks the last writes; the old primary comes back as its replica.
pub struct ReplicaPromoted;

impl Fault for ReplicaPromoted {
    fn name(&self) -> &'static str {
        "replica promoted without the last writes"
    }

    fn leaves(&self) -> &'static str {
        "resync ROLLBACK"
    }

    fn topology(&self) -> Topology {
        Topology::Pair
    }

    fn loses(&self) -> bool {
        true
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

    fn leaves(&self) -> &'static str {
        "resync FLUSHED"
    }

    fn loses(&self) -> bool {
        true
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

    fn is_by_hand(&self) -> bool {
        true
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

/// There is room for two messages: most are lost on their way to the feeds.
pub struct SmallFeedBuffer;

impl Fault for SmallFeedBuffer {
    fn name(&self) -> &'static str {
        "room for 2 messages before the feeds"
    }

    fn limits(&self) -> &'static str {
        "feed_buffer = 2"
    }

    fn inject<'a>(&'a mut self, _scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {})
    }
}
