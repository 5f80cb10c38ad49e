//! The metrics of a call: counts it once, with the code that it ended with.

use std::sync::{Arc, OnceLock};

use http::Response;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::observe::Metrics;

/// Counts a call when the last clone is dropped: with the code set by [`CallMetrics::finish`], or else as CANCELLED.
#[derive(Clone)]
pub(crate) struct CallMetrics(Arc<Call>);

struct Call {
    metrics: Arc<Metrics>,
    method: &'static str,
    started: Instant,
    /// Code of the response. Not set: the caller cancelled the call.
    code: OnceLock<Code>,
    /// Name of the caller. Not set: it is unknown, or the server needs no credentials.
    caller: OnceLock<Arc<str>>,
}

impl CallMetrics {
    /// Starts the time of a call.
    pub(crate) fn new(metrics: Arc<Metrics>, method: &'static str) -> Self {
        CallMetrics(Arc::new(Call {
            metrics,
            method,
            started: Instant::now(),
            code: OnceLock::new(),
            caller: OnceLock::new(),
        }))
    }

    /// Counts the call for this caller as well.
    pub(crate) fn set_caller(&self, name: &Arc<str>) {
        let _ = self.0.caller.set(name.clone());
    }

    /// Sets the code of the response. The first code counts.
    pub(crate) fn finish(&self, code: Code) {
        let _ = self.0.code.set(code);
    }

    /// Sets the code and returns the response with this status.
    pub(crate) fn respond<B: Default>(&self, status: Status) -> Response<B> {
        self.finish(status.code());
        status.into_http()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.get().copied().unwrap_or(Code::Cancelled);
        self.metrics.count_request(self.method, code_name(code), self.started.elapsed());
        if let Some(caller) = self.caller.get() {
            self.metrics.network.count_caller_request(caller, code_name(code));
        }
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
