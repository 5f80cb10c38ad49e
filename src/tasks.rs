//! The only place that spawns. Every task is owned and has a name; where one ends that should not, the process stops.

use std::future::Future;

use tokio::{task::JoinSet, time::Instant};

/// The tasks of the process.
#[derive(Default)]
pub struct Tasks(JoinSet<&'static str>);

impl Tasks {
    /// Runs until the process ends; its own end is told by [`Tasks::first_end`].
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    pub fn spawn<T>(&mut self, name: &'static str, task: impl Future<Output = T> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Returns the name of a task that ended or panicked.
    pub async fn first_end(&mut self) -> &'static str {
        match self.0.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(_)) => "a task that panicked",
            None => std::future::pending().await,
        }
    }

    pub async fn stop(mut self) {
        self.0.shutdown().await;
    }
}

/// The tasks of open connections.
#[derive(Default)]
pub struct Connected(JoinSet<()>);

impl Connected {
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    pub fn spawn(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(connection);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns when one has ended; never where there is none.
    pub async fn one_ended(&mut self) {
        if self.0.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    /// Waits for all; at the deadline cuts those that are left, and answers false.
    pub async fn all_ended(&mut self, deadline: Instant) -> bool {
        let all = async { while self.0.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout_at(deadline, all).await.is_ok();
        self.0.shutdown().await;
        in_time
    }
}
