//! What several clients called at once and were answered, and whether some order of the calls explains it.

#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    contract::{
        Answer, Call, Rules,
        session::step,
        state::{State, Tombstone},
    },
    harness::Client,
};
use sessiond_client::v1::Cause;

/// Numbers calls and returns in the order they happen.
#[derive(Default)]
pub struct Clock(AtomicU64);

impl Clock {
    fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    pub async fn record(&self, client: &Client, call: Call) -> Recorded {
        let called = self.tick();
        let answer = call.send(client).await;
        Recorded { called, call, answer, returned: self.tick() }
    }
}

#[derive(Clone, Debug)]
pub struct Recorded {
    pub called: u64,
    pub call: Call,
    pub answer: Answer,
    pub returned: u64,
}

/// What happened to a session between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Happening<'a> {
    pub called: u64,
    pub returned: u64,
    pub what: What<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    Answered(&'a Call, &'a Answer),
    /// Nobody was told whether it was done, at any moment after it was called.
    Perhaps(&'a Call),
    /// It was not done; its token may count as presented.
    NotDone(&'a Call),
    /// The session ended, and by no call for it.
    Ended(Cause),
    /// Where there was no session, a tombstone may have been left.
    Buried(Cause),
}

impl What<'_> {
    /// Whether it happened for certain.
    fn is_certain(&self) -> bool {
        matches!(self, What::Answered(..) | What::Ended(_))
    }

    /// The state after it; None = it cannot have happened here, or changes nothing that must be tried.
    fn after(&self, rules: &Rules, state: &State) -> Option<State> {
        match (*self, state) {
            (What::Answered(call, answer), _) => step(rules, state, call, true).hold(call, answer).ok(),
            (What::Perhaps(call), _) => Some(step(rules, state, call, true).after).filter(|after| after != state),
            (What::NotDone(_), _) => None,
            (What::Ended(cause), State::Live(live)) => Some(live.clone().ended(cause, None)),
            (What::Buried(cause), State::Never) => {
                Some(State::Ended(Tombstone { cause, tokens: Vec::new(), deleted_by: None }))
            }
            (What::Ended(_) | What::Buried(_), _) => None,
        }
    }

    fn call(&self) -> Option<&Call> {
        match self {
            What::Answered(call, _) | What::Perhaps(call) | What::NotDone(call) => Some(call),
            What::Ended(_) | What::Buried(_) => None,
        }
    }
}

/// Whether the calls on one session can have happened one after another, each between its call and its return, so that
/// the contract explains every answer.
pub fn is_linearizable(rules: &Rules, history: &[Recorded]) -> bool {
    let all = history.iter().map(|recorded| {
        let Recorded { called, call, answer, returned } = recorded;
        Happening { called: *called, returned: *returned, what: What::Answered(call, answer) }
    });
    is_explained(rules, &all.collect::<Vec<_>>())
}

/// The most that may happen to one session.
pub const LONGEST: usize = 128;

/// Whether some order of what happened to one session explains it. After Wing and Gong; what was tried in vain is
/// remembered, after Lowe.
///
/// A call that gives a session its subject looks at it twice, for the subject's index lies elsewhere: its token may count
/// as presented before the rest happens.
pub fn is_explained(rules: &Rules, history: &[Happening<'_>]) -> bool {
    assert!(history.len() <= LONGEST, "a history of one session is short");
    Search { rules, history, in_vain: HashSet::new() }.goes_on(Done::default(), &State::Never)
}

struct Search<'a> {
    rules: &'a Rules,
    history: &'a [Happening<'a>],
    in_vain: HashSet<(Done, String)>,
}

/// Sets of happenings, as bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Done {
    whole: u128,
    presented: u128,
}

impl Search<'_> {
    /// Whether what is not done yet can follow upon this state.
    fn goes_on(&mut self, done: Done, state: &State) -> bool {
        let history = self.history;
        let open = || (0..history.len()).filter(|at| done.whole & 1 << at == 0);
        let certain = open().filter(|at| history[*at].what.is_certain());
        let Some(first_return) = certain.map(|at| history[at].returned).min() else { return true };
        if !self.in_vain.insert((done, format!("{state:?}"))) {
            return false;
        }
        open().filter(|at| history[*at].called <= first_return).any(|at| {
            let what = &history[at].what;
            let bit = 1 << at;
            let whole = Done { whole: done.whole | bit, ..done };
            let presented = Done { presented: done.presented | bit, ..done };
            what.after(self.rules, state).is_some_and(|after| self.goes_on(whole, &after))
                || done.presented & bit == 0
                    && what
                        .call()
                        .and_then(|call| presented_alone(state, call))
                        .is_some_and(|after| self.goes_on(presented, &after))
        })
    }
}

/// The state after the first look of a call that gives the session a subject; None = there is none of its own.
fn presented_alone(state: &State, call: &Call) -> Option<State> {
    let subject = match call {
        Call::Update(request) => request.subject.as_deref(),
        Call::Rotate(request) => request.subject.as_deref(),
        _ => None,
    };
    let State::Live(live) = state else { return None };
    let joins = subject.is_some_and(|subject| !subject.is_empty()) && live.content.subject.is_empty();
    if joins { live.presented(call).map(State::Live) } else { None }
}

pub fn list(history: &[Recorded]) -> String {
    let line = |Recorded { called, call, answer, returned }: &Recorded| {
        format!("{called}-{returned}: {call:?}\n    {answer:?}\n")
    };
    history.iter().map(line).collect()
}
