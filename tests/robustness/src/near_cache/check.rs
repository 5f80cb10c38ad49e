//! Compares the answer of every read with what was true when.

use std::collections::{BTreeMap, HashMap};

use sessiond_client::v1::{GetSessionRequest, Session, SessionView, TokenState};

use super::{
    Epoch, Kind, MAX_COPY_AGE, MAX_MEMORY_AGE, Recording,
    scene::LONGEST_TOUCH_INTERVAL,
    truth::{State, Truth},
};
use crate::history::{Micros, Operation, Outcome};
use harness::{
    client::id_of,
    contract::{Call, Reply, calls::KeyRef, state::Content},
};

/// Maximum number of violations of one rule that are described.
const DESCRIBED: usize = 5;
/// Time without a reply after which the server answers a read without its touch and without the first use of its token.
const HELD_BACK_AFTER: Micros = 100_000;
/// Time around a fault in which a read may be answered without its touch and without the first use of its token.
const UNTOUCHED_AROUND: Micros = 2_000_000;
/// Maximum error of a server's estimate of the clock of Redis, for touches.
const CLOCK_ERROR: Micros = 1_000_000;

/// A read with a session in its answer.
#[derive(Clone, Copy)]
struct Read<'a> {
    operation: &'a Operation,
    request: &'a GetSessionRequest,
    session: &'a Session,
    token_state: TokenState,
}

impl<'a> Read<'a> {
    /// Returns the read of this operation. None: another call, or no session in its answer.
    fn of(operation: &'a Operation) -> Option<Self> {
        match (&operation.call, &operation.outcome) {
            (Call::Get(request), Outcome::Answered(Reply::Session(session, _, token_state))) => {
                Some(Read { operation, request, session, token_state: *token_state })
            }
            _ => None,
        }
    }

    /// Returns the token that the call presented. None: it named the id.
    fn token(self) -> Option<&'a str> {
        match self.operation.call.key()? {
            KeyRef::Token(token) => Some(token),
            KeyRef::Id(_) => None,
        }
    }

    /// Returns the time of the last stored access in µs.
    fn accessed(self) -> Micros {
        time_of(self.session.access_time)
    }
}

fn time_of(time: Option<prost_types::Timestamp>) -> Micros {
    time.map_or(0, |time| time.seconds as Micros * 1_000_000 + time.nanos as Micros / 1_000)
}

/// Returns a description of every violation, the first ones of each rule.
pub fn violations(recording: &Recording) -> Vec<String> {
    let truth = Truth::of(recording);
    let mut by_rule: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut add = |rule: &'static str, operation: &Operation| {
        let all = by_rule.entry(rule).or_default();
        let is_described = all.len() < DESCRIBED;
        all.push(if is_described { evidence(recording, &truth, rule, operation) } else { String::new() });
    };
    for operation in &recording.operations {
        match Read::of(operation) {
            Some(read) => {
                let broken = check_state(&truth, recording, read).err();
                broken.into_iter().for_each(|rule| add(rule, operation));
            }
            None if is_false_refusal(&truth, operation) => add("a refusal of a session that lived", operation),
            None => {}
        }
    }
    check_times(recording).into_iter().for_each(|(rule, operation)| add(rule, operation));
    check_first_uses(recording).into_iter().for_each(|operation| add("a first use was not recorded", operation));
    let count = |(rule, all): (&str, Vec<String>)| {
        let number = all.len();
        all.into_iter().take(DESCRIBED).map(move |text| format!("{rule} ({number} times): {text}")).collect::<Vec<_>>()
    };
    by_rule.into_iter().flat_map(count).collect()
}

/// Checks that the answer was true within the time that its read permits. Returns the rule that it breaks.
fn check_state(truth: &Truth, recording: &Recording, read: Read<'_>) -> Result<(), &'static str> {
    let Operation { instance, called, returned, call, .. } = read.operation;
    let Session { id, revision, .. } = read.session;
    let earliest = if call.accepts_memory() {
        truth.own_change(*instance, id, *called).max(called.saturating_sub(MAX_MEMORY_AGE))
    } else {
        *called
    };
    let unreported = |state: &State| if call.accepts_memory() { state.unreported } else { 0 };
    let was_true = |state: &&State| state.from[0] <= *returned && earliest < state.until[1] + unreported(state);
    let known = truth.states(id, *revision);
    let states: Vec<&State> = known.iter().filter(was_true).collect();
    if states.is_empty() {
        // Redis lost it before the log was read.
        let was_lost = |[ends, ended]: [Micros; 2]| (ends..ended).contains(&(*revision as Micros)) && earliest < ended;
        let is_lost = known.is_empty() && recording.epochs.iter().any(|epoch| was_lost(epoch.until));
        return if is_lost { Ok(()) } else { Err("a state that was not true any more, or never") };
    }
    let has_content = |state: &&State| {
        let after = state.entry.after.as_ref().expect("a live session has a state");
        let expected = match read.request.view() {
            SessionView::Basic => Content { attributes: BTreeMap::new(), ..after.content.clone() },
            _ => after.content.clone(),
        };
        Content::from(read.session) == expected
    };
    if !states.iter().any(has_content) {
        return Err("a content that the session never had at its revision");
    }
    let may_be_current = |state: &&State, token: &str| state.tokens.iter().any(|current| current == token);
    let has_token = |state: &&State| match (read.token(), read.token_state) {
        (None, state) => state == TokenState::Unspecified,
        (Some(token), TokenState::Current | TokenState::RotationDue) => may_be_current(state, token),
        (Some(token), TokenState::Superseded) => state.tokens.len() > 1 || !may_be_current(state, token),
        (Some(_), TokenState::Unspecified) => false,
    };
    if !states.iter().any(has_token) {
        return Err("a token that was not current then");
    }
    let min_revision = read.request.min_revision.unwrap_or(0);
    let lost_it = |state: &&State| truth.states(id, min_revision).iter().all(|other| other.epoch != state.epoch);
    if *revision < min_revision && !states.iter().any(lost_it) {
        return Err("less than its min_revision");
    }
    Ok(())
}

/// Returns whether the call was refused for a session, by its id, that lived all the time.
fn is_false_refusal(truth: &Truth, operation: &Operation) -> bool {
    let (Call::Get(_), Outcome::Answered(Reply::Rejected(_, cause)), Some(KeyRef::Id(id))) =
        (&operation.call, &operation.outcome, operation.call.key())
    else {
        return false;
    };
    // The log contains an expiry a little later.
    !cause.ends_with("TIMEOUT") && truth.lives_throughout(id, operation.called, operation.returned)
}

/// When an answer contained an access, and the latest access so far. By epoch, session and creation of the session.
type Access = (Micros, Micros);

/// Checks deadlines and times of use. Returns the reads that break a rule.
fn check_times(recording: &Recording) -> Vec<(&'static str, &Operation)> {
    let mut broken = Vec::new();
    // Most rules compare times of Redis with those of the recording.
    if recording.kind == Kind::StepsClock {
        return broken;
    }
    let epoch_at = |at: Micros| recording.epochs.iter().rposition(|epoch| epoch.from[1] <= at).unwrap_or(0);
    let mut known: HashMap<(usize, &str, Micros), Vec<Access>> = HashMap::new();
    for read in recording.operations.iter().filter_map(Read::of) {
        let Operation { called, returned, .. } = *read.operation;
        let (accessed, created) = (read.accessed(), time_of(read.session.create_time));
        let expires = time_of(read.session.expire_time);
        if expires != 0 && expires < called {
            broken.push(("a session after its deadline", read.operation));
        }
        let is_certain = returned - called < HELD_BACK_AFTER
            && !recording.is_disturbed(called.saturating_sub(UNTOUCHED_AROUND), returned + UNTOUCHED_AROUND);
        if read.request.touch && is_certain && accessed + LONGEST_TOUCH_INTERVAL + CLOCK_ERROR < called {
            broken.push(("a due touch was not recorded", read.operation));
        }
        let is_lost = |epoch: &Epoch| {
            let is_in_loss = epoch.kept_until < accessed && accessed < epoch.until[1];
            is_in_loss && epoch.until[1] + MAX_MEMORY_AGE < called
        };
        if recording.epochs.iter().any(is_lost) {
            broken.push(("an access that Redis lost", read.operation));
        }
        let epoch = epoch_at(returned);
        let before = known.entry((epoch, &read.session.id, created)).or_default();
        let old = before.partition_point(|(at, _)| at + MAX_COPY_AGE <= called);
        if old > 0 && accessed < before[old - 1].1 {
            broken.push(("times of use that are more than 10 s old", read.operation));
        }
        // Just after a restart, memory may still hold what Redis has lost.
        if epoch == 0 || recording.epochs[epoch].from[1] + MAX_MEMORY_AGE < called {
            let latest = before.last().map_or(0, |(_, latest)| *latest).max(accessed);
            before.push((returned, latest));
        }
    }
    broken
}

/// Returns the rotations that succeeded although the new token had been presented.
fn check_first_uses(recording: &Recording) -> Vec<&Operation> {
    let mut presented: HashMap<&str, Micros> = HashMap::new();
    let mut broken = Vec::new();
    for operation in &recording.operations {
        let Operation { called, returned, .. } = *operation;
        let from = called.saturating_sub(UNTOUCHED_AROUND);
        let is_certain =
            returned - called < HELD_BACK_AFTER && !recording.is_disturbed(from, returned + UNTOUCHED_AROUND);
        if let Some(read) = Read::of(operation)
            && let (Some(token), TokenState::Current, true) = (read.token(), read.token_state, is_certain)
        {
            presented.entry(token).or_insert(returned);
        }
        if let (Call::Create(_), Some(id)) = (&operation.call, operation.call.id()) {
            // A new session with this id has not seen them.
            presented.retain(|token, _| id_of(token) != id);
        }
        if let (Call::Rotate(request), Outcome::Answered(Reply::Session(..))) = (&operation.call, &operation.outcome)
            && let Some(at) = presented.get(&request.new_token[..])
        {
            let is_lost = recording.epochs.iter().any(|epoch| *at <= epoch.until[1] && epoch.until[0] <= returned);
            if *at < called && !is_lost {
                broken.push(operation);
            }
        }
    }
    broken
}

/// Describes a call that broke a rule: the call, the states of its session around it, and the faults.
fn evidence(recording: &Recording, truth: &Truth, rule: &str, operation: &Operation) -> String {
    let Operation { instance, called, returned, call, outcome, .. } = operation;
    let (from, until) = (called.saturating_sub(MAX_COPY_AGE), returned + MAX_MEMORY_AGE);
    let relative = |at: Micros| at as i64 - *called as i64;
    let id = match outcome {
        Outcome::Answered(Reply::Session(session, ..)) => session.id.clone(),
        _ => call.id().unwrap_or_default(),
    };
    let answer = match outcome {
        Outcome::Answered(Reply::Session(session, _, state)) => format!(
            "revision {}, {state:?}, accessed {} µs, expires {} µs",
            session.revision,
            relative(time_of(session.access_time)),
            relative(time_of(session.expire_time))
        ),
        other => format!("{other:?}"),
    };
    let mut text = format!(
        "{rule}\n  instance {instance}, sent at {called}, answered {} µs later: {call:?}\n  {answer}\n",
        returned - called
    );
    let own = truth.own_change(*instance, &id, *called);
    text += &format!("  last change by the same instance: {} µs; states of the session:\n", relative(own));
    let revision = match outcome {
        Outcome::Answered(reply) => reply.revision(),
        _ => None,
    };
    for state in truth.of_session(&id) {
        let is_answer = Some(state.entry.position.revision as i64) == revision;
        if is_answer || state.until[1] >= from && state.from[0] <= until {
            let (begin, end) = (state.from.map(relative), state.until.map(|at| relative(at.min(until))));
            let mark = if is_answer { "→" } else { " " };
            let (kind, epoch) = (state.entry.kind, state.epoch);
            text += &format!(
                "  {mark} {} {kind:?} in epoch {epoch}: from {begin:?} until {end:?} µs\n",
                state.entry.position.revision
            );
        }
    }
    for epoch in recording.epochs.iter().filter(|epoch| epoch.until[1] < until) {
        text += &format!(
            "  epoch ended at {:?} µs, kept until {} µs\n",
            epoch.until.map(relative),
            relative(epoch.kept_until)
        );
    }
    for disturbance in recording.disturbances_between(called.saturating_sub(3 * MAX_MEMORY_AGE), *returned) {
        let (from, until) = (relative(disturbance.from), relative(disturbance.until));
        text += &format!("  fault {} from {from} until {until} µs\n", disturbance.name);
    }
    text
}
