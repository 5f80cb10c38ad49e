//! The domain: what a session is, in plain types. No I/O, no clock, and no rule that needs stored state.

mod event;
mod key;
mod policy;

pub use event::{Cause, Change, Event, Facets};
pub use key::{
    ID_BYTES, Malformed, Namespace, Proof, SessionId, SessionName, Standing, Subject, Token, Verifier, is_label_name,
};
pub use policy::{
    Durability, Policies, Policy, Preset, SessionLimitPolicy, TimeoutRefused, Timeouts, TimeoutsMs, TokenReuse,
};

use std::collections::BTreeMap;

use bytes::Bytes;

/// A protobuf message that was checked at the edge and is kept as the bytes it was encoded to: an `AttributeValue`, a
/// `ClientInfo`, an `Authentication`. Nothing inside looks into it.
pub type Encoded = Bytes;

/// Milliseconds since 1970 by the clock of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// Grows with every logged change of a session: microseconds since 1970 by the clock of Redis, or one more than the
/// revision before where that clock has not moved on. Below 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// One login session as Redis holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    pub name: SessionName,
    /// 0 in a [`Session::bare`] one.
    pub revision: Revision,
    /// Empty = anonymous.
    pub subject: String,
    /// Empty where they were not asked for.
    pub attributes: BTreeMap<String, Encoded>,
    pub labels: BTreeMap<String, String>,
    pub created: Millis,
    /// Exact to the touch interval.
    pub accessed: Millis,
    /// None = never.
    pub idle_until: Option<Millis>,
    /// None = never.
    pub absolute_until: Option<Millis>,
    /// In milliseconds; None = no idle timeout.
    pub idle_timeout: Option<u64>,
    pub client: Option<Encoded>,
    pub authentication: Option<Encoded>,
    /// 1 at create.
    pub token_generation: u32,
}

impl Session {
    /// A session of which nothing is known but its name.
    pub fn bare(name: SessionName) -> Self {
        Session {
            name,
            revision: Revision(0),
            subject: String::new(),
            attributes: BTreeMap::new(),
            labels: BTreeMap::new(),
            created: Millis(0),
            accessed: Millis(0),
            idle_until: None,
            absolute_until: None,
            idle_timeout: None,
            client: None,
            authentication: None,
            token_generation: 0,
        }
    }

    /// Whether nothing is known of it but its name.
    pub fn is_bare(&self) -> bool {
        self.revision == Revision(0)
    }

    /// About how many bytes it is on the wire, and no fewer.
    pub fn size(&self) -> usize {
        const FIXED: usize = 512;
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + value.len() + 16);
        let labels = self.labels.iter().map(|(name, value)| name.len() + value.len() + 16);
        let messages = [&self.client, &self.authentication].into_iter().flatten().map(Encoded::len);
        FIXED + self.subject.len() + attributes.chain(labels).chain(messages).sum::<usize>()
    }

    /// When it ends if not used again: the earlier of both deadlines; None = never.
    pub fn expires(&self) -> Option<Millis> {
        self.idle_until.into_iter().chain(self.absolute_until).min()
    }
}

/// What a new session holds.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub subject: String,
    pub attributes: BTreeMap<String, Encoded>,
    pub labels: BTreeMap<String, String>,
    pub client: Option<Encoded>,
    pub authentication: Option<Encoded>,
}

/// What an update changes: first clear, then remove, then set.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    pub set_attributes: BTreeMap<String, Encoded>,
    pub remove_attributes: Vec<String>,
    pub clear_attributes: bool,
    pub set_labels: BTreeMap<String, String>,
    pub remove_labels: Vec<String>,
    /// None = keep.
    pub subject: Option<String>,
    /// None = keep.
    pub authentication: Option<Encoded>,
}

impl Patch {
    /// Whether it tells who the subject is or how that was proven: no older token may outlast this.
    pub fn is_login(&self) -> bool {
        self.subject.is_some() || self.authentication.is_some()
    }
}

/// How much of a session is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Without attributes.
    Basic,
    Full,
}

/// Whether a call counts as a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Counts,
    DoesNotCount,
}

/// A request id and the request it came with, both as hashes: what makes a repeat known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    pub id: [u8; 16],
    pub fingerprint: [u8; 8],
}
