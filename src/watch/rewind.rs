//! Where history forked: what a failover took back of what was told already.

use tokio::time::Instant;

use crate::store::{Error, Partition, Position, Store};

use super::{feed::READ_TIMEOUT, ring::Link};

/// The last position of this history, the newest first, that is in the partition's present one too, and what came after
/// it; None = none that is known.
pub async fn fork(
    store: &Store,
    partition: Partition,
    history: &[Link],
) -> Result<Option<(Position, Vec<Link>)>, Error> {
    let is_present = async |lost: usize| {
        let position = history[lost - 1].previous;
        store.is_in_history(partition, position, Instant::now() + READ_TIMEOUT).await
    };
    // Mostly few were lost: ever longer steps back, then halves.
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
