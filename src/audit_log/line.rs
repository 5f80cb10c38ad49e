//! One line of the audit log.

use std::{fmt::Write, sync::Arc, time::SystemTime};

use serde::Serialize;

/// Maximum length of the user agent in bytes.
const MAX_USER_AGENT_BYTES: usize = 256;

/// Class of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Reads, lists, watches, changes and endings by id or subject; reloads, start and end of the process.
    Admin,
    /// Create, rotation, logout by token, and every change of the subject or the authentication.
    Login,
    /// What was refused, and uses of tokens that are no longer valid.
    Refusal,
}

impl Class {
    /// Returns the name in the log and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Class::Admin => "admin",
            Class::Login => "login",
            Class::Refusal => "refusal",
        }
    }
}

/// What happened. The names follow the Logging Vocabulary of OWASP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// CreateSession.
    SessionCreated,
    /// RotateSession.
    SessionRenewed,
    /// DeleteSession or DeleteSubjectSessions.
    SessionExpired,
    /// A call with the token of a session that has ended, or with a superseded token.
    SessionUseAfterExpire,
    /// A call without the grant that it needs, or one that a browser may have sent.
    AuthzFail,
    /// A call or a TLS handshake without a valid credential.
    AuthnFail,
    /// Read, list or watch by id, subject or namespace.
    SensitiveRead,
    /// UpdateSession by id.
    SensitiveUpdate,
    /// UpdateSession that sets the subject or the authentication; reload of files with credentials.
    PrivilegePermissionsChanged,
    /// The server serves calls.
    SysStartup,
    /// The server has ended its last call.
    SysShutdown,
    /// Lines were lost, because the log could not be written.
    AuditLinesLost,
}

/// Result of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Ok,
    /// It was not done.
    Failed,
    /// It may have been done.
    Unknown,
}

/// Who acts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Actor {
    /// Name of the caller. None: the server needs no credential, or got no valid one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Arc<str>>,
    /// Id of the API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Identity in the client certificate of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// IP address and port of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// User agent that the client sent, cut at 256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

/// What the action is, and on what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Method of the API, or `reload`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Public ids of the sessions, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Cause of the end of a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// Hash of the request id. A retry has the same one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id_hash: Option<String>,
    /// Files that were reloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
}

/// One line. The writer adds its number.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Time of the outcome, RFC 3339 in UTC.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// Class.
    pub class: Class,
    /// What happened.
    pub event: Event,
    /// Who acts.
    #[serde(flatten)]
    pub actor: Actor,
    /// What the action is, and on what.
    #[serde(flatten)]
    pub target: Target,
    /// Result.
    pub outcome: Outcome,
    /// Reason why the action failed, as in the ErrorInfo of its status or in the metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of sessions read or ended, or of refusals or lost lines that the line counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

fn rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

/// A line with its number, which has no gap within one run of the process.
#[derive(Serialize)]
struct Numbered<'a> {
    seq: u64,
    #[serde(flatten)]
    line: &'a Line,
}

impl Line {
    /// A line about this event at this time.
    pub fn new(class: Class, event: Event, outcome: Outcome, time: SystemTime) -> Self {
        let (actor, target) = (Actor::default(), Target::default());
        Line { time, class, event, actor, target, outcome, reason: None, count: None }
    }

    /// Appends the line with this number to the text, as JSON.
    pub(super) fn append_to(&self, text: &mut Vec<u8>, seq: u64) {
        #[expect(clippy::expect_used, reason = "a line has no map with keys that are not texts")]
        let json = serde_json::to_string(&Numbered { seq, line: self }).expect("a line is JSON");
        text.extend(escape(&json).as_bytes());
        text.push(b'\n');
    }
}

/// Escapes what a terminal would execute or reorder. JSON has such characters only inside of texts.
fn escape(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' => {
                let _ = write!(escaped, "\\u{:04x}", u32::from(character));
            }
            character => escaped.push(character),
        }
    }
    escaped
}

/// Returns the user agent for a line.
pub fn user_agent(header: &[u8]) -> String {
    let header = &header[..header.len().min(MAX_USER_AGENT_BYTES)];
    let mut text = String::from_utf8_lossy(header).into_owned();
    text.truncate(text.floor_char_boundary(MAX_USER_AGENT_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn line_is_one_json_object_without_unsafe_characters() {
        let time = UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        let mut line = Line::new(Class::Login, Event::SessionCreated, Outcome::Ok, time);
        let unsafe_text = "a\u{1b}[31m\r\n\u{9b}2J\u{202e}b\u{2066}\u{200f}\u{61c}\u{2028}\u{7f}\"}{é𝕏";
        line.target.subject = Some(unsafe_text.to_owned());
        let mut text = Vec::new();
        line.append_to(&mut text, 7);
        let text = String::from_utf8(text).unwrap();
        let (text, rest) = text.split_once('\n').unwrap();
        assert_eq!(rest, "");
        assert!(
            text.starts_with(
                r#"{"seq":7,"time":"2027-01-15T08:00:00.123Z","class":"login","event":"session_created","#
            )
        );
        assert!(
            !text.chars().any(
                |character| character.is_control() || "\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}".contains(character)
            )
        );
        let read: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(read["subject"], unsafe_text);
        assert_eq!(read["outcome"], "ok");
    }

    #[test]
    fn user_agent_is_cut_at_its_maximum() {
        assert_eq!(user_agent(&[b'a'; 1_000_000]).len(), MAX_USER_AGENT_BYTES);
        assert!(user_agent("é".repeat(300).as_bytes()).len() <= MAX_USER_AGENT_BYTES);
        assert_eq!(user_agent(b"grpcurl/1.9 \xff"), "grpcurl/1.9 \u{fffd}");
    }
}
