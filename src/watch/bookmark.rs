//! When a watcher is due a bookmark. The tails of all logs are read first, and the entries that this read found are
//! delivered before the bookmark.

use std::{pin::Pin, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::feed::{Barrier, PendingBarrier, TailRead};

use super::{
    live::LiveReader,
    response::{Control, RETRY_PAUSE},
};

/// Bookmark schedule of one watcher.
pub(super) struct Bookmarks {
    /// Maximum time between two bookmarks.
    interval: Duration,
    /// Time of the next request of a read barrier.
    next: Instant,
    /// Timer that ends at `next`, or before if `next` was moved. It is not set again with each event.
    timer: Pin<Box<Sleep>>,
    /// Bookmark that waits for the events before it. None: no read barrier has passed since the last bookmark.
    due: Option<DueBookmark>,
    /// Read barrier for the next bookmark. None: not requested.
    pending: Option<PendingBarrier>,
}

/// A bookmark to send before the slot with number `end`.
struct DueBookmark {
    /// Time of the tail read in us, Redis clock.
    as_of: u64,
    /// Number that the next slot of the ring had after the tail read.
    end: u64,
}

impl Bookmarks {
    /// A schedule whose first read barrier is requested after one interval.
    pub(super) fn new(interval: Duration) -> Self {
        let next = Instant::now() + interval;
        Bookmarks { interval, next, timer: Box::pin(sleep_until(next)), due: None, pending: None }
    }

    /// Maximum time between two bookmarks.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Makes a bookmark due at the ring's current end, for a tail read at `as_of` (us, Redis clock).
    pub(super) fn set_due(&mut self, as_of: u64, live: &LiveReader) {
        self.due = Some(DueBookmark { as_of, end: live.end() });
    }

    /// Takes the bookmark that is due before the slot with this number, if there is one.
    pub(super) fn take_due(&mut self, number: u64) -> Option<Control> {
        let due = self.due.take_if(|due| due.end <= number)?;
        self.next = Instant::now() + self.interval;
        Some(Control::Bookmark { as_of: due.as_of })
    }

    /// Waits for the time of the next read barrier and requests it, or waits until the requested one has passed. Call it
    /// again after it returns.
    pub(super) async fn advance(&mut self, barrier: &Barrier, live: &LiveReader) {
        match &mut self.pending {
            None => {
                while Instant::now() < self.next {
                    if self.timer.is_elapsed() {
                        self.timer.as_mut().reset(self.next);
                    }
                    self.timer.as_mut().await;
                }
                self.request(barrier);
            }
            Some(pending) => {
                // Boxed: rarely used, and large.
                let read = Box::pin(pending.wait()).await;
                self.finish(read, live);
            }
        }
    }

    /// Advances like [`Bookmarks::advance`], but does not wait. `now` is the current time.
    pub(super) fn advance_now(&mut self, now: Instant, barrier: &Barrier, live: &LiveReader) {
        match &mut self.pending {
            // Not while a bookmark is due: in a growing ring, a later end would always be ahead of the reader.
            None if self.due.is_none() && now >= self.next => self.request(barrier),
            None => {}
            Some(pending) => {
                if let Some(read) = pending.wait().now_or_never() {
                    self.finish(read, live);
                }
            }
        }
    }

    fn request(&mut self, barrier: &Barrier) {
        self.pending = Some(barrier.request());
        self.next = Instant::now() + RETRY_PAUSE.min(self.interval);
    }

    /// Makes a bookmark due after the barrier has passed. None: it failed, and is requested again later.
    fn finish(&mut self, read: Option<TailRead>, live: &LiveReader) {
        self.pending = None;
        if let Some(read) = read {
            self.set_due(read.as_of, live);
        }
    }
}
