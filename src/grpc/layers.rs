//! The service around every method: reads the message, sets the deadline, counts the outcome.
//!
//! tonic returns OUT_OF_RANGE for a message that is too large, accepts two messages in a unary call, waits without limit
//! for a message that never arrives, and holds unread responses without limit. The contract requires other results.

mod bounded_streams;
mod deadline;
mod frame;
mod gate;
mod headers;
mod metrics;
mod response;
mod suspension;

use std::{convert::Infallible, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, header::USER_AGENT, request::Parts};
use http_body::Body as HttpBody;
use http_body_util::Full;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tonic::{Code, Status, body::Body};

use super::{audit::CallAudit, status, stream};
use crate::{
    audit_log::AuditLog,
    auth::{Peer, Requester},
    observe::Metrics,
    pb::service::session_service_server::SessionServiceServer,
};

pub use bounded_streams::{BoundedStreams, StreamBound};
pub use frame::{MAX_MESSAGE_BYTES, MAX_TOTAL_MESSAGE_BYTES, discard};
pub use gate::{Admission, Gate};
pub(super) use metrics::CallMetrics;
use response::{Content, Reservation};
pub use response::{ResponseBody, largest_response, largest_session};
pub use suspension::Suspensions;

/// A method of the service.
#[derive(Clone, Copy)]
struct Method {
    /// Name. Metrics use these names only, never the path that a caller sent.
    name: &'static str,
    /// What its response contains.
    content: Content,
}

/// Name of the service.
const SERVICE: &str = <SessionServiceServer<()> as tonic::server::NamedService>::NAME;

const METHODS: [Method; 9] = [
    Method { name: "CreateSession", content: Content::Session },
    Method { name: "GetSession", content: Content::Session },
    Method { name: "UpdateSession", content: Content::Session },
    Method { name: "TouchSession", content: Content::Small },
    Method { name: "RotateSession", content: Content::Session },
    Method { name: "DeleteSession", content: Content::Small },
    Method { name: "DeleteSubjectSessions", content: Content::Small },
    Method { name: "ListSessions", content: Content::Page },
    Method { name: "Watch", content: Content::Stream },
];

impl Method {
    /// Returns the method with this path. None: there is no such method.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        let name = path.strip_prefix('/')?.strip_prefix(SERVICE)?.strip_prefix('/')?;
        METHODS.into_iter().find(|method| method.name == name)
    }
}

/// Deadline and metrics of a call. [`CallService`] adds them to the extensions of every request.
#[derive(Clone)]
pub(super) struct CallContext {
    /// Time by which the response must be ready.
    pub deadline: Instant,
    /// Counts the call once it has ended.
    pub metrics: CallMetrics,
    /// Caller that the gate found, and the audit log.
    pub audit: Arc<CallAudit>,
}

/// Caller and client of a request that the gate admitted. It adds them to the extensions of the request.
#[derive(Clone)]
pub(super) struct Admitted {
    /// Caller.
    pub requester: Requester,
    /// Client of the connection.
    pub peer: Arc<Peer>,
}

/// Limits of every call.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// Maximum time of a call, and the default for a call without a `grpc-timeout`.
    pub call_timeout: Duration,
    /// Maximum time from a response that is ready until its client has room for all of it.
    pub response_timeout: Duration,
    /// Largest size of a session that a policy allows, in bytes.
    pub largest_session: usize,
}

/// Wraps the session service.
#[derive(Clone)]
pub struct CallService<S> {
    /// Wrapped service.
    pub inner: S,
    /// Metrics of the server.
    pub metrics: Arc<Metrics>,
    /// Limits of every call.
    pub limits: CallLimits,
    /// Number of message bytes that the server may still hold, over all requests in progress. A call returns its bytes
    /// when its response is ready.
    pub message_budget: Arc<Semaphore>,
    /// Number of bytes that responses may still hold, over all unary calls. A call takes the largest size of its response
    /// before it starts, and returns each byte that was not needed or has been sent.
    pub response_budget: Arc<Semaphore>,
    /// Suspensions of the process.
    pub suspensions: Arc<Suspensions>,
    /// Audit log of the server.
    pub audit_log: Arc<AuditLog>,
}

impl<S, B> hyper::service::Service<Request<B>> for CallService<S>
where
    S: tower::Service<Request<Full<Bytes>>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        let method = Method::of_path(request.uri().path());
        let metrics = CallMetrics::new(self.metrics.clone(), method.map_or("unknown", |method| method.name));
        Box::pin(async move {
            let (parts, mut body) = request.into_parts();
            let response = match method {
                Some(method) => service.respond(method, parts, &mut body, &metrics).await,
                None => Err(status::method_unknown()),
            };
            match response {
                Ok(response) => Ok(response),
                Err(status) => {
                    frame::discard(&mut body).await;
                    Ok(metrics.respond(status))
                }
            }
        })
    }
}

impl<S> CallService<S>
where
    S: tower::Service<Request<Full<Bytes>>, Response = Response<Body>, Error = Infallible>,
{
    async fn respond(
        mut self,
        method: Method,
        mut parts: Parts,
        body: &mut (impl HttpBody<Data = Bytes> + Unpin),
        metrics: &CallMetrics,
    ) -> Result<Response<ResponseBody>, Status> {
        // The gate adds it. A request that did not pass the gate has no caller.
        let admitted = parts.extensions.remove::<Admitted>().ok_or_else(status::credentials_invalid)?;
        let Admitted { requester, peer } = admitted;
        if requester.credential.is_some() {
            metrics.set_caller(&requester.caller.name);
        }
        headers::check(&parts.headers)?;
        let response_time = deadline::response_time(&parts.headers, self.limits.call_timeout);
        let waited = self.suspensions.longest_wait();
        let response_time = response_time.checked_sub(waited).ok_or_else(|| status::suspended(waited))?;
        let deadline = Instant::now() + response_time;
        let reading = timeout_at(deadline, frame::read_message(body, &self.message_budget));
        let (message, _permit) = reading.await.map_err(|_| status::request_timeout())??;
        let reservation = match method.content.max_bytes(self.limits.largest_session) {
            // Before the call: a write that was executed must not lose its response to the budget.
            Some(bytes) => {
                let reserving = Reservation::new(stream::connection_budget(), self.response_budget.clone(), bytes);
                Some(timeout_at(deadline, reserving).await.map_err(|_| status::responses_unread())?)
            }
            None => None,
        };
        let user_agent = parts.headers.get(USER_AGENT).cloned();
        let audit = CallAudit { log: self.audit_log.clone(), peer, requester, user_agent, method: method.name };
        let audit = Arc::new(audit);
        parts.extensions.insert(CallContext { deadline, metrics: metrics.clone(), audit: audit.clone() });
        let call = self.inner.call(Request::from_parts(parts, Full::new(message)));
        let response = AssertUnwindSafe(call).catch_unwind().await.map_err(|_| status::panicked())?;
        let Ok(response) = response;
        match Status::from_header_map(response.headers()) {
            // tonic returns INTERNAL for a message that it cannot decode. The service itself never returns INTERNAL.
            Some(status) if status.code() == Code::Internal => return Err(status::malformed_message(status.message())),
            Some(status) => {
                if status.code() == Code::PermissionDenied {
                    self.metrics.network.count_refusal("grant_missing");
                    audit.refuse(&status);
                }
                metrics.finish(status.code());
            }
            // The stream finishes the metrics at its end.
            None if method.content == Content::Stream => {}
            None => {
                metrics.finish(Code::Ok);
                stream::reset_after(self.limits.response_timeout);
            }
        }
        Ok(response.map(|body| ResponseBody::new(body, reservation)))
    }
}

/// Returns the response to a call of a service that this server does not have.
pub fn unknown_service(metrics: Arc<Metrics>) -> Response<Body> {
    CallMetrics::new(metrics, "unknown").respond(status::method_unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    use hyper::service::Service;

    #[tokio::test]
    async fn panic_of_a_handler_is_an_unknown_outcome() {
        let service = CallService {
            inner: tower::service_fn(async |_: Request<Full<Bytes>>| -> Result<Response<Body>, Infallible> {
                panic!("planted by the test")
            }),
            metrics: Arc::default(),
            limits: CallLimits {
                call_timeout: Duration::from_secs(10),
                response_timeout: Duration::from_secs(10),
                largest_session: 1,
            },
            message_budget: Arc::new(Semaphore::new(100)),
            response_budget: Arc::new(Semaphore::new(100)),
            suspensions: Arc::new(Suspensions::new()),
            audit_log: Arc::default(),
        };
        let body = Full::new(Bytes::from_static(&[0; 5]));
        let mut request = Request::post("/sessiond.v1.SessionService/CreateSession").body(body).unwrap();
        let authenticator = crate::auth::Authenticator::new(None, None);
        let requester = authenticator.authenticate(request.headers(), None, std::time::SystemTime::now()).unwrap();
        let peer = Arc::new(Peer::new(([127, 0, 0, 1], 1).into(), None, None));
        request.extensions_mut().insert(Admitted { requester, peer });
        let call = async {
            let response = Service::call(&service, request).await.unwrap();
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), Code::Unknown);
            let reason = tonic_types::StatusExt::get_details_error_info(&status).unwrap().reason;
            assert_eq!(reason, "OUTCOME_UNKNOWN");
        };
        stream::run_stream(Arc::new(Semaphore::new(100)), Box::pin(call)).await;
        assert_eq!(service.response_budget.available_permits(), 100);
    }
}
