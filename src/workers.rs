//! Background work that every instance does, without a leader: expiry, log bounds, and the reconcilers.
//!
//! The scripts of the workers act once, so any number of instances may run them at the same time. Claims and jitter
//! only avoid duplicate work. Workers depend on the store and the feed, and only the server depends on them.

mod due_sets;
mod expiry;
mod index_reconciler;
mod key_repairer;
mod keyspace_reconciler;
mod log_age;
mod log_trimmer;
mod missing_key_finder;

use std::time::Duration;

use tokio::time::Instant;

pub use due_sets::DueSets;
pub use expiry::ExpiryWorker;
pub use index_reconciler::IndexReconciler;
pub use key_repairer::KeyRepairer;
pub use keyspace_reconciler::KeyspaceReconciler;
pub use log_trimmer::LogTrimmer;
pub use missing_key_finder::MissingKeyFinder;

/// Time limit of one Redis call of a worker.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Number of sessions or index entries that a worker processes before other work gets its turn.
const BATCH: usize = 100;

/// Deadline of a call that starts now.
fn deadline() -> Instant {
    Instant::now() + CALL_TIMEOUT
}

/// A random duration up to `limit`; zero if the operating system has no randomness.
pub(crate) fn jitter(limit: Duration) -> Duration {
    limit.mul_f64(f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX))
}
