//! Faults of readers: watchers that stop reading, and logs that are trimmed while they do.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::time::sleep;

use super::{Fault, create_many};
use crate::history::Effect;
use crate::{environment::Environment, fault_observed::Evidence};

/// The logs are trimmed to their last entries, so that a watcher that falls behind receives `resync`.
pub struct LogTrimmed;

/// Number of entries that remain in each log.
const KEPT: usize = 10;

impl Fault for LogTrimmed {
    fn name(&self) -> &'static str {
        "logs trimmed to 10 entries every 100 ms, readers stalled"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["resync COMPACTED"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::StallsReaders]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.readers_stopped.send_replace(true);
            for _ in 0..15 {
                env.reader.read().await;
                for (partition, kept) in env.reader.last_entries(KEPT) {
                    let log = env.redis.keys(&format!("*{{{partition:02}:*}}:log")).remove(0);
                    let oldest = format!("{}-{}", kept[0].position.revision, kept[0].position.nonce);
                    env.redis.command(&["XTRIM", &log, "MINID", &oldest]);
                    env.trace.trimmed.push((partition, kept[0].previous));
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.readers_stopped.send_replace(false);
        })
    }
}

/// Number of sessions whose events fill the buffers between an instance and a reader.
const LARGE_SESSIONS: usize = 30;
/// Attribute size of these sessions in bytes.
const LARGE_BYTES: usize = 40_000;

/// Some watchers stop reading for a while.
pub struct ReadersStalled;

impl Fault for ReadersStalled {
    fn name(&self) -> &'static str {
        "readers slow and stalled"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["resync SLOW_CONSUMER"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::StallsReaders]
    }

    /// Sets `slow_consumer_timeout` above the time that an instance waits for Redis, because a watch that waits for
    /// Redis looks like a stalled reader.
    fn limits(&self) -> &'static str {
        "slow_consumer_timeout = '3s'"
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.readers_stopped.send_replace(true);
            // Their events do not fit into the buffers of a stalled reader.
            create_many(env, LARGE_SESSIONS, LARGE_BYTES).await;
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.readers_stopped.send_replace(false);
        })
    }
}
