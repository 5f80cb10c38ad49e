//! Sessions whose keys are said to have vanished from Redis, until somebody looks.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::session::SessionName;

/// Names kept; beyond it everything has to be looked at.
const NAMES: usize = 65_536;

#[derive(Default)]
pub struct Vanished {
    names: Mutex<HashSet<SessionName>>,
    some: Notify,
    too_many: Notify,
}

impl Vanished {
    pub fn note(&self, name: SessionName) {
        let mut names = self.names.lock();
        if names.len() >= NAMES {
            return self.too_many.notify_one();
        }
        names.insert(name);
        self.some.notify_one();
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
        std::mem::take(&mut self.names.lock())
    }
}
