//! Failures of a command, as text for people and as an exit code.

use std::{error::Error, io, process::ExitCode};

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use super::table::printable;

/// Reason why a command failed.
pub enum Failure {
    /// The arguments are invalid; nothing was sent.
    Usage(String),
    /// No connection to the server.
    Unreachable {
        /// URL of the server.
        endpoint: String,
        /// Error of the operating system or of the transport.
        cause: String,
    },
    /// The server returned an error, or the connection broke during the call.
    Call(Box<Status>),
    /// The stream of a watch was lost before its first response.
    Interrupted(String),
    /// The output cannot be written.
    Output(io::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure::Call(Box::new(status))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

impl Failure {
    /// Returns the failure to connect to this URL.
    pub fn unreachable(endpoint: &str, error: &(dyn Error + 'static)) -> Self {
        Failure::Unreachable { endpoint: endpoint.to_owned(), cause: root_cause(error).to_string() }
    }

    /// Returns the failure of a URL, or of the files with its certificates.
    pub fn unusable_endpoint(endpoint: &str, error: &(dyn Error + 'static)) -> Self {
        Failure::Usage(format!("--endpoint: {endpoint}: {}", root_cause(error)))
    }

    /// Returns the text to print. None: the reader of the output has closed it, and no message is needed.
    pub fn text(&self) -> Option<String> {
        match self {
            Failure::Usage(text) | Failure::Interrupted(text) => Some(text.clone()),
            Failure::Unreachable { endpoint, cause } => {
                let remedy = "start a server with `sessiond serve`, or set --endpoint or SESSIOND_ENDPOINT";
                Some(format!("no connection to {endpoint}: {cause}; {remedy}"))
            }
            Failure::Call(status) => Some(status_text(status)),
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Output(error) => Some(format!("cannot write the output: {error}")),
        }
    }

    /// Returns the exit code: 2 for wrong usage, else 1.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Unreachable { .. } | Failure::Call(_) | Failure::Interrupted(_) | Failure::Output(_) => {
                ExitCode::FAILURE
            }
        }
    }
}

/// Formats a status as `NOT_FOUND SESSION_ENDED: the session has ended: LOGOUT (cause=LOGOUT)`, plus one line per invalid
/// field.
fn status_text(status: &Status) -> String {
    if status.source().is_some_and(|source| root_cause(source).is::<TimeoutExpired>()) {
        return "DEADLINE_EXCEEDED: no response within --timeout; a write may have been applied".to_owned();
    }
    let mut text = code_name(status.code());
    let details = status.get_error_details();
    if let Some(info) = details.error_info() {
        text += &format!(" {}", printable(&info.reason));
    }
    let fields = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
    if !fields.is_empty() {
        text += ": invalid request";
        for field in fields {
            let path = if field.field.is_empty() { "" } else { &format!("{}: ", printable(&field.field)) };
            text += &format!("\n  {path}{}", printable(&field.description));
        }
        return text;
    }
    text += &format!(": {}", printable(status.message()));
    if let Some(source) = status.source() {
        text += &format!(" ({})", root_cause(source));
    }
    let metadata = details.error_info().map(|info| info.metadata.iter()).into_iter().flatten();
    let mut metadata: Vec<_> = metadata.map(|(name, value)| printable(&format!("{name}={value}"))).collect();
    metadata.sort();
    if !metadata.is_empty() {
        text += &format!(" ({})", metadata.join(", "));
    }
    text
}

/// Returns the gRPC name of a code: `NotFound` as `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// Returns the last error in the chain of sources.
fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_name_is_the_name_in_grpc() {
        let names = [Code::NotFound, Code::Cancelled, Code::DataLoss, Code::FailedPrecondition].map(code_name);
        assert_eq!(names, ["NOT_FOUND", "CANCELLED", "DATA_LOSS", "FAILED_PRECONDITION"]);
    }
}
