//! Converts between sessions and the fields of a Redis hash.
//!
//! `m` packed meta · `t` current token · `g` superseded tokens · `r` request ids · `x` tombstone · `o` revision at which the
//! session lost its subject · `a:<name>` attribute · `l:<name>` label · `u` subject · `c` client · `h` authentication. Scripts
//! own the fields up to `o`; all others are values of [`codec`](super::codec). A script replies with one MessagePack array of
//! field names and values, without `t`, `g`, `r`, `x`, `o`.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::session::{Content, Encoded, FilterFields, Millis, Patch, Revision, Session, SessionRef};

use super::{
    codec::{self, Unreadable},
    msgpack::{Reader, Truncated},
};

/// Storage format that this version reads and writes.
pub(super) const FORMAT: u8 = 1;
const META_BYTES: usize = 53;

/// Reason why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Its key is not a hash, or seal, format or lengths are wrong.
    #[error("seal or format is wrong")]
    Seal,
    /// The reply or log entry ends early.
    #[error("data is truncated")]
    Truncated,
    /// Field `m` is missing, or has the wrong length or format.
    #[error("packed meta has the wrong length or format")]
    Meta,
    /// The value of a field cannot be decoded.
    #[error("field {field:?}: {cause}")]
    Value {
        /// Name of the field.
        field: String,
        /// Reason why its value cannot be decoded.
        cause: Unreadable,
    },
    /// A name or value that has to be UTF-8 is not.
    #[error("field {0:?} is not UTF-8")]
    NotText(String),
}

impl From<Truncated> for Corrupt {
    fn from(_: Truncated) -> Self {
        Corrupt::Truncated
    }
}

/// Names and stored values of fields.
pub(super) type Fields = Vec<(String, Vec<u8>)>;

/// Fields for the content of a new session.
pub(super) fn fields_of(content: &Content) -> Fields {
    let mut fields = changes_of_maps(&content.attributes, &content.labels);
    if !content.subject.is_empty() {
        fields.push(("u".to_owned(), stored_subject(&content.subject)));
    }
    fields.extend(optional("c", content.client.as_deref()));
    fields.extend(optional("h", content.authentication.as_deref()));
    fields
}

/// Fields that a patch sets, apart from the subject.
pub(super) fn set_by(patch: &Patch) -> Fields {
    let mut fields = changes_of_maps(&patch.set_attributes, &patch.set_labels);
    fields.extend(optional("h", patch.authentication.as_deref()));
    fields
}

/// Stored value of a subject; empty for the empty subject.
pub(super) fn stored_subject(subject: &str) -> Vec<u8> {
    if subject.is_empty() { Vec::new() } else { codec::encode_raw(subject.as_bytes()) }
}

/// Subject of a stored value; empty for an empty value.
pub(super) fn subject_of(stored: &Bytes) -> Result<String, Corrupt> {
    if stored.is_empty() { Ok(String::new()) } else { text("u", stored) }
}

/// Names of the fields that a patch removes.
pub(super) fn removed_by(patch: &Patch) -> Vec<String> {
    let attributes = patch.remove_attributes.iter().map(|name| format!("a:{name}"));
    attributes.chain(patch.remove_labels.iter().map(|name| format!("l:{name}"))).collect()
}

fn changes_of_maps(attributes: &BTreeMap<String, Encoded>, labels: &BTreeMap<String, String>) -> Fields {
    let attributes = attributes.iter().map(|(name, value)| (format!("a:{name}"), codec::encode(value)));
    let labels = labels.iter().map(|(name, value)| (format!("l:{name}"), codec::encode(value.as_bytes())));
    attributes.chain(labels).collect()
}

fn optional(name: &str, content: Option<&[u8]>) -> Option<(String, Vec<u8>)> {
    content.map(|content| (name.to_owned(), codec::encode(content)))
}

/// Decodes a session from packed fields.
pub(super) fn decode(name: SessionRef, packed: Bytes) -> Result<Session, Corrupt> {
    let mut session = Session::without_state(name);
    let mut has_meta = false;
    for_each_field(packed, |field, stored| {
        match field.split_at_checked(2) {
            Some(("a:", attribute)) => {
                session.attributes.insert(attribute.to_owned(), value(field, &stored)?);
            }
            Some(("l:", label)) => {
                session.labels.insert(label.to_owned(), text(field, &stored)?);
            }
            _ => match field {
                "m" => {
                    read_meta(&stored, &mut session)?;
                    has_meta = true;
                }
                "u" => session.subject = text(field, &stored)?,
                "c" => session.client = Some(value(field, &stored)?),
                "h" => session.authentication = Some(value(field, &stored)?),
                // A field of a later minor version.
                _ => {}
            },
        }
        Ok(())
    })?;
    if has_meta { Ok(session) } else { Err(Corrupt::Meta) }
}

/// Decodes subject and labels from packed fields.
pub(super) fn decode_filter_fields(packed: Bytes) -> Result<FilterFields, Corrupt> {
    let mut filter_fields = FilterFields { subject: String::new(), labels: BTreeMap::new() };
    for_each_field(packed, |field, stored| {
        if let Some(label) = field.strip_prefix("l:") {
            filter_fields.labels.insert(label.to_owned(), text(field, &stored)?);
        } else if field == "u" {
            filter_fields.subject = text(field, &stored)?;
        }
        Ok(())
    })?;
    Ok(filter_fields)
}

fn for_each_field(packed: Bytes, mut take: impl FnMut(&str, Bytes) -> Result<(), Corrupt>) -> Result<(), Corrupt> {
    let mut reader = Reader::new(packed);
    let fields = reader.array()? / 2;
    for _ in 0..fields {
        let field = reader.bytes()?;
        let field =
            std::str::from_utf8(&field).map_err(|_| Corrupt::NotText(String::from_utf8_lossy(&field).into_owned()))?;
        take(field, reader.bytes()?)?;
    }
    Ok(())
}

fn value(field: &str, stored: &Bytes) -> Result<Bytes, Corrupt> {
    codec::decode(stored).map_err(|cause| Corrupt::Value { field: field.to_owned(), cause })
}

fn text(field: &str, stored: &Bytes) -> Result<String, Corrupt> {
    String::from_utf8(value(field, stored)?.into()).map_err(|_| Corrupt::NotText(field.to_owned()))
}

/// Reads packed meta: big-endian, the layout of META_FIELD in record.lua.
#[expect(clippy::expect_used, reason = "the slices of an array of fixed length have the right length")]
fn read_meta(stored: &Bytes, session: &mut Session) -> Result<(), Corrupt> {
    let meta = stored.first_chunk::<META_BYTES>().ok_or(Corrupt::Meta)?;
    let number = |at: usize| u64::from_be_bytes(meta[at..at + 8].try_into().expect("eight bytes"));
    let some = |number: u64| (number > 0).then_some(number);
    if meta[0] != FORMAT {
        return Err(Corrupt::Meta);
    }
    session.revision = Revision(number(1));
    session.created = Millis(number(9));
    session.accessed = Millis(number(17));
    session.idle_timeout = some(number(25));
    session.idle_until = some(number(33)).map(Millis);
    session.absolute_until = some(number(41)).map(Millis);
    session.token_generation = u32::from_be_bytes(meta[49..53].try_into().expect("four bytes"));
    Ok(())
}
