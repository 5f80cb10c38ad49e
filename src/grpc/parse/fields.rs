//! Checks of single fields.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost::Message;
use tonic::Status;

use crate::{
    grpc::status,
    pb::{self, attribute_value::Kind},
    service::Refused,
    session::{Encoded, is_label_name},
    store::MAX_LABELS,
};

/// Kept of one request: more than fit into its status.
const MOST_PROBLEMS: usize = 256;
const MOST_NAMES: usize = 1_024;
const MAX_NAME: usize = 128;
const MAX_LABEL_VALUE: usize = 256;
const MAX_SUBJECT: usize = 256;
const MAX_METHODS: usize = 16;
const MAX_METHOD: usize = 32;
const MAX_JSON_DEPTH: usize = 32;
/// Longer ones are "never" in all but name; 0 s says so.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(36_525 * 24 * 60 * 60);
/// 0001-01-01 to 9999-12-31, as of google.protobuf.Timestamp.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const NAME_FORM: &str = "names must be 1 to 128 bytes";
const LABEL_FORM: &str = "names must match [a-z0-9]([-a-z0-9]{0,62})";

/// What is wrong with a request.
#[derive(Default)]
pub struct Problems(Vec<Refused>);

/// The path of an entry of a map or list, with a name that is not too long to read.
fn entry(field: &str, name: &str) -> String {
    let shown: String = name.chars().take(64).collect();
    format!("{field}[{shown:?}]")
}

impl Problems {
    pub fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        if self.0.len() < MOST_PROBLEMS {
            self.0.push(Refused { field: field.into(), reason: reason.into() });
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn extend(&mut self, refused: Vec<Refused>) {
        self.0.extend(refused);
    }

    pub fn refuse<T>(&mut self, field: impl Into<String>, reason: impl Into<String>) -> Option<T> {
        self.add(field, reason);
        None
    }

    /// The request, if nothing is wrong with it.
    pub fn finish<T>(self, request: impl FnOnce() -> Option<T>) -> Result<T, Status> {
        match request() {
            Some(request) if self.0.is_empty() => Ok(request),
            _ => Err(status::fields_invalid(self.0)),
        }
    }

    fn longest(&mut self, field: &str, text: &str, limit: usize) {
        if text.len() > limit {
            self.add(field, format!("{} bytes; at most {limit}", text.len()));
        }
    }

    pub fn subject(&mut self, field: &str, subject: &str) {
        self.longest(field, subject, MAX_SUBJECT);
    }

    pub fn present_subject(&mut self, field: &str, subject: &str) {
        if subject.is_empty() {
            self.add(field, "must not be empty");
        }
        self.subject(field, subject);
    }

    /// More than a session can ever hold.
    pub fn at_most_names(&mut self, field: &str, count: usize) {
        if count > MOST_NAMES {
            self.add(field, format!("{count}; at most {MOST_NAMES}"));
        }
    }

    pub fn names(&mut self, field: &str, names: Vec<String>) -> Vec<String> {
        self.at_most_names(field, names.len());
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

    pub fn label_names(&mut self, field: &str, names: Vec<String>) -> Vec<String> {
        self.at_most_names(field, names.len());
        for name in names.iter().filter(|name| !is_label_name(name)) {
            self.add(entry(field, name), LABEL_FORM);
        }
        names
    }

    pub fn disjoint<V>(&mut self, field: &str, removed: &[String], set: &BTreeMap<String, V>, set_field: &str) {
        for name in removed.iter().filter(|name| set.contains_key(*name)) {
            self.add(entry(field, name), format!("stands in {set_field} too"));
        }
    }

    pub fn labels(&mut self, field: &str, labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
        if labels.len() > MAX_LABELS {
            self.add(field, format!("{} labels; at most {MAX_LABELS}", labels.len()));
        }
        for (name, value) in &labels {
            if !is_label_name(name) {
                self.add(entry(field, name), LABEL_FORM);
            }
            self.longest(&entry(field, name), value, MAX_LABEL_VALUE);
        }
        labels
    }

    pub fn attributes(
        &mut self,
        field: &str,
        attributes: BTreeMap<String, pb::AttributeValue>,
    ) -> BTreeMap<String, Encoded> {
        let encode = |(name, value): (String, pb::AttributeValue)| {
            self.name(field, &name);
            match &value.kind {
                Some(Kind::JsonValue(text)) => self.json(&format!("{}.json_value", entry(field, &name)), text),
                Some(Kind::TimestampValue(at)) => {
                    self.timestamp(&format!("{}.timestamp_value", entry(field, &name)), *at)
                }
                _ => {}
            }
            (name, Bytes::from(value.encode_to_vec()))
        };
        attributes.into_iter().map(encode).collect()
    }

    fn json(&mut self, field: &str, text: &str) {
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
            self.add(field, format!("is no JSON: line {}, column {}", error.line(), error.column()));
        } else if json_depth(text) > MAX_JSON_DEPTH {
            self.add(field, format!("nests deeper than {MAX_JSON_DEPTH}"));
        }
    }

    pub fn timestamp(&mut self, field: &str, at: prost_types::Timestamp) {
        if !SECONDS.contains(&at.seconds) || !(0..1_000_000_000).contains(&at.nanos) {
            self.add(field, "must lie in the years 1 to 9999, with nanos of 0 to 999,999,999");
        }
    }

    pub fn client(&mut self, client: Option<pb::ClientInfo>) -> Option<Encoded> {
        let client = client?;
        self.longest("client.ip_address", &client.ip_address, 64);
        self.longest("client.user_agent", &client.user_agent, 1024);
        self.longest("client.device_name", &client.device_name, MAX_NAME);
        Some(client.encode_to_vec().into())
    }

    pub fn authentication(&mut self, authentication: Option<pb::Authentication>) -> Option<Encoded> {
        let authentication = authentication?;
        if !(0..=3).contains(&authentication.level) {
            self.add("authentication.level", "must be 1 to 3; 0 = not told");
        }
        if authentication.methods.len() > MAX_METHODS {
            self.add("authentication.methods", format!("at most {MAX_METHODS}"));
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

    /// A timeout of whole milliseconds, rounded down; zero = none.
    pub fn timeout(&mut self, field: &str, timeout: prost_types::Duration) -> Option<Duration> {
        let timeout = self.duration(field, timeout)?;
        match timeout {
            Duration::ZERO => Some(timeout),
            _ if timeout < Duration::from_millis(1) => self.refuse(field, "must be at least 1 ms; 0 s = none"),
            _ if timeout > LONGEST_TIMEOUT => self.refuse(field, "must be at most 36,525 days; 0 s = none"),
            _ => Some(timeout),
        }
    }

    pub fn duration(&mut self, field: &str, duration: prost_types::Duration) -> Option<Duration> {
        let prost_types::Duration { seconds, nanos } = duration;
        if seconds < 0 || nanos < 0 {
            return self.refuse(field, "must not be negative");
        }
        if seconds > 315_576_000_000 || nanos > 999_999_999 {
            return self.refuse(field, "is out of the range of google.protobuf.Duration");
        }
        Some(Duration::new(seconds as u64, nanos as u32))
    }
}

/// How deep brackets nest in a valid JSON text.
fn json_depth(text: &str) -> usize {
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
    fn brackets_in_strings_do_not_nest() {
        assert_eq!(json_depth(r#"[{"a":"[[\"[[","b":[]}]"#), 3);
        assert_eq!(json_depth("1"), 0);
    }

    #[test]
    fn deep_json_neither_passes_nor_overflows_the_stack() {
        let mut problems = Problems::default();
        problems.json("j", &("[".repeat(32) + &"]".repeat(32)));
        assert!(problems.0.is_empty());
        problems.json("j", &("[".repeat(33) + &"]".repeat(33)));
        problems.json("j", &("[".repeat(200_000) + &"]".repeat(200_000)));
        problems.json("j", &"[".repeat(200_000));
        assert_eq!(problems.0.len(), 3);
    }
}
