//! The record of one history: calls and their outcomes, all responses of all watches, the faults, and the ground truth.
//!
//! All times are of one clock, because Redis and the tests run on one machine. Revisions, deadlines and `as_of` are by the
//! clock of Redis, which a fault may step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use sessiond_client::v1::{EventType, ResyncReason, SessionEvent};

use crate::ground_truth::{GroundTruth, Position};
pub use crate::redis_time::ClockStep;
use harness::contract::{Call, Reply, Rules};

/// Time in µs since the epoch.
pub type Micros = u64;

/// Record of one history: the input of every validator.
#[derive(Clone)]
pub struct History {
    /// Seed of the fault and of all random choices. 0: constructed.
    pub seed: u64,
    /// Names of the fault and of the topology.
    pub about: String,
    /// Policy of the namespace.
    pub rules: Rules,
    /// Calls in the order of their returns.
    pub operations: Vec<Operation>,
    /// Watches in the order of opening.
    pub watches: Vec<Watch>,
    /// Failed attempts to open a watch.
    pub open_failures: Vec<OpenFailure>,
    /// Faults, one after the other.
    pub faults: Vec<FaultRecord>,
    /// Logs of Redis at the end of the recording.
    pub truth: GroundTruth,
    /// End of the recording, after all due sessions had ended and all watchers had received their events.
    pub ended: Micros,
}

/// A call and its outcome at the client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Number of the client.
    pub client: usize,
    /// Number of the instance that the call was sent to.
    pub instance: usize,
    /// Time before the call was sent.
    pub called: Micros,
    /// Time after the reply or the error was received.
    pub returned: Micros,
    pub call: Call,
    pub outcome: Outcome,
}

impl Operation {
    /// Returns whether this is a write with a response or a rejection.
    pub fn is_answered_write(&self) -> bool {
        !matches!(self.call, Call::Get(_) | Call::List(_) | Call::Touch(_))
            && matches!(self.outcome, Outcome::Answered(_))
    }
}

/// Outcome of a call at the client.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A response, or a rejection that the contract defines.
    Answered(Reply),
    /// Code and reason of an error that guarantees that the call was not applied.
    NotApplied(String),
    /// Code and reason of any other error. The call may have been applied.
    Unknown(String),
}

/// Text in place of the reason of a status without `ErrorInfo`.
pub const WITHOUT_REASON: &str = "without a reason";

/// The sessions that a watch selects.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// All sessions of the namespace.
    Namespace,
    /// Sessions with these ids.
    Ids(BTreeSet<String>),
    /// Sessions of this subject.
    Subject(String),
}

/// Filter of a watch: scope, labels and event types.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// Sessions that the watch selects.
    pub scope: Scope,
    /// Labels that a session must have, with their values. Empty: no filter by label.
    pub labels: BTreeMap<String, String>,
    /// Event types to deliver. Empty: all.
    pub kinds: Vec<EventType>,
}

/// End of a watch whose sessions have all ended: status OK.
pub const CLOSED_COMPLETE: &str = "closed: OK";
/// End of a watch with status OK after a resync with reason SLOW_CONSUMER.
pub const CLOSED_SLOW_CONSUMER: &str = "closed: slow consumer";
/// Prefix of the code and reason of the status that ends a watch.
pub const CLOSED: &str = "closed: ";
/// End of a watch whose watcher closed the stream.
pub const DISCONNECTED: &str = "disconnected";
/// End of a watch whose watcher closed the stream because it received no response for too long.
pub const NO_RESPONSE: &str = "no response";
/// End of a watch that was open when the recording ended.
pub const STILL_OPEN: &str = "still open";
/// Error of an attempt to open a watch at an instance that accepts no connection.
pub const NOT_CONNECTED: &str = "not connected";

/// One Watch stream, from its opening to its end.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Number of the instance.
    pub instance: usize,
    /// Filter of the request.
    pub filter: Filter,
    /// Whether the request asks for a snapshot.
    pub initial_state: bool,
    /// Whether the watcher reads slowly or stops reading during the fault.
    pub is_slow: bool,
    /// Number of the watch whose last token this one resumes. None: it starts without a token.
    pub resumes: Option<usize>,
    /// Responses in the order of receipt.
    pub responses: Vec<Response>,
    /// One of the constants above, or `CLOSED` with code and reason.
    pub end: String,
    /// Time of the end. 0: still open.
    pub ended: Micros,
}

/// An attempt to open a watch that failed.
#[derive(Clone, Debug)]
pub struct OpenFailure {
    /// Filter of the request.
    pub filter: Filter,
    /// Whether the request had a resume token.
    pub resumes: bool,
    /// Time before the attempt.
    pub called: Micros,
    /// Time of the failure.
    pub returned: Micros,
    /// Code and reason, `NOT_CONNECTED` or `NO_RESPONSE`.
    pub error: String,
}

impl Watch {
    /// Returns whether the watch has received a part of its snapshot, but no control response yet.
    pub fn is_in_snapshot(&self) -> bool {
        let has_started = self.initial_state && self.resumes.is_none() && !self.responses.is_empty();
        has_started && self.responses.iter().all(|response| response.control.is_none())
    }
}

/// One response of a watch.
#[derive(Clone)]
pub struct Response {
    /// Time of receipt.
    pub at: Micros,
    /// Events in order.
    pub events: Vec<SessionEvent>,
    /// Control response. None: events only.
    pub control: Option<Control>,
    /// Resume token: the position after the response.
    pub token: DecodedToken,
}

/// Control response of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Control {
    /// The snapshot is complete.
    Synced,
    /// `as_of`: every earlier event has been delivered.
    Bookmark(Micros),
    /// Cause of the gap, and ids of its sessions. Empty: all sessions.
    Resync(ResyncReason, BTreeSet<String>),
}

/// The content of a resume token.
#[derive(Clone, PartialEq)]
pub struct DecodedToken {
    /// Store id.
    pub store: [u8; 16],
    /// One position for each partition.
    pub positions: Vec<Position>,
}

/// An effect that a fault may have. A validator accepts it only if a fault lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Redis may lose acknowledged writes.
    LosesWrites,
    /// Redis restarts, or a partition moves to another server. The service cannot exclude lost writes then.
    RestartsOrMoves,
    /// An instance is killed; its calls fail without a reason.
    KillsInstance,
    /// An instance drains and ends; its watches end with DRAINING, and later calls fail without a reason.
    DrainsInstance,
    /// Watchers stop reading.
    StallsReaders,
}

/// A fault, with its start and end.
#[derive(Clone, Debug)]
pub struct FaultRecord {
    /// Time before the fault was injected.
    pub at: Micros,
    /// Time after the fault was healed.
    pub healed: Micros,
    /// Effects that the fault may have.
    pub effects: Vec<Effect>,
    /// Errors that calls may get because of the fault.
    pub failures: &'static [&'static str],
    /// What it has done to single keys and to the clock of Redis.
    pub trace: Trace,
}

/// Changes of a fault to single keys and to the clock of Redis.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Partition and position of the last removed entry for each trim of a log.
    pub trimmed: Vec<(usize, Position)>,
    /// Ids of sessions whose keys were deleted, and the times of deletion.
    pub deleted_keys: Vec<(String, Micros)>,
    /// Partitions whose due set was deleted, and the times of deletion. A snapshot lacks their sessions until the
    /// reconciler has repaired the set.
    pub lost_due_sets: Vec<(usize, Micros)>,
    /// Step of the clock of Redis. None: it did not step.
    pub clock_step: Option<ClockStep>,
}

impl fmt::Debug for DecodedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", data_encoding::HEXLOWER.encode(&self.store[..2]))?;
        self.positions.iter().try_for_each(|position| write!(f, " {position:?}"))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "    {} {:?}, position {:?}", self.at, self.control, self.token)?;
        for event in &self.events {
            let kind = event.r#type();
            writeln!(f, "        {kind:?} {} {} {:?}", event.id, event.revision, event.cause())?;
        }
        Ok(())
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "SEED={} {}, recorded until {}", self.seed, self.about, self.ended)?;
        for fault in &self.faults {
            writeln!(f, "fault {fault:?}")?;
        }
        for operation in &self.operations {
            let Operation { client, instance, called, returned, call, outcome } = operation;
            writeln!(f, "client {client}, instance {instance}, {called}-{returned}: {call:?}\n    {outcome:?}")?;
        }
        for (number, watch) in self.watches.iter().enumerate() {
            let Watch { instance, filter, initial_state, resumes, responses, end, .. } = watch;
            writeln!(
                f,
                "watch {number}, instance {instance}, resumes {resumes:?}, {filter:?}, snapshot {initial_state}"
            )?;
            responses.iter().try_for_each(|response| write!(f, "{response:?}"))?;
            writeln!(f, "    end: {end}")?;
        }
        for failure in &self.open_failures {
            writeln!(f, "{failure:?}")?;
        }
        write!(f, "{:?}", self.truth)
    }
}

impl History {
    /// Returns the number of acknowledged writes.
    pub fn acknowledged_writes(&self) -> usize {
        let is_acknowledged = |operation: &&Operation| {
            operation.is_answered_write() && !matches!(operation.outcome, Outcome::Answered(Reply::Rejected(..)))
        };
        self.operations.iter().filter(is_acknowledged).count()
    }

    /// Returns whether Redis kept all acknowledged writes: no fault may lose any.
    pub fn is_durable(&self) -> bool {
        !self.faults.iter().any(|fault| fault.effects.contains(&Effect::LosesWrites))
    }

    /// Returns whether a fault that started until `by` may have this effect.
    pub fn has_effect(&self, effect: Effect, by: Micros) -> bool {
        self.faults.iter().any(|fault| fault.at <= by && fault.effects.contains(&effect))
    }

    /// Returns whether the store was emptied, so that a new one replaced it, by a fault that started until `by`.
    pub fn was_flushed(&self, by: Micros) -> bool {
        self.truth.stores.len() > 1 && self.faults.iter().any(|fault| fault.at <= by)
    }

    /// Returns whether the due set of this partition was lost by `by`.
    pub fn has_lost_due_set(&self, partition: usize, by: Micros) -> bool {
        let mut lost = self.faults.iter().flat_map(|fault| &fault.trace.lost_due_sets);
        lost.any(|(other, at)| *other == partition && *at <= by)
    }

    /// Returns the ids of the sessions whose keys a fault deleted.
    pub fn deleted_keys(&self) -> BTreeSet<&str> {
        self.faults.iter().flat_map(|fault| &fault.trace.deleted_keys).map(|(id, _)| &id[..]).collect()
    }
}
