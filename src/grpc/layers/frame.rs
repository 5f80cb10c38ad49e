//! The frame of a request: reads exactly one message within its size limit and the server's message budget.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::Status;

use crate::grpc::status;

/// Maximum size of the message of a request, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Maximum size of all messages that the server holds at the same time, in bytes.
pub const MAX_TOTAL_MESSAGE_BYTES: usize = 256 * 1024 * 1024;
/// Size of the header of a frame: one byte for compression, four for the length of the message.
const FRAME_HEADER: usize = 5;

/// Maximum size of the rest of a refused request that is read and dropped.
const MAX_DISCARDED_BYTES: usize = 64 * 1024;
/// Maximum time that it is waited for.
const DISCARD_TIME: Duration = Duration::from_millis(250);

/// Reads the rest of a refused request and drops it. Without this, the response would reset the stream; h2 closes a connection,
/// with its other calls, after 100 streams whose data arrives later.
pub async fn discard(body: &mut (impl Body<Data = Bytes> + Unpin)) {
    let reading = async {
        let mut left = MAX_DISCARDED_BYTES;
        while let Some(Ok(part)) = body.frame().await {
            let bytes = part.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(bytes) else { return };
            left = rest;
        }
    };
    // A client that sends on is reset.
    let _ = timeout(DISCARD_TIME, reading).await;
}

/// Reads the body, which must be one frame. Returns the frame, and the permit that it holds of the budget.
pub(super) async fn read_message(
    body: &mut (impl Body<Data = Bytes> + Unpin),
    budget: &Arc<Semaphore>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Status> {
    let mut message = BytesMut::new();
    let mut permit: Option<OwnedSemaphorePermit> = None;
    while let Some(part) = body.frame().await {
        let part = part.map_err(|_| status::malformed_message("the request was not received completely"))?;
        let Ok(data) = part.into_data() else { continue };
        if message.len() + data.len() > FRAME_HEADER + MAX_MESSAGE_BYTES {
            return Err(status::message_too_large("request", MAX_MESSAGE_BYTES));
        }
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let more = budget.clone().try_acquire_many_owned(bytes).map_err(|_| status::overloaded())?;
        match &mut permit {
            Some(permit) => permit.merge(more),
            None => permit = Some(more),
        }
        // Copied: a part would keep the whole read buffer of its connection, which the budget does not count.
        message.extend_from_slice(&data);
    }
    let Some(&[_, length @ ..]) = message.first_chunk::<FRAME_HEADER>() else {
        return Err(status::malformed_message("the request has no message"));
    };
    let received = (message.len() - FRAME_HEADER) as u64;
    match received.cmp(&u64::from(u32::from_be_bytes(length))) {
        Ordering::Equal => Ok((message.freeze(), permit)),
        Ordering::Less => Err(status::malformed_message("the message of the request is incomplete")),
        Ordering::Greater => Err(status::malformed_message("the request has more than one message")),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn message_beyond_the_budget_is_rejected_until_permits_return() {
        let budget = Arc::new(Semaphore::new(FRAME_HEADER + 3));
        let body = || Full::new(Bytes::from("\0\0\0\0\x03abc"));
        let (message, permit) = read_message(&mut body(), &budget).await.unwrap();
        assert_eq!((message.len(), budget.available_permits()), (FRAME_HEADER + 3, 0));
        assert_eq!(read_message(&mut body(), &budget).await.unwrap_err().code(), Code::Unavailable);
        drop(permit);
        read_message(&mut body(), &budget).await.unwrap();
    }
}
