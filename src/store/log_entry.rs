//! Log entries: the bytes that append.lua writes to the log and publishes.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;

use super::{
    keys::Partition,
    position::Position,
    record::{Corrupt, FORMAT, LIFE_END, checksum, parse_head, stored_attributes},
};
use crate::session::{Basic, Cause, Change, Event, Session, SessionRef, wire};

/// Bytes of the fixed part of an entry.
const FIXED: usize = 17;
/// Bytes of the nonce at the beginning of a content that is separate from its entry.
const NONCE_BYTES: usize = 8;
/// Field of the changes: name of an attribute that was set or removed.
pub(super) const CHANGED_ATTRIBUTE: u64 = 1;
/// Field of the changes: subject and labels before the change.
pub(super) const FILTER_FIELDS_BEFORE: u64 = 2;

/// One change with its position, and the position of the entry before it, which proves that no entry is missing.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Partition of the log.
    pub partition: Partition,
    /// Position of the entry.
    pub position: Position,
    /// Position of the entry before it.
    pub previous: Position,
    /// The change, shared by those that receive it.
    pub event: Arc<Event>,
}

/// Message on the channel of a partition.
pub enum Message {
    /// A log entry.
    Entry(Box<Entry>),
    /// An entry that is too large to publish and has to be read from the log.
    Announced {
        /// Partition of the log.
        partition: Partition,
        /// Position of the entry.
        position: Position,
        /// Position of the entry before it.
        previous: Position,
    },
    /// None of these.
    Unreadable,
}

/// An entry without its content.
#[derive(Clone)]
pub(super) struct EntryHead {
    partition: Partition,
    position: Position,
    previous: Position,
    change: Change,
    name: SessionRef,
    /// `<namespace>:<id>`.
    name_text: Bytes,
    /// Head of the record up to the seal; empty if the state is unknown.
    head: Bytes,
    changes: Bytes,
    /// Position of `basic` in a content that is separate.
    start: usize,
    content_bytes: usize,
    /// Content, if the entry contains it.
    content: Bytes,
}

impl EntryHead {
    pub(super) fn decode(partition: Partition, entry: &Bytes) -> Result<Self, Corrupt> {
        let fixed = entry.first_chunk::<FIXED>().ok_or(Corrupt::Length)?;
        let [format, kind, cause, start @ .., _, _, _, _, _, _, _, _, _, _, _, _] = *fixed;
        if format != FORMAT {
            return Err(Corrupt::Head);
        }
        let length = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
        let mut rest = entry.slice(FIXED..);
        let mut take = |bytes: usize| (bytes <= rest.len()).then(|| rest.split_to(bytes)).ok_or(Corrupt::Length);
        let position = Position::from_text(&take(fixed[5].into())?).ok_or(Corrupt::Head)?;
        let previous = Position::from_text(&take(fixed[6].into())?).ok_or(Corrupt::Head)?;
        let head = take(fixed[7].into())?;
        let name_text = take(fixed[8].into())?;
        let changes = take(length(9))?;
        let start = usize::from(u16::from_be_bytes(start));
        let content_bytes = length(13);
        let content = if start == 0 { take(content_bytes)? } else { Bytes::new() };
        let change = match (kind, Cause::from_number(cause.into())) {
            (1, None) => Change::Created,
            (2, None) => Change::Updated,
            (3, None) => Change::Rotated,
            (4, Some(cause)) => Change::Ended(cause),
            (7, None) => Change::TokenReused,
            _ => return Err(Corrupt::Head),
        };
        let text = std::str::from_utf8(&name_text).map_err(|_| Corrupt::Head)?;
        let (namespace, id) = text.split_once(':').ok_or(Corrupt::Head)?;
        let name = SessionRef {
            namespace: namespace.parse().map_err(|_| Corrupt::Head)?,
            id: id.parse().map_err(|_| Corrupt::Head)?,
        };
        if !rest.is_empty() {
            return Err(Corrupt::Length);
        }
        Ok(EntryHead {
            partition,
            position,
            previous,
            change,
            name,
            name_text,
            head,
            changes,
            start,
            content_bytes,
            content,
        })
    }

    /// Whether the content is separate from the entry.
    pub(super) fn has_separate_content(&self) -> bool {
        self.start > 0
    }

    /// Whether this is the separate content of the entry: it begins with the nonce.
    pub(super) fn accepts(&self, content: &Bytes) -> bool {
        content.len() == self.content_bytes
            && content.first_chunk::<NONCE_BYTES>() == Some(&self.position.nonce.to_be_bytes())
    }

    /// The entry with its content. The event is delivered even if its session cannot be read.
    pub(super) fn with_content(self, content: Option<&Bytes>) -> Result<Entry, Corrupt> {
        let content = content.unwrap_or(&self.content);
        let (changed_attributes, before) = read_changes(&self.changes)?;
        let session = match self.head.is_empty() {
            true => Session::without_state(self.name.clone()),
            false => self.session(content).unwrap_or_else(|cause| {
                crate::observe::error!(session = %self.name, %cause, "log entry has an unreadable session");
                Session::without_state(self.name.clone())
            }),
        };
        Ok(Entry {
            partition: self.partition,
            position: self.position,
            previous: self.previous,
            event: Arc::new(Event {
                change: self.change,
                revision: self.position.revision,
                session,
                changed_attributes,
                before,
            }),
        })
    }

    fn session(&self, content: &Bytes) -> Result<Session, Corrupt> {
        if self.head.len() != LIFE_END {
            return Err(Corrupt::Length);
        }
        let front = parse_head(&self.head)?;
        let mut content = content.get(self.start..).map(|part| content.slice_ref(part)).ok_or(Corrupt::Length)?;
        if content.len() < front.basic_bytes + front.attribute_bytes {
            return Err(Corrupt::Length);
        }
        let basic = content.split_to(front.basic_bytes);
        content.truncate(front.attribute_bytes);
        if checksum(&self.name_text, &basic) != front.basic_crc {
            return Err(Corrupt::Basic);
        }
        let basic = Basic::parse(basic).map_err(|_| Corrupt::Basic)?;
        let attributes = stored_attributes(&self.name_text, content, front.attribute_crc)?;
        Ok(front.session(self.name.clone(), basic, Some(attributes)))
    }
}

/// Names of the changed attributes, and subject and labels before the change if it changed them.
fn read_changes(changes: &Bytes) -> Result<(Vec<String>, Option<Basic>), Corrupt> {
    let (mut names, mut before) = (Vec::new(), None);
    for field in wire::fields(changes) {
        let field = field.map_err(|_| Corrupt::Head)?;
        match field.number {
            CHANGED_ATTRIBUTE => names.push(String::from_utf8(field.value.into()).map_err(|_| Corrupt::Head)?),
            FILTER_FIELDS_BEFORE => {
                let fields = Basic::parse(changes.slice_ref(field.value)).map_err(|_| Corrupt::Basic)?;
                before = Some(fields);
            }
            _ => {}
        }
    }
    Ok((names, before))
}

/// Joins the messages on the channels: a large entry is published in two.
#[derive(Default)]
pub(super) struct MessageReader {
    /// Entry whose content is the next message on its channel.
    pending: Vec<EntryHead>,
    /// Partitions with a message since the last gap.
    begun: HashSet<Partition>,
}

impl MessageReader {
    /// Reads a message. None: the first half of an entry, or after a gap perhaps the second one, whose first half was lost.
    pub(super) fn read(&mut self, partition: Partition, message: &Bytes) -> Option<Message> {
        let is_first = self.begun.insert(partition);
        let pending = self.pending.iter().position(|head| head.partition == partition);
        let pending = pending.map(|at| self.pending.swap_remove(at));
        if let Some(head) = pending
            && head.accepts(message)
        {
            return Some(
                head.with_content(Some(message)).map_or(Message::Unreadable, |entry| Message::Entry(Box::new(entry))),
            );
        }
        if let Some((position, previous)) = announced(message) {
            return Some(Message::Announced { partition, position, previous });
        }
        match EntryHead::decode(partition, message) {
            Ok(head) if head.has_separate_content() => {
                self.pending.push(head);
                None
            }
            head => match head.and_then(|head| head.with_content(None)) {
                Ok(entry) => Some(Message::Entry(Box::new(entry))),
                Err(_) => (!is_first).then_some(Message::Unreadable),
            },
        }
    }

    /// Notes a gap: the other halves of some entries were lost.
    pub(super) fn note_gap(&mut self) {
        *self = MessageReader::default();
    }
}

/// Position of an announced entry and the position before it. None: the message is not an announcement.
fn announced(text: &[u8]) -> Option<(Position, Position)> {
    let at = text.iter().position(|byte| *byte == b' ')?;
    Some((Position::from_text(&text[..at])?, Position::from_text(&text[at + 1..])?))
}
