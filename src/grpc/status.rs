//! The error statuses of the service: every status is made in this file.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::{
    auth::{GrantMissing, RightLost},
    pb::{self, ErrorReason},
    service::{Error, Violation},
    session::{Cause, SessionId, size_text},
    store,
    watch::{CloseReason, Closing},
};

/// Domain of every ErrorInfo.
const DOMAIN: &str = "sessiond";
/// Prefix of the reasons in the proto file. ErrorInfo has them without it.
const PREFIX: &str = "ERROR_REASON_";
/// Maximum cost of the text of a status (see [`cost`]). With this one and the next, the trailers of every status are below
/// 3,584 bytes. nginx answers 502 if the headers of a response exceed its buffer, 4 KiB by default.
const MAX_TEXT_COST: usize = 3_100;
/// Maximum cost of all violations of a status. The rest of the trailers is constant.
const MAX_VIOLATIONS_COST: usize = 3_000;
/// Maximum cost of the path of one violation.
const MAX_FIELD_COST: usize = 1_600;
/// Maximum cost of the reason of one violation.
const MAX_REASON_COST: usize = 1_200;
/// Cost of a violation in addition to its texts: separators in the text, tags and lengths in the details.
const VIOLATION_COST: usize = 36;
/// Maximum number of ids that a status lists.
const MAX_LISTED_IDS: usize = 64;
/// Retry delay after a short overload.
const SHORT_DELAY: Duration = Duration::from_millis(100);
/// Retry delay after an outage or at a limit.
const LONG_DELAY: Duration = Duration::from_secs(1);

/// Builds a status with an ErrorInfo and an optional RetryInfo.
struct StatusBuilder {
    code: Code,
    reason: ErrorReason,
    /// Text for people, with the remedy.
    text: String,
    metadata: HashMap<String, String>,
    /// Delay in the RetryInfo. None: no RetryInfo.
    retry_delay: Option<Duration>,
}

impl StatusBuilder {
    fn new(code: Code, reason: ErrorReason, text: impl Into<String>) -> Self {
        StatusBuilder { code, reason, text: text.into(), metadata: HashMap::new(), retry_delay: None }
    }

    /// Adds an entry to the metadata of the ErrorInfo.
    fn metadata(mut self, name: &str, value: impl ToString) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    /// Adds a RetryInfo.
    fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_delay = Some(delay);
        self
    }

    fn build(self) -> Status {
        self.build_with(|_| ())
    }

    /// Builds the status after `add` has added details. Its trailers stay below 3,584 bytes.
    fn build_with(self, add: impl FnOnce(&mut ErrorDetails)) -> Status {
        let reason = self.reason.as_str_name().trim_start_matches(PREFIX);
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, self.metadata);
        if self.retry_delay.is_some() {
            details.set_retry_info(self.retry_delay);
        }
        add(&mut details);
        Status::with_error_details(self.code, cut(self.text, MAX_TEXT_COST), details)
    }
}

/// Returns the maximum number of bytes that a text takes in the trailers: percent-encoded in grpc-message and, twice for the
/// texts of violations, in base64 in the details.
fn cost(text: &str) -> usize {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:;,()[]/='*+!".contains(byte);
    let encoded: usize = text.as_bytes().iter().map(|byte| if is_plain(byte) { 1 } else { 3 }).sum();
    encoded + text.len() * 8 / 3 + 1
}

/// Returns the text, or as much of its start as this cost allows.
fn cut(mut text: String, max_cost: usize) -> String {
    const MARK: &str = "...";
    if cost(&text) <= max_cost {
        return text;
    }
    while cost(&text) + cost(MARK) > max_cost {
        // Half of the excess, because no byte costs more than 3 + 8 / 3.
        let excess = cost(&text) + cost(MARK) - max_cost;
        text.truncate(text.floor_char_boundary(text.len() - (excess / 6).clamp(1, text.len())));
    }
    text + MARK
}

/// Returns the status for fields that are malformed, out of range, or not allowed by the policy.
pub(super) fn fields_invalid(violations: Vec<Violation>) -> Status {
    let violations = truncate(violations);
    let list = violations.iter().map(|violation| match &violation.field[..] {
        "" => violation.reason.clone(),
        path => format!("{path}: {}", violation.reason),
    });
    let text = list.collect::<Vec<_>>().join("; ");
    let fields = violations.into_iter().map(|violation| FieldViolation::new(violation.field, violation.reason));
    StatusBuilder::new(Code::InvalidArgument, ErrorReason::FieldInvalid, text).build_with(|details| {
        details.set_bad_request(fields.collect::<Vec<_>>());
    })
}

/// Keeps the violations that fit into a status. If some do not fit, the last one states that more fields are invalid.
fn truncate(violations: Vec<Violation>) -> Vec<Violation> {
    let (count, mut left) = (violations.len(), MAX_VIOLATIONS_COST);
    let cut = violations.into_iter().map(|Violation { field, reason }| Violation {
        field: cut(field, MAX_FIELD_COST),
        reason: cut(reason, MAX_REASON_COST),
    });
    let fitting = cut.map_while(|violation| {
        left = left.checked_sub(cost(&violation.field) + cost(&violation.reason) + VIOLATION_COST)?;
        Some(violation)
    });
    let mut violations: Vec<_> = fitting.collect();
    if violations.len() < count {
        violations.push(Violation { field: String::new(), reason: "more fields are invalid".into() });
    }
    violations
}

/// Returns the status for a message, named by `what`, that exceeds its size limit.
pub(super) fn message_too_large(what: &str, limit: usize) -> Status {
    let text = format!("the {what} is larger than {}; send a smaller one", size_text(limit));
    StatusBuilder::new(Code::ResourceExhausted, ErrorReason::MessageTooLarge, text).build()
}

/// Returns the status for a call whose headers exceed their size limit.
pub(super) fn metadata_too_large(limit: usize) -> Status {
    let text = format!("the metadata of the call is larger than {}; send less; nothing was applied", size_text(limit));
    StatusBuilder::new(Code::ResourceExhausted, ErrorReason::MetadataTooLarge, text).build()
}

/// Returns the status for a compressed request. It states that only uncompressed ones are accepted.
pub(super) fn compression_unsupported() -> Status {
    let text = "this server accepts no compressed requests; send the request without compression";
    let mut status = StatusBuilder::new(Code::Unimplemented, ErrorReason::CompressionUnsupported, text).build();
    status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
    status
}

/// Returns the status for a call of a service or method that this server does not have.
pub(super) fn method_unknown() -> Status {
    let text = "this server has no such service or method; it may be older than the client";
    StatusBuilder::new(Code::Unimplemented, ErrorReason::MethodUnknown, text).build()
}

/// Returns the status for a call whose handler panicked.
pub(super) fn panicked() -> Status {
    let text = "the server failed while it handled the call; a change may have been applied; retry, with the same \
                request_id if the call has one";
    StatusBuilder::new(Code::Unknown, ErrorReason::OutcomeUnknown, text).retry_after(SHORT_DELAY).build()
}

/// Returns the response to a request whose handling panicked outside of the session service.
pub fn panicked_anywhere() -> http::Response<tonic::body::Body> {
    Status::internal("the server failed while it handled the request").into_http()
}

/// Returns the status for a call that found no place in the budget of responses before its deadline.
pub(super) fn responses_unread() -> Status {
    overloaded_with("too many responses are being made, or wait for clients that do not read; nothing was applied")
}

/// Returns the status for a call whose line in the audit log is required and cannot be written.
pub(super) fn audit_unavailable() -> Status {
    let text = "the audit log, which this call requires, cannot be written; nothing was applied; check its disk";
    StatusBuilder::new(Code::Unavailable, ErrorReason::AuditUnavailable, text).retry_after(LONG_DELAY).build()
}

/// Returns the status for a stream of this kind above its limit.
pub(super) fn too_many_streams(kind: &str) -> Status {
    overloaded_with(&format!("too many {kind} streams are open; retry later"))
}

/// Returns the status for a call above the limit of calls in flight. `whose`: of the server, or of this caller.
pub(super) fn too_many_calls(whose: &str) -> Status {
    overloaded_with(&format!("too many calls of {whose} are in flight; nothing was applied; retry later"))
}

/// Returns the status of a health watch at the drain.
pub(super) fn health_watch_drained() -> Status {
    StatusBuilder::new(Code::Unavailable, ErrorReason::Draining, "the server is shutting down").build()
}

fn overloaded_with(text: &str) -> Status {
    StatusBuilder::new(Code::Unavailable, ErrorReason::Overloaded, text).retry_after(SHORT_DELAY).build()
}

/// Returns the status for a body that is not one message of the method's type.
pub(super) fn malformed_message(reason: &str) -> Status {
    fields_invalid(vec![Violation { field: String::new(), reason: reason.to_owned() }])
}

/// Returns the status for a request that was not received completely before the deadline.
pub(super) fn request_timeout() -> Status {
    let text = "the deadline passed before the whole request was received; nothing was applied";
    StatusBuilder::new(Code::DeadlineExceeded, ErrorReason::StoreTimeout, text).build()
}

/// Returns the status for a call that was received after a suspension of the server, and whose deadline may have passed.
pub(super) fn suspended(waited: Duration) -> Status {
    let text = format!(
        "the server was suspended, so the request may have waited for {} ms, longer than its deadline; nothing was applied",
        waited.as_millis()
    );
    StatusBuilder::new(Code::DeadlineExceeded, ErrorReason::StoreTimeout, &text).build()
}

/// Returns the status for a request that exceeds the message budget of the server.
pub(super) fn overloaded() -> Status {
    from_store(&store::Error::Overloaded)
}

fn draining() -> Status {
    let text = "the server is shutting down; resume on another instance with the last resume_token";
    StatusBuilder::new(Code::Unavailable, ErrorReason::Draining, text).retry_after(SHORT_DELAY).build()
}

fn not_found() -> Status {
    StatusBuilder::new(Code::NotFound, ErrorReason::SessionNotFound, "no live session for this key").build()
}

/// Returns the status for a watch by ids of which these are not alive.
fn ids_not_found(ids: &[SessionId]) -> Status {
    let listed: Vec<_> = ids.iter().take(MAX_LISTED_IDS).map(ToString::to_string).collect();
    let text = format!("no live session for {} of the ids; open the watch with the others", ids.len());
    let status = StatusBuilder::new(Code::NotFound, ErrorReason::SessionNotFound, text);
    let status = status.metadata("ids", listed.join(","));
    if listed.len() < ids.len() { status.metadata("ids_total", ids.len()).build() } else { status.build() }
}

fn ended(cause: Cause) -> Status {
    let name = pb::Cause::from(cause).short_name();
    let text = format!("the session has ended: {name}");
    StatusBuilder::new(Code::NotFound, ErrorReason::SessionEnded, text).metadata("cause", name).build()
}

fn superseded() -> Status {
    let text = "this token was superseded by a rotation; use its successor, or log in again";
    StatusBuilder::new(Code::NotFound, ErrorReason::TokenRotated, text).build()
}

/// Returns the status for a caller without a grant for a call.
pub(super) fn grant_missing(missing: &GrantMissing) -> Status {
    let (grant, namespace) = (missing.needed.name(), &missing.namespace);
    let text = format!("the caller has no grant for this call: it needs {grant} in namespace {namespace}");
    StatusBuilder::new(Code::PermissionDenied, ErrorReason::GrantMissing, text)
        .metadata("grant", grant)
        .metadata("namespace", namespace)
        .build()
}

/// Returns the status for a call without a valid credential: the same one whatever is wrong with it.
pub(super) fn credentials_invalid() -> Status {
    let text = "this server requires a valid API key (authorization: Bearer sdk_...) or client certificate";
    StatusBuilder::new(Code::Unauthenticated, ErrorReason::CredentialsInvalid, text).build()
}

/// Returns the status for an error of the service.
pub(super) fn from_error(error: Error) -> Status {
    match error {
        Error::Violations(violations) => fields_invalid(violations),
        Error::RequestIdReused => {
            let text = "this request_id was used with another request; use a new one";
            StatusBuilder::new(Code::InvalidArgument, ErrorReason::RequestIdReused, text).build()
        }
        Error::RequestIdLimit { wait } => {
            let text = "the session has 64 request ids from the last seconds; nothing was applied; retry later with the same \
                        request_id";
            StatusBuilder::new(Code::ResourceExhausted, ErrorReason::RequestIdLimit, text).retry_after(wait).build()
        }
        Error::NamespaceUnknown => {
            let text = "this namespace is not listed in the configuration; list it, or set allow_unlisted_namespaces";
            StatusBuilder::new(Code::NotFound, ErrorReason::NamespaceUnknown, text).build()
        }
        Error::NotFound => not_found(),
        Error::IdsNotFound(ids) => ids_not_found(&ids),
        Error::Ended(cause) => ended(cause),
        Error::Rotated => superseded(),
        Error::Exists => {
            let text = "a live session has the id of this token; create a new token";
            StatusBuilder::new(Code::AlreadyExists, ErrorReason::SessionExists, text).build()
        }
        Error::RevisionMismatch { current } => {
            let text = format!("the session's revision is {}; read the session again, then retry", current.0);
            StatusBuilder::new(Code::Aborted, ErrorReason::RevisionMismatch, text)
                .metadata("current_revision", current.0)
                .retry_after(Duration::ZERO)
                .build()
        }
        Error::ClientTokensForbidden => {
            let text = "the policy of this namespace forbids client tokens; leave token empty, or use the form \
                        ses_<id>_<secret>";
            StatusBuilder::new(Code::FailedPrecondition, ErrorReason::ClientTokensForbidden, text).build()
        }
        Error::SubjectChange => {
            let text = "a session cannot change from one subject to another; end it and create a new one";
            StatusBuilder::new(Code::FailedPrecondition, ErrorReason::SubjectChange, text).build()
        }
        Error::SubjectSessionLimit { limit } => {
            let text = format!("the subject has {limit} sessions, the limit of the policy; end one first");
            StatusBuilder::new(Code::FailedPrecondition, ErrorReason::SubjectSessionLimit, text)
                .metadata("session_limit", limit)
                .build()
        }
        Error::WatchLimit => {
            let text = "this server has reached its limit of watches; try another instance, or raise limits.watches";
            StatusBuilder::new(Code::ResourceExhausted, ErrorReason::WatchLimit, text).retry_after(LONG_DELAY).build()
        }
        Error::CallerWatchLimit => {
            let text = "this caller has reached its limit of watches, half of limits.watches; close some, or try another instance";
            StatusBuilder::new(Code::ResourceExhausted, ErrorReason::WatchLimit, text).retry_after(LONG_DELAY).build()
        }
        Error::Draining => draining(),
        Error::Store(error) => from_store(&error),
    }
}

fn from_store(error: &store::Error) -> Status {
    use store::Error as E;
    let text = error.to_string();
    let not_applied = || format!("{text}; nothing was applied");
    let retry = || format!("{text}; retry, with the same request_id if the call has one");
    let (builder, delay) = match error {
        E::Unavailable(_) | E::Migrating(_) | E::WritesRefused(_) | E::Refused(_) => {
            (StatusBuilder::new(Code::Unavailable, ErrorReason::StoreUnavailable, not_applied()), LONG_DELAY)
        }
        // OUTCOME_UNKNOWN is for writes, RECORD_CORRUPT for one session whose record cannot be decoded, and no time-out
        // passed: the store did not serve the read.
        E::UnexpectedRead(_) => {
            crate::observe::warning!(error = text, "unexpected reply of Redis to a read");
            (StatusBuilder::new(Code::Unavailable, ErrorReason::StoreUnavailable, not_applied()), LONG_DELAY)
        }
        E::Overloaded => (StatusBuilder::new(Code::Unavailable, ErrorReason::Overloaded, not_applied()), SHORT_DELAY),
        E::Timeout => {
            (StatusBuilder::new(Code::DeadlineExceeded, ErrorReason::StoreTimeout, not_applied()), SHORT_DELAY)
        }
        E::OutcomeTimeout => {
            (StatusBuilder::new(Code::DeadlineExceeded, ErrorReason::OutcomeUnknown, retry()), SHORT_DELAY)
        }
        E::NotReplicated { .. } => {
            (StatusBuilder::new(Code::DeadlineExceeded, ErrorReason::OutcomeUnknown, retry()), LONG_DELAY)
        }
        E::OutcomeUnknown(_) | E::Unexpected(_) => {
            crate::observe::warning!(error = text, "outcome of a call is unknown");
            (StatusBuilder::new(Code::Unknown, ErrorReason::OutcomeUnknown, retry()), SHORT_DELAY)
        }
        E::StoreChanged => {
            let text = format!("{text} during the call; nothing was applied");
            (StatusBuilder::new(Code::Unavailable, ErrorReason::StoreChanged, text), LONG_DELAY)
        }
        E::Full => {
            let text = format!("{text}; raise maxmemory");
            (StatusBuilder::new(Code::ResourceExhausted, ErrorReason::StoreFull, text), LONG_DELAY)
        }
        E::Corrupt { name, .. } => {
            let text = format!("the stored record of session {} cannot be read; delete the session by its id", name.id);
            return StatusBuilder::new(Code::DataLoss, ErrorReason::RecordCorrupt, text)
                .metadata("id", name.id)
                .build();
        }
    };
    builder.retry_after(delay).build()
}

/// Returns the status that closes a watch. None: OK.
pub(super) fn from_close_reason(reason: CloseReason) -> Option<Status> {
    match reason {
        CloseReason::AllEnded | CloseReason::SlowConsumer => None,
        CloseReason::TokenEnded(cause) => Some(ended(cause)),
        CloseReason::TokenRotated => Some(superseded()),
        CloseReason::TokenUnknown => Some(not_found()),
        CloseReason::Closing(Closing::Draining) => Some(draining()),
        CloseReason::Closing(Closing::RightLost(RightLost::Credential)) => Some(credentials_invalid()),
        CloseReason::Closing(Closing::RightLost(RightLost::Grant(missing))) => Some(grant_missing(&missing)),
        CloseReason::Store(error) => Some(from_store(&error)),
    }
}

#[cfg(test)]
mod tests;
