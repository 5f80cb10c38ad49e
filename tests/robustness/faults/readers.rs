//! Readers that read nothing for a while, and logs that do not wait for them.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::time::sleep;

use super::{Fault, crowd};
use crate::{felt::Mark, history::Effect, scene::Scene};

/// Of every log ten entries are kept, so that who lags finds no way on.
pub struct LogTrimmed;

const KEPT: usize = 10;

impl Fault for LogTrimmed {
    fn name(&self) -> &'static str {
        "logs trimmed to 10 entries every 100 ms, readers stopped"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["resync COMPACTED"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::HoldsReaders]
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
                    scene.trimmed.push((partition, position));
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

/// Sessions that fill what lies between an instance and a reader, and how large each of them is.
const LARGE: usize = 30;
const LARGE_BYTES: usize = 40_000;

/// Some watchers read nothing for a while.
pub struct ReadersStopped;

impl Fault for ReadersStopped {
    fn name(&self) -> &'static str {
        "readers slow and stopped"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["resync SLOW_CONSUMER"])]
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::HoldsReaders]
    }

    /// Longer than an instance waits for Redis, which it takes for a reader that waits.
    fn limits(&self) -> &'static str {
        "slow_consumer_timeout = '3s'"
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            scene.stopped.send_replace(true);
            // More than is on its way to a reader that stops.
            crowd(scene, LARGE, LARGE_BYTES).await;
        })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            scene.stopped.send_replace(false);
        })
    }
}
