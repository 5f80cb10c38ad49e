//! Trims the logs, and reads the memory of the servers.

use tokio::time::Instant;

use super::{Store, error::Error, keys::Partition, replies::Trimmed, routing::Server, scripts, trim_requests::History};

/// Bounds of the log of a partition.
#[derive(Clone, Copy, Debug)]
pub struct LogBounds {
    /// Maximum age of an entry in us, by the clock of Redis.
    pub age_us: u64,
    /// Revision up to which entries have exceeded the maximum age by the clock of the caller. 0: none have.
    pub aged: u64,
    /// Maximum number of entries.
    pub entries: u64,
    /// Maximum size of all entries in bytes.
    pub bytes: u64,
    /// Maximum number of entries dropped per call.
    pub batch: u64,
}

/// Memory of a Redis server in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Memory that counts for the limit.
    pub used: u64,
    /// `maxmemory`. None: no limit.
    pub limit: Option<u64>,
}

impl Store {
    /// Drops at most one batch of log entries that exceed the bounds.
    pub async fn trim(&self, partition: Partition, bounds: LogBounds, deadline: Instant) -> Result<Trimmed, Error> {
        let keys = vec![self.keys.log(partition), self.keys.meta(partition)];
        let numbers = [bounds.age_us, bounds.aged, bounds.entries, bounds.bytes, bounds.batch];
        let args = numbers.map(|number| number.to_string().into()).to_vec();
        Trimmed::decode(self.run(partition, &scripts::TRIM, keys, args, deadline).await?)
    }

    /// Waits until a write was refused because Redis has no memory left.
    pub async fn trim_requested(&self) {
        self.trim_requests.requested().await;
    }

    /// Notes a completed round over all logs. Writes that wait for it are sent again, unless history is spent.
    pub fn note_trimmed(&self, history: History) {
        self.trim_requests.note_round(history);
    }

    /// Returns the memory of a server.
    pub async fn memory(&self, server: &Server, deadline: Instant) -> Result<Memory, Error> {
        let info = server.node.info("memory", deadline).await?;
        let field = |name: &str| -> Option<u64> {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim().parse().ok()
        };
        let used = field("used_memory").ok_or_else(|| Error::UnexpectedRead("INFO memory".into()))?;
        // Buffers of replicas and of the AOF do not count for the limit.
        let used = used.saturating_sub(field("mem_not_counted_for_evict").unwrap_or(0));
        Ok(Memory { used, limit: field("maxmemory").filter(|limit| *limit > 0) })
    }
}
