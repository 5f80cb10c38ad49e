//! Arguments and outcome of an update.

use std::time::Duration;

use crate::{
    session::{Cause, Patch, RequestId, Revision, Salt, Session, TimeoutsMs, Touch, Verifier, View},
    store::index_entry::Reservation,
};

/// Maximum number of labels of a session.
pub const MAX_LABELS: usize = 16;

/// Arguments of [`Store::update`], apart from the session.
pub struct Update<'a> {
    /// Changes of subject, attributes, labels and authentication.
    pub patch: &'a Patch,
    /// New idle and absolute timeout in ms, 0 = none. None: keep.
    pub timeouts: TimeoutsMs<Option<u64>>,
    /// Whether the call touches the session.
    pub touch: Touch,
    /// Required current revision. None: any.
    pub if_revision: Option<Revision>,
    /// Parts of the session to return.
    pub view: View,
    /// Request id that makes a retry safe. None: a retry is not detected.
    pub request: Option<RequestId>,
    /// Reservation of the id in the index of the subject that the patch sets.
    pub reserved: Reservation,
    /// New token. None: no rotation.
    pub successor: Option<Successor>,
}

/// New token of a rotation.
#[derive(Clone, Copy)]
pub struct Successor {
    /// Hash of the new token.
    pub verifier: Verifier,
    /// Salt from which the server derived the new token. None: the caller made it.
    pub salt: Option<Salt>,
    /// Time for which the superseded token stays accepted.
    pub grace: Duration,
}

/// Outcome of [`Store::update`].
#[derive(Debug)]
pub enum Updated {
    /// The session after the change. If an earlier call had the same request id: the current session.
    Session {
        /// The session.
        session: Session,
        /// Salt of the successor that the presented token already has, and that was not presented yet. None: the token has the
        /// successor of this call, or the call has none.
        salt: Option<Salt>,
    },
    /// No live session, or the presented token is not one of the session's.
    NotFound,
    /// The session has ended.
    Ended(Cause),
    /// The presented token is superseded: it is no longer accepted, or not allowed to make this change.
    Rotated,
    /// The successor is, or was, a token of this session.
    TokenKnown,
    /// Nothing was applied: the index of the new subject has no valid reservation. All other checks passed.
    NotReserved {
        /// Time in us up to which reservations are void; 0 = none is.
        void_until: u64,
    },
    /// `if_revision` is not the current revision.
    RevisionMismatch {
        /// Current revision of the session.
        current: Revision,
    },
    /// The request id belongs to another request.
    RequestIdReused,
    /// Nothing was applied: the session knows as many request ids as it can.
    RequestIdLimit {
        /// Time until one of them can be dropped.
        wait: Duration,
    },
    /// The session has another subject, which cannot be replaced.
    SubjectChange,
    /// The change would exceed the maximum number of attributes.
    TooManyAttributes {
        /// Number of attributes after the change.
        count: u64,
    },
    /// The change would exceed [`MAX_LABELS`].
    TooManyLabels {
        /// Number of labels after the change.
        count: u64,
    },
    /// The change would exceed the maximum payload.
    TooLarge {
        /// Bytes of all attribute names and values after the change.
        bytes: u64,
    },
}
