//! The record of one history of the near cache: the input of the check.

use std::{collections::HashSet, fmt};

use crate::{
    ground_truth::Entry,
    history::{Micros, Operation},
};

/// What the Redis of a history can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It restarts with its data, with an earlier snapshot, or without data.
    Restarts,
    /// A replica without the last writes replaces it.
    FailsOver,
    /// Its clock steps.
    StepsClock,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 3] = [Kind::Restarts, Kind::FailsOver, Kind::StepsClock];
}

/// Time in which Redis had one history: from a start, a rollback or a flush to the next one that can lose writes.
#[derive(Clone)]
pub struct Epoch {
    /// Interval that contains its begin.
    pub from: [Micros; 2],
    /// Interval that contains its end. Changes after the first of both times may be missing in `log`.
    pub until: [Micros; 2],
    /// Time after which the next epoch has no access of this one: that of the data with which it began.
    pub kept_until: Micros,
    /// All entries of all partitions, in the order of each log.
    pub log: Vec<Entry>,
}

/// The record of a live session that was deleted directly in Redis.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// Session id.
    pub id: String,
    /// Time before the deletion.
    pub from: Micros,
    /// Time after the deletion.
    pub until: Micros,
}

/// A fault, with the times before and after it.
#[derive(Clone, Debug)]
pub struct Disturbance {
    /// Fault, and number of the instance that it concerns.
    pub name: String,
    /// Time before the fault.
    pub from: Micros,
    /// Time after the fault.
    pub until: Micros,
}

/// Record of one history.
pub struct Recording {
    /// Seed of all random choices. 0: constructed.
    pub seed: u64,
    /// What its Redis can do.
    pub kind: Kind,
    /// Whether revisions are not the times of the changes, because the clock of Redis stepped.
    pub steps_clock: bool,
    /// Calls in the order of their returns.
    pub operations: Vec<Operation>,
    /// Epochs, one after the other.
    pub epochs: Vec<Epoch>,
    /// Deletions directly in Redis.
    pub deletions: Vec<Deletion>,
    /// Faults, one after the other.
    pub disturbances: Vec<Disturbance>,
}

impl Recording {
    /// Returns the number of log entries of all epochs, each counted once.
    pub fn log_entries(&self) -> usize {
        let entries = self.epochs.iter().flat_map(|epoch| &epoch.log);
        entries.map(|entry| (&entry.id, entry.position)).collect::<HashSet<_>>().len()
    }

    /// Returns the faults between these times.
    pub fn disturbances_between(&self, from: Micros, until: Micros) -> impl Iterator<Item = &Disturbance> {
        self.disturbances.iter().filter(move |disturbance| disturbance.from <= until && from <= disturbance.until)
    }

    /// Returns whether there was a fault between these times.
    pub fn is_disturbed(&self, from: Micros, until: Micros) -> bool {
        self.disturbances_between(from, until).next().is_some()
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SEED={} {:?}", self.seed, self.kind)?;
        self.disturbances.iter().try_for_each(|disturbance| writeln!(f, "{disturbance:?}"))?;
        self.deletions.iter().try_for_each(|deletion| writeln!(f, "{deletion:?}"))?;
        for Epoch { from, until, kept_until, log } in &self.epochs {
            writeln!(f, "epoch from {from:?} until {until:?}, kept until {kept_until}")?;
            for Entry { position, id, kind, cause, .. } in log {
                writeln!(f, "    {position:?} {kind:?} {cause:?} {id}")?;
            }
        }
        for Operation { client, instance, called, returned, call, outcome } in &self.operations {
            writeln!(f, "client {client}, instance {instance}, {called}-{returned}: {call:?}\n    {outcome:?}")?;
        }
        Ok(())
    }
}
