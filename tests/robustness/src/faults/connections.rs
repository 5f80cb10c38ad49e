//! Faults of the connections to Redis. Redis itself loses nothing.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::time::sleep;

use super::{Fault, create_many};
use crate::{environment::Environment, fault_observed::Evidence, recorder::Caller, workload::WORKERS};
use harness::Redis;
use harness::contract::Call;

/// The subscriber connections are killed several times.
pub struct SubscriberKilled;

impl Fault for SubscriberKilled {
    fn name(&self) -> &'static str {
        "subscriber connections killed"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Resubscribed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            for _ in 0..5 + env.rng.below(10) {
                env.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                sleep(Duration::from_millis(20 + env.rng.below(80) as u64)).await;
            }
        })
    }
}

/// Number of sessions that are created at once.
const BURST_SESSIONS: usize = 60;
/// Attribute size of these sessions in bytes. Their events are small enough for the channels.
const BURST_BYTES: usize = 6_000;

/// Redis disconnects a subscriber as soon as its output buffer exceeds 1 KiB.
pub struct TinyOutputBuffer;

impl Fault for TinyOutputBuffer {
    fn name(&self) -> &'static str {
        "subscriber output buffer of 1 KiB"
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Resubscribed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            set_output_buffer(&env.redis, "pubsub 1kb 1kb 1");
            // Redis does not count the first 16 KiB of the output buffer.
            create_many(env, BURST_SESSIONS, BURST_BYTES).await;
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { set_output_buffer(&env.redis, "pubsub 32mb 8mb 60") })
    }
}

fn set_output_buffer(redis: &Redis, limit: &str) {
    let reply = redis.command(&["CONFIG", "SET", "client-output-buffer-limit", limit]);
    assert_eq!(reply, "+OK\r\n");
}

/// Commands of one instance reach Redis only after the fault.
pub struct PacketsDelayed;

impl Fault for PacketsDelayed {
    fn name(&self) -> &'static str {
        "packets of one instance delayed"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["OUTCOME_UNKNOWN", "STORE_TIMEOUT", "STORE_UNAVAILABLE"])]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let through = env.clients().await.remove(0);
            env.proxy.hold_requests();
            // The workload may use other instances only, so the fault sends a call itself.
            let create = Call::Create(env.new_probe());
            env.recorder.call(Caller { client: WORKERS, instance: 0 }, &through, create).await;
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.proxy.release_requests() })
    }
}

/// The connections of one instance are cut, some with commands in flight.
pub struct ConnectionsCut;

impl Fault for ConnectionsCut {
    fn name(&self) -> &'static str {
        "connections of one instance cut"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Resubscribed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            for _ in 0..3 {
                env.proxy.hold_requests();
                sleep(Duration::from_millis(env.rng.below(100) as u64)).await;
                env.proxy.cut();
                env.proxy.release_requests();
                sleep(Duration::from_millis(200)).await;
            }
        })
    }
}

/// The feed buffer holds two messages, so most messages are dropped.
pub struct SmallFeedBuffer;

impl Fault for SmallFeedBuffer {
    fn name(&self) -> &'static str {
        "feed buffer of 2 messages"
    }

    fn limits(&self) -> &'static str {
        "feed_buffer = 2"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::FeedGaps]
    }

    fn inject<'a>(&'a mut self, _scene: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {})
    }
}
