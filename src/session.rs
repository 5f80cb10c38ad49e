//! The domain types: sessions, tokens, policies and events. No I/O, no clock, and no rule that needs stored state.

mod event;
mod key;
mod policy;

pub use event::{Cause, Change, Event, FilterFields};
pub use key::{
    Credential, ID_BYTES, Malformed, MalformedToken, Namespace, SessionId, SessionRef, Subject, Token, TokenState,
    Verifier, is_label_name,
};
pub use policy::{
    Durability, Policies, Policy, Preset, SessionLimitPolicy, TimeoutViolation, Timeouts, TimeoutsMs, TokenReuse,
};

use std::collections::BTreeMap;

use bytes::Bytes;

/// Encoded protobuf message: an `AttributeValue`, a `ClientInfo` or an `Authentication`.
///
/// `grpc::parse` checks the message. All other modules store and return its bytes without decoding them.
pub type Encoded = Bytes;

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
    /// Name of the subject. Empty: anonymous.
    pub subject: String,
    /// Attributes by name. Empty if the read did not include them.
    pub attributes: BTreeMap<String, Encoded>,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
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
    /// Encoded `ClientInfo`. None: the caller set none.
    pub client: Option<Encoded>,
    /// Encoded `Authentication`. None: the caller set none.
    pub authentication: Option<Encoded>,
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

    /// Returns whether only the name of the session is known. See [`Session::without_state`].
    pub fn lacks_state(&self) -> bool {
        self.revision == Revision(0)
    }

    /// Returns an upper bound of the size of the session in a response, in bytes.
    pub fn size(&self) -> usize {
        const FIXED_FIELDS: usize = 512;
        const ENTRY_OVERHEAD: usize = 16;
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + value.len() + ENTRY_OVERHEAD);
        let labels = self.labels.iter().map(|(name, value)| name.len() + value.len() + ENTRY_OVERHEAD);
        let messages = [&self.client, &self.authentication].into_iter().flatten().map(Encoded::len);
        FIXED_FIELDS + self.subject.len() + attributes.chain(labels).chain(messages).sum::<usize>()
    }

    /// Returns the earlier one of the idle and the absolute deadline. None: the session never expires.
    pub fn expires(&self) -> Option<Millis> {
        self.idle_until.into_iter().chain(self.absolute_until).min()
    }
}

/// Content of a new session.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Name of the subject. Empty: anonymous.
    pub subject: String,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Encoded>,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// Encoded `ClientInfo`. None: not set.
    pub client: Option<Encoded>,
    /// Encoded `Authentication`. None: not set.
    pub authentication: Option<Encoded>,
}

/// Changes of an update, applied in this order: clear, remove, set.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    /// Attributes to set, by name.
    pub set_attributes: BTreeMap<String, Encoded>,
    /// Names of attributes to remove. Missing attributes are ignored.
    pub remove_attributes: Vec<String>,
    /// Whether all attributes are removed first.
    pub clear_attributes: bool,
    /// Labels to set, by name.
    pub set_labels: BTreeMap<String, String>,
    /// Names of labels to remove. Missing labels are ignored.
    pub remove_labels: Vec<String>,
    /// New subject; empty: anonymous. None: unchanged.
    pub subject: Option<String>,
    /// New encoded `Authentication`. None: unchanged.
    pub authentication: Option<Encoded>,
}

impl Patch {
    /// Returns whether the patch is a login: it sets the subject or the authentication.
    ///
    /// A login ends the grace period of every superseded token.
    pub fn is_login(&self) -> bool {
        self.subject.is_some() || self.authentication.is_some()
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
