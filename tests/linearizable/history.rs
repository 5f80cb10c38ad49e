//! What several clients called at once and were answered, and whether some order of the calls explains it.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    contract::{Answer, Call, Rules, session::step, state::State},
    harness::Client,
};

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

/// Whether the calls on one session can have happened one after another, each between its call and its return, so that
/// the contract explains every answer. After Wing and Gong; what was tried in vain is remembered, after Lowe.
///
/// A call that gives a session its subject looks at it twice, for the subject's index lies elsewhere: its token may count
/// as presented before the rest happens.
pub fn is_linearizable(rules: &Rules, history: &[Recorded]) -> bool {
    assert!(history.len() <= 64, "a history of one session is short");
    Search { rules, history, in_vain: HashSet::new() }.goes_on(Done::default(), &State::Never)
}

struct Search<'a> {
    rules: &'a Rules,
    history: &'a [Recorded],
    in_vain: HashSet<(Done, String)>,
}

/// Sets of calls, as bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Done {
    whole: u64,
    presented: u64,
}

impl Search<'_> {
    /// Whether the calls that are not done yet can follow upon this state.
    fn goes_on(&mut self, done: Done, state: &State) -> bool {
        let history = self.history;
        let open = || (0..history.len()).filter(|at| done.whole & 1 << at == 0);
        let Some(first_return) = open().map(|at| history[at].returned).min() else { return true };
        if !self.in_vain.insert((done, format!("{state:?}"))) {
            return false;
        }
        open().filter(|at| history[*at].called < first_return).any(|at| {
            let Recorded { call, answer, .. } = &history[at];
            let bit = 1 << at;
            let after = step(self.rules, state, call, true).hold(call, answer);
            let whole = Done { whole: done.whole | bit, ..done };
            let presented = Done { presented: done.presented | bit, ..done };
            after.is_ok_and(|after| self.goes_on(whole, &after))
                || done.presented & bit == 0
                    && presented_alone(state, call).is_some_and(|after| self.goes_on(presented, &after))
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
