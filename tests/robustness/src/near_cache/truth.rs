//! What was true when: the states of every session, each with the time in which Redis held it, from the logs and from the
//! outcomes of the writes.

use std::collections::{BTreeMap, HashMap};

use harness::contract::{Call, Reply};
use sessiond_client::v1::EventType;

use super::{
    CALL_TIMEOUT, Deletion, MAX_COPY_AGE, MAX_MEMORY_AGE, Recording,
    workload::{first_token, mark_of},
};
use crate::{
    ground_truth::Entry,
    history::{Micros, Operation, Outcome},
};

/// An interval that contains an instant.
pub type Instant = [Micros; 2];

/// A state of a session, and the time in which Redis held it.
#[derive(Clone, Debug)]
pub struct State {
    /// Log entry of the change that led to it.
    pub entry: Entry,
    /// Beginning of the time in which Redis held it.
    pub from: Instant,
    /// End of that time.
    pub until: Instant,
    /// Time after `until` for which memory may return it in addition: the record was deleted directly in Redis, and Redis may
    /// not have reported it.
    pub unreported: Micros,
    /// Tokens of which one is the current token.
    pub tokens: Vec<String>,
    /// Number of the epoch.
    pub epoch: usize,
}

/// All states of all sessions.
#[derive(Default)]
pub struct Truth {
    /// States by session and revision. A state that Redis held in several epochs is there for each of them.
    states: HashMap<(String, i64), Vec<State>>,
    /// Spans in which a session lived, by session: its beginning and its end.
    lives: HashMap<String, Vec<[Instant; 2]>>,
    /// Changes by the instance that answered for them, and by session: when it did, and when they had taken effect.
    own: HashMap<(usize, String), Vec<(Micros, Micros)>>,
}

/// Index of the writes by what their log entries show.
struct Writes<'a> {
    operations: &'a [Operation],
    /// Whether revisions are not the times of the changes, because the clock of Redis stepped.
    steps_clock: bool,
    /// Calls by session and the revision in their response.
    by_revision: HashMap<(&'a str, i64), usize>,
    /// Calls by their mark.
    by_mark: HashMap<String, usize>,
    /// Deletes by session.
    deletes: HashMap<String, Vec<usize>>,
    /// New tokens of rotations without a mark whose outcome is unknown, by session.
    unknown_tokens: HashMap<String, Vec<String>>,
}

impl<'a> Writes<'a> {
    fn of(recording: &'a Recording) -> Self {
        let Recording { operations, steps_clock, .. } = recording;
        let (by_revision, by_mark) = (HashMap::new(), HashMap::new());
        let (deletes, unknown_tokens) = (HashMap::new(), HashMap::new());
        let mut writes =
            Writes { operations, steps_clock: *steps_clock, by_revision, by_mark, deletes, unknown_tokens };
        for (index, operation) in operations.iter().enumerate() {
            let id = || operation.call.id().unwrap_or_default();
            let attributes = match &operation.call {
                Call::Create(request) => &request.attributes,
                Call::Update(request) => &request.set_attributes,
                Call::Rotate(request) => &request.set_attributes,
                Call::Delete(_) => {
                    writes.deletes.entry(id()).or_default().push(index);
                    continue;
                }
                _ => continue,
            };
            let mark = mark_of(attributes);
            if let (Call::Rotate(request), None, Outcome::Unknown(_)) = (&operation.call, &mark, &operation.outcome) {
                writes.unknown_tokens.entry(id()).or_default().push(request.new_token.clone());
            }
            writes.by_mark.extend(mark.map(|mark| (mark, index)));
            if let Outcome::Answered(Reply::Session(session, ..)) = &operation.outcome {
                // A rotation that was sent again returns the revision of the first one.
                writes.by_revision.entry((&session.id, session.revision)).or_insert(index);
            }
        }
        writes
    }

    /// Returns the call that led to this entry, which followed `before`. None: no call, or it is not known which one.
    fn of_entry(&self, entry: &Entry, before: Option<&Entry>) -> Option<&'a Operation> {
        let mark = |entry: &Entry| mark_of(&entry.after.as_ref()?.content.attributes);
        let marked = mark(entry).filter(|new| before.and_then(mark).as_ref() != Some(new));
        let revision = entry.position.revision;
        let index = match entry.kind {
            EventType::Ended if self.steps_clock => None,
            EventType::Ended => {
                let is_during = |index: &&usize| {
                    let Operation { called, returned, .. } = self.operations[**index];
                    (called..=returned).contains(&revision)
                };
                self.deletes.get(&entry.id)?.iter().find(is_during)
            }
            EventType::Created | EventType::Updated | EventType::Rotated => marked
                .and_then(|mark| self.by_mark.get(&mark))
                .or_else(|| self.by_revision.get(&(&entry.id[..], revision as i64))),
            _ => None,
        };
        index.map(|index| &self.operations[*index])
    }

    /// Returns the tokens of which one is the current token after this entry, which this call wrote.
    fn tokens_after(&self, entry: &Entry, call: Option<&Operation>, before: Vec<String>) -> Vec<String> {
        match (entry.kind, call.map(|operation| &operation.call)) {
            (EventType::Created, _) => vec![first_token(&entry.id, self.operations)],
            (EventType::Rotated, Some(Call::Rotate(request))) => vec![request.new_token.clone()],
            (EventType::Rotated, _) => self.unknown_tokens.get(&entry.id).cloned().unwrap_or_default(),
            _ => before,
        }
    }
}

impl Truth {
    /// Computes the states from the logs of all epochs and from the calls.
    pub fn of(recording: &Recording) -> Self {
        let writes = Writes::of(recording);
        let mut truth = Truth::default();
        for (number, epoch) in recording.epochs.iter().enumerate() {
            let mut sessions: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
            epoch.log.iter().for_each(|entry| sessions.entry(&entry.id).or_default().push(entry));
            for (id, entries) in sessions {
                truth.add(recording, &writes, number, id, &entries);
            }
        }
        truth.own.values_mut().for_each(|own| own.sort_unstable());
        truth
    }

    /// Adds the entries of one session in one epoch, in the order of the log.
    fn add(&mut self, recording: &Recording, writes: &Writes<'_>, number: usize, id: &str, entries: &[&Entry]) {
        let epoch = &recording.epochs[number];
        let mut states: Vec<State> = Vec::with_capacity(entries.len());
        let mut tokens = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let before = index.checked_sub(1).map(|before| entries[before]);
            let operation = writes.of_entry(entry, before);
            let earliest = states.last().map_or(0, |state| state.from[0]);
            let written = written(recording, entry, operation, earliest);
            if let Some(Operation { instance, returned, .. }) = operation
                && written[1] <= *returned
            {
                self.own.entry((*instance, id.to_owned())).or_default().push((*returned, written[1]));
            }
            tokens = writes.tokens_after(entry, operation, tokens);
            if let Some(last) = states.last_mut() {
                last.until = [last.until[0].min(written[0]), last.until[1].min(written[1])];
            }
            let from = [written[0].max(epoch.from[0]), written[1].max(epoch.from[1])];
            let (entry, until, tokens) = ((*entry).clone(), epoch.until, tokens.clone());
            states.push(State { entry, from, until, unreported: 0, tokens, epoch: number });
        }
        for deletion in recording.deletions.iter().filter(|deletion| deletion.id == id) {
            delete(recording, deletion, &mut states);
        }
        // Those that ended in an earlier epoch are left out.
        for state in states.into_iter().filter(|state| state.from[0] <= state.until[1]) {
            let spans = self.lives.entry(id.to_owned()).or_default();
            match spans.last_mut().filter(|span| state.entry.kind != EventType::Created && span[1] == state.from) {
                _ if state.entry.kind == EventType::Ended => continue,
                Some(span) => span[1] = state.until,
                None => spans.push([state.from, state.until]),
            }
            let key = (id.to_owned(), state.entry.position.revision as i64);
            self.states.entry(key).or_default().push(state);
        }
    }

    /// Returns all states of this session with this revision.
    pub fn states(&self, id: &str, revision: i64) -> &[State] {
        self.states.get(&(id.to_owned(), revision)).map_or(&[], |states| states)
    }

    /// Returns the states of this session, in the order of their beginning.
    pub fn of_session(&self, id: &str) -> Vec<&State> {
        let mut states: Vec<&State> =
            self.states.iter().filter(|((of, _), _)| of == id).flat_map(|(_, states)| states).collect();
        states.sort_by_key(|state| state.from);
        states
    }

    /// Returns whether the session certainly lived all the time between these times.
    pub fn lives_throughout(&self, id: &str, from: Micros, until: Micros) -> bool {
        let spans = self.lives.get(id).map_or(&[][..], |spans| spans);
        spans.iter().any(|[begin, end]| begin[1] < from && until < end[0])
    }

    /// Returns the time of the last change of this session for which this instance had answered by this time. 0: none.
    pub fn own_change(&self, instance: usize, id: &str, by: Micros) -> Micros {
        let own = self.own.get(&(instance, id.to_owned())).map_or(&[][..], |own| own);
        own.iter().take_while(|(returned, _)| *returned <= by).map(|(_, at)| *at).max().unwrap_or(0)
    }
}

/// Returns the interval in which this entry was written, not before `earliest`.
fn written(recording: &Recording, entry: &Entry, operation: Option<&Operation>, earliest: Micros) -> Instant {
    if !recording.steps_clock {
        return [entry.position.time(); 2];
    }
    match operation {
        Some(Operation { called, returned, outcome: Outcome::Answered(_), .. }) => [*called, *returned],
        Some(Operation { called, .. }) => [*called, called + 2 * CALL_TIMEOUT.as_micros() as Micros],
        None => [earliest, Micros::MAX],
    }
}

/// Ends the state whose record was deleted directly in Redis, among the states of its session in one epoch.
fn delete(recording: &Recording, deletion: &Deletion, states: &mut [State]) {
    let is_deleted = |state: &&mut State| state.from[0] <= deletion.until && deletion.from < state.until[1];
    if let Some(state) = states.iter_mut().rev().find(is_deleted) {
        state.until = [state.until[0].min(deletion.from), state.until[1].min(deletion.until)];
        let is_unreported = recording.is_disturbed(deletion.from, deletion.until + MAX_MEMORY_AGE);
        state.unreported = if is_unreported { MAX_COPY_AGE - MAX_MEMORY_AGE } else { 0 };
    }
    // The data of the epoch may be from after the deletion, and from before the log entry of the end.
    let was_deleted = |state: &&mut State| {
        let mut earlier = recording.epochs[..state.epoch].iter().filter(|epoch| deletion.from < epoch.until[1]);
        let was_before = recording.epochs[state.epoch].from[0] > deletion.from;
        was_before && earlier.all(|epoch| deletion.from <= epoch.kept_until)
    };
    for state in states.iter_mut().filter(|state| state.entry.position.time() <= deletion.until) {
        if was_deleted(&state) {
            state.until[0] = state.until[0].min(state.from[0]);
        }
    }
}
