//! Writes that wait for a trim of the logs, because Redis has no memory left for them.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

/// Maximum time that a refused write waits for a trim.
const TRIM_WAIT: Duration = Duration::from_secs(1);

/// Whether history can give way to writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// A trim may free memory.
    Trimmable,
    /// Redis is short of memory, and a trim freed none.
    Spent,
}

/// Trims that refused writes wait for.
#[derive(Default)]
pub(super) struct TrimRequests {
    wanted: Notify,
    /// Number of completed rounds over all logs.
    rounds: watch::Sender<u64>,
    /// Whether the last round found that history is spent.
    is_spent: AtomicBool,
}

impl TrimRequests {
    /// Waits for a trim of all logs. Returns false if none happens in time, or if it does not free memory.
    pub(super) async fn trim(&self, deadline: Instant) -> bool {
        if self.is_spent.load(Ordering::Relaxed) {
            return false;
        }
        let mut rounds = self.rounds.subscribe();
        self.wanted.notify_one();
        let trimmed = timeout_at(deadline.min(Instant::now() + TRIM_WAIT), rounds.changed()).await;
        matches!(trimmed, Ok(Ok(()))) && !self.is_spent.load(Ordering::Relaxed)
    }

    /// Waits until a write asks for a trim.
    pub(super) async fn requested(&self) {
        self.wanted.notified().await;
    }

    /// Notes a completed round over all logs. Writes that wait for it are sent again, unless history is spent.
    pub(super) fn note_round(&self, history: History) {
        self.is_spent.store(history == History::Spent, Ordering::Relaxed);
        self.rounds.send_modify(|rounds| *rounds += 1);
    }
}
