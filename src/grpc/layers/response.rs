//! Memory of responses: a budget that limits what unread ones hold, and their bodies, which return it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, body::Body};

use crate::session::Policies;

/// Maximum size of a response of ListSessions, in bytes.
const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Maximum size of a session without its attributes, with the encoding of up to 1,024 attributes, in bytes.
const SESSION_OVERHEAD_BYTES: usize = 32 * 1024;
/// Size of a message up to which it needs no place in the budget while it waits for its reader, in bytes.
const SMALL_BYTES: usize = 4 * 1024;

/// Returns the largest size of a session that a policy allows, in bytes.
pub fn largest_session(policies: &Policies) -> usize {
    let payloads = policies.all().map(|policy| policy.max_payload_bytes);
    payloads.max().unwrap_or_default() + SESSION_OVERHEAD_BYTES
}

/// Returns the size of the largest response to a unary call, in bytes.
pub fn largest_response(policies: &Policies) -> usize {
    largest_session(policies).max(MAX_PAGE_BYTES)
}

/// What the response of a method contains, which limits its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No session.
    Small,
    /// One session.
    Session,
    /// A page of sessions.
    Page,
    /// A stream of batches, each of which gets its own place in the budget.
    Stream,
}

impl Content {
    /// Returns the maximum size of a response in bytes. None: it needs no place in the budget.
    pub(super) fn max_bytes(self, largest_session: usize) -> Option<usize> {
        match self {
            Content::Small | Content::Stream => None,
            Content::Session => Some(largest_session),
            Content::Page => Some(MAX_PAGE_BYTES),
        }
    }
}

/// Bytes that a response may hold, taken from the budget of its connection and from that of the server.
pub(super) struct Reservation {
    connection: OwnedSemaphorePermit,
    server: OwnedSemaphorePermit,
}

impl Reservation {
    /// Waits until both budgets have this many bytes. The connection comes first, so that one whose client does not read
    /// waits for its own responses.
    pub(super) async fn new(connection: Arc<Semaphore>, server: Arc<Semaphore>, bytes: usize) -> Self {
        Reservation { connection: acquire(connection, bytes).await, server: acquire(server, bytes).await }
    }

    /// Returns what exceeds this number of bytes. A reservation never grows: the response of a session that was stored
    /// under an earlier, larger policy is larger than its place.
    fn shrink_to(&mut self, bytes: usize) {
        for permit in [&mut self.connection, &mut self.server] {
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
    }
}

/// Waits until the budget has this many bytes, and takes them.
async fn acquire(budget: Arc<Semaphore>, bytes: usize) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    #[expect(clippy::expect_used, reason = "the budgets are never closed")]
    budget.acquire_many_owned(bytes).await.expect("the budget is open")
}

/// A message and its place in the budget, which returns when h2 has sent or discarded the message.
struct Held {
    message: Bytes,
    _reservation: Option<Reservation>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

/// Body of a response.
///
/// Of a large message it hands out the last byte by itself. hyper takes it when the client has room for all bytes before
/// it. Until then the stream stays open, so that it can be reset, and the call makes no further message.
pub struct ResponseBody {
    inner: Body,
    /// Place of the first message in the budget. None: it has none, or the message has it.
    reservation: Option<Reservation>,
    /// Last byte of a message, the rest of which was handed out.
    last_byte: Option<Bytes>,
}

/// The body of an error, whose status is in the headers.
impl Default for ResponseBody {
    fn default() -> Self {
        ResponseBody::new(Body::empty(), None)
    }
}

impl ResponseBody {
    /// Body of a response whose message holds this place in the budget. None: it needs none.
    pub(super) fn new(inner: Body, reservation: Option<Reservation>) -> Self {
        ResponseBody { inner, reservation, last_byte: None }
    }

    /// Returns the first part of a message and keeps the rest.
    fn split(&mut self, message: Bytes) -> Bytes {
        let mut reservation = self.reservation.take();
        if message.len() <= SMALL_BYTES {
            return message;
        }
        let mut message = match &mut reservation {
            None => message,
            Some(place) => {
                place.shrink_to(message.len());
                Bytes::from_owner(Held { message, _reservation: reservation })
            }
        };
        self.last_byte = Some(message.split_off(message.len() - 1));
        message
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(last_byte) = self.last_byte.take() {
            return Poll::Ready(Some(Ok(Frame::data(last_byte))));
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.into_data() {
                Ok(message) => Frame::data(self.split(message)),
                Err(other) => other,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.last_byte.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn large_response_keeps_its_place_until_h2_drops_it() {
        let [connection, server] = [(); 2].map(|()| Arc::new(Semaphore::new(10_000)));
        let available = || (connection.available_permits(), server.available_permits());
        for (length, used) in [(SMALL_BYTES, 0), (SMALL_BYTES + 1, SMALL_BYTES + 1), (12_000, 10_000)] {
            let reservation = Reservation::new(connection.clone(), server.clone(), 10_000).await;
            let message = Bytes::from(vec![7; length]);
            let mut body = ResponseBody::new(Body::new(Full::new(message.clone())), Some(reservation));
            assert_eq!(available(), (0, 0));
            let mut parts = Vec::new();
            while let Some(frame) = body.frame().await {
                parts.push(frame.unwrap().into_data().unwrap());
                assert_eq!(available(), (10_000 - used, 10_000 - used), "{length} bytes");
            }
            assert_eq!(parts.concat(), message);
            assert_eq!(parts.last().unwrap().len() == 1, length > SMALL_BYTES, "{length} bytes");
            drop(body);
            assert_eq!(available(), (10_000 - used, 10_000 - used), "{length} bytes");
            drop(parts);
            assert_eq!(available(), (10_000, 10_000));
        }
    }
}
