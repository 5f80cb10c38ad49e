//! Linearizability checker: records concurrent calls on one session and searches for an order that explains all
//! replies.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    Client,
    contract::{
        Call, Reply, Rules,
        session::step,
        state::{State, Tombstone},
    },
};
use sessiond_client::v1::Cause;

/// A logical clock that numbers calls and returns.
#[derive(Default)]
pub struct Clock(AtomicU64);

impl Clock {
    fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    /// Sends a call and records its reply.
    pub async fn record(&self, client: &Client, call: Call) -> RecordedCall {
        let called = self.tick();
        let reply = call.send(client).await;
        RecordedCall { called, call, reply, returned: self.tick() }
    }
}

/// A call and its reply, numbered by one [`Clock`].
#[derive(Clone, Debug)]
pub struct RecordedCall {
    /// Number of the call: lower than that of every later call or return.
    pub called: u64,
    /// Request as sent.
    pub call: Call,
    /// Response, or the error by which the contract rejects the call.
    pub reply: Reply,
    /// Number of the return: a call with a higher number began after it.
    pub returned: u64,
}

/// A call or another possible change of one session, with the interval in which it takes effect.
///
/// Both times are numbers of a [`Clock`], or both are µs since the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Occurrence<'a> {
    /// Time before which it has no effect. 0: no lower bound.
    pub called: u64,
    /// Time after which it has taken effect, if it is certain, and after which it takes no effect, if it is not.
    pub returned: u64,
    /// The call and its outcome, or the change.
    pub kind: OccurrenceKind<'a>,
}

/// Calls by outcome, and changes without a call. Only `Completed` and `Ended` must be part of every linearization.
#[derive(Clone, Copy, Debug)]
pub enum OccurrenceKind<'a> {
    /// The call returned this reply.
    Completed(&'a Call, &'a Reply),
    /// The outcome is unknown: the call may be applied.
    Indeterminate(&'a Call),
    /// The call was not applied; its token may count as presented.
    NotApplied(&'a Call),
    /// The session ended, but no call addressed to it ended it.
    Ended(Cause),
    /// A tombstone may have been written while there was no session.
    Tombstoned(Cause),
    /// A tombstone that was written while there was no session may have expired.
    TombstoneExpired,
    /// The clock was set ahead: every tombstone may have expired.
    TombstonesExpired,
}

impl OccurrenceKind<'_> {
    /// Returns whether it must be part of every linearization.
    fn is_certain(&self) -> bool {
        matches!(self, OccurrenceKind::Completed(..) | OccurrenceKind::Ended(_))
    }

    /// Returns the state after it. None: it is impossible in this state, or has no effect.
    fn after(&self, rules: &Rules, state: &State) -> Option<State> {
        match (*self, state) {
            (OccurrenceKind::Completed(call, reply), _) => step(rules, state, call, true).check(call, reply).ok(),
            (OccurrenceKind::Indeterminate(call), _) => {
                Some(step(rules, state, call, true).after).filter(|after| after != state)
            }
            (OccurrenceKind::NotApplied(_), _) => None,
            (OccurrenceKind::Ended(cause), State::Live(live)) => Some(live.clone().ended(cause, None)),
            (OccurrenceKind::Tombstoned(cause), State::NotCreated) => {
                Some(State::Ended(Tombstone { cause, tokens: Vec::new(), deleted_by: None }))
            }
            (OccurrenceKind::TombstoneExpired, State::Ended(tombstone)) if tombstone.tokens.is_empty() => {
                Some(State::NotCreated)
            }
            (OccurrenceKind::TombstonesExpired, State::Ended(_)) => Some(State::NotCreated),
            (
                OccurrenceKind::Ended(_)
                | OccurrenceKind::Tombstoned(_)
                | OccurrenceKind::TombstoneExpired
                | OccurrenceKind::TombstonesExpired,
                _,
            ) => None,
        }
    }

    fn call(&self) -> Option<&Call> {
        match self {
            OccurrenceKind::Completed(call, _)
            | OccurrenceKind::Indeterminate(call)
            | OccurrenceKind::NotApplied(call) => Some(call),
            OccurrenceKind::Ended(_)
            | OccurrenceKind::Tombstoned(_)
            | OccurrenceKind::TombstoneExpired
            | OccurrenceKind::TombstonesExpired => None,
        }
    }
}

/// Returns whether the calls on one session have a linearization: an order in which each call takes effect between its
/// start and its return, and the contract explains every reply.
pub fn is_linearizable(rules: &Rules, history: &[RecordedCall]) -> bool {
    let all = history.iter().map(|recorded| {
        let RecordedCall { called, call, reply, returned } = recorded;
        Occurrence { called: *called, returned: *returned, kind: OccurrenceKind::Completed(call, reply) }
    });
    match find_linearization(rules, &all.collect::<Vec<_>>()) {
        Linearization::Found => true,
        Linearization::None => false,
        Linearization::Undecided => panic!("the history has too many states to visit all"),
    }
}

/// Result of a search for a linearization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linearization {
    /// There is one.
    Found,
    /// There is none: a guarantee is violated.
    None,
    /// The search visited `MAX_STATES` states and found none. Others are possible.
    Undecided,
}

/// Maximum number of states of a search. A search visits few of them if there is a linearization; if there is none, calls
/// with an unknown outcome can make their number too large to visit all.
pub const MAX_STATES: usize = 200_000;

/// Maximum number of occurrences for one session.
pub const MAX_OCCURRENCES: usize = 128;

/// Searches for a linearization of the occurrences of one session. Uses the algorithm of Wing and Gong with Lowe's cache
/// of failed states.
///
/// A call that sets the subject of a session has two steps, because the subject index is in another partition: its
/// token can count as presented before the call takes effect.
pub fn find_linearization(rules: &Rules, history: &[Occurrence<'_>]) -> Linearization {
    assert!(history.len() <= MAX_OCCURRENCES, "the history of one session fits into the bit sets");
    let mut search = Search { rules, history, failed_states: HashSet::new() };
    match search.search(Done::default(), 0, &State::NotCreated) {
        true => Linearization::Found,
        false if search.failed_states.len() < MAX_STATES => Linearization::None,
        false => Linearization::Undecided,
    }
}

/// Depth-first search for a linearization.
struct Search<'a> {
    rules: &'a Rules,
    history: &'a [Occurrence<'a>],
    /// Occurrences done and the formatted state, for each combination that was visited: none of them succeeded.
    failed_states: HashSet<(Done, String)>,
}

/// Bit sets of occurrences: those that took effect, and those that presented their token.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Done {
    applied: u128,
    presented: u128,
}

impl Search<'_> {
    /// Returns whether the remaining occurrences have a linearization from this state. `latest` is the latest start of those
    /// that took effect.
    fn search(&mut self, done: Done, latest: u64, state: &State) -> bool {
        let history = self.history;
        let remaining = || (0..history.len()).filter(|at| done.applied & 1 << at == 0);
        let (certain, possible): (Vec<usize>, Vec<usize>) = remaining().partition(|at| history[*at].kind.is_certain());
        let Some(first_return) = certain.iter().map(|at| history[*at].returned).min() else { return true };
        if self.failed_states.len() == MAX_STATES || !self.failed_states.insert((done, format!("{state:?}"))) {
            return false;
        }
        // Most calls with an unknown outcome were not applied, so a search that tries them last visits fewer states.
        let candidates = certain.into_iter().chain(possible);
        candidates.filter(|at| history[*at].called <= first_return && latest <= history[*at].returned).any(|at| {
            let (kind, latest) = (&history[at].kind, latest.max(history[at].called));
            let bit = 1 << at;
            let applied = Done { applied: done.applied | bit, ..done };
            let presented = Done { presented: done.presented | bit, ..done };
            kind.after(self.rules, state).is_some_and(|after| self.search(applied, latest, &after))
                || done.presented & bit == 0
                    && kind
                        .call()
                        .and_then(|call| with_token_presented(state, call))
                        .is_some_and(|after| self.search(presented, latest, &after))
        })
    }
}

/// Returns the state after the first step of a call that sets the subject. None: the call has one step only.
fn with_token_presented(state: &State, call: &Call) -> Option<State> {
    let subject = match call {
        Call::Update(request) => request.subject.as_deref(),
        Call::Rotate(request) => request.subject.as_deref(),
        _ => None,
    };
    let State::Live(live) = state else { return None };
    let sets_subject = subject.is_some_and(|subject| !subject.is_empty()) && live.content.subject.is_empty();
    if sets_subject { live.with_token_presented(call).map(State::Live) } else { None }
}

/// Formats a history with one line for each call and reply.
pub fn format_history(history: &[RecordedCall]) -> String {
    let line = |RecordedCall { called, call, reply, returned }: &RecordedCall| {
        format!("{called}-{returned}: {call:?}\n    {reply:?}\n")
    };
    history.iter().map(line).collect()
}
