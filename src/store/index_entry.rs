//! Entries of subject indexes, and the reservations among them.

use std::time::Duration;

use super::store_id::StoreId;
use crate::{redis::Reply, session::SessionId};

/// Maximum number of index entries per call.
pub const INDEX_PAGE: usize = 1_000;
/// Time for which an index entry without a session is a valid reservation: 10 s, the longest time that a script can be in
/// flight, plus the tolerated difference between the clocks of two Redis hosts.
pub const RESERVATION_WINDOW: Duration = Duration::from_secs(15);

/// Entry of a subject index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Id of the session.
    pub id: SessionId,
    /// Time added in us, Redis clock; unique within an index.
    pub added: u64,
}

impl IndexEntry {
    /// The entry with this member and score of the index. None: no session can have this id.
    pub(super) fn parse(id: &Reply, added: &Reply) -> Option<Self> {
        Some(IndexEntry { id: id.text()?.parse().ok()?, added: added.float()? as u64 })
    }

    /// Time of the reservation in us, if it is still valid at `now_us`. None: the reservation has expired.
    pub fn reserved_since(&self, now_us: u64) -> Option<u64> {
        (now_us < self.added + RESERVATION_WINDOW.as_micros() as u64).then_some(self.added)
    }
}

/// Whether the id of a session is reserved in the index of its subject, or of the subject that a call sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// Not reserved: the script replies `NotReserved` if it would apply the call otherwise.
    Missing,
    /// The session has no subject.
    NotRequired,
    /// Reserved in the index of this store. Void after the store is emptied.
    Held {
        /// Identity of the store that holds the index.
        store: StoreId,
        /// Time of the reservation in microseconds, Redis clock.
        added: u64,
    },
}
