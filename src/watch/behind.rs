//! A watcher that is behind the ring: it reads the log from where it is to where the ring goes on, partition by partition.
//! The same for one that resumes and for one that was too slow.

use tokio::time::{Instant, sleep};

use crate::store::{Partition, Position};

use super::{
    feed::READ_TIMEOUT,
    lifetime::Finish,
    pages::Following,
    ring::Resync,
    subscription::{BATCH_BYTES, Batch, Events, Phase, RETRY, Subscription},
    token::ResumeToken,
};

/// From where to where a watcher reads the log.
pub struct Behind {
    at: ResumeToken,
    to: ResumeToken,
    /// The one that is being read.
    partition: usize,
    why: Why,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Resumed,
    FellOff,
}

impl Behind {
    pub fn resumed(at: ResumeToken, to: ResumeToken) -> Self {
        Behind { at, to, partition: 0, why: Why::Resumed }
    }

    pub fn fell_off(at: ResumeToken, to: ResumeToken) -> Self {
        Behind { at, to, partition: 0, why: Why::FellOff }
    }

    /// The partition that is being read, where the watcher is in it and where it is going; None = it is there in all.
    fn step(&self) -> Option<(Partition, Position, Position)> {
        let (from, target) = (self.at.positions.get(self.partition)?, self.to.positions.get(self.partition)?);
        Some((Partition(self.partition as u16), *from, *target))
    }
}

impl Subscription {
    /// Reads a page of the log; None = go on.
    pub(super) async fn catch_up(&mut self) -> Result<Option<Batch>, Finish> {
        let Phase::Behind(behind) = &self.phase else { return Ok(None) };
        if behind.at.store != behind.to.store || behind.at.positions.len() != behind.to.positions.len() {
            return Ok(Some(self.give_up(Resync::Flushed)));
        }
        let Some((partition, from, target)) = behind.step() else {
            self.phase = Phase::Live;
            return Ok(None);
        };
        if from == target {
            self.step_to(target, true);
            return Ok(None);
        }
        let (hub, deadline) = (self.registration.hub(), Instant::now() + READ_TIMEOUT);
        let changes = match hub.pages.after(&self.store, partition, from, deadline).await {
            Ok(Following::Changes(changes)) => changes,
            Ok(Following::Compacted) if behind.why == Why::FellOff => return Ok(Some(self.too_slow())),
            Ok(Following::Compacted) => return Ok(Some(self.give_up(Resync::Compacted))),
            Ok(Following::Flushed) => return Ok(Some(self.give_up(Resync::Flushed))),
            Ok(Following::Tail | Following::RolledBack) => return self.rolled_back(partition, from).await,
            Err(error) => {
                tracing::debug!(%error, "a watch waits for the log");
                sleep(RETRY).await;
                return Ok(None);
            }
        };
        let mut events = Events::default();
        for link in changes {
            let is_last = link.position == target;
            if !is_last && link.position.revision >= target.revision {
                // It does not lead there: one of the two is of another branch of history.
                if events.list.is_empty() {
                    return self.rolled_back(partition, link.previous).await;
                }
                break;
            }
            self.consider(link.entry, &mut events).await;
            if self.finish.is_some() {
                break;
            }
            self.step_to(link.position, is_last);
            if is_last || events.bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(self.batch_or_silence(events.list))
    }

    /// Moves the partition on, and after its last position to the next partition.
    fn step_to(&mut self, position: Position, is_last: bool) {
        if let Phase::Behind(behind) = &mut self.phase {
            behind.at.positions[behind.partition] = position;
            behind.partition += usize::from(is_last);
            self.token = behind.at.encode();
        }
    }

    /// Where the watcher stands and where it is going are of two branches of history. From the present one it goes on to
    /// where the ring is by now; from a lost one, where the ring knows what was lost, from the fork.
    async fn rolled_back(&mut self, partition: Partition, from: Position) -> Result<Option<Batch>, Finish> {
        let hub = self.registration.hub().clone();
        // Else they would lead back to where we are.
        hub.pages.forget(partition);
        let is_verified = hub.refresh().await.is_some();
        let stands = self.store.is_in_history(partition, from, Instant::now() + READ_TIMEOUT).await;
        let (true, Ok(stands)) = (is_verified, stands) else {
            sleep(RETRY).await;
            return Ok(None);
        };
        let missed = hub.taken_back(partition, from).filter(|_| !stands);
        let Phase::Behind(behind) = &mut self.phase else { return Ok(None) };
        let Some(missed) = missed else {
            (behind.to, behind.partition) = (self.registration.skip_to_end(), 0);
            return if stands { Ok(None) } else { Ok(Some(self.give_up(Resync::RolledBack))) };
        };
        if let Some(lost) = &missed.lost {
            for (position, index) in behind.at.positions.iter_mut().zip(0..) {
                *position = lost.fork_below(Partition(index), *position).unwrap_or(*position);
            }
            self.token = behind.at.encode();
        }
        let concerned = self.concerned(&missed);
        Ok(concerned.map(|ids| self.resync(missed.reason, ids, Events::default())))
    }

    /// The log does not lead from where the watcher is to where the ring goes on.
    fn give_up(&mut self, reason: Resync) -> Batch {
        if let Phase::Behind(behind) = std::mem::replace(&mut self.phase, Phase::Live) {
            self.token = behind.to.encode();
        }
        self.resync(reason, Vec::new(), Events::default())
    }
}
