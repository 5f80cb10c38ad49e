//! What every call of the service passes first: its one message is read whole, its deadline set, its outcome counted.
//!
//! tonic answers OUT_OF_RANGE to a message that is too large, accepts two messages on a unary call, and lets a call
//! whose message never comes wait for ever; the contract says otherwise.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tonic::{Code, Status, body::Body, server::NamedService};
use tower::Service;

use super::{Deadline, status};
use crate::observe::Metrics;

/// Of a request's message, in bytes.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Of all requests under way together, in bytes.
pub const MAX_MESSAGES: usize = 256 * 1024 * 1024;
/// Flag of compression and length stand before a message.
const FRAME_HEADER: usize = 5;

/// Names of all methods: what stands in metrics is none of the caller's text.
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

/// Wraps the service.
#[derive(Clone)]
pub struct Guard<S> {
    pub inner: S,
    pub metrics: Arc<Metrics>,
    /// Longest time of a call.
    pub call_timeout: Duration,
    /// Bytes that requests under way may still take.
    pub room: Arc<Semaphore>,
}

impl<S: NamedService> NamedService for Guard<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Guard<S>
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
        let (record, room) = (CallRecord::new(self.metrics.clone(), method), self.room.clone());
        let asked = grpc_timeout(&parts.headers).unwrap_or(self.call_timeout);
        let deadline = Instant::now() + answer_within(asked.min(self.call_timeout));
        Box::pin(async move {
            // What it takes is given back once the call is answered.
            let (message, _taken) = match timeout_at(deadline, read_message(body, &room)).await {
                Ok(Ok(read)) => read,
                Ok(Err(status)) => return Ok(record.answer(status)),
                Err(_) => return Ok(record.answer(status::request_timeout())),
            };
            parts.extensions.insert(Deadline(deadline));
            parts.extensions.insert(record.clone());
            let response = inner.call(Request::from_parts(parts, Body::new(Full::new(message)))).await?;
            match Status::from_header_map(response.headers()) {
                // tonic's word for a message that it cannot decode: the service itself never answers INTERNAL.
                Some(answer) if answer.code() == Code::Internal => {
                    return Ok(record.answer(status::malformed_message(answer.message())));
                }
                Some(answer) => record.finish(answer.code()),
                // The stream tells its own end.
                None if method == "Watch" => {}
                None => record.finish(Code::Ok),
            }
            Ok(response)
        })
    }
}

/// A little less than the call has, so that the answer, with what may have been applied, is there before the caller's own
/// timer gives the call up.
fn answer_within(asked: Duration) -> Duration {
    const MOST: Duration = Duration::from_millis(50);
    asked - (asked / 10).min(MOST)
}

/// The request's one message, with the frame around it.
async fn read_message(mut body: Body, room: &Arc<Semaphore>) -> Result<(Bytes, Vec<OwnedSemaphorePermit>), Status> {
    let (mut whole, mut taken) = (BytesMut::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if whole.len() + data.len() > FRAME_HEADER + MAX_MESSAGE {
            return Err(status::message_too_large("request", MAX_MESSAGE));
        }
        let bytes = room.clone().try_acquire_many_owned(data.len() as u32);
        taken.push(bytes.map_err(|_| status::overloaded())?);
        whole.extend_from_slice(&data);
    }
    let Some(header) = whole.first_chunk::<FRAME_HEADER>() else {
        return Err(status::malformed_message("the call has no message"));
    };
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    match (whole.len() - FRAME_HEADER).cmp(&length) {
        std::cmp::Ordering::Equal => Ok((whole.freeze(), taken)),
        std::cmp::Ordering::Less => Err(status::malformed_message("the call's message is cut short")),
        std::cmp::Ordering::Greater => Err(status::malformed_message("the call has more than one message")),
    }
}

/// The header `grpc-timeout`: up to eight digits and a unit. A malformed one is as none.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Counts a call once: with the code it ended with, or as cancelled when it is dropped before.
#[derive(Clone)]
pub struct CallRecord(Arc<Recorded>);

struct Recorded {
    metrics: Arc<Metrics>,
    method: &'static str,
    started: Instant,
    code: std::sync::OnceLock<Code>,
}

impl CallRecord {
    fn new(metrics: Arc<Metrics>, method: &'static str) -> Self {
        CallRecord(Arc::new(Recorded { metrics, method, started: Instant::now(), code: std::sync::OnceLock::new() }))
    }

    pub fn finish(&self, code: Code) {
        let _ = self.0.code.set(code);
    }

    fn answer(&self, status: Status) -> Response<Body> {
        self.finish(status.code());
        status.into_http()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let code = self.code.get().copied().unwrap_or(Code::Cancelled);
        self.metrics.call(self.method, code_name(code), self.started.elapsed());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_says() {
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for malformed in ["", "5", "m", "-1S", "123456789S", "1x", "1\u{e9}"] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }

    fn read(text: &str) -> Option<Duration> {
        let value = http::HeaderValue::from_bytes(text.as_bytes()).unwrap();
        grpc_timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), value)]))
    }

    #[tokio::test]
    async fn requests_that_take_more_than_there_is_room_for_are_told_so_and_give_it_back() {
        let (room, body) =
            (Arc::new(Semaphore::new(FRAME_HEADER + 3)), || Body::new(Full::new(Bytes::from("\0\0\0\0\x03abc"))));
        let (message, taken) = read_message(body(), &room).await.unwrap();
        assert_eq!((message.len(), room.available_permits()), (FRAME_HEADER + 3, 0));
        assert_eq!(read_message(body(), &room).await.unwrap_err().code(), Code::Unavailable);
        drop(taken);
        read_message(body(), &room).await.unwrap();
    }
}
