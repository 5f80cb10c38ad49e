//! Parses the request of Watch.

use std::{collections::HashSet, time::Duration};

use tonic::Status;

use super::Violations;
use crate::{
    auth::Caller,
    pb,
    service::{Key, Watch, WatchKeys},
    session::View,
    watch::{InitialState, Kind, ResumeToken},
};

/// Maximum number of keys of a watch.
const MAX_KEYS: usize = 1_000;
/// Maximum length of a resume token in bytes.
const MAX_RESUME_TOKEN: usize = 8 * 1024;
/// Bookmark interval of a request that sets none.
const DEFAULT_BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);
/// Allowed bookmark intervals.
const BOOKMARK_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// Parses the request of Watch. Returns the view of the sessions in its events with it.
pub(crate) fn watch(request: pb::WatchRequest, caller: &Caller) -> Result<(Watch, View), Status> {
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    let selectors = [!request.keys.is_empty(), request.subject.is_some(), request.whole_namespace];
    if selectors.iter().filter(|is_set| **is_set).count() != 1 {
        violations.add("keys", "set exactly one of keys, subject and whole_namespace");
    }
    if let Some(subject) = &request.subject {
        violations.present_subject("subject", subject);
    }
    let keys = match request.subject {
        Some(subject) => Some(WatchKeys::Subject(subject)),
        None => violations.watch_keys(request.keys),
    };
    let labels = violations.labels("labels", request.labels);
    let kinds = violations.kinds(&request.types);
    let view = violations.view(request.view, View::Basic);
    let resume = violations.resume_token(&request.resume_token);
    let bookmark_interval = match request.bookmark_interval {
        None => Some(DEFAULT_BOOKMARK_INTERVAL),
        Some(interval) => violations.duration("bookmark_interval", interval),
    };
    if bookmark_interval.is_some_and(|interval| !BOOKMARK_INTERVALS.contains(&interval)) {
        violations.add("bookmark_interval", "must be 100 ms to 60 s");
    }
    violations.finish(|| {
        let bookmark_interval = bookmark_interval?;
        let view = view?;
        let state = if request.initial_state { InitialState::Requested(view) } else { InitialState::NotRequested };
        Some((Watch { namespace: namespace?, keys: keys?, labels, kinds, resume, state, bookmark_interval }, view))
    })
}

impl Violations {
    /// Parses ids, or exactly one token.
    fn watch_keys(&mut self, keys: Vec<pb::SessionKey>) -> Option<WatchKeys> {
        if keys.is_empty() {
            return Some(WatchKeys::WholeNamespace);
        }
        if keys.len() > MAX_KEYS {
            return self.invalid("keys", format!("{} keys; at most {MAX_KEYS}", keys.len()));
        }
        let count = keys.len();
        let mut ids = HashSet::new();
        let mut token = None;
        for (index, key) in keys.into_iter().enumerate() {
            match self.key(&format!("keys[{index}]"), Some(key)) {
                None => {}
                Some(Key::Id(id)) => {
                    ids.insert(id);
                }
                Some(Key::Token(presented)) => token = Some(WatchKeys::Token(presented)),
            }
        }
        if token.is_some() && count > 1 {
            return self.invalid("keys", "must be ids, or exactly one token");
        }
        token.or(Some(WatchKeys::Ids(ids)))
    }

    /// Parses the event types. None: all.
    fn kinds(&mut self, types: &[i32]) -> Option<HashSet<Kind>> {
        if types.is_empty() {
            return None;
        }
        self.max_entries("types", types.len());
        let mut kinds = HashSet::new();
        for (index, number) in types.iter().enumerate() {
            let kind = match pb::EventType::try_from(*number) {
                Ok(pb::EventType::Created) => Kind::Created,
                Ok(pb::EventType::Updated) => Kind::Updated,
                Ok(pb::EventType::Rotated) => Kind::Rotated,
                Ok(pb::EventType::Ended) => Kind::Ended,
                Ok(pb::EventType::Left) => Kind::Left,
                Ok(pb::EventType::TokenReused) => Kind::TokenReused,
                // A watch delivers snapshots whatever the request has here.
                Ok(pb::EventType::Snapshot) => continue,
                Ok(pb::EventType::Unspecified) | Err(_) => {
                    self.add(format!("types[{index}]"), "is not an event type");
                    continue;
                }
            };
            kinds.insert(kind);
        }
        Some(kinds)
    }

    /// Parses a resume token. An empty text is none.
    fn resume_token(&mut self, text: &[u8]) -> Option<ResumeToken> {
        if text.is_empty() {
            return None;
        }
        if text.len() > MAX_RESUME_TOKEN {
            return self.invalid("resume_token", format!("{} bytes; at most {MAX_RESUME_TOKEN}", text.len()));
        }
        match ResumeToken::decode(text) {
            Ok(token) => Some(token),
            Err(_) => self.invalid("resume_token", "must be the resume_token of a Watch response"),
        }
    }
}
