//! Arguments that several commands share: keys, attributes, labels, durations, causes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use sessiond_client::v1::{self, AttributeValue, SessionKey, attribute_value::Kind, session_key};

use super::{failure::Failure, token_file};

/// Key of one session: exactly one of id and token file.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct Key {
    /// Public id of the session.
    id: Option<String>,
    /// File with the session's token in its first line; - = standard input.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
}

impl Key {
    /// Returns the key; reads the token file if one is set.
    pub(super) fn read(&self) -> Result<Option<SessionKey>, Failure> {
        match (&self.token_file, &self.id) {
            (Some(path), _) => token_key(path).map(Some),
            (None, Some(id)) => id_key(id).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Returns the key with the token in the first line of the file.
pub(super) fn token_key(path: &Path) -> Result<SessionKey, Failure> {
    let token = token_file::read("--token-file", path)?;
    Ok(SessionKey { key: Some(session_key::Key::Token(token.as_str().to_owned())) })
}

/// Returns the key with this id.
pub(super) fn id_key(id: &str) -> Result<SessionKey, Failure> {
    Ok(SessionKey { key: Some(session_key::Key::Id(valid_id(id)?)) })
}

/// Returns the id if it has the form of ids.
///
/// Anything else may be a token: it is neither sent, because servers log ids, nor repeated in the error.
pub(super) fn valid_id(id: &str) -> Result<String, Failure> {
    const ID_CHARS: usize = 26;
    let is_id = id.len() == ID_CHARS && id.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
    if is_id {
        return Ok(id.to_owned());
    }
    let text = "invalid id: expected 26 characters of a-z and 2-7 (value not shown, because it may be a token)";
    Err(Failure::Usage(format!("{text}; {}", token_file::USAGE)))
}

/// Attributes to set.
#[derive(Args)]
pub(super) struct SetAttributes {
    /// Sets an attribute to a string.
    #[arg(long, value_name = "NAME=TEXT", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Sets an attribute to JSON, stored byte for byte.
    #[arg(long, value_name = "NAME=JSON", value_parser = pair)]
    set_json: Vec<(String, String)>,
}

impl SetAttributes {
    /// Returns the values by name.
    pub(super) fn values(&self) -> Result<BTreeMap<String, AttributeValue>, Failure> {
        let texts = self.set.iter().map(|(name, text)| (name, Kind::StringValue(text.clone())));
        let jsons = self.set_json.iter().map(|(name, json)| (name, Kind::JsonValue(json.clone())));
        let values = texts.chain(jsons).map(|(name, kind)| (name.clone(), AttributeValue { kind: Some(kind) }));
        unique("attribute", values)
    }
}

/// Change of attributes: the server first clears, then removes, then sets.
#[derive(Args)]
pub(super) struct ChangeAttributes {
    /// Attributes to set.
    #[command(flatten)]
    pub set: SetAttributes,
    /// Removes an attribute.
    #[arg(long, value_name = "NAME")]
    pub remove: Vec<String>,
    /// Removes all attributes before any is set.
    #[arg(long)]
    pub clear: bool,
}

/// Timeouts of a session. None: the policy decides at create, and an update keeps the present value.
#[derive(Args)]
pub(super) struct Timeouts {
    /// Time without use after which the session ends; 0s = never [default of create: the policy's; of update: unchanged].
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    pub idle_timeout: Option<prost_types::Duration>,
    /// Time after creation at which the session ends; 0s = never [default of create: the policy's; of update: unchanged].
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    pub absolute_timeout: Option<prost_types::Duration>,
}

/// Reason for ending a session.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Cause {
    /// The user logged out.
    Logout,
    /// The session was ended by someone other than its user.
    Revoked,
    /// The session made room for another.
    Replaced,
}

impl Cause {
    /// Returns the number in the protobuf enum. None: 0, the default of the method.
    pub(super) fn number(cause: Option<Self>) -> i32 {
        let cause = match cause {
            None => v1::Cause::Unspecified,
            Some(Cause::Logout) => v1::Cause::Logout,
            Some(Cause::Revoked) => v1::Cause::Revoked,
            Some(Cause::Replaced) => v1::Cause::Replaced,
        };
        cause.into()
    }
}

/// Parses `NAME=VALUE`; the value may contain further equals signs.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    pair.ok_or_else(|| "expected NAME=VALUE".to_owned())
}

/// Returns the labels by name.
pub(super) fn labels(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    unique("label", pairs.iter().cloned())
}

/// Returns the values by name; fails on a name that is set twice, so that no value is dropped silently.
fn unique<T>(noun: &str, pairs: impl Iterator<Item = (String, T)>) -> Result<BTreeMap<String, T>, Failure> {
    let mut values = BTreeMap::new();
    for (name, value) in pairs {
        if values.contains_key(&name) {
            return Err(Failure::Usage(format!("{noun} {name:?} is set twice")));
        }
        values.insert(name, value);
    }
    Ok(values)
}

/// Parses a duration such as `30m`, `1h 30s` or `250ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Parses a duration into its protobuf message.
pub(super) fn proto_duration(text: &str) -> Result<prost_types::Duration, String> {
    duration(text)?.try_into().map_err(|_| "duration is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_another_form_is_refused_and_not_repeated() {
        assert!(valid_id("lorj3eyfodcqoa4o5p4kdwvin4").is_ok());
        for bad in
            ["", "ses_lorj3eyfodcqoa4o5p4kdw", "lorj3eyfodcqoa4o5p4kdwvin", "LORJ3EYFODCQOA4O5P4KDWVIN4", "ohsosecret"]
        {
            let error = valid_id(bad).err().and_then(|failure| failure.text()).unwrap();
            assert!(error.contains("--token-file") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
    }

    #[test]
    fn pair_is_split_at_the_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err());
    }

    #[test]
    fn durations_are_parsed() {
        let seconds = |seconds| Ok(prost_types::Duration { seconds, nanos: 0 });
        assert_eq!((proto_duration("30m"), proto_duration("0s")), (seconds(1800), seconds(0)));
        assert!(proto_duration("-1s").is_err());
    }
}
