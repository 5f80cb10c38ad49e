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

/// The end of a watch that is open when the recording ends.
pub const STILL_OPEN: &str = "still open";

/// A watch, from its opening until it is closed or lost.
#[derive(Clone, Debug)]
pub struct Watch {
    pub instance: usize,
    pub filter: Filter,
    pub initial_state: bool,
    /// The watch that this one goes on with, by its last token.
    pub resumes: Option<usize>,
    pub responses: Vec<Response>,
    /// How it ended.
    pub end: String,
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

/// Something that was done to the store or to those who use it.
#[derive(Clone, Debug)]
pub struct Fault {
    pub at: Moment,
    pub healed: Moment,
    /// Whether Redis may have lost what it had acknowledged.
    pub loses: bool,
    /// Whether an instance was killed, which gives no reasons.
    pub kills: bool,
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
            let Watch { instance, filter, initial_state, resumes, responses, end } = watch;
            writeln!(f, "watch {number} at {instance}, goes on with {resumes:?}, {filter:?}, state {initial_state}")?;
            responses.iter().try_for_each(|response| write!(f, "{response:?}"))?;
            writeln!(f, "    its end: {end}")?;
        }
        write!(f, "{:?}", self.truth)
    }
}

impl History {
    /// Whether Redis kept what it acknowledged.
    pub fn keeps_its_word(&self) -> bool {
        self.faults.iter().all(|fault| !fault.loses)
    }

    /// Sessions whose keys were changed by hand.
    pub fn by_hand(&self) -> BTreeSet<&str> {
        self.faults.iter().flat_map(|fault| &fault.by_hand).map(|(id, _)| &id[..]).collect()
    }
}
