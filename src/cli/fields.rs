//! One session as names and values, one line each.

use std::time::Duration;

use data_encoding::BASE64;
use prost_types::Timestamp;
use sessiond_client::v1::{AttributeValue, Session, attribute_value::Kind};

use super::{output::print_error, table};

/// Name and value of one field.
pub(super) type Field = (String, String);

fn field(name: &str, value: impl ToString) -> Option<Field> {
    Some((name.to_owned(), value.to_string()))
}

/// Returns the field, or None if its value is empty.
fn non_empty(name: &str, value: &str) -> Option<Field> {
    if value.is_empty() { None } else { field(name, value) }
}

/// Returns every field of the session that is set.
pub(super) fn fields(session: &Session) -> Vec<Field> {
    let client = session.client.clone().unwrap_or_default();
    let authentication = session.authentication.clone().unwrap_or_default();
    let idle_timeout = session.idle_timeout.as_ref().and_then(|timeout| Duration::try_from(*timeout).ok());
    let fixed = [
        field("id", &session.id),
        field("namespace", &session.namespace),
        field("subject", if session.subject.is_empty() { "-" } else { &session.subject }),
        field("revision", session.revision),
        field("create_time", time(session.create_time.as_ref())),
        field("update_time", time(session.update_time.as_ref())),
        field("access_time", time(session.access_time.as_ref())),
        field("expire_time", deadline(session.expire_time.as_ref())),
        field("absolute_expire_time", deadline(session.absolute_expire_time.as_ref())),
        field(
            "idle_timeout",
            idle_timeout.map_or("none".into(), |timeout| humantime::format_duration(timeout).to_string()),
        ),
        field("token_generation", session.token_generation),
        non_empty("client.ip_address", &client.ip_address),
        non_empty("client.user_agent", &client.user_agent),
        non_empty("client.device_name", &client.device_name),
        field("authentication.level", authentication.level).filter(|_| authentication.level != 0),
        non_empty("authentication.methods", &authentication.methods.join(" ")),
        non_empty("authentication.authentication_time", &time(authentication.authentication_time.as_ref())),
    ];
    let labels = session.labels.iter().map(|(name, value)| (format!("label.{name}"), value.clone()));
    let attributes = session.attributes.iter().map(|(name, value)| {
        let (kind, text) = attribute(value);
        (format!("attribute.{name}"), format!("{kind:9}  {text}").trim_end().to_owned())
    });
    fixed.into_iter().flatten().chain(labels).chain(attributes).collect()
}

/// Returns the lines of the session, and one with the token if the server generated it.
pub(super) fn lines_with_token(session: Option<&Session>, token: &str) -> Vec<String> {
    let mut lines = session.map(fields).unwrap_or_default();
    if !token.is_empty() {
        print_error("save the token now: the server does not return it again");
        lines.push(("token".to_owned(), token.to_owned()));
    }
    table::pairs(&lines)
}

/// Formats a time as RFC 3339 in UTC. Unset: empty.
pub(super) fn time(time: Option<&Timestamp>) -> String {
    time.map(ToString::to_string).unwrap_or_default()
}

/// Formats a deadline as RFC 3339 in UTC. Unset: `never`.
pub(super) fn deadline(deadline: Option<&Timestamp>) -> String {
    deadline.map_or_else(|| "never".to_owned(), ToString::to_string)
}

/// Returns the kind of an attribute value, and the value as text.
pub(super) fn attribute(value: &AttributeValue) -> (&'static str, String) {
    match &value.kind {
        None => ("null", String::new()),
        Some(Kind::StringValue(text)) => ("string", text.clone()),
        Some(Kind::IntValue(number)) => ("int", number.to_string()),
        Some(Kind::DoubleValue(number)) => ("double", number.to_string()),
        Some(Kind::BoolValue(truth)) => ("bool", truth.to_string()),
        Some(Kind::BytesValue(bytes)) => ("bytes", BASE64.encode(bytes)),
        Some(Kind::JsonValue(json)) => ("json", json.clone()),
        Some(Kind::TimestampValue(instant)) => ("timestamp", instant.to_string()),
    }
}
