//! When a watcher is due a bookmark. The tails of all logs are read first, and the entries that this read found are
//! delivered before the bookmark.

use std::time::Duration;

use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    time::{Instant, sleep_until},
};

use super::{RETRY_PAUSE, hub::TailRead, registration::Registration, response::Control};

/// Bookmark schedule of one watcher.
pub(super) struct Bookmarks {
    /// Maximum time between two bookmarks.
    pub interval: Duration,
    /// Time of the next read barrier.
    next: Instant,
    /// Bookmark that waits for the events before it. None: no read barrier has passed since the last bookmark.
    due: Option<DueBookmark>,
    /// Read barrier for the next bookmark. None: not started.
    pending_read: Option<oneshot::Receiver<TailRead>>,
}

/// A bookmark to send before the slot with number `end`.
struct DueBookmark {
    /// Time of the tail read in us, Redis clock.
    as_of: u64,
    /// Number that the next slot of the ring had after the tail read.
    end: u64,
}

impl Bookmarks {
    /// A schedule whose first read barrier starts after one interval.
    pub(super) fn new(interval: Duration) -> Self {
        Bookmarks { interval, next: Instant::now() + interval, due: None, pending_read: None }
    }

    /// Makes a bookmark due at the ring's current end, for a tail read at `as_of` (us, Redis clock).
    pub(super) fn set_due(&mut self, as_of: u64, registration: &Registration) {
        self.due = Some(DueBookmark { as_of, end: registration.end() });
    }

    /// Takes the bookmark that is due before the slot with this number, if there is one.
    pub(super) fn take_due(&mut self, number: u64) -> Option<Control> {
        let due = self.due.take_if(|due| due.end <= number)?;
        self.next = Instant::now() + self.interval;
        Some(Control::Bookmark { as_of: due.as_of })
    }

    /// Waits for the time of the next read barrier and starts it, or waits until the started one has passed. Call it
    /// again after it returns.
    pub(super) async fn advance(&mut self, registration: &Registration) {
        match &mut self.pending_read {
            None => {
                sleep_until(self.next).await;
                self.start_read(registration);
            }
            Some(pending_read) => {
                let read = pending_read.await.ok();
                self.finish_read(read, registration);
            }
        }
    }

    /// Advances like [`Bookmarks::advance`], but does not wait.
    pub(super) fn advance_now(&mut self, registration: &Registration) {
        match self.pending_read.as_mut().map(oneshot::Receiver::try_recv) {
            // Not while a bookmark is due: in a growing ring, a later end would always be ahead of the reader.
            None if self.due.is_none() && Instant::now() >= self.next => self.start_read(registration),
            None | Some(Err(TryRecvError::Empty)) => {}
            Some(read) => self.finish_read(read.ok(), registration),
        }
    }

    fn start_read(&mut self, registration: &Registration) {
        self.pending_read = registration.hub().start_read_barrier();
        self.next = Instant::now() + RETRY_PAUSE.min(self.interval);
    }

    fn finish_read(&mut self, read: Option<TailRead>, registration: &Registration) {
        self.pending_read = None;
        if let Some(read) = read {
            self.set_due(read.as_of, registration);
        }
    }
}
