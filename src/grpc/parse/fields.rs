//! Checks of single fields, and the violations that they find.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use tonic::Status;

use crate::{
    grpc::status,
    pb::{self, attribute_value::Kind},
    service::Violation,
    session::{Encoded, Millis, is_label_name},
    store::MAX_LABELS,
};

/// Maximum number of violations kept per request. A status has room for fewer.
const MAX_VIOLATIONS: usize = 256;
/// Maximum number of entries of a list: the maximum number of attributes that a policy can allow.
const MAX_ENTRIES: usize = 1_024;
/// Maximum length of an attribute name in bytes.
const MAX_NAME: usize = 128;
/// Maximum length of a label value in bytes.
const MAX_LABEL_VALUE: usize = 256;
/// Maximum length of a subject in bytes.
const MAX_SUBJECT: usize = 256;
/// Maximum number of authentication methods.
const MAX_METHODS: usize = 16;
/// Maximum length of an IP address of a client, in bytes: a proxy may send a list.
const MAX_IP_ADDRESS: usize = 64;
/// Maximum length of a user agent, in bytes.
const MAX_USER_AGENT: usize = 1_024;
/// Maximum length of an authentication method in bytes.
const MAX_METHOD: usize = 32;
/// Maximum nesting of a JSON value.
const MAX_JSON_DEPTH: usize = 32;
/// Maximum timeout: 36,525 days. Callers use 0 s for no timeout instead of a longer one.
const MAX_TIMEOUT: Duration = Duration::from_secs(36_525 * 24 * 60 * 60);
/// Range of google.protobuf.Timestamp: 0001-01-01 to 9999-12-31.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
/// Maximum seconds of google.protobuf.Duration.
const MAX_DURATION_SECONDS: u64 = 315_576_000_000;
const NANOS_PER_SECOND: u32 = 1_000_000_000;
const NAME_FORM: &str = "names must be 1 to 128 bytes";
const LABEL_FORM: &str = "names must match [a-z0-9]([-a-z0-9]{0,62})";

/// Violations of one request.
#[derive(Default)]
pub(super) struct Violations(Vec<Violation>);

/// The path of an entry of a map or list, with at most 64 characters of its name. Formatted for a violation only.
fn entry(field: &str, name: &str) -> impl Display {
    fmt::from_fn(move |f| {
        let end = name.char_indices().nth(64).map_or(name.len(), |(end, _)| end);
        write!(f, "{field}[{:?}]", &name[..end])
    })
}

impl Violations {
    /// Adds a violation.
    pub(super) fn add(&mut self, field: impl Display, reason: impl Into<String>) {
        if self.0.len() < MAX_VIOLATIONS {
            self.0.push(Violation { field: field.to_string(), reason: reason.into() });
        }
    }

    /// Returns whether no check failed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds violations of the policy.
    pub(super) fn extend(&mut self, violations: Vec<Violation>) {
        self.0.extend(violations);
    }

    /// Adds a violation and returns None, the value of the field.
    pub(super) fn invalid<T>(&mut self, field: impl Display, reason: impl Into<String>) -> Option<T> {
        self.add(field, reason);
        None
    }

    /// Returns the parsed request, or the status with all violations.
    pub(super) fn finish<T>(self, request: impl FnOnce() -> Option<T>) -> Result<T, Status> {
        match request() {
            Some(request) if self.0.is_empty() => Ok(request),
            _ => Err(status::fields_invalid(self.0)),
        }
    }

    fn max_bytes(&mut self, field: impl Display, text: &str, limit: usize) {
        if text.len() > limit {
            self.add(field, format!("{} bytes; at most {limit}", text.len()));
        }
    }

    /// Checks a subject. Empty: anonymous.
    pub(super) fn subject(&mut self, field: &str, subject: &str) {
        self.max_bytes(field, subject, MAX_SUBJECT);
    }

    /// Checks a subject that must not be empty.
    pub(super) fn present_subject(&mut self, field: &str, subject: &str) {
        if subject.is_empty() {
            self.add(field, "must not be empty");
        }
        self.subject(field, subject);
    }

    /// Checks the number of entries of a list.
    pub(super) fn max_entries(&mut self, field: &str, count: usize) {
        if count > MAX_ENTRIES {
            self.add(field, format!("{count} entries; at most {MAX_ENTRIES}"));
        }
    }

    /// Checks names of attributes.
    pub(super) fn names(&mut self, field: &str, names: Vec<String>) -> Vec<String> {
        self.max_entries(field, names.len());
        for name in &names {
            self.name(field, name);
        }
        names
    }

    fn name(&mut self, field: &str, name: &str) {
        if name.is_empty() || name.len() > MAX_NAME {
            self.add(entry(field, name), NAME_FORM);
        }
    }

    /// Checks names of labels.
    pub(super) fn label_names(&mut self, field: &str, names: Vec<String>) -> Vec<String> {
        self.max_entries(field, names.len());
        for name in names.iter().filter(|name| !is_label_name(name)) {
            self.add(entry(field, name), LABEL_FORM);
        }
        names
    }

    /// Checks that no name is both removed and set.
    pub(super) fn disjoint<V>(&mut self, field: &str, removed: &[String], set: &BTreeMap<String, V>, set_field: &str) {
        for name in removed.iter().filter(|name| set.contains_key(*name)) {
            self.add(entry(field, name), format!("is in {set_field} as well"));
        }
    }

    /// Checks labels.
    pub(super) fn labels(&mut self, field: &str, labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
        if labels.len() > MAX_LABELS {
            self.add(field, format!("{} labels; at most {MAX_LABELS}", labels.len()));
        }
        for (name, value) in &labels {
            if !is_label_name(name) {
                self.add(entry(field, name), LABEL_FORM);
            }
            self.max_bytes(entry(field, name), value, MAX_LABEL_VALUE);
        }
        labels
    }

    /// Checks attributes and encodes their values.
    pub(super) fn attributes(
        &mut self,
        field: &str,
        attributes: BTreeMap<String, pb::AttributeValue>,
    ) -> BTreeMap<String, Encoded> {
        let encode = |(name, value): (String, pb::AttributeValue)| {
            self.name(field, &name);
            match &value.kind {
                Some(Kind::JsonValue(text)) => self.json(format_args!("{}.json_value", entry(field, &name)), text),
                Some(Kind::TimestampValue(at)) => {
                    self.timestamp(format_args!("{}.timestamp_value", entry(field, &name)), *at);
                }
                _ => {}
            }
            (name, Bytes::from(value.encode_to_vec()))
        };
        attributes.into_iter().map(encode).collect()
    }

    fn json(&mut self, field: impl Display, text: &str) {
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
            self.add(field, format!("is not valid JSON: line {}, column {}", error.line(), error.column()));
        } else if json_depth(text) > MAX_JSON_DEPTH {
            self.add(field, format!("is nested deeper than {MAX_JSON_DEPTH} levels"));
        }
    }

    /// Checks a timestamp. Returns its seconds since 1970, and the nanoseconds in that second. None: out of range.
    pub(super) fn timestamp(&mut self, field: impl Display, at: prost_types::Timestamp) -> Option<(i64, u32)> {
        let nanos = u32::try_from(at.nanos).ok().filter(|nanos| *nanos < NANOS_PER_SECOND);
        match nanos {
            Some(nanos) if TIMESTAMP_SECONDS.contains(&at.seconds) => Some((at.seconds, nanos)),
            _ => self.invalid(field, "must be in the years 1 to 9999, with nanos from 0 to 999,999,999"),
        }
    }

    /// Parses a timestamp as milliseconds, rounded up; 0 for a time before 1970. None: out of range.
    ///
    /// The create time of a session has whole milliseconds, so "created before" has the same result as with the exact
    /// timestamp.
    pub(super) fn millis_rounded_up(&mut self, field: &str, at: prost_types::Timestamp) -> Option<Millis> {
        let (seconds, nanos) = self.timestamp(field, at)?;
        let millis = |seconds: u64| seconds * 1000 + u64::from(nanos.div_ceil(1_000_000));
        Some(Millis(u64::try_from(seconds).map_or(0, millis)))
    }

    /// Checks and encodes a ClientInfo.
    pub(super) fn client(&mut self, client: Option<pb::ClientInfo>) -> Option<Encoded> {
        let mut client = client?;
        // Descriptions come from browsers and proxies: a long one must not refuse a login.
        for (text, most) in [
            (&mut client.ip_address, MAX_IP_ADDRESS),
            (&mut client.user_agent, MAX_USER_AGENT),
            (&mut client.device_name, MAX_NAME),
        ] {
            text.truncate(text.floor_char_boundary(most));
        }
        Some(client.encode_to_vec().into())
    }

    /// Checks and encodes an Authentication.
    pub(super) fn authentication(&mut self, authentication: Option<pb::Authentication>) -> Option<Encoded> {
        let authentication = authentication?;
        if !(0..=3).contains(&authentication.level) {
            self.add("authentication.level", "must be 1 to 3, or 0 if unknown");
        }
        if authentication.methods.len() > MAX_METHODS {
            self.add(
                "authentication.methods",
                format!("{} methods; at most {MAX_METHODS}", authentication.methods.len()),
            );
        }
        let is_bad = |method: &&String| method.is_empty() || method.len() > MAX_METHOD;
        for method in authentication.methods.iter().filter(is_bad) {
            self.add(entry("authentication.methods", method), format!("must be 1 to {MAX_METHOD} bytes"));
        }
        if let Some(at) = authentication.authentication_time {
            self.timestamp("authentication.authentication_time", at);
        }
        Some(authentication.encode_to_vec().into())
    }

    /// Parses a timeout: zero (no timeout) or at least 1 ms. The policy rounds it down to milliseconds.
    pub(super) fn timeout(&mut self, field: &str, timeout: prost_types::Duration) -> Option<Duration> {
        let timeout = self.duration(field, timeout)?;
        match timeout {
            Duration::ZERO => Some(timeout),
            _ if timeout < Duration::from_millis(1) => {
                self.invalid(field, "must be at least 1 ms, or 0 s for no timeout")
            }
            _ if timeout > MAX_TIMEOUT => self.invalid(field, "must be at most 36,525 days, or 0 s for no timeout"),
            _ => Some(timeout),
        }
    }

    /// Parses a duration that is not negative.
    pub(super) fn duration(&mut self, field: &str, duration: prost_types::Duration) -> Option<Duration> {
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(duration.seconds), u32::try_from(duration.nanos)) else {
            return self.invalid(field, "must not be negative");
        };
        if seconds > MAX_DURATION_SECONDS || nanos >= NANOS_PER_SECOND {
            return self.invalid(field, "is out of the range of google.protobuf.Duration");
        }
        Some(Duration::new(seconds, nanos))
    }
}

/// Returns the nesting of brackets in a valid JSON text; an upper bound if it has few brackets, as nearly all have.
fn json_depth(text: &str) -> usize {
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if brackets <= MAX_JSON_DEPTH {
        return brackets;
    }
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_depth_ignores_brackets_in_strings() {
        let many = "[],".repeat(40);
        assert_eq!(json_depth(&format!(r#"[{{"a":"[[\"[[","b":[{many}1]}}]"#)), 4);
        assert!(json_depth(r#"[{"a":"[[\"[[","b":[]}]"#) <= MAX_JSON_DEPTH);
    }

    #[test]
    fn deep_json_is_rejected_without_stack_overflow() {
        let mut violations = Violations::default();
        violations.json("j", &("[".repeat(32) + &"]".repeat(32)));
        assert!(violations.0.is_empty());
        violations.json("j", &("[".repeat(33) + &"]".repeat(33)));
        violations.json("j", &("[".repeat(200_000) + &"]".repeat(200_000)));
        violations.json("j", &"[".repeat(200_000));
        assert_eq!(violations.0.len(), 3);
    }
}
