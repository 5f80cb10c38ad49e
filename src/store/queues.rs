//! Queues of content changes, one per session: within an instance they do not conflict with each other.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex as SyncMutex;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::{Instant, timeout_at},
};

use super::error::Error;
use crate::session::{SessionId, SessionRef};

/// Queues by session id. A queue exists while a call waits in it or has its turn.
#[derive(Default)]
pub(super) struct Queues(Arc<SyncMutex<HashMap<SessionId, Arc<Mutex<()>>>>>);

/// Place at the head of a queue, until it is dropped.
pub(super) struct QueueGuard {
    queues: Arc<SyncMutex<HashMap<SessionId, Arc<Mutex<()>>>>>,
    id: SessionId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Queues {
    /// Waits until no earlier call changes the content of the session, at most until the deadline.
    pub(super) async fn wait(&self, name: &SessionRef, deadline: Instant) -> Result<QueueGuard, Error> {
        let queue = self.0.lock().entry(name.id).or_default().clone();
        // Removes the queue again if this call gives up.
        let mut place = QueueGuard { queues: self.0.clone(), id: name.id, guard: None };
        let guard = timeout_at(deadline, queue.lock_owned()).await.map_err(|_| Error::Timeout)?;
        place.guard = Some(guard);
        Ok(place)
    }
}

impl Drop for QueueGuard {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        drop(self.guard.take());
        // Only the map refers to it: no call waits.
        if queues.get(&self.id).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn calls_of_one_session_take_turns_and_leave_no_queue() {
        let queues = Queues::default();
        let name = SessionRef { namespace: "web".parse().unwrap(), id: "a".repeat(26).parse().unwrap() };
        let soon = || Instant::now() + Duration::from_millis(20);
        let first = queues.wait(&name, Instant::now() + Duration::from_secs(5)).await.unwrap();
        assert!(queues.wait(&name, soon()).await.is_err(), "the first call has its turn");
        let second = queues.wait(&name, Instant::now() + Duration::from_secs(5));
        let (second, ()) = tokio::join!(biased; second, async { drop(first) });
        assert!(queues.wait(&name, soon()).await.is_err(), "the second call has its turn");
        drop(second);
        assert!(queues.0.lock().is_empty(), "a queue without calls");
    }
}
