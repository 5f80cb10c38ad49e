//! The catch-up of a watcher that is behind the ring: it reads the log, partition by partition, from its position to the
//! position at which the ring continues. A resumed watcher and one that was overrun by the ring use the same code.

use std::sync::Arc;

use crate::store::{Error, Partition, Position};

use super::{
    item::{Item, LogEntry, Read, Resync, Slot},
    live::LiveReader,
    page_cache::PageAfter,
    response::{BATCH_BYTES, ResyncReason},
    resume_token::ResumeToken,
    source::Source,
};

/// Reads the logs up to the position at which the ring continues.
pub(super) struct CatchUp {
    /// Positions up to which the watcher has read the logs.
    reached: ResumeToken,
    /// Positions up to which it reads the logs; after them it continues in the ring.
    target: ResumeToken,
    /// Index of the partition that is read now. The partitions before it are at their target.
    partition: usize,
    /// Why the watcher is behind the ring.
    reason: CatchUpReason,
}

/// Why a watcher is behind the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CatchUpReason {
    /// It was opened with a resume token.
    Resumed,
    /// The ring dropped slots that it had not taken.
    Overrun,
}

impl CatchUp {
    /// Catch-up of a watch that was opened with a resume token.
    pub(super) fn resumed(reached: ResumeToken, target: ResumeToken) -> Self {
        CatchUp { reached, target, partition: 0, reason: CatchUpReason::Resumed }
    }

    /// Catch-up of a live watcher after the ring dropped slots that it had not taken.
    pub(super) fn overrun(reached: ResumeToken, target: ResumeToken) -> Self {
        CatchUp { reached, target, partition: 0, reason: CatchUpReason::Overrun }
    }

    /// Reads entries of one page of the log. Moves the live reader if the target is not in the present history.
    pub(super) async fn read(&mut self, source: &impl Source, live: &mut LiveReader) -> Result<Read, Error> {
        if self.reached.store != self.target.store || self.reached.positions.len() != self.target.positions.len() {
            return Ok(self.skip_to_target(ResyncReason::Flushed));
        }
        let Some((partition, from, target)) = self.next_partition() else {
            return Ok(Read::End(self.reached.encode()));
        };
        match source.page_after(partition, from).await? {
            PageAfter::Entries(entries) => match self.entries_up_to(target, entries) {
                // The log skips the target: the two are on different branches of history.
                slots if slots.is_empty() => self.follow_rollback(source, live, partition, from).await,
                slots => Ok(Read::Items(slots)),
            },
            PageAfter::Compacted if self.reason == CatchUpReason::Overrun => Ok(Read::SlowConsumer),
            PageAfter::Compacted => Ok(self.skip_to_target(ResyncReason::Compacted)),
            PageAfter::Flushed => Ok(self.skip_to_target(ResyncReason::Flushed)),
            PageAfter::Tail | PageAfter::RolledBack => self.follow_rollback(source, live, partition, from).await,
        }
    }

    /// Returns the first partition that is not at its target, its position and its target. None: all are.
    fn next_partition(&mut self) -> Option<(Partition, Position, Position)> {
        loop {
            let reached = *self.reached.positions.get(self.partition)?;
            let target = *self.target.positions.get(self.partition)?;
            if reached != target {
                return Some((Partition(u16::try_from(self.partition).ok()?), reached, target));
            }
            self.partition += 1;
        }
    }

    /// Moves the position over the entries up to the target, at most those that fit into a response. None: the first one is
    /// already behind the target.
    fn entries_up_to(&mut self, target: Position, entries: Vec<LogEntry>) -> Vec<Slot> {
        let (mut slots, mut bytes) = (Vec::new(), 0);
        for entry in entries {
            let is_last = entry.position == target;
            if !is_last && entry.position.revision >= target.revision {
                break;
            }
            bytes += entry.shared.event.size();
            self.reached.positions[self.partition] = entry.position;
            slots.push(Slot { item: Item::Entry(entry), token: self.reached.encode() });
            if is_last || bytes >= BATCH_BYTES {
                break;
            }
        }
        slots
    }

    /// Continues after it was found that the watcher's position and its target are on different branches of history.
    ///
    /// If the position is in the present history, the watcher reads on to the current end of the ring. If it was lost
    /// and the ring still has the rollback, the watcher continues from the fork. Otherwise every session is affected.
    async fn follow_rollback(
        &mut self,
        source: &impl Source,
        live: &mut LiveReader,
        partition: Partition,
        from: Position,
    ) -> Result<Read, Error> {
        // Cached pages of the lost branch would lead to this position again.
        source.forget_pages(partition);
        source.pass_barrier().await?;
        let is_present = source.is_in_history(partition, from).await?;
        let rollback = live.rollback_of(partition, from).filter(|_| !is_present);
        let Some(resync) = rollback else {
            (self.target, self.partition) = (live.skip_to_end(), 0);
            let items =
                if is_present { Read::Items(Vec::new()) } else { self.skip_to_target(ResyncReason::RolledBack) };
            return Ok(items);
        };
        if let Some(lost) = &resync.rolled_back {
            for (position, index) in self.reached.positions.iter_mut().zip(0..) {
                *position = lost.fork_before(Partition(index), *position).unwrap_or(*position);
            }
            self.partition = 0;
        }
        Ok(Read::Items(vec![Slot { item: Item::Resync(resync), token: self.reached.encode() }]))
    }

    /// Moves the position to the target, because the log does not lead there. Every session is affected.
    fn skip_to_target(&mut self, reason: ResyncReason) -> Read {
        self.reached = self.target.clone();
        let resync = Arc::new(Resync { reason, rolled_back: None });
        Read::Items(vec![Slot { item: Item::Resync(resync), token: self.target.encode() }])
    }
}

#[cfg(test)]
mod tests;
