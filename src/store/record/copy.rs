//! A record in memory that answers the common read.

use std::mem::size_of;

use bytes::BytesMut;

use super::{CommonRead, Corrupt, Front, Record, common_read, plain_attributes};
use crate::{
    session::{AttributeBlock, Attributes, Basic, Credential, Policy, Session, SessionRef, TokenState, Touch, View},
    store::position::Position,
};

/// A live session with head and tokens of its record, in memory of its own. Its content is verified and decompressed.
#[derive(Debug)]
pub struct RecordCopy {
    front: Front,
    session: Session,
    bytes: usize,
}

/// What a copy can answer.
#[derive(Debug, PartialEq)]
pub enum CopyAnswer {
    /// The session, and the state of the presented token.
    Session(Session, TokenState),
    /// The call touches the session, and the touch must be written.
    TouchDue,
    /// The common read does not accept the call, or must record the first use of the token.
    NeedsStore,
}

impl RecordCopy {
    /// Copies a record. `text` is `<namespace>:<id>`.
    pub(in crate::store) fn of(record: &Record, name: &SessionRef, text: &[u8]) -> Result<Self, Corrupt> {
        let (basic, attributes) = (record.basic(text)?, plain_attributes(&record.attributes(text)?)?);
        let parts = [&record.front.text, basic.bytes(), attributes.bytes()];
        let mut copy = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| copy.extend_from_slice(part));
        let mut rest = copy.freeze();
        let bytes = size_of::<Self>() + rest.len();
        let front = Front { text: rest.split_to(parts[0].len()), ..record.front.clone() };
        let basic = Basic::parse(rest.split_to(parts[1].len())).map_err(|_| Corrupt::Basic)?;
        let attributes = AttributeBlock::Plain(Attributes::from_encoded(rest));
        let session = front.session(name.clone(), basic, Some(attributes));
        Ok(RecordCopy { front, session, bytes })
    }

    /// Position of the last logged change.
    pub fn position(&self) -> Position {
        self.front.position
    }

    /// Size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Answers a read. `now_us` is the estimated time of Redis; None: unknown.
    pub fn read(
        &self,
        credential: Credential,
        (view, touch): (View, Touch),
        policy: &Policy,
        now_us: Option<u64>,
    ) -> CopyAnswer {
        match common_read(&self.front, credential, policy, now_us) {
            CommonRead::NeedsScript | CommonRead::Accepted { is_first_use: true, .. } => CopyAnswer::NeedsStore,
            CommonRead::Accepted { touch_is_due: true, .. } if touch == Touch::Yes => CopyAnswer::TouchDue,
            CommonRead::Accepted { token_state, .. } => CopyAnswer::Session(self.session(view), token_state),
        }
    }

    fn session(&self, view: View) -> Session {
        let session = self.session.clone();
        match view {
            View::Full => session,
            View::Basic => Session { attributes: None, ..session },
        }
    }
}
