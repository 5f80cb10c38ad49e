//! The streams of one connection: runs each as a task, and counts connections whose streams are at the limit.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Semaphore;

use crate::{
    grpc::{StreamEnd, run_stream},
    observe::Metrics,
    tasks,
};

/// Executor of hyper for the streams of one connection.
#[derive(Clone)]
pub(super) struct Streams(Arc<Shared>);

struct Shared {
    metrics: Arc<Metrics>,
    /// Bytes that responses of the connection may still hold.
    response_budget: Arc<Semaphore>,
    /// Number of open streams at which the client must wait.
    limit: usize,
    open: AtomicUsize,
}

impl Streams {
    /// Streams of a new connection, of which at most `limit` may be open.
    pub(super) fn new(limit: u32, response_budget: usize, metrics: Arc<Metrics>) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let response_budget = Arc::new(Semaphore::new(response_budget));
        Streams(Arc::new(Shared { metrics, response_budget, limit, open: AtomicUsize::new(0) }))
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (open, stream) = (OpenStream::new(self.0.clone()), Box::pin(stream));
        tasks::spawn_stream(async move {
            let end = run_stream(open.0.response_budget.clone(), stream).await;
            if end == StreamEnd::Reset {
                open.0.metrics.grpc_streams_reset.inc();
            }
        });
    }
}

/// Counts an open stream of a connection until it is dropped.
struct OpenStream(Arc<Shared>);

impl OpenStream {
    fn new(connection: Arc<Shared>) -> Self {
        if connection.open.fetch_add(1, Ordering::Relaxed) + 1 == connection.limit {
            connection.metrics.grpc_connections_at_stream_limit.inc();
        }
        OpenStream(connection)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == self.0.limit {
            self.0.metrics.grpc_connections_at_stream_limit.dec();
        }
    }
}
