//! Faults of the keys of a partition: its log, a due set or its set of namespaces is deleted, or replaced by a key of
//! another type.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use rustix::process::Signal;

use super::Fault;
use crate::{
    environment::{Environment, partition_of},
    fault_observed::Evidence,
    recorder::now,
};
use harness::eventually;

/// Kind of the key that is damaged.
#[derive(Clone, Copy)]
pub enum BrokenKey {
    /// The log of a partition.
    Log,
    /// The set of deadlines of a namespace in a partition.
    DueSet,
    /// The set of namespaces of a partition.
    NamespaceSet,
}

/// What happens to the key.
#[derive(Clone, Copy)]
pub enum Damage {
    /// It is deleted.
    Deleted,
    /// It is replaced by a string.
    Replaced,
}

/// The key of a random partition is damaged.
pub struct KeyBroken {
    pub key: BrokenKey,
    pub damage: Damage,
}

impl KeyBroken {
    fn pattern(&self) -> &'static str {
        match self.key {
            BrokenKey::Log => "ses:*:log",
            BrokenKey::DueSet => "ses:*:due:web",
            BrokenKey::NamespaceSet => "ses:*:ns",
        }
    }
}

impl Fault for KeyBroken {
    fn name(&self) -> &'static str {
        match (self.key, self.damage) {
            (BrokenKey::Log, Damage::Deleted) => "log key deleted",
            (BrokenKey::Log, Damage::Replaced) => "log key replaced by a string",
            (BrokenKey::DueSet, Damage::Deleted) => "due set deleted",
            (BrokenKey::DueSet, Damage::Replaced) => "due set replaced by a string",
            (BrokenKey::NamespaceSet, Damage::Deleted) => "namespace set deleted",
            (BrokenKey::NamespaceSet, Damage::Replaced) => "namespace set replaced by a string",
        }
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let redis = env.redis.clone();
            let keys = eventually("a key of this kind", async || {
                Some(redis.keys(self.pattern())).filter(|keys| !keys.is_empty())
            })
            .await;
            let key = &keys[env.rng.below(keys.len())];
            let partition = partition_of(key);
            env.stop_instances().await;
            env.confirmed += usize::try_from(redis.number(&["DEL", key])).unwrap_or(0);
            if let Damage::Replaced = self.damage {
                redis.must(&["SET", key, "replaced"]);
            }
            match self.key {
                BrokenKey::Log => env.trace.trimmed.push((partition, env.reader.end(partition))),
                BrokenKey::DueSet => env.trace.lost_due_sets.push((partition, now())),
                BrokenKey::NamespaceSet => {}
            }
            env.signal_instances(Signal::CONT);
        })
    }

    /// Deletes the strings. A set that sessiond has repaired stays.
    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            for key in env.redis.keys(self.pattern()) {
                if env.redis.command(&["TYPE", &key]) == "+string\r\n" {
                    env.redis.command(&["DEL", &key]);
                }
            }
        })
    }
}
