//! The HTTP/2 stream of a call: the response budget of its connection, and the condition on which it is reset.
//!
//! After a response was handed to hyper, only its stream is polled, and only when the client reads. Dropping the stream
//! makes h2 send RST_STREAM(CANCEL), discard the unsent bytes, and drop the call with all that it holds.

use std::{
    cell::RefCell,
    future::{pending, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::stream::{AbortHandle, AbortRegistration, Abortable};
use tokio::{sync::Semaphore, time::sleep};

tokio::task_local! {
    static CURRENT: Current;
}

/// The stream of the current task.
struct Current {
    connection_budget: Arc<Semaphore>,
    /// Condition that the call has set. None: no new one since the last poll.
    reset: RefCell<Option<ResetCondition>>,
}

/// When a stream that has not ended is reset.
enum ResetCondition {
    /// After this time.
    After(Duration),
    /// When the handle of this registration is aborted.
    Aborted(AbortRegistration),
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The response was handed to h2 completely, or the client or the connection ended the stream.
    Finished,
    /// It was reset, because its client did not read the response in time.
    Reset,
}

/// Runs the stream of one call, whose connection has this response budget, until it ends or must be reset.
///
/// The stream is boxed, because it is large: each future around it would contain it twice.
pub async fn run_stream(
    connection_budget: Arc<Semaphore>,
    mut stream: Pin<Box<impl Future<Output = ()>>>,
) -> StreamEnd {
    let current = Current { connection_budget, reset: RefCell::new(None) };
    let run = async {
        let mut reset = None;
        poll_fn(|context| {
            if stream.as_mut().poll(context).is_ready() {
                return Poll::Ready(StreamEnd::Finished);
            }
            // A stream that ends in the poll in which its response became ready needs no timer.
            if let Some(condition) = CURRENT.with(|current| current.reset.take()) {
                reset = Some(Box::pin(condition.reached()));
            }
            match &mut reset {
                Some(reached) => reached.as_mut().poll(context).map(|()| StreamEnd::Reset),
                None => Poll::Pending,
            }
        })
        .await
    };
    CURRENT.scope(current, run).await
}

impl ResetCondition {
    async fn reached(self) {
        match self {
            ResetCondition::After(time) => sleep(time).await,
            ResetCondition::Aborted(registration) => drop(Abortable::new(pending::<()>(), registration).await),
        }
    }
}

/// Returns the response budget of the connection of this stream.
pub(super) fn connection_budget() -> Arc<Semaphore> {
    CURRENT.with(|current| current.connection_budget.clone())
}

/// Resets this stream if it has not ended after this time.
pub(super) fn reset_after(time: Duration) {
    CURRENT.with(|current| current.reset.replace(Some(ResetCondition::After(time))));
}

/// Returns a handle that resets this stream when it is aborted.
pub(super) fn reset_handle() -> AbortHandle {
    let (handle, registration) = AbortHandle::new_pair();
    CURRENT.with(|current| current.reset.replace(Some(ResetCondition::Aborted(registration))));
    handle
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(stream: impl Future<Output = ()>) -> StreamEnd {
        run_stream(Arc::new(Semaphore::new(0)), Box::pin(stream)).await
    }

    #[tokio::test]
    async fn stream_is_reset_on_the_condition_of_its_call() {
        let unread = async {
            reset_after(Duration::from_millis(1));
            std::future::pending().await
        };
        assert_eq!(run(unread).await, StreamEnd::Reset);
        let aborted = async {
            reset_handle().abort();
            std::future::pending().await
        };
        assert_eq!(run(aborted).await, StreamEnd::Reset);
        assert_eq!(run(async { reset_after(Duration::ZERO) }).await, StreamEnd::Finished);
    }
}
