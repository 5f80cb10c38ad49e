//! What several commands take: keys, attributes, labels, time spans, causes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use sessiond_client::v1::{self, AttributeValue, SessionKey, attribute_value::Kind, session_key};

use super::{failure::Failure, secrets};

/// Which session: exactly one of both.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Key {
    /// The session's public id.
    id: Option<String>,
    /// File with the session's token in its first line; - = standard input.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
}

impl Key {
    pub fn read(&self) -> Result<Option<SessionKey>, Failure> {
        match (&self.token_file, &self.id) {
            (Some(path), _) => by_token(path).map(Some),
            (None, Some(id)) => by_id(id).map(Some),
            (None, None) => Ok(None),
        }
    }
}

pub fn by_token(path: &Path) -> Result<SessionKey, Failure> {
    let token = secrets::read("--token-file", path)?;
    Ok(SessionKey { key: Some(session_key::Key::Token(token.as_str().to_owned())) })
}

pub fn by_id(id: &str) -> Result<SessionKey, Failure> {
    Ok(SessionKey { key: Some(session_key::Key::Id(checked_id(id)?)) })
}

/// Refuses what may be a token, and repeats nothing of it: it would travel to the server as a name, and names are logged.
pub fn checked_id(id: &str) -> Result<String, Failure> {
    const ID_CHARS: usize = 26;
    let is_id = id.len() == ID_CHARS && id.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    if is_id {
        return Ok(id.to_owned());
    }
    let text = "an id that is given is not in the form of ids (26 characters of a-z and 2-7), and is not repeated here";
    Err(Failure::Usage(format!("{text}: it may be a token; {}", secrets::HOW)))
}

#[derive(Args)]
pub struct SetAttributes {
    /// Sets an attribute to a text.
    #[arg(long, value_name = "NAME=TEXT", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Sets an attribute to JSON, which is kept as it is written.
    #[arg(long, value_name = "NAME=JSON", value_parser = pair)]
    set_json: Vec<(String, String)>,
}

impl SetAttributes {
    pub fn values(&self) -> Result<BTreeMap<String, AttributeValue>, Failure> {
        let texts = self.set.iter().map(|(name, text)| (name, Kind::StringValue(text.clone())));
        let jsons = self.set_json.iter().map(|(name, json)| (name, Kind::JsonValue(json.clone())));
        let values = texts.chain(jsons).map(|(name, kind)| (name.clone(), AttributeValue { kind: Some(kind) }));
        once_each("attribute", values)
    }
}

/// Attributes as a change: first clear, then remove, then set.
#[derive(Args)]
pub struct ChangeAttributes {
    #[command(flatten)]
    pub set: SetAttributes,
    /// Removes an attribute.
    #[arg(long, value_name = "NAME")]
    pub remove: Vec<String>,
    /// Removes all attributes first.
    #[arg(long)]
    pub clear: bool,
}

#[derive(Args)]
pub struct Timeouts {
    /// Ends after so long without use; 0s = never [default: the policy's].
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    pub idle_timeout: Option<prost_types::Duration>,
    /// Ends so long after it was made; 0s = never [default: the policy's].
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    pub absolute_timeout: Option<prost_types::Duration>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Cause {
    /// The user left.
    Logout,
    /// Somebody else ended it.
    Revoked,
    /// It made room for another.
    Replaced,
}

impl Cause {
    /// As its number on the wire; none given = the method's default.
    pub fn number(cause: Option<Self>) -> i32 {
        let cause = match cause {
            None => v1::Cause::Unspecified,
            Some(Cause::Logout) => v1::Cause::Logout,
            Some(Cause::Revoked) => v1::Cause::Revoked,
            Some(Cause::Replaced) => v1::Cause::Replaced,
        };
        cause.into()
    }
}

/// `NAME=VALUE`; the value may have more equals signs.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    pair.ok_or_else(|| "expected a name, an equals sign and a value".to_owned())
}

pub fn labels(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    once_each("label", pairs.iter().cloned())
}

/// None of two values for one name is dropped silently.
fn once_each<T>(what: &str, pairs: impl Iterator<Item = (String, T)>) -> Result<BTreeMap<String, T>, Failure> {
    let mut values = BTreeMap::new();
    for (name, value) in pairs {
        if values.contains_key(&name) {
            return Err(Failure::Usage(format!("the {what} {name:?} is given twice")));
        }
        values.insert(name, value);
    }
    Ok(values)
}

/// `30m`, `1h 30s`, `250ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

pub fn proto_duration(text: &str) -> Result<prost_types::Duration, String> {
    duration(text)?.try_into().map_err(|_| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_taken_for_ids_and_nothing_else_is_repeated() {
        assert!(checked_id("lorj3eyfodcqoa4o5p4kdwvin4").is_ok());
        for bad in
            ["", "ses_lorj3eyfodcqoa4o5p4kdw", "lorj3eyfodcqoa4o5p4kdwvin", "LORJ3EYFODCQOA4O5P4KDWVIN4", "ohsosecret"]
        {
            let refused = checked_id(bad).err().and_then(|failure| failure.text()).unwrap();
            assert!(refused.contains("--token-file") && (bad.is_empty() || !refused.contains(bad)), "{refused}");
        }
    }

    #[test]
    fn a_pair_is_cut_at_its_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err());
    }

    #[test]
    fn time_spans_are_read() {
        let seconds = |seconds| Ok(prost_types::Duration { seconds, nanos: 0 });
        assert_eq!((proto_duration("30m"), proto_duration("0s")), (seconds(1800), seconds(0)));
        assert!(proto_duration("-1s").is_err());
    }
}
