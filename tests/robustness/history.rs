//! What was recorded while faults happened: calls and their outcomes, every response of every watch, the faults, and
//! the truth. Moments are microseconds since 1970, by the one clock that Redis and the tests have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use sessiond_client::v1::{EventType, ResyncReason, SessionEvent};

use crate::{
    contract::{Answer, Call, Rules},
    truth::{Position, Truth},
};

pub type Moment = u64;

#[derive(Clone)]
pub struct History {
    pub seed: u64,
    /// The fault and the topology.
    pub about: String,
    pub rules: Rules,
    pub operations: Vec<Operation>,
    /// In the order they were opened.
    pub watches: Vec<Watch>,
    /// Watches that could not be opened.
    pub refusals: Vec<Refusal>,
    pub faults: Vec<Fault>,
    pub truth: Truth,
    /// When everything had been quiet for so long that whatever was due had happened.
    pub ended: Moment,
}

/// A call, as its client saw it.
#[derive(Clone, Debug)]
pub struct Operation {
    pub client: usize,
    pub instance: usize,
    pub called: Moment,
    pub returned: Moment,
    pub call: Call,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Answered(Answer),
    /// Code and reason of an error that says: certainly not applied, or that is a read's.
    NotApplied(String),
    /// Code and reason of any other error.
    Unknown(String),
}

/// What stands in place of a reason where there is none.
pub const WITHOUT_REASON: &str = "without a reason";

/// What a watch is opened for.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    Namespace,
    Ids(BTreeSet<String>),
    Subject(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    pub scope: Scope,
    pub labels: BTreeMap<String, String>,
    /// Empty = all.
    pub kinds: Vec<EventType>,
}

/// How a watch ends after which nothing can come.
pub const CLOSED_FOR_GOOD: &str = "closed: OK";
/// That of a reader that was told so before.
pub const CLOSED_AS_TOO_SLOW: &str = "closed: too slow";
/// What stands before code and reason of the status that ends a watch.
pub const CLOSED: &str = "closed: ";
/// Its reader had enough of it.
pub const LEFT: &str = "left";
/// Its reader gave it up, for nothing came for so long.
pub const SILENT: &str = "silent";
/// The end of a watch that is open when the recording ends.
pub const STILL_OPEN: &str = "still open";
/// Nobody listens where a watch was to be opened.
pub const NOT_CONNECTED: &str = "not connected";

/// A watch, from its opening until it is closed or lost.
#[derive(Clone, Debug)]
pub struct Watch {
    pub instance: usize,
    pub filter: Filter,
    pub initial_state: bool,
    /// Whether its reader takes its time, or stops.
    pub is_slow: bool,
    /// The watch that this one goes on with, by its last token.
    pub resumes: Option<usize>,
    pub responses: Vec<Response>,
    /// How it ended, and when.
    pub end: String,
    pub ended: Moment,
}

/// A watch that could not be opened.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub filter: Filter,
    /// Whether it was to go on from a token.
    pub resumes: bool,
    pub called: Moment,
    pub returned: Moment,
    /// Code and reason, or that nobody answered.
    pub how: String,
}

impl Watch {
    /// Whether a part of the state that it begins with was told, and not all of it.
    pub fn is_amid_state(&self) -> bool {
        let begins = self.initial_state && self.resumes.is_none() && !self.responses.is_empty();
        begins && self.responses.iter().all(|response| response.control.is_none())
    }
}

#[derive(Clone)]
pub struct Response {
    pub at: Moment,
    pub events: Vec<SessionEvent>,
    pub control: Option<Control>,
    /// The position after it.
    pub token: Token,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Control {
    Synced,
    /// The moment up to which nothing is missing.
    Bookmark(Moment),
    Resync(ResyncReason, BTreeSet<String>),
}

/// A resume token, opened.
#[derive(Clone, PartialEq)]
pub struct Token {
    pub store: [u8; 16],
    /// One of each partition.
    pub positions: Vec<Position>,
}

/// What may come of a fault, and of nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Redis may have lost what it had acknowledged.
    Loses,
    /// Redis may show no trace of what it lost: another run of it, or another server that has a partition.
    OtherRun,
    /// An instance is killed, which gives no reasons.
    Kills,
    /// Readers are held up.
    HoldsReaders,
}

/// Something that was done to the store or to those who use it.
#[derive(Clone, Debug)]
pub struct Fault {
    pub at: Moment,
    pub healed: Moment,
    pub effects: Vec<Effect>,
    /// The oldest entry that a log kept when it was trimmed, and its partition.
    pub trimmed: Vec<(usize, Position)>,
    /// Ids of sessions whose keys were changed by hand, and when.
    pub by_hand: Vec<(String, Moment)>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", data_encoding::HEXLOWER.encode(&self.store[..2]))?;
        self.positions.iter().try_for_each(|position| write!(f, " {position:?}"))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "    {} {:?} after it {:?}", self.at, self.control, self.token)?;
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
            writeln!(f, "client {client} at {instance}, {called}-{returned}: {call:?}\n    {outcome:?}")?;
        }
        for (number, watch) in self.watches.iter().enumerate() {
            let Watch { instance, filter, initial_state, resumes, responses, end, .. } = watch;
            writeln!(f, "watch {number} at {instance}, goes on with {resumes:?}, {filter:?}, state {initial_state}")?;
            responses.iter().try_for_each(|response| write!(f, "{response:?}"))?;
            writeln!(f, "    its end: {end}")?;
        }
        for refusal in &self.refusals {
            writeln!(f, "{refusal:?}")?;
        }
        write!(f, "{:?}", self.truth)
    }
}

impl History {
    /// Whether Redis kept what it acknowledged.
    pub fn keeps_its_word(&self) -> bool {
        !self.faults.iter().any(|fault| fault.effects.contains(&Effect::Loses))
    }

    /// Whether a fault that had begun by then has this effect.
    pub fn has(&self, effect: Effect, by: Moment) -> bool {
        self.faults.iter().any(|fault| fault.at <= by && fault.effects.contains(&effect))
    }

    /// Whether the store had been emptied by then: another one stands in its place.
    pub fn is_emptied(&self, by: Moment) -> bool {
        self.truth.stores.len() > 1 && self.faults.iter().any(|fault| fault.at <= by)
    }

    /// Sessions whose keys were changed by hand.
    pub fn by_hand(&self) -> BTreeSet<&str> {
        self.faults.iter().flat_map(|fault| &fault.by_hand).map(|(id, _)| &id[..]).collect()
    }
}
