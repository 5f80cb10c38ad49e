//! What clients were answered: one register per session, kept, listed, and gone where everything of a subject goes.

use std::collections::{BTreeMap, BTreeSet};

use sessiond_client::v1::{Cause, EventType, Session};

use super::{Held, Violation, hold};
use crate::{
    contract::{Answer, Call, session::cause_of},
    history::{Effect, History, Moment, Operation, Outcome, WITHOUT_REASON},
    linearizable::{Happening, LONGEST, What, is_explained},
    truth::Entry,
};

/// The time in which Redis may have lost what it had acknowledged.
struct Loss {
    from: Moment,
    until: Moment,
}

impl Loss {
    /// A server may go on for a while with a primary that is none any more.
    fn of(history: &History) -> Option<Self> {
        let losing = || history.faults.iter().filter(|fault| fault.effects.contains(&Effect::Loses));
        let from = losing().map(|fault| fault.at).min()?;
        let healed = losing().map(|fault| fault.healed).max()?;
        let answered = lost_writes(history).map(|operation| operation.returned).max();
        let logs = history.truth.stores.iter().flat_map(|store| &store.logs);
        let logged = logs.flat_map(|log| &log.lost).map(|entry| entry.position.moment()).max();
        Some(Loss { from, until: healed.max(answered.unwrap_or(0)).max(logged.unwrap_or(0)) })
    }
}

/// The session that a call is for; None = many.
fn session_of(operation: &Operation) -> Option<String> {
    let answered = match &operation.outcome {
        Outcome::Answered(Answer::Session(session, ..)) => Some(session.id.clone()),
        Outcome::Answered(_) | Outcome::NotApplied(_) | Outcome::Unknown(_) => None,
    };
    operation.call.id().or(answered)
}

/// S1, S2, S3, S5, S6: some order of the calls on a session explains every answer.
pub fn linearizable(history: &History) -> Held {
    let mut sessions: BTreeMap<String, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        // A read that is content with a copy may be behind.
        let is_of_copy = matches!(&operation.call, Call::Get(request) if request.min_revision.is_some());
        if let Some(id) = session_of(operation).filter(|_| !is_of_copy) {
            sessions.entry(id).or_default().push(operation);
        }
    }
    let by_hand = history.by_hand();
    sessions.retain(|id, _| !by_hand.contains(&id[..]));
    for (id, operations) in &sessions {
        let happenings = happenings(history, id, operations);
        if happenings.len() > LONGEST {
            return Err(Violation(format!("{} calls for {id} are more than can be checked", happenings.len())));
        }
        hold(is_explained(&history.rules, &happenings), || {
            let lines: Vec<String> = happenings.iter().map(|happening| format!("{happening:?}\n")).collect();
            format!("no order explains this of {id}:\n{}", lines.concat())
        })?;
    }
    Ok(())
}

/// What happened to a session, as far as Redis had to keep it.
fn happenings<'a>(history: &'a History, id: &str, operations: &[&'a Operation]) -> Vec<Happening<'a>> {
    let first = operations.iter().map(|operation| operation.called).min().unwrap_or(0);
    let loss = Loss::of(history).filter(|loss| first < loss.until);
    let is_kept = |at: Moment| loss.as_ref().is_none_or(|loss| at < loss.from);
    let mut all = Vec::new();
    for Operation { called, returned, call, outcome, .. } in operations.iter().filter(|it| is_kept(it.called)) {
        let what = match outcome {
            Outcome::Answered(answer) if is_kept(*returned) => What::Answered(call, answer),
            Outcome::Answered(_) | Outcome::Unknown(_) => What::Perhaps(call),
            Outcome::NotApplied(_) => What::NotDone(call),
        };
        all.push(Happening { called: *called, returned: *returned, what });
    }
    let ends_by_call =
        |cause| operations.iter().any(|it| matches!(it.call, Call::Delete(_)) && cause_of(&it.call) == cause);
    let endings = history
        .truth
        .stores
        .iter()
        .flat_map(|store| store.logs.iter().flat_map(|log| log.entries.iter().chain(&log.lost)));
    for ended in endings.filter(|entry| entry.id == id && entry.kind == EventType::Ended) {
        let by_itself = match ended.cause {
            Cause::IdleTimeout | Cause::AbsoluteTimeout | Cause::Replaced | Cause::OutOfBand => true,
            Cause::Revoked => !ends_by_call(Cause::Revoked),
            _ => false,
        };
        let returned = ended.position.moment();
        if by_itself && is_kept(returned) {
            all.push(Happening { called: 0, returned, what: What::Ended(ended.cause) });
        }
    }
    all.extend(burial(history, operations));
    all
}

/// Ending all sessions of a subject may find one that is about to be made.
fn burial<'a>(history: &'a History, operations: &[&Operation]) -> Option<Happening<'a>> {
    let subjects: BTreeSet<&str> = operations
        .iter()
        .filter_map(|operation| match &operation.call {
            Call::Create(request) => Some(&request.subject[..]),
            _ => None,
        })
        .collect();
    history.operations.iter().find_map(|operation| match &operation.call {
        Call::DeleteSubject(request) if subjects.contains(&request.subject[..]) => {
            let what = What::Buried(cause_of(&operation.call));
            Some(Happening { called: operation.called, returned: operation.returned, what })
        }
        _ => None,
    })
}

/// Failures that are Redis' or the network's, and say so.
pub const FAILURES: [&str; 8] = [
    "Unavailable STORE_UNAVAILABLE",
    "Unavailable STORE_CHANGED",
    "Unavailable OVERLOADED",
    "Unavailable DRAINING",
    "DeadlineExceeded STORE_TIMEOUT",
    "DeadlineExceeded OUTCOME_UNKNOWN",
    "Unknown OUTCOME_UNKNOWN",
    "ResourceExhausted STORE_FULL",
];

/// A call that fails says why, and whether it may have been applied; only an instance that was killed does not.
pub fn explained(history: &History) -> Held {
    let is_killed = history.has(Effect::Kills, Moment::MAX);
    for operation in &history.operations {
        let (Outcome::NotApplied(failure) | Outcome::Unknown(failure)) = &operation.outcome else { continue };
        let is_cut_off = is_killed && failure.ends_with(WITHOUT_REASON);
        hold(is_cut_off || FAILURES.contains(&&failure[..]), || format!("{failure}: {operation:?}"))?;
    }
    Ok(())
}

/// What was answered stands in the log, unless Redis broke its word.
pub fn kept(history: &History) -> Held {
    if !history.keeps_its_word() {
        return Ok(());
    }
    let stands: BTreeSet<(&str, i64)> = history.truth.present().entries().map(Entry::name).collect();
    for operation in &history.operations {
        if let Outcome::Answered(Answer::Session(session, ..)) = &operation.outcome {
            let Session { id, revision, .. } = &**session;
            hold(stands.contains(&(&id[..], *revision)), || {
                format!("{id} {revision} is not in the log: {operation:?}")
            })?;
        }
    }
    Ok(())
}

/// Acknowledged writes that do not stand: what Redis lost.
fn lost_writes(history: &History) -> impl Iterator<Item = &Operation> {
    let stands: BTreeSet<(&str, i64)> = history.truth.present().entries().map(Entry::name).collect();
    history.operations.iter().filter(move |operation| match (&operation.call, &operation.outcome) {
        (Call::Create(_) | Call::Update(_) | Call::Rotate(_), Outcome::Answered(Answer::Session(session, ..))) => {
            !stands.contains(&(&session.id[..], session.revision))
        }
        _ => false,
    })
}

pub fn acknowledged_and_lost(history: &History) -> usize {
    lost_writes(history).count()
}

/// The state of a session at a moment, as the log has it; None = it does not live.
fn state_at<'a>(entries: &[&'a Entry], at: Moment) -> Option<&'a Entry> {
    let last = entries.iter().rev().find(|entry| entry.position.moment() <= at)?;
    (last.kind != EventType::Ended).then_some(last)
}

fn subject_of(entry: &Entry) -> &str {
    entry.after.as_ref().map_or("", |after| &after.content.subject)
}

/// A list by subject has every session that was the subject's throughout, and none that was not.
pub fn listed(history: &History) -> Held {
    let (sessions, by_hand) = (history.truth.present().by_session(), history.by_hand());
    for operation in history.operations.iter().filter(|_| history.keeps_its_word()) {
        let (Call::List(request), Outcome::Answered(Answer::Listed(listed))) = (&operation.call, &operation.outcome)
        else {
            continue;
        };
        let Some(subject) = &request.subject else { continue };
        let told: BTreeSet<&str> = listed.iter().map(|session| &session.id[..]).collect();
        let between = |entry: &&&Entry| (operation.called..=operation.returned).contains(&entry.position.moment());
        for (id, entries) in sessions.iter().filter(|(id, _)| !by_hand.contains(*id)) {
            let Some(before) = state_at(entries, operation.called) else { continue };
            let expires = before.after.as_ref().and_then(|after| after.expires);
            let stays = entries
                .iter()
                .filter(between)
                .all(|entry| subject_of(entry) == subject && entry.kind != EventType::Ended);
            let outlives = expires.is_none_or(|(seconds, _)| seconds as Moment * 1_000_000 > operation.returned);
            if subject_of(before) == subject && stays && outlives {
                hold(told.contains(id), || format!("{id} is {subject}'s, and is not listed: {operation:?}"))?;
            }
        }
        for id in told.difference(&by_hand) {
            let entries = sessions.get(id).map_or(&[][..], Vec::as_slice);
            let was_its = state_at(entries, operation.called).is_some_and(|entry| subject_of(entry) == subject)
                || entries.iter().filter(between).any(|entry| subject_of(entry) == subject);
            hold(was_its, || format!("{id} is not {subject}'s, and is listed: {operation:?}"))?;
        }
    }
    Ok(())
}

/// After all sessions of a subject were ended none lives that was the subject's when the call began.
pub fn logged_out_everywhere(history: &History) -> Held {
    let (sessions, by_hand) = (history.truth.present().by_session(), history.by_hand());
    for operation in history.operations.iter().filter(|_| history.keeps_its_word()) {
        let (Call::DeleteSubject(request), Outcome::Answered(Answer::DeletedCount(_))) =
            (&operation.call, &operation.outcome)
        else {
            continue;
        };
        for (id, entries) in sessions.iter().filter(|(id, _)| **id != request.except_id && !by_hand.contains(*id)) {
            let was_its = state_at(entries, operation.called).is_some_and(|entry| subject_of(entry) == request.subject);
            let lives = state_at(entries, operation.returned).is_some_and(|entry| subject_of(entry) == request.subject);
            hold(!(was_its && lives), || format!("{id} lives on after {operation:?}"))?;
        }
    }
    Ok(())
}
