//! Sessions whose keys are said to have vanished from Redis, until somebody looks.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::session::SessionName;

/// Names kept; of vanished ones beyond it everything has to be looked at.
const NAMES: usize = 65_536;

/// Held against the feed: a key that our own ending took away is none that vanished.
#[derive(Default)]
pub struct Vanished {
    state: Mutex<State>,
    some: Notify,
    too_many: Notify,
}

#[derive(Default)]
struct State {
    vanished: HashSet<SessionName>,
    /// Whose end was told, since the last turn and in the one before.
    ended: HashSet<SessionName>,
    ended_before: HashSet<SessionName>,
}

impl Vanished {
    pub fn note(&self, name: SessionName) {
        let mut state = self.state.lock();
        if state.ended.contains(&name) || state.ended_before.contains(&name) {
            return;
        }
        if state.vanished.len() >= NAMES {
            return self.too_many.notify_one();
        }
        state.vanished.insert(name);
        self.some.notify_one();
    }

    /// The feed told of its end.
    pub fn note_end(&self, name: &SessionName) {
        let mut state = self.state.lock();
        state.vanished.remove(name);
        if state.ended.len() < NAMES {
            state.ended.insert(name.clone());
        }
    }

    /// Forgets the ends told before the last turn.
    pub fn turn(&self) {
        let mut state = self.state.lock();
        state.ended_before = std::mem::take(&mut state.ended);
    }

    /// Some were not heard of.
    pub fn note_missed(&self) {
        self.too_many.notify_one();
    }

    /// Returns once there is one.
    pub async fn some(&self) {
        self.some.notified().await;
    }

    /// Returns once there were more than are kept, or some were missed.
    pub async fn too_many(&self) {
        self.too_many.notified().await;
    }

    pub fn take(&self) -> HashSet<SessionName> {
        std::mem::take(&mut self.state.lock().vanished)
    }
}
