//! The domain types: sessions, tokens, policies and events. No I/O, no clock, and no rule that needs stored state.

mod content;
mod event;
mod key;
mod patch;
mod policy;
mod units;
pub mod wire;

pub use content::{AttributeTotals, Attributes, Basic, PatchedAttributes, encode_subject};
pub use event::{Cause, Change, Event};
pub use key::{
    Credential, ID_BYTES, Malformed, MalformedToken, Namespace, SALT_BYTES, Salt, SessionId, SessionRef, Subject,
    Token, TokenState, Verifier, is_label_name,
};
pub use patch::{Content, Encoded, Patch};
pub use policy::{
    Durability, Policies, Policy, Preset, SessionLimitPolicy, TimeoutViolation, Timeouts, TimeoutsMs, TokenReuse,
};

pub use units::{duration_text, millis, size_text};

use bytes::Bytes;

/// Time in milliseconds since 1970, Redis clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// Revision of a session: max(previous revision + 1, time of the change in microseconds since 1970, Redis clock).
///
/// Every logged change of a session raises it. It is below 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// One login session as stored in Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Namespace and id of the session.
    pub name: SessionRef,
    /// Revision of the last logged change. 0 in a session made by [`Session::without_state`].
    pub revision: Revision,
    /// Subject, labels, client and authentication.
    pub basic: Basic,
    /// Attributes. None: the read did not include them.
    pub attributes: Option<AttributeBlock>,
    /// Time of the create call.
    pub created: Millis,
    /// Time of the last touch, exact to the touch interval of the policy.
    pub accessed: Millis,
    /// Idle deadline. None: the session has no idle timeout.
    pub idle_until: Option<Millis>,
    /// Absolute deadline. None: no absolute timeout.
    pub absolute_until: Option<Millis>,
    /// Idle timeout in milliseconds. None: no idle timeout.
    pub idle_timeout: Option<u64>,
    /// Number of tokens that the session has had: 1 after create, raised by every rotation.
    pub token_generation: u32,
}

impl Session {
    /// Returns a session of which only the name is known. All other fields are empty or 0.
    ///
    /// An event has such a session if the record was deleted directly in Redis or cannot be decoded.
    pub fn without_state(name: SessionRef) -> Self {
        Session {
            name,
            revision: Revision(0),
            basic: Basic::default(),
            attributes: None,
            created: Millis(0),
            accessed: Millis(0),
            idle_until: None,
            absolute_until: None,
            idle_timeout: None,
            token_generation: 0,
        }
    }

    /// Returns whether only the name of the session is known. See [`Session::without_state`].
    pub fn lacks_state(&self) -> bool {
        self.revision == Revision(0)
    }

    /// Returns an upper bound of the size of the session in a response, in bytes.
    pub fn size(&self) -> usize {
        const FIXED_FIELDS: usize = 512;
        FIXED_FIELDS + self.basic.bytes().len() + self.attributes.as_ref().map_or(0, AttributeBlock::plain_bytes)
    }

    /// Returns the earlier one of the idle and the absolute deadline. None: the session never expires.
    pub fn expires(&self) -> Option<Millis> {
        self.idle_until.into_iter().chain(self.absolute_until).min()
    }
}

/// Attributes of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeBlock {
    /// Encoded map entries.
    Plain(Attributes),
    /// As stored, with a verified checksum. Most watchers do not receive them, so `store::plain_attributes` decompresses them
    /// on demand.
    Stored {
        /// Stored bytes.
        bytes: Bytes,
        /// Number of bytes of the encoded map entries.
        plain_bytes: usize,
    },
}

impl AttributeBlock {
    /// Number of bytes of the encoded map entries.
    pub fn plain_bytes(&self) -> usize {
        match self {
            AttributeBlock::Plain(attributes) => attributes.bytes().len(),
            AttributeBlock::Stored { plain_bytes, .. } => *plain_bytes,
        }
    }
}

/// Part of a session that a read returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Everything except the attributes.
    Basic,
    /// Everything.
    Full,
}

/// Whether a call extends the idle deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The idle deadline becomes now + idle timeout.
    Yes,
    /// The idle deadline stays.
    No,
}

/// Hash of a request id and of its request. A retry has equal hashes and gets the first outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Hash of the request id.
    pub id: [u8; 16],
    /// Hash of the method and the encoded request. Differs if the caller reuses a request id for another request.
    pub fingerprint: [u8; 8],
}
