//! When a watcher is due a bookmark: the tails are read, and what they told has to stand before it.

use std::time::Duration;

use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    time::{Instant, sleep_until},
};

use super::{
    hub::Verified,
    registration::Registration,
    subscription::{Control, RETRY},
};

/// The bookmarks of one watcher.
pub(super) struct Bookmarks {
    /// At the latest, from one to the next.
    pub interval: Duration,
    next: Instant,
    due: Option<Due>,
    /// The tails are being read for the next one.
    verifying: Option<oneshot::Receiver<Verified>>,
}

/// The tails were read at this time of Redis, in us, and what they told is in the ring before this slot.
struct Due {
    as_of: u64,
    end: u64,
}

impl Bookmarks {
    pub fn new(interval: Duration) -> Self {
        Bookmarks { interval, next: Instant::now() + interval, due: None, verifying: None }
    }

    /// One is due at the ring's end, for the tails were read at this time.
    pub fn note(&mut self, as_of: u64, registration: &Registration) {
        self.due = Some(Due { as_of, end: registration.end() });
    }

    /// The one that is due before the slot of this number.
    pub fn before(&mut self, number: u64) -> Option<Control> {
        let due = self.due.take_if(|due| due.end <= number)?;
        self.next = Instant::now() + self.interval;
        Some(Control::Bookmark { as_of: due.as_of })
    }

    /// Waits for the time of the next one, or until the tails are read; to be repeated.
    pub async fn advance(&mut self, registration: &Registration) {
        match &mut self.verifying {
            None => {
                sleep_until(self.next).await;
                self.verify(registration);
            }
            Some(verifying) => {
                let verified = verifying.await.ok();
                self.verified(verified, registration);
            }
        }
    }

    /// The same, without waiting.
    pub fn look(&mut self, registration: &Registration) {
        match self.verifying.as_mut().map(oneshot::Receiver::try_recv) {
            // One that is due is told before another is asked for: else the end of a ring that grows would outrun the reader.
            None if self.due.is_none() && Instant::now() >= self.next => self.verify(registration),
            None | Some(Err(TryRecvError::Empty)) => {}
            Some(verified) => self.verified(verified.ok(), registration),
        }
    }

    fn verify(&mut self, registration: &Registration) {
        self.verifying = registration.hub().verify();
        self.next = Instant::now() + RETRY.min(self.interval);
    }

    fn verified(&mut self, verified: Option<Verified>, registration: &Registration) {
        self.verifying = None;
        if let Some(verified) = verified {
            self.note(verified.as_of, registration);
        }
    }
}
