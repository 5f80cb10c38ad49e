//! Faults between the service and its Redis, which loses nothing.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::time::sleep;

use super::{Fault, crowd};
use crate::{
    contract::Call,
    felt::Mark,
    harness::Redis,
    recorder::Caller,
    scene::Scene,
    workload::{WORKERS, one_for_all},
};

/// The connections that bring the events are killed again and again.
pub struct SubscriberKilled;

impl Fault for SubscriberKilled {
    fn name(&self) -> &'static str {
        "subscriber connections killed"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Resubscribed]
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

/// Sessions made at once, and how large they are, which still travels by the channels.
const AT_ONCE: usize = 60;
const AT_ONCE_BYTES: usize = 6_000;

/// Redis cuts off a subscriber as soon as a little is waiting for it.
pub struct TinyOutputBuffer;

impl Fault for TinyOutputBuffer {
    fn name(&self) -> &'static str {
        "output buffer of subscribers tiny"
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Resubscribed]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            output_buffer(&scene.redis, "pubsub 1kb 1kb 1");
            // Redis counts only what does not fit into the first 16 KiB.
            crowd(scene, AT_ONCE, AT_ONCE_BYTES).await;
        })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { output_buffer(&scene.redis, "pubsub 32mb 8mb 60") })
    }
}

fn output_buffer(redis: &Redis, limit: &str) {
    let answer = redis.command(&["CONFIG", "SET", "client-output-buffer-limit", limit]);
    assert_eq!(answer, "+OK\r\n");
}

/// What one instance sends to Redis arrives later.
pub struct PacketsHeld;

impl Fault for PacketsHeld {
    fn name(&self) -> &'static str {
        "packets of one instance held back"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["OUTCOME_UNKNOWN", "STORE_TIMEOUT", "STORE_UNAVAILABLE"])]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let through = scene.clients().await.remove(0);
            scene.proxy.hold();
            // Whoever else works meanwhile may be elsewhere.
            let create = one_for_all(scene.seed, "request-of-one-held-back".to_owned());
            scene.recorder.call(Caller { client: WORKERS, instance: 0 }, &through, Call::Create(create)).await;
        })
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

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Resubscribed]
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

/// There is room for two messages: most are lost on their way to the feeds.
pub struct SmallFeedBuffer;

impl Fault for SmallFeedBuffer {
    fn name(&self) -> &'static str {
        "room for 2 messages before the feeds"
    }

    fn limits(&self) -> &'static str {
        "feed_buffer = 2"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Gaps]
    }

    fn inject<'a>(&'a mut self, _scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {})
    }
}
