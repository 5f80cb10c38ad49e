//! The tower service around every method: reads the message, sets the deadline, counts the outcome.
//!
//! tonic returns OUT_OF_RANGE for a message that is too large, accepts two messages in a unary call, and waits without
//! limit for a message that never arrives. The contract requires other results.

mod deadline;
mod frame;
mod metrics;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Full;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tonic::{Code, Status, body::Body, server::NamedService};
use tower::Service;

use super::status;
use crate::observe::Metrics;

pub use frame::{MAX_MESSAGE_BYTES, MAX_TOTAL_MESSAGE_BYTES};
pub(super) use metrics::CallMetrics;

/// Names of all methods. Metrics use these only, never the path that a caller sent.
const METHODS: [&str; 9] = [
    "CreateSession",
    "GetSession",
    "UpdateSession",
    "TouchSession",
    "RotateSession",
    "DeleteSession",
    "DeleteSubjectSessions",
    "ListSessions",
    "Watch",
];

/// Deadline and metrics of a call. [`CallService`] adds them to the extensions of every request.
#[derive(Clone)]
pub(super) struct CallContext {
    /// Time by which the response must be ready.
    pub deadline: Instant,
    /// Counts the call once it has ended.
    pub metrics: CallMetrics,
}

/// Tower service that wraps the session service.
#[derive(Clone)]
pub struct CallService<S> {
    /// Wrapped service.
    pub inner: S,
    /// Metrics of the server.
    pub metrics: Arc<Metrics>,
    /// Maximum time of a call, and the default for a call without a `grpc-timeout`.
    pub call_timeout: Duration,
    /// Number of message bytes that the server may still hold, over all requests in progress. A call returns its bytes
    /// when its response is ready.
    pub message_budget: Arc<Semaphore>,
}

impl<S: NamedService> NamedService for CallService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut inner = self.inner.clone();
        let (mut parts, body) = request.into_parts();
        let name = parts.uri.path().rsplit('/').next().unwrap_or_default();
        let method = METHODS.into_iter().find(|method| *method == name).unwrap_or("unknown");
        let (metrics, budget) = (CallMetrics::new(self.metrics.clone(), method), self.message_budget.clone());
        let deadline = Instant::now() + deadline::response_time(&parts.headers, self.call_timeout);
        Box::pin(async move {
            let (message, _permits) = match timeout_at(deadline, frame::read_message(body, &budget)).await {
                Ok(Ok(read)) => read,
                Ok(Err(status)) => return Ok(metrics.respond(status)),
                Err(_) => return Ok(metrics.respond(status::request_timeout())),
            };
            parts.extensions.insert(CallContext { deadline, metrics: metrics.clone() });
            let response = inner.call(Request::from_parts(parts, Body::new(Full::new(message)))).await?;
            match Status::from_header_map(response.headers()) {
                // tonic returns INTERNAL for a message that it cannot decode. The service itself never returns INTERNAL.
                Some(status) if status.code() == Code::Internal => {
                    return Ok(metrics.respond(status::malformed_message(status.message())));
                }
                Some(status) => metrics.finish(status.code()),
                // The stream finishes the metrics at its end.
                None if method == "Watch" => {}
                None => metrics.finish(Code::Ok),
            }
            Ok(response)
        })
    }
}
