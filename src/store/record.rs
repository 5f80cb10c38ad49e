//! The record of a session: one Redis string of head, tokens, basic, attributes and request ids.
//!
//! Scripts own head, tokens and request ids; Rust reads them. Rust owns the content, `basic` and `attributes`, which scripts
//! never open. docs/storage-format.md describes the bytes.

mod common_read;
mod content;
mod copy;
mod corrupt;
mod format;
mod front;
mod tokens;

use bytes::Bytes;

use super::codec;
use crate::session::{AttributeBlock, Attributes, Basic, Millis, Session, SessionRef, View};

pub(super) use common_read::{CommonRead, DEFAULT_TOUCH_INTERVAL_MS, common_read};
pub(super) use content::{ContentArgument, EncodedContent};
pub use copy::{CopyAnswer, RecordCopy};
pub use corrupt::Corrupt;
pub(super) use format::{FORMAT, MAX_REQUESTS, REQUEST_BYTES, checksum};
pub(super) use front::{Front, HEAD_BYTES, Kind, LIFE_END, parse_head};
pub(super) use tokens::NEW_TOKEN_BYTES;

/// Whether a text is a whole record or its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// At least head and tokens.
    Beginning,
}

impl Extent {
    /// What a script replies to a caller that does not have the content.
    pub(super) fn of(view: View) -> Self {
        match view {
            View::Basic => Extent::Beginning,
            View::Full => Extent::Whole,
        }
    }
}

/// A record as read from Redis.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Head and tokens.
    pub front: Front,
    /// What follows the tokens, up to where it was read.
    rest: Bytes,
}

impl Record {
    /// Parses a record and verifies head and tokens. `name` is `<namespace>:<id>`.
    pub(super) fn parse(name: &[u8], text: &Bytes, extent: Extent) -> Result<Self, Corrupt> {
        let front = Front::parse(name, text)?;
        let rest = text.slice(front.bytes()..);
        let is_right = match extent {
            Extent::Whole => rest.len() == front.rest_bytes(),
            Extent::Beginning => rest.len() <= front.rest_bytes(),
        };
        if is_right { Ok(Record { front, rest }) } else { Err(Corrupt::Length) }
    }

    /// Record after a script that replied only what the caller, who had `before`, does not have.
    pub(super) fn of_reply(
        name: &[u8],
        reply: &Bytes,
        before: Option<&Record>,
        extent: Extent,
    ) -> Result<Self, Corrupt> {
        let front = match before {
            Some(before) => before.front.after(name, reply)?,
            None => Front::parse(name, reply)?,
        };
        if reply.len() > front.bytes() {
            return Record::parse(name, reply, extent);
        }
        let rest = before.filter(|_| front.rest_bytes() > 0).map(|before| before.rest.clone()).unwrap_or_default();
        Ok(Record { front, rest })
    }

    /// Whether `basic` was read.
    pub(super) fn has_basic(&self) -> bool {
        self.rest.len() >= self.front.basic_bytes
    }

    /// Verifies and returns `basic`.
    pub(super) fn basic(&self, name: &[u8]) -> Result<Basic, Corrupt> {
        let basic = self.rest.get(..self.front.basic_bytes).ok_or(Corrupt::Length)?;
        if checksum(name, basic) != self.front.basic_crc {
            return Err(Corrupt::Basic);
        }
        Basic::parse(self.rest.slice_ref(basic)).map_err(|_| Corrupt::Basic)
    }

    /// Verifies the attributes and returns them as stored.
    pub(super) fn attributes(&self, name: &[u8]) -> Result<AttributeBlock, Corrupt> {
        let from = self.front.basic_bytes;
        let stored = self.rest.get(from..from + self.front.attribute_bytes).ok_or(Corrupt::Length)?;
        stored_attributes(name, self.rest.slice_ref(stored), self.front.attribute_crc)
    }

    /// Times in ms of the request ids, oldest first.
    pub(super) fn request_times(&self) -> impl Iterator<Item = u64> {
        let requests = self.rest.get(self.front.basic_bytes + self.front.attribute_bytes..).unwrap_or_default();
        let (requests, _) = requests.as_chunks::<REQUEST_BYTES>();
        requests.iter().map(|request| format::number_of(&request[24..30]))
    }

    /// The session in this view.
    pub(super) fn session(&self, name: &SessionRef, text: &[u8], view: View) -> Result<Session, Corrupt> {
        let attributes = match view {
            View::Basic => None,
            View::Full => Some(self.attributes(text)?),
        };
        Ok(self.front.session(name.clone(), self.basic(text)?, attributes))
    }
}

impl Front {
    /// The session with this head and content.
    pub(super) fn session(&self, name: SessionRef, basic: Basic, attributes: Option<AttributeBlock>) -> Session {
        let some = |number: u64| (number > 0).then_some(number);
        Session {
            name,
            revision: self.position.revision,
            basic,
            attributes,
            created: Millis(self.created),
            accessed: Millis(self.accessed),
            idle_until: some(self.idle_until).map(Millis),
            absolute_until: some(self.absolute).map(Millis),
            idle_timeout: some(self.idle),
            token_generation: self.generation,
        }
    }
}

/// Verifies stored attributes. No bytes: there are no attributes.
pub(super) fn stored_attributes(name: &[u8], stored: Bytes, crc: u32) -> Result<AttributeBlock, Corrupt> {
    if checksum(name, &stored) != crc {
        return Err(Corrupt::Attributes);
    }
    let plain_bytes = codec::plain_bytes(&stored)?;
    Ok(AttributeBlock::Stored { bytes: stored, plain_bytes })
}

/// Returns attributes as encoded map entries; decompresses them if they are stored.
pub fn plain_attributes(block: &AttributeBlock) -> Result<Attributes, Corrupt> {
    match block {
        AttributeBlock::Plain(attributes) => Ok(attributes.clone()),
        AttributeBlock::Stored { bytes, .. } => Ok(Attributes::from_encoded(codec::decode(bytes)?)),
    }
}
