//! Owns every task: the only module that spawns. A task of the process that ends before shutdown stops the process.

use std::{
    future::{Future, poll_fn},
    task::Poll,
};

use tokio::{task::JoinSet, time::Instant};

/// Tasks that run until the process stops, each with a name.
#[derive(Default)]
pub struct Tasks(JoinSet<&'static str>);

impl Tasks {
    /// Starts a task. [`Tasks::first_ended`] reports its end.
    #[expect(clippy::disallowed_methods, reason = "this module owns all tasks")]
    pub fn spawn<T>(&mut self, name: &'static str, task: impl Future<Output = T> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until a task has ended or panicked, and returns its name.
    pub async fn first_ended(&mut self) -> &'static str {
        match self.0.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(_)) => "a task that panicked",
            None => std::future::pending().await,
        }
    }

    /// Aborts all tasks and waits for their ends.
    pub async fn stop(mut self) {
        self.0.shutdown().await;
    }
}

/// Tasks of open connections, one per connection.
#[derive(Default)]
pub struct ConnectionTasks(JoinSet<()>);

impl ConnectionTasks {
    /// Starts the task of a connection.
    #[expect(clippy::disallowed_methods, reason = "this module owns all tasks")]
    pub fn spawn(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(connection);
    }

    /// Returns the number of open connections.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Waits until one connection has ended. Never returns while none is open.
    pub async fn wait_for_one(&mut self) {
        if self.0.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    /// Waits until all connections have ended. At the deadline it aborts the remaining ones and returns false.
    pub async fn drain(&mut self, deadline: Instant) -> bool {
        let all_ended = async { while self.0.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout_at(deadline, all_ended).await.is_ok();
        self.0.shutdown().await;
        in_time
    }
}

/// Pauses the task once, so that its owner can drop it before what follows: hyper drops a call whose client has reset it,
/// perhaps long ago, because the reset was received together with the request.
pub async fn pause_once() {
    let mut has_paused = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs steps to their end, also if the caller gives up in between. Runs none if it has given up before.
#[expect(clippy::disallowed_methods, reason = "this module owns all tasks")]
pub async fn run_to_end<T: Send + 'static>(steps: impl Future<Output = T> + Send + 'static) -> T {
    pause_once().await;
    match tokio::spawn(steps).await {
        Ok(result) => result,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// Runs what waits for the file system, on a thread for such work.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// Starts the task of one stream of a connection. It ends with its connection, because h2 then fails its stream.
#[expect(clippy::disallowed_methods, reason = "this module owns all tasks")]
pub fn spawn_stream(stream: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(stream);
}
