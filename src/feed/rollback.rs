//! Rollbacks of the logs: their count, and the search for the fork point of one.

use tokio::{sync::watch, time::Instant};

use crate::store::{Entry, Error, Partition, Position};

use super::consumer::{Consumer, Gap, GapReason};

/// Rollbacks since the process started.
#[derive(Clone, Copy, Debug)]
pub struct RollbackCount {
    /// Number of rollbacks. Data read while it changed may be of two histories.
    pub count: u64,
    /// Time of the last rollback. Before the first one: start of the process.
    pub last: Instant,
}

/// Counts the rollbacks, including possible ones that no log shows. A consumer of the feed.
pub struct Rollbacks(watch::Sender<RollbackCount>);

impl Default for Rollbacks {
    fn default() -> Self {
        Rollbacks(watch::Sender::new(RollbackCount { count: 0, last: Instant::now() }))
    }
}

impl Rollbacks {
    /// Number of rollbacks so far.
    pub fn count(&self) -> u64 {
        self.0.borrow().count
    }

    /// Returns a receiver that is notified of every rollback.
    pub fn subscribe(&self) -> watch::Receiver<RollbackCount> {
        self.0.subscribe()
    }

    fn note(&self) {
        self.0.send_modify(|rollbacks| {
            *rollbacks = RollbackCount { count: rollbacks.count + 1, last: Instant::now() };
        });
    }
}

impl Consumer for Rollbacks {
    fn on_entry(&self, _: &Entry) {}

    fn on_gap(&self, gap: &Gap) {
        match gap.reason {
            GapReason::RolledBack | GapReason::Flushed => self.note(),
            GapReason::Compacted => {}
        }
    }

    /// A rollback is possible although no log shows it.
    fn on_restart(&self, _: &[Partition]) {
        self.note();
    }
}

/// Finds the fork point of a partition whose log does not contain the last accepted position: the newest position that
/// the log contains.
///
/// `positions` are the accepted ones, newest first. Returns the index of the fork point, which is the number of lost
/// entries. None: it is older than `positions`.
pub(super) async fn find_fork<F>(
    positions: &[Position],
    is_in_log: impl Fn(Position) -> F,
) -> Result<Option<usize>, Error>
where
    F: Future<Output = Result<bool, Error>>,
{
    let oldest = positions.len() - 1;
    // Usually few entries are lost: double their number until the position is in the log, then bisect.
    let (mut too_few, mut enough) = (0, oldest.min(1));
    while !is_in_log(positions[enough]).await? {
        if enough == oldest {
            return Ok(None);
        }
        (too_few, enough) = (enough, oldest.min(2 * enough));
    }
    while enough - too_few > 1 {
        let middle = (too_few + enough) / 2;
        if is_in_log(positions[middle]).await? {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    Ok(Some(enough))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::session::Revision;

    #[tokio::test]
    async fn fork_is_the_newest_position_in_the_log() {
        for accepted in [2, 3, 10, 1_000] {
            let positions: Vec<_> =
                (0..accepted).rev().map(|revision| Position { revision: Revision(revision), nonce: 1 }).collect();
            for lost in 1..accepted {
                let reads = Cell::new(0);
                let is_in_log = |position: Position| {
                    reads.set(reads.get() + 1);
                    std::future::ready(Ok(position.revision.0 < accepted - lost))
                };
                let fork = find_fork(&positions, is_in_log).await.unwrap();
                assert_eq!(fork, Some(usize::try_from(lost).unwrap()));
                assert!(reads.get() <= 2 * lost.ilog2() + 2, "{} reads for {lost} lost entries", reads.get());
            }
            assert_eq!(find_fork(&positions, |_| std::future::ready(Ok(false))).await.unwrap(), None);
        }
    }
}
