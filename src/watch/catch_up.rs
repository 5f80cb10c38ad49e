//! Catch-up of a watcher that is behind the ring: it reads the log, partition by partition, from its position to the
//! position at which the ring continues. A resumed watcher and one that was overrun by the ring use the same code.

use tokio::time::{Instant, sleep};

use crate::{
    feed::READ_TIMEOUT,
    store::{Partition, Position},
};

use super::{
    RETRY_PAUSE,
    lifetime::CloseReason,
    log_progress::CatchUpReason,
    page_cache::PageAfter,
    response::{BATCH_BYTES, Batch, Events},
    ring::ResyncReason,
    subscription::{Phase, Subscription},
};

impl Subscription {
    /// Reads a page of the log. None: nothing to send yet; call again.
    pub(super) async fn catch_up(&mut self) -> Result<Option<Batch>, CloseReason> {
        let Phase::CatchingUp(progress) = &self.phase else { return Ok(None) };
        let (reached, target) = (&progress.reached, &progress.target);
        if reached.store != target.store || reached.positions.len() != target.positions.len() {
            return Ok(Some(self.resync_at_target(ResyncReason::Flushed)));
        }
        let Some((partition, from, target)) = progress.current() else {
            self.phase = Phase::Live;
            return Ok(None);
        };
        if from == target {
            self.step_to(target, true);
            return Ok(None);
        }
        let (hub, deadline) = (self.registration.hub(), Instant::now() + READ_TIMEOUT);
        let entries = match hub.page_cache.read_after(&self.store, partition, from, deadline).await {
            Ok(PageAfter::Entries(entries)) => entries,
            Ok(PageAfter::Compacted) if progress.reason == CatchUpReason::Overrun => {
                return Ok(Some(self.slow_consumer_batch()));
            }
            Ok(PageAfter::Compacted) => return Ok(Some(self.resync_at_target(ResyncReason::Compacted))),
            Ok(PageAfter::Flushed) => return Ok(Some(self.resync_at_target(ResyncReason::Flushed))),
            Ok(PageAfter::Tail | PageAfter::RolledBack) => return self.follow_rollback(partition, from).await,
            Err(error) => {
                tracing::debug!(partition = partition.0, %error, "catch-up read failed; retrying");
                sleep(RETRY_PAUSE).await;
                return Ok(None);
            }
        };
        let mut events = Events::default();
        for entry in entries {
            let is_last = entry.position == target;
            if !is_last && entry.position.revision >= target.revision {
                // The log skips the target: entry and target are on different branches of history.
                if events.list.is_empty() {
                    return self.follow_rollback(partition, entry.previous).await;
                }
                break;
            }
            self.collect(entry.shared, &mut events).await;
            if self.close_reason.is_some() {
                break;
            }
            self.step_to(entry.position, is_last);
            if is_last || events.bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(self.batch_unless_silent(events.list))
    }

    /// Sets the position of the current partition, and selects the next partition after the last position.
    fn step_to(&mut self, position: Position, is_last: bool) {
        if let Phase::CatchingUp(progress) = &mut self.phase {
            progress.reached.positions[progress.partition] = position;
            progress.partition += usize::from(is_last);
            self.token = progress.reached.encode();
        }
    }

    /// Continues after it was found that the watcher's position and its target are on different branches of history.
    ///
    /// If the position is in the present history, the watcher reads on to the current end of the ring. If it was lost
    /// and the ring still has the rollback, the watcher continues from the fork. Otherwise it receives `resync` without
    /// ids.
    async fn follow_rollback(&mut self, partition: Partition, from: Position) -> Result<Option<Batch>, CloseReason> {
        let hub = self.registration.hub().clone();
        // Cached pages of the lost branch would lead to this position again.
        hub.page_cache.invalidate(partition);
        let passed_barrier = self.feed.barrier.pass().await.is_some();
        let is_present = self.store.is_in_history(partition, from, Instant::now() + READ_TIMEOUT).await;
        let (true, Ok(is_present)) = (passed_barrier, is_present) else {
            sleep(RETRY_PAUSE).await;
            return Ok(None);
        };
        let rollback = hub.rollback_of(partition, from).filter(|_| !is_present);
        let Phase::CatchingUp(progress) = &mut self.phase else { return Ok(None) };
        let Some(resync) = rollback else {
            (progress.target, progress.partition) = (self.registration.skip_to_end(), 0);
            return if is_present { Ok(None) } else { Ok(Some(self.resync_at_target(ResyncReason::RolledBack))) };
        };
        if let Some(lost) = &resync.rolled_back {
            for (position, index) in progress.reached.positions.iter_mut().zip(0..) {
                *position = lost.fork_before(Partition(index), *position).unwrap_or(*position);
            }
            self.token = progress.reached.encode();
        }
        let affected = self.affected_ids(&resync);
        Ok(affected.map(|ids| self.resync(resync.reason, ids, Events::default())))
    }

    /// Sends `resync` without ids and continues at the target, because the log does not lead from the watcher's
    /// position to the target.
    fn resync_at_target(&mut self, reason: ResyncReason) -> Batch {
        if let Phase::CatchingUp(progress) = std::mem::replace(&mut self.phase, Phase::Live) {
            self.token = progress.target.encode();
        }
        self.resync(reason, Vec::new(), Events::default())
    }
}
