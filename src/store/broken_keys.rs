//! Keys of the store that another client may have overwritten with another type.

use std::collections::BTreeSet;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Keys that may have another type. The commands of workers and calls find them: Redis refuses those with WRONGTYPE.
#[derive(Default)]
pub(super) struct BrokenKeys {
    /// Keys of refused commands that have not been checked.
    pub suspects: Mutex<BTreeSet<String>>,
    /// Notified when a key was added to `suspects`.
    pub added: Notify,
    /// Keys that have another type and were not deleted.
    pub announced: Mutex<BTreeSet<String>>,
}

impl BrokenKeys {
    /// Notes the keys of a command that Redis refused because one of them has another type.
    pub(super) fn note(&self, keys: &[Bytes]) {
        let keys = keys.iter().filter_map(|key| std::str::from_utf8(key).ok());
        self.suspects.lock().extend(keys.map(str::to_owned));
        self.added.notify_one();
    }
}
