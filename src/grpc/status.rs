//! Every status that the service answers is made here.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::{
    pb::{self, ErrorReason},
    service::{Error, Refused},
    session::Cause,
    store,
    watch::Finish,
};

const DOMAIN: &str = "sessiond";
const PREFIX: &str = "ERROR_REASON_";

/// A status with its reason; the text names the remedy too.
struct Answer {
    code: Code,
    reason: ErrorReason,
    text: String,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
}

fn answer(code: Code, reason: ErrorReason, text: impl Into<String>) -> Answer {
    Answer { code, reason, text: text.into(), metadata: HashMap::new(), retry_after: None }
}

impl Answer {
    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    fn details(&mut self) -> ErrorDetails {
        let reason = self.reason.as_str_name().trim_start_matches(PREFIX);
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, std::mem::take(&mut self.metadata));
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        details
    }

    fn status(mut self) -> Status {
        let details = self.details();
        Status::with_error_details(self.code, self.text, details)
    }
}

/// Of paths and reasons in one status. They stand in its text and, in base64, in its details: clients close a connection
/// that brings them larger headers than they take, 8 KiB some of them.
const MAX_REFUSED_BYTES: usize = 1_800;
const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(1);

/// The fields that are malformed or out of range, all of them.
pub fn fields_invalid(refused: Vec<Refused>) -> Status {
    let refused = fitting(refused);
    let list = refused.iter().map(|field| match &field.field[..] {
        "" => field.reason.clone(),
        path => format!("{path}: {}", field.reason),
    });
    let text = list.collect::<Vec<_>>().join("; ");
    let mut answer = answer(Code::InvalidArgument, ErrorReason::FieldInvalid, text.clone());
    let mut details = answer.details();
    let violation = |field: Refused| FieldViolation::new(field.field, field.reason);
    details.set_bad_request(refused.into_iter().map(violation).collect::<Vec<_>>());
    Status::with_error_details(Code::InvalidArgument, text, details)
}

/// As many as fit into a status; the last one then says that there are more.
fn fitting(mut refused: Vec<Refused>) -> Vec<Refused> {
    let mut left = MAX_REFUSED_BYTES;
    let fits = |field: &Refused| {
        let bytes = field.field.bytes().chain(field.reason.bytes());
        left = left.checked_sub(bytes.map(|byte| if byte.is_ascii() { 1 } else { 2 }).sum::<usize>() + 8)?;
        Some(())
    };
    let count = refused.iter().map_while(fits).count().max(1);
    if count < refused.len() {
        refused.truncate(count);
        refused.push(Refused { field: String::new(), reason: "there are more".into() });
    }
    refused
}

/// The request, or the answer, is larger than it may be.
pub fn message_too_large(what: &str, limit: usize) -> Status {
    let text = format!("the {what} is larger than {limit} bytes; send less at once");
    answer(Code::ResourceExhausted, ErrorReason::MessageTooLarge, text).status()
}

/// The body is not one message of the method's type.
pub fn malformed_message(what: &str) -> Status {
    let refused = Refused { field: String::new(), reason: what.to_owned() };
    fields_invalid(vec![refused])
}

/// The request did not come in whole before the call's deadline.
pub fn request_timeout() -> Status {
    let text = "the deadline passed before the request had come in; nothing was applied";
    answer(Code::DeadlineExceeded, ErrorReason::StoreTimeout, text).status()
}

/// More bytes of requests are under way than the server takes at once.
pub fn overloaded() -> Status {
    from_store(&store::Error::Overloaded)
}

fn draining() -> Status {
    let text = "the server is being stopped; resume on another instance with the last resume_token";
    answer(Code::Unavailable, ErrorReason::Draining, text).retry(SOON).status()
}

fn not_found() -> Status {
    answer(Code::NotFound, ErrorReason::SessionNotFound, "no live session for this key").status()
}

fn ended(cause: Cause) -> Status {
    let name = pb::Cause::from(cause).as_str_name().trim_start_matches("CAUSE_");
    let text = format!("the session has ended: {name}");
    answer(Code::NotFound, ErrorReason::SessionEnded, text).with("cause", name).status()
}

fn rotated() -> Status {
    let text = "this token was superseded by a rotation; take its successor, or log in again";
    answer(Code::NotFound, ErrorReason::TokenRotated, text).status()
}

pub fn from_error(error: Error) -> Status {
    match error {
        Error::Refused(refused) => fields_invalid(refused),
        Error::RequestIdReused => {
            let text = "this request_id was used with another request; take a new one";
            answer(Code::InvalidArgument, ErrorReason::RequestIdReused, text).status()
        }
        Error::NamespaceUnknown => {
            let text = "this namespace is not listed in the configuration; list it, or set allow_unlisted_namespaces";
            answer(Code::NotFound, ErrorReason::NamespaceUnknown, text).status()
        }
        Error::NotFound => not_found(),
        Error::Ended(cause) => ended(cause),
        Error::Rotated => rotated(),
        Error::Exists => {
            let text = "a session with the id of this token lives already; make a new token";
            answer(Code::AlreadyExists, ErrorReason::SessionExists, text).status()
        }
        Error::RevisionMismatch { current } => {
            let text = format!("the session's revision is {}; read it again, then repeat", current.0);
            let answer = answer(Code::Aborted, ErrorReason::RevisionMismatch, text);
            answer.with("current_revision", current.0).retry(Duration::ZERO).status()
        }
        Error::ClientTokensForbidden => {
            let text = "this namespace takes no foreign tokens; leave token empty, or use the form ses_<id>_<secret>";
            answer(Code::FailedPrecondition, ErrorReason::ClientTokensForbidden, text).status()
        }
        Error::SubjectChange => {
            let text = "a session cannot go from one subject to another; end it and make a new one";
            answer(Code::FailedPrecondition, ErrorReason::SubjectChange, text).status()
        }
        Error::SubjectSessionLimit { limit } => {
            let text = format!("the subject has {limit} sessions, as many as the policy allows; end one first");
            let answer = answer(Code::FailedPrecondition, ErrorReason::SubjectSessionLimit, text);
            answer.with("session_limit", limit).status()
        }
        Error::WatchLimit => {
            let text = "this server holds as many watches as it may; try another instance, or raise limits.watches";
            answer(Code::ResourceExhausted, ErrorReason::WatchLimit, text).retry(LATER).status()
        }
        Error::Draining => draining(),
        Error::Store(error) => from_store(&error),
    }
}

fn from_store(error: &store::Error) -> Status {
    use store::Error as E;
    let text = error.to_string();
    match error {
        E::Unavailable(_) | E::Refused(_) => {
            answer(Code::Unavailable, ErrorReason::StoreUnavailable, text + "; nothing was applied")
                .retry(LATER)
                .status()
        }
        E::Overloaded => {
            answer(Code::Unavailable, ErrorReason::Overloaded, text + "; nothing was applied").retry(SOON).status()
        }
        E::Timeout => {
            let text = text + "; nothing was applied";
            answer(Code::DeadlineExceeded, ErrorReason::StoreTimeout, text).retry(SOON).status()
        }
        E::OutcomeTimeout => {
            let text = text + "; repeat it with the same request_id";
            answer(Code::DeadlineExceeded, ErrorReason::OutcomeUnknown, text).retry(SOON).status()
        }
        E::NotReplicated { .. } => {
            let text = text + "; repeat it with the same request_id";
            answer(Code::DeadlineExceeded, ErrorReason::OutcomeUnknown, text).retry(LATER).status()
        }
        E::OutcomeUnknown(_) | E::Unexpected(_) => {
            tracing::warn!(error = text, "outcome of a call is unknown");
            let text = text + "; repeat it with the same request_id";
            answer(Code::Unknown, ErrorReason::OutcomeUnknown, text).retry(SOON).status()
        }
        E::StoreChanged => {
            let text = text + " under the call; nothing was applied";
            answer(Code::Unavailable, ErrorReason::StoreChanged, text).retry(LATER).status()
        }
        E::Full => {
            let text = text + "; raise maxmemory";
            answer(Code::ResourceExhausted, ErrorReason::StoreFull, text).retry(LATER).status()
        }
        E::Corrupt { name, .. } => {
            let text = format!("what the store holds of session {} cannot be read; end it by its id", name.id);
            answer(Code::DataLoss, ErrorReason::RecordCorrupt, text).with("id", name.id).status()
        }
    }
}

/// How a watch ends; None = OK.
pub fn from_finish(finish: Finish) -> Option<Status> {
    match finish {
        Finish::AllEnded | Finish::TooSlow => None,
        Finish::TokenEnded(cause) => Some(ended(cause)),
        Finish::TokenRotated => Some(rotated()),
        Finish::TokenUnknown => Some(not_found()),
        Finish::Draining => Some(draining()),
        Finish::Store(error) => Some(from_store(&error)),
    }
}
