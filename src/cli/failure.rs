//! What can go wrong: as text for people and as an exit code.

use std::{error::Error, io, process::ExitCode};

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use super::table::printable;

pub enum Failure {
    /// The command line asks for what cannot be; nothing was sent.
    Usage(String),
    /// There is no connection to the server.
    Unreachable { endpoint: String, cause: String },
    /// The server answered with an error, or the connection broke.
    Call(Box<Status>),
    /// A watch is over, though there is more to tell.
    Interrupted(String),
    /// The answer cannot be written.
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
    pub fn unreachable(endpoint: &str, error: &(dyn Error + 'static)) -> Self {
        Failure::Unreachable { endpoint: endpoint.to_owned(), cause: root(error).to_string() }
    }

    /// None = nobody is there to read it: the reader of our output has gone.
    pub fn text(&self) -> Option<String> {
        match self {
            Failure::Usage(text) | Failure::Interrupted(text) => Some(text.clone()),
            Failure::Unreachable { endpoint, cause } => {
                let remedy = "start a server with `sessiond serve`, or name another by --endpoint or SESSIOND_ENDPOINT";
                Some(format!("no connection to {endpoint}: {cause}; {remedy}"))
            }
            Failure::Call(status) => Some(of_status(status)),
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Output(error) => Some(format!("the answer cannot be written: {error}")),
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Unreachable { .. } | Failure::Call(_) | Failure::Interrupted(_) | Failure::Output(_) => {
                ExitCode::FAILURE
            }
        }
    }

    /// Whether a watch may be opened again after it.
    pub fn may_pass(&self) -> bool {
        match self {
            Failure::Unreachable { .. } | Failure::Interrupted(_) => true,
            Failure::Call(status) => {
                let is_of_the_connection = status.source().is_some();
                let may_be_repeated = status.get_details_retry_info().is_some();
                status.code() == Code::Unavailable || is_of_the_connection || may_be_repeated
            }
            Failure::Usage(_) | Failure::Output(_) => false,
        }
    }
}

/// `NOT_FOUND SESSION_ENDED: the session has ended: LOGOUT (cause=LOGOUT)`, and a line for each bad field.
fn of_status(status: &Status) -> String {
    if status.source().is_some_and(|source| root(source).is::<TimeoutExpired>()) {
        return "DEADLINE_EXCEEDED: no answer before --timeout had passed; a write may have been applied".to_owned();
    }
    let mut text = code(status.code());
    let details = status.get_error_details();
    if let Some(info) = details.error_info() {
        text += &format!(" {}", printable(&info.reason));
    }
    let fields = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
    if !fields.is_empty() {
        text += ": the request is refused";
        for field in fields {
            let path = if field.field.is_empty() { "" } else { &format!("{}: ", printable(&field.field)) };
            text += &format!("\n  {path}{}", printable(&field.description));
        }
        return text;
    }
    text += &format!(": {}", printable(status.message()));
    if let Some(source) = status.source() {
        text += &format!(" ({})", root(source));
    }
    let metadata = details.error_info().map(|info| info.metadata.iter()).into_iter().flatten();
    let mut metadata: Vec<_> = metadata.map(|(name, value)| printable(&format!("{name}={value}"))).collect();
    metadata.sort();
    if !metadata.is_empty() {
        text += &format!(" ({})", metadata.join(", "));
    }
    text
}

/// `NotFound` as `NOT_FOUND`.
fn code(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// What stands at the end of the chain of causes.
fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
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
    fn codes_have_their_names_in_grpc() {
        let names = [Code::NotFound, Code::Cancelled, Code::DataLoss, Code::FailedPrecondition].map(code);
        assert_eq!(names, ["NOT_FOUND", "CANCELLED", "DATA_LOSS", "FAILED_PRECONDITION"]);
    }
}
