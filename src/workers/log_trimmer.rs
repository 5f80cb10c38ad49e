//! Keeps every log within its bounds of age, entries and bytes, and lets history give way before Redis is full.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::{deadline, log_age::LogAge};
use crate::{
    observe::Metrics,
    store::{History, LogBounds, Memory, Partition, Server, Store, Trimmed},
};

/// Time between two rounds over all partitions.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two rounds while a server is short of memory.
const PRESSED_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum share of `maxmemory` of all logs on one server, in percent.
const LOG_PERCENT: u64 = 20;
/// Memory of a server in percent of `maxmemory` from which its logs are trimmed early.
const PRESSED_FROM: u64 = 90;
/// Memory of a server in percent of `maxmemory` below which its logs are no longer trimmed early.
const PRESSED_UNTIL: u64 = 85;
/// Size of a log after an early trim, in percent of its size before.
const KEPT_PERCENT: u64 = 80;

/// Removes the oldest entries of each log that is beyond its bounds.
pub struct LogTrimmer {
    store: Arc<Store>,
    bounds: LogBounds,
    metrics: Arc<Metrics>,
    logs: Mutex<Vec<Log>>,
    /// Servers that are short of memory, by name.
    pressed: Mutex<Vec<String>>,
}

/// What is known of the log of a partition.
#[derive(Default)]
struct Log {
    age: LogAge,
    /// Size at the last trim in bytes. None: not trimmed yet.
    bytes: Option<u64>,
    /// Maximum size in bytes.
    limit: u64,
}

impl LogTrimmer {
    /// A trimmer for all logs of the store. `bounds` are those of the log of each partition; a smaller share of `maxmemory`
    /// limits the size further.
    pub fn new(store: Arc<Store>, bounds: LogBounds, metrics: Arc<Metrics>) -> Self {
        let logs = store.partitions().map(|_| Log::default()).collect();
        LogTrimmer { store, bounds, metrics, logs: Mutex::new(logs), pressed: Mutex::default() }
    }

    /// Trims all logs once per [`TRIM_INTERVAL`], in batches; more often while a server is short of memory, and at once if
    /// Redis refused a write for that reason. A failed trim is left to the next round. Never returns.
    pub async fn run(&self) {
        let mut pause = TRIM_INTERVAL;
        loop {
            let earliest = Instant::now() + PRESSED_INTERVAL;
            tokio::select! {
                () = sleep(pause) => {}
                () = self.store.trim_requested() => sleep_until(earliest).await,
            }
            let servers = self.store.servers();
            self.pressed.lock().retain(|name| servers.iter().any(|server| server.name() == *name));
            let dropped: Vec<u64> =
                join_all(servers.iter().map(|server| self.trim(server))).await.into_iter().flatten().collect();
            let is_spent = !dropped.is_empty() && dropped.iter().all(|dropped| *dropped == 0);
            self.store.note_trimmed(if is_spent { History::Spent } else { History::Trimmable });
            pause = if dropped.is_empty() || is_spent { TRIM_INTERVAL } else { PRESSED_INTERVAL };
            let logs = self.logs.lock();
            self.metrics.log_bytes.set(logs.iter().filter_map(|log| log.bytes).sum::<u64>().cast_signed());
            self.metrics.log_limit_bytes.set(logs.iter().map(|log| log.limit).sum::<u64>().cast_signed());
        }
    }

    /// Trims the logs of one server. Returns the number of entries that were dropped. None: it is not short of memory.
    async fn trim(&self, server: &Server) -> Option<u64> {
        let memory = self.store.memory(server, deadline()).await.ok();
        let is_pressed = memory.is_some_and(|memory| self.note_memory(server, memory));
        let partitions = server.partitions.len() as u64;
        let share = memory.and_then(|memory| Some(memory.limit? / 100 * LOG_PERCENT / partitions));
        let limit = self.bounds.bytes.min(share.unwrap_or(u64::MAX));
        let mut total = 0;
        for partition in &server.partitions {
            let dropped = self.trim_log(*partition, limit, is_pressed).await;
            if is_pressed {
                self.metrics.log_entries_trimmed_early.inc_by(dropped);
            }
            total += dropped;
        }
        is_pressed.then_some(total)
    }

    /// Trims the log of one partition. Returns the number of entries that were dropped.
    async fn trim_log(&self, partition: Partition, limit: u64, is_pressed: bool) -> u64 {
        let max_age = Duration::from_micros(self.bounds.age_us);
        let bounds = {
            let log = &mut self.logs.lock()[partition.index()];
            log.limit = limit;
            let kept = log.bytes.filter(|_| is_pressed).map_or(u64::MAX, |bytes| bytes / 100 * KEPT_PERCENT);
            let bytes = limit.min(kept);
            LogBounds { bytes, aged: log.age.aged(Instant::now(), max_age), ..self.bounds }
        };
        let mut total = 0;
        loop {
            let now = Instant::now();
            let Ok(Trimmed { dropped, bytes, last }) = self.store.trim(partition, bounds, deadline()).await else {
                return total;
            };
            total += dropped;
            let log = &mut self.logs.lock()[partition.index()];
            log.bytes = Some(bytes);
            log.age.note(last, now, max_age);
            if dropped < bounds.batch {
                return total;
            }
        }
    }

    /// Notes the memory of a server, and logs when it becomes short and when it no longer is. Returns whether it is.
    fn note_memory(&self, server: &Server, memory: Memory) -> bool {
        let name = server.name();
        let mut pressed = self.pressed.lock();
        let was_pressed = pressed.contains(&name);
        let threshold = if was_pressed { PRESSED_UNTIL } else { PRESSED_FROM };
        let is_pressed = memory.limit.is_some_and(|limit| memory.used >= limit / 100 * threshold);
        match (was_pressed, is_pressed) {
            (false, true) => {
                crate::observe::warning!(
                    server = name,
                    used = memory.used,
                    "Redis memory above 90 %; trimming history early, watchers may receive resync COMPACTED"
                );
                pressed.push(name);
            }
            (true, false) => {
                crate::observe::warning!(
                    server = name,
                    used = memory.used,
                    "Redis memory below 85 %; no longer trimming history early"
                );
                pressed.retain(|other| *other != name);
            }
            (false, false) | (true, true) => {}
        }
        is_pressed
    }
}
