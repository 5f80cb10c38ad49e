//! A session as the fields of a Redis hash, and back.
//!
//! `m` packed meta · `t` token · `g` tokens before it · `r` request ids · `x` tombstone · `o` when it left its subject ·
//! `a:<name>` attribute · `l:<name>` label · `u` subject · `c` client · `h` authentication. Scripts own those up to `o`;
//! all others are values of [`codec`](super::codec). A script tells fields as one MessagePack array of names and values,
//! without `t`, `g`, `r`, `x`, `o`.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::session::{Content, Encoded, Facets, Millis, Patch, Revision, Session, SessionName};

use super::{
    codec::{self, Unreadable},
    msgpack::{Reader, Truncated},
};

pub const FORMAT: u8 = 1;
const META_BYTES: usize = 53;

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    #[error("it is no record of this session in a known format")]
    Seal,
    #[error("the answer is cut short")]
    Truncated,
    #[error("packed meta has the wrong length or format")]
    Meta,
    #[error("field {field:?}: {cause}")]
    Value { field: String, cause: Unreadable },
    #[error("field {0:?} is not text")]
    NotText(String),
}

impl From<Truncated> for Corrupt {
    fn from(_: Truncated) -> Self {
        Corrupt::Truncated
    }
}

/// Stored fields: names and values in turn.
pub type Fields = Vec<(String, Vec<u8>)>;

/// The fields of a new session that its caller decides.
pub fn fields_of(content: &Content) -> Fields {
    let mut fields = changes_of_maps(&content.attributes, &content.labels);
    if !content.subject.is_empty() {
        fields.push(("u".to_owned(), stored_subject(&content.subject)));
    }
    fields.extend(optional("c", content.client.as_deref()));
    fields.extend(optional("h", content.authentication.as_deref()));
    fields
}

/// The fields that a patch sets.
pub fn set_by(patch: &Patch) -> Fields {
    let mut fields = changes_of_maps(&patch.set_attributes, &patch.set_labels);
    fields.extend(optional("h", patch.authentication.as_deref()));
    fields
}

/// A subject as it is stored; an empty one is not.
pub fn stored_subject(subject: &str) -> Vec<u8> {
    if subject.is_empty() { Vec::new() } else { codec::encode_raw(subject.as_bytes()) }
}

/// The subject in a stored value; an empty one means none.
pub fn subject_of(stored: &Bytes) -> Result<String, Corrupt> {
    if stored.is_empty() { Ok(String::new()) } else { text("u", stored) }
}

/// The names of the fields that a patch removes.
pub fn removed_by(patch: &Patch) -> Vec<String> {
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

/// Reads what a script told of a session.
pub fn decode(name: SessionName, told: Bytes) -> Result<Session, Corrupt> {
    let mut session = Session::bare(name);
    let mut has_meta = false;
    for_each_field(told, |field, stored| {
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
                // Fields of a later minor version.
                _ => {}
            },
        }
        Ok(())
    })?;
    if has_meta { Ok(session) } else { Err(Corrupt::Meta) }
}

/// Reads subject and labels alone.
pub fn decode_facets(told: Bytes) -> Result<Facets, Corrupt> {
    let mut facets = Facets { subject: String::new(), labels: BTreeMap::new() };
    for_each_field(told, |field, stored| {
        if let Some(label) = field.strip_prefix("l:") {
            facets.labels.insert(label.to_owned(), text(field, &stored)?);
        } else if field == "u" {
            facets.subject = text(field, &stored)?;
        }
        Ok(())
    })?;
    Ok(facets)
}

fn for_each_field(told: Bytes, mut take: impl FnMut(&str, Bytes) -> Result<(), Corrupt>) -> Result<(), Corrupt> {
    let mut reader = Reader::new(told);
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

/// Packed meta, big-endian, the same layout as in record.lua.
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
