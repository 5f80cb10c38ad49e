//! Queue of sessions whose ids have to be removed from subject indexes.

use tokio::{
    sync::{Mutex, mpsc},
    time::Instant,
};

use super::index_entry::INDEX_PAGE;
use crate::session::{SessionId, Subject};

/// Maximum number of ids that wait for removal; the next reconciliation finds those that do not fit.
const WAITING: usize = 65_536;

/// A session that no longer has its subject.
pub struct Left {
    /// Subject that it had.
    pub subject: Subject,
    /// Id of the session.
    pub id: SessionId,
    /// Reason.
    pub reason: LeaveReason,
}

/// Reason why a session no longer has its subject.
pub enum LeaveReason {
    /// The session ended at this time.
    Ended(Instant),
    /// The session lives on without the subject.
    Left {
        /// Time of the change in us; earlier reservations are void.
        at: u64,
    },
}

/// Queue of sessions whose ids have to be removed from subject indexes.
pub(super) struct Leaving {
    sender: mpsc::Sender<Left>,
    receiver: Mutex<mpsc::Receiver<Left>>,
}

impl Default for Leaving {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Leaving { sender, receiver: Mutex::new(receiver) }
    }
}

impl Leaving {
    /// Queues a session. If the queue is full, the next reconciliation finds it.
    pub(super) fn note(&self, left: Left) {
        let _ = self.sender.try_send(left);
    }

    /// Waits for queued sessions and takes them out; at least one.
    pub(super) async fn next(&self) -> Vec<Left> {
        let mut left = Vec::new();
        self.receiver.lock().await.recv_many(&mut left, INDEX_PAGE).await;
        left
    }
}
