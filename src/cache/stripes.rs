//! Guard of reads in flight: a reply that may be older than an event of its session does not fill the cache.

use parking_lot::Mutex;

use crate::{session::SessionId, store::Position};

/// Number of stripes, a power of two.
const STRIPES: usize = 1_024;

/// Number of changes of a stripe.
pub(super) type StripeNumber = u64;

/// Changes of all sessions, in groups by id.
pub(super) struct Stripes(Box<[Mutex<Stripe>]>);

#[derive(Default)]
struct Stripe {
    number: StripeNumber,
    /// Position of the last change. None: unknown.
    last: Option<Position>,
}

impl Default for Stripes {
    fn default() -> Self {
        Stripes((0..STRIPES).map(|_| Mutex::default()).collect())
    }
}

impl Stripes {
    fn of(&self, id: &SessionId) -> &Mutex<Stripe> {
        // Ids are random.
        let [.., high, low] = *id.as_bytes();
        &self.0[usize::from(u16::from_be_bytes([high, low])) % STRIPES]
    }

    /// Number of changes so far in the stripe of this session.
    pub(super) fn number(&self, id: &SessionId) -> StripeNumber {
        self.of(id).lock().number
    }

    /// Notes a change of the session, and drops its copy before another read can fill the cache. `position` is that of the
    /// change; None: unknown.
    pub(super) fn change(&self, id: &SessionId, position: Option<Position>, drop_copy: impl FnOnce()) {
        let mut stripe = self.of(id).lock();
        stripe.number += 1;
        stripe.last = position;
        drop_copy();
    }

    /// Inserts a copy of the session that is at this position, if there was no change since `number`, or the last one was
    /// that of the copy.
    pub(super) fn if_unchanged(&self, id: &SessionId, number: StripeNumber, position: Position, insert: impl FnOnce()) {
        let stripe = self.of(id).lock();
        if stripe.number == number || stripe.last == Some(position) {
            insert();
        }
    }
}
