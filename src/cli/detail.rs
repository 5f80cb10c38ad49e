//! One session, a line for each thing that is known of it.

use std::time::Duration;

use data_encoding::BASE64;
use prost_types::Timestamp;
use sessiond_client::v1::{AttributeValue, Session, attribute_value::Kind};

/// The name of a thing, and what it is.
pub type Line = (String, String);

fn line(name: &str, value: impl ToString) -> Option<Line> {
    Some((name.to_owned(), value.to_string()))
}

/// None where it is empty.
fn told(name: &str, value: &str) -> Option<Line> {
    if value.is_empty() { None } else { line(name, value) }
}

/// Everything in the session that is set.
pub fn lines(session: &Session) -> Vec<Line> {
    let client = session.client.clone().unwrap_or_default();
    let authentication = session.authentication.clone().unwrap_or_default();
    let idle_timeout = session.idle_timeout.as_ref().and_then(|timeout| Duration::try_from(*timeout).ok());
    let fixed = [
        line("id", &session.id),
        line("namespace", &session.namespace),
        line("subject", if session.subject.is_empty() { "-" } else { &session.subject }),
        line("revision", session.revision),
        line("create_time", time(session.create_time.as_ref())),
        line("update_time", time(session.update_time.as_ref())),
        line("access_time", time(session.access_time.as_ref())),
        line("expire_time", deadline(session.expire_time.as_ref())),
        line("absolute_expire_time", deadline(session.absolute_expire_time.as_ref())),
        line(
            "idle_timeout",
            idle_timeout.map_or("none".into(), |timeout| humantime::format_duration(timeout).to_string()),
        ),
        line("token_generation", session.token_generation),
        told("client.ip_address", &client.ip_address),
        told("client.user_agent", &client.user_agent),
        told("client.device_name", &client.device_name),
        line("authentication.level", authentication.level).filter(|_| authentication.level != 0),
        told("authentication.methods", &authentication.methods.join(" ")),
        told("authentication.authentication_time", &time(authentication.authentication_time.as_ref())),
    ];
    let labels = session.labels.iter().map(|(name, value)| (format!("label.{name}"), value.clone()));
    let attributes = session.attributes.iter().map(|(name, value)| {
        let (kind, text) = attribute(value);
        (format!("attribute.{name}"), format!("{kind:9}  {text}").trim_end().to_owned())
    });
    fixed.into_iter().flatten().chain(labels).chain(attributes).collect()
}

/// RFC 3339 in UTC; unset = empty.
pub fn time(time: Option<&Timestamp>) -> String {
    time.map(ToString::to_string).unwrap_or_default()
}

/// Unset = never.
pub fn deadline(deadline: Option<&Timestamp>) -> String {
    deadline.map_or_else(|| "never".to_owned(), ToString::to_string)
}

/// Its kind, and its value as text.
pub fn attribute(value: &AttributeValue) -> (&'static str, String) {
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
