//! Rollbacks of the logs: their count, and the search for the fork of one.

use tokio::time::Instant;

use crate::store::{Error, Partition, Position, Store};

use super::{READ_TIMEOUT, ring::LogEntry};

/// Rollbacks since the process started, including possible ones that no log shows.
#[derive(Clone, Copy, Debug)]
pub struct Rollbacks {
    /// Number of rollbacks. Data read while it changed may be of two histories.
    pub count: u64,
    /// Time of the last rollback. Before the first one: start of the process.
    pub last: Instant,
}

/// Finds the fork of a partition whose log no longer contains the hub's position: the last position that the hub's
/// history and the log have in common.
///
/// `history` holds the entries up to that position, newest first. Returns the fork and the lost entries after it. None:
/// the fork is older than `history`.
pub(super) async fn find_fork(
    store: &Store,
    partition: Partition,
    history: &[LogEntry],
) -> Result<Option<(Position, Vec<LogEntry>)>, Error> {
    // Whether the log contains the position before the newest `lost` entries.
    let is_present = async |lost: usize| {
        let position = history[lost - 1].previous;
        store.is_in_history(partition, position, Instant::now() + READ_TIMEOUT).await
    };
    // Usually few entries are lost: double the number until the position is present, then bisect.
    let (mut too_few, mut enough) = (0, 1);
    loop {
        if enough > history.len() {
            enough = history.len();
            if too_few >= enough || !is_present(enough).await? {
                return Ok(None);
            }
            break;
        }
        if is_present(enough).await? {
            break;
        }
        (too_few, enough) = (enough, enough * 2);
    }
    while enough - too_few > 1 {
        let middle = (too_few + enough) / 2;
        if is_present(middle).await? {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    Ok(Some((history[enough - 1].previous, history[..enough].to_vec())))
}
