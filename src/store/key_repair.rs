//! Finds keys of the store that another client has overwritten with another type. Deletes those that can be rebuilt, and
//! announces the others.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{
    Store,
    keys::{KeyKind, Partition},
    replies::RepairReply,
    scripts,
};

impl Store {
    /// Returns when Redis has refused a command because of the type of a key.
    pub async fn wait_for_suspect_keys(&self) {
        self.broken_keys.added.notified().await;
    }

    /// Returns the keys that have another type and cannot be rebuilt, each with what to do.
    pub fn broken_keys(&self) -> Vec<String> {
        let announced = self.broken_keys.announced.lock();
        announced.iter().map(|key| format!("key {key} has another Redis type; delete it")).collect()
    }

    /// Checks the keys of refused commands, and those found earlier. Deletes keys of another type that can be rebuilt. Returns
    /// the partitions whose due sets have to be rebuilt. A key that cannot be checked is left to the next call.
    pub async fn repair_keys(&self, deadline: Instant) -> BTreeSet<Partition> {
        let mut keys = std::mem::take(&mut *self.broken_keys.suspects.lock());
        keys.extend(self.broken_keys.announced.lock().iter().cloned());
        let mut without_due_sets = BTreeSet::new();
        for key in keys {
            // An unreadable session is reported by its own calls.
            let Some((partition, kind)) = self.keys.kind_of_key(&key) else { continue };
            let declared = vec![key.clone().into(), self.keys.meta(partition)];
            let args = vec![kind.name().into()];
            let reply = self.run(partition, &scripts::REPAIR, declared, args, deadline).await;
            match reply.and_then(RepairReply::decode) {
                Ok(RepairReply::Deleted) => {
                    log_deleted(&key, kind);
                    if matches!(kind, KeyKind::Due | KeyKind::Namespaces) {
                        without_due_sets.insert(partition);
                    }
                }
                Ok(RepairReply::NotRebuilt) => {
                    if self.broken_keys.announced.lock().insert(key.clone()) {
                        crate::observe::warning!(
                            key,
                            "subject index has another Redis type; calls for its subject fail; delete the key, and the \
                             next reconciliation adds the sessions of the subject: until then its lists, limits and \
                             deletes by subject miss them"
                        );
                    }
                }
                Ok(RepairReply::Intact) => {
                    if self.broken_keys.announced.lock().remove(&key) {
                        tracing::info!(key, "key no longer has another Redis type");
                    }
                }
                Err(error) => {
                    tracing::debug!(key, %error, "type check of a key failed; retrying");
                    self.broken_keys.suspects.lock().insert(key);
                }
            }
        }
        without_due_sets
    }
}

fn log_deleted(key: &str, kind: KeyKind) {
    let consequence = match kind {
        KeyKind::Meta => "the partition is initialised again; watchers receive resync",
        KeyKind::Log => "watchers that resume from an older position receive resync",
        KeyKind::Namespaces | KeyKind::Due => "the sessions of the partition are scheduled again",
        KeyKind::Subject => "",
    };
    crate::observe::warning!(key, consequence, "key had another Redis type; deleted");
}
