//! Content of a session as encoded protobuf fields of `sessiond.v1.Session`, merged and compared without decoding values.

use std::{collections::BTreeMap, mem};

use bytes::Bytes;

use super::{
    Content, Encoded, Patch,
    wire::{self, Field, Malformed, fields, put_entry, put_field},
};

/// Field numbers of `sessiond.v1.Session`.
const SUBJECT: u64 = 4;
const ATTRIBUTES: u64 = 5;
const LABELS: u64 = 6;
const CLIENT: u64 = 13;
const AUTHENTICATION: u64 = 14;

/// The fields that the caller determines and the BASIC view shows: subject, labels, client and authentication.
///
/// They are in the order of their numbers, labels in the order of their names, so equal content has equal bytes. Fields of a
/// later version follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Basic(Bytes);

impl Basic {
    /// Encodes the fields of a new session.
    pub fn of(content: &Content) -> Self {
        let mut encoded = encode_subject(&content.subject);
        for (name, value) in &content.labels {
            put_entry(&mut encoded, LABELS, name.as_bytes(), value.as_bytes());
        }
        for (number, message) in [(CLIENT, &content.client), (AUTHENTICATION, &content.authentication)] {
            if let Some(message) = message {
                put_field(&mut encoded, number, message);
            }
        }
        Basic(encoded.into())
    }

    /// Checks encoded fields.
    pub fn parse(encoded: Bytes) -> Result<Self, Malformed> {
        let check = |text| std::str::from_utf8(text).map(drop).map_err(|_| Malformed);
        for field in fields(&encoded) {
            let field = field?;
            match field.number {
                SUBJECT => check(field.value)?,
                LABELS => {
                    let (name, value) = wire::entry(field.value)?;
                    check(name)?;
                    check(value)?;
                }
                _ => {}
            }
        }
        Ok(Basic(encoded))
    }

    /// The encoded fields.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Name of the subject. Empty: anonymous.
    pub fn subject(&self) -> &str {
        self.fields(SUBJECT).next().map_or("", text)
    }

    /// Iterates over the labels: names and values.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields(LABELS).filter_map(|value| wire::entry(value).ok()).map(|(name, value)| (text(name), text(value)))
    }

    /// Whether the session has all of these labels.
    pub fn has_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(name, value)| self.labels().any(|label| label == (name.as_str(), value.as_str())))
    }

    /// The part that watch filters compare: subject and labels.
    pub fn filter_fields(&self) -> Basic {
        let parts = fields(&self.0).flatten().filter(|field| matches!(field.number, SUBJECT | LABELS));
        Basic(parts.flat_map(|field| field.whole).copied().collect())
    }

    /// Returns the fields after a patch.
    pub fn patched(&self, patch: &Patch) -> Basic {
        let mut labels: BTreeMap<&str, &str> = self.labels().collect();
        labels.retain(|name, _| !patch.remove_labels.iter().any(|removed| removed == name));
        labels.extend(patch.set_labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut encoded = encode_subject(patch.subject.as_deref().unwrap_or_else(|| self.subject()));
        for (name, value) in labels {
            put_entry(&mut encoded, LABELS, name.as_bytes(), value.as_bytes());
        }
        let authentication = patch.authentication.as_deref();
        let mut is_written = false;
        for Field { number, whole, .. } in fields(&self.0).flatten() {
            if number > AUTHENTICATION && !mem::replace(&mut is_written, true) {
                put_optional(&mut encoded, AUTHENTICATION, authentication);
            }
            let is_replaced = number == AUTHENTICATION && authentication.is_some();
            if number != SUBJECT && number != LABELS && !is_replaced {
                encoded.extend_from_slice(whole);
            }
        }
        if !is_written {
            put_optional(&mut encoded, AUTHENTICATION, authentication);
        }
        Basic(encoded.into())
    }

    fn fields(&self, number: u64) -> impl Iterator<Item = &[u8]> {
        fields(&self.0).flatten().filter(move |field| field.number == number).map(|field| field.value)
    }
}

/// Encodes the field of a subject, which is the first one of [`Basic`]; nothing for the empty subject.
pub fn encode_subject(subject: &str) -> Vec<u8> {
    let mut encoded = Vec::new();
    if !subject.is_empty() {
        put_field(&mut encoded, SUBJECT, subject.as_bytes());
    }
    encoded
}

fn put_optional(encoded: &mut Vec<u8>, number: u64, message: Option<&[u8]>) {
    if let Some(message) = message {
        put_field(encoded, number, message);
    }
}

/// Text of a field that was checked when it was parsed.
fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap_or_default()
}

/// Attributes as encoded map entries, in the order of their names, so equal attributes have equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Bytes);

/// Number and size of attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttributeTotals {
    /// Number of attributes.
    pub count: usize,
    /// Bytes of all names and values together.
    pub bytes: usize,
}

impl AttributeTotals {
    fn add(&mut self, name: &[u8], value: &[u8]) {
        self.count += 1;
        self.bytes += name.len() + value.len();
    }
}

/// Attributes after a patch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PatchedAttributes {
    /// The attributes.
    pub attributes: Attributes,
    /// Names of the attributes that the patch set to another value or removed.
    pub changed: Vec<String>,
    /// Totals before the patch.
    pub before: AttributeTotals,
    /// Totals after the patch.
    pub after: AttributeTotals,
}

impl Attributes {
    /// Encodes the attributes of a new session.
    pub fn of(attributes: &BTreeMap<String, Encoded>) -> Self {
        let mut encoded =
            Vec::with_capacity(attributes.iter().map(|(name, value)| name.len() + value.len() + 12).sum());
        for (name, value) in attributes {
            put_entry(&mut encoded, ATTRIBUTES, name.as_bytes(), value);
        }
        Attributes(encoded.into())
    }

    /// Wraps encoded entries.
    pub fn from_encoded(encoded: Bytes) -> Self {
        Attributes(encoded)
    }

    /// The encoded entries.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Returns the attributes after a patch: clear, then remove, then set.
    pub fn patched(&self, patch: &Patch) -> Result<PatchedAttributes, Malformed> {
        let mut patched = PatchedAttributes::default();
        let mut encoded = Vec::with_capacity(self.0.len() + 64);
        let mut set = patch.set_attributes.iter().peekable();
        for field in fields(&self.0) {
            let field = field?;
            let (name, value) = wire::entry(field.value)?;
            patched.before.add(name, value);
            while let Some((new, content)) = set.next_if(|(new, _)| new.as_bytes() < name) {
                patched.put(&mut encoded, new, content, true);
            }
            if let Some((new, content)) = set.next_if(|(new, _)| new.as_bytes() == name) {
                patched.put(&mut encoded, new, content, content[..] != *value);
            } else if patch.clear_attributes || patch.remove_attributes.iter().any(|removed| removed.as_bytes() == name)
            {
                patched.changed.push(String::from_utf8(name.into()).map_err(|_| Malformed)?);
            } else {
                patched.after.add(name, value);
                encoded.extend_from_slice(field.whole);
            }
        }
        set.for_each(|(new, content)| patched.put(&mut encoded, new, content, true));
        patched.attributes = Attributes(encoded.into());
        Ok(patched)
    }
}

impl PatchedAttributes {
    fn put(&mut self, encoded: &mut Vec<u8>, name: &str, value: &[u8], is_change: bool) {
        put_entry(encoded, ATTRIBUTES, name.as_bytes(), value);
        self.after.add(name.as_bytes(), value);
        if is_change {
            self.changed.push(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field number of a later version.
    const LATER: u64 = 20;

    fn basic(subject: &str, labels: &[(&str, &str)], authentication: &[u8], later: &[u8]) -> Basic {
        let mut encoded = encode_subject(subject);
        for (name, value) in labels {
            put_entry(&mut encoded, LABELS, name.as_bytes(), value.as_bytes());
        }
        for (number, value) in [(CLIENT, &b"client"[..]), (AUTHENTICATION, authentication), (LATER, later)] {
            if !value.is_empty() {
                put_field(&mut encoded, number, value);
            }
        }
        Basic(encoded.into())
    }

    #[test]
    fn patch_changes_only_what_it_names() {
        let before = basic("alice", &[("a", "1"), ("b", "2")], b"password", b"later");
        assert_eq!(before.patched(&Patch::default()), before);
        let labels = Patch {
            set_labels: [("b".to_owned(), "3".to_owned()), ("c".into(), "4".into())].into(),
            ..Patch::default()
        };
        let changed = basic("alice", &[("a", "1"), ("b", "3"), ("c", "4")], b"password", b"later");
        assert_eq!(before.patched(&labels), changed);
        let removed = Patch { remove_labels: ["a".to_owned()].into(), ..Patch::default() };
        assert_eq!(before.patched(&removed), basic("alice", &[("b", "2")], b"password", b"later"));
        let subject = Patch { subject: Some(String::new()), ..Patch::default() };
        assert_eq!(before.patched(&subject), basic("", &[("a", "1"), ("b", "2")], b"password", b"later"));
    }

    #[test]
    fn authentication_is_set_before_the_fields_of_a_later_version() {
        let patch = Patch { authentication: Some(Bytes::from_static(b"key")), ..Patch::default() };
        for later in [&b""[..], b"later"] {
            for authentication in [&b""[..], b"password"] {
                let before = basic("alice", &[("a", "1")], authentication, later);
                assert_eq!(before.patched(&patch), basic("alice", &[("a", "1")], b"key", later));
            }
        }
    }
}
