//! One change of one session, as it is told.

use std::collections::BTreeMap;

use super::{Revision, Session};

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Created,
    Updated,
    /// It has a new token.
    Rotated,
    Ended(Cause),
    /// A superseded token came back after its time, and the policy is to report that.
    TokenReused,
}

/// Why a session ended. The numbers are those of `sessiond.v1.Cause`, of the log and of tombstones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    Logout = 1,
    Revoked = 2,
    Replaced = 3,
    TokenReuse = 4,
    IdleTimeout = 5,
    AbsoluteTimeout = 6,
    OutOfBand = 7,
}

impl Cause {
    pub const ALL: [Cause; 7] = [
        Cause::Logout,
        Cause::Revoked,
        Cause::Replaced,
        Cause::TokenReuse,
        Cause::IdleTimeout,
        Cause::AbsoluteTimeout,
        Cause::OutOfBand,
    ];

    pub fn from_number(number: i64) -> Option<Self> {
        Cause::ALL.into_iter().find(|cause| *cause as i64 == number)
    }
}

/// What a filter looks at beside the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facets {
    pub subject: String,
    pub labels: BTreeMap<String, String>,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Event {
    pub change: Change,
    /// By the clock of Redis, in microseconds; the time of the event too.
    pub revision: Revision,
    /// State after; for [`Change::Ended`] the last state, at least its name.
    pub session: Session,
    /// Names of the attributes set or removed.
    pub changed_attributes: Vec<String>,
    /// Subject and labels before, where the change touched them.
    pub before: Option<Facets>,
}

impl Event {
    /// About how many bytes it is on the wire, and no fewer.
    pub fn size(&self) -> usize {
        self.session.size() + self.changed_attributes.iter().map(|name| name.len() + 8).sum::<usize>()
    }
}
