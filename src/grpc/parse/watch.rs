//! The request of Watch.

use std::{collections::HashSet, time::Duration};

use tonic::Status;

use super::Problems;
use crate::{
    pb,
    service::{Key, Watch, WatchKeys},
    session::View,
    watch::{Kind, ResumeToken, State},
};

const MAX_KEYS: usize = 1_000;
const MAX_RESUME_TOKEN: usize = 8 * 1024;
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);
const BOOKMARK_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// What a watch is to tell, and how much of each session.
pub fn watch(request: pb::WatchRequest) -> Result<(Watch, View), Status> {
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    let chosen = [!request.keys.is_empty(), request.subject.is_some(), request.whole_namespace];
    if chosen.iter().filter(|chosen| **chosen).count() != 1 {
        problems.add("keys", "give exactly one of keys, subject and whole_namespace");
    }
    if let Some(subject) = &request.subject {
        problems.present_subject("subject", subject);
    }
    let keys = match request.subject {
        Some(subject) => Some(WatchKeys::Subject(subject)),
        None => problems.watch_keys(request.keys),
    };
    let labels = problems.labels("labels", request.labels);
    let kinds = problems.kinds(&request.types);
    let view = problems.view(request.view, View::Basic);
    let resume = problems.resume_token(&request.resume_token);
    let bookmark_interval = match request.bookmark_interval {
        None => Some(BOOKMARK_INTERVAL),
        Some(interval) => problems.duration("bookmark_interval", interval),
    };
    if bookmark_interval.is_some_and(|interval| !BOOKMARK_INTERVALS.contains(&interval)) {
        problems.add("bookmark_interval", "must be 100 ms to 60 s");
    }
    let watch = problems.finish(|| {
        let bookmark_interval = bookmark_interval?;
        let view = view?;
        let state = if request.initial_state { State::Asked(view) } else { State::NotAsked };
        Some((Watch { namespace: namespace?, keys: keys?, labels, kinds, resume, state, bookmark_interval }, view))
    })?;
    Ok(watch)
}

impl Problems {
    fn watch_keys(&mut self, keys: Vec<pb::SessionKey>) -> Option<WatchKeys> {
        if keys.is_empty() {
            return Some(WatchKeys::WholeNamespace);
        }
        if keys.len() > MAX_KEYS {
            return self.refuse("keys", format!("{} keys; at most {MAX_KEYS}", keys.len()));
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
                Some(Key::Token(of)) => token = Some(WatchKeys::Token(of)),
                Some(Key::MalformedToken) => token = Some(WatchKeys::MalformedToken),
            }
        }
        if token.is_some() && count > 1 {
            return self.refuse("keys", "give ids, or exactly one token");
        }
        token.or(Some(WatchKeys::Ids(ids)))
    }

    /// None = all.
    fn kinds(&mut self, types: &[i32]) -> Option<HashSet<Kind>> {
        if types.is_empty() {
            return None;
        }
        self.at_most_names("types", types.len());
        let mut kinds = HashSet::new();
        for (index, number) in types.iter().enumerate() {
            let kind = match pb::EventType::try_from(*number) {
                Ok(pb::EventType::Created) => Kind::Created,
                Ok(pb::EventType::Updated) => Kind::Updated,
                Ok(pb::EventType::Rotated) => Kind::Rotated,
                Ok(pb::EventType::Ended) => Kind::Ended,
                Ok(pb::EventType::Left) => Kind::Left,
                Ok(pb::EventType::TokenReused) => Kind::TokenReused,
                // It comes whatever is asked for.
                Ok(pb::EventType::Snapshot) => continue,
                Ok(pb::EventType::Unspecified) | Err(_) => {
                    self.add(format!("types[{index}]"), "is no type of event");
                    continue;
                }
            };
            kinds.insert(kind);
        }
        Some(kinds)
    }

    fn resume_token(&mut self, text: &[u8]) -> Option<ResumeToken> {
        if text.is_empty() {
            return None;
        }
        if text.len() > MAX_RESUME_TOKEN {
            return self.refuse("resume_token", format!("{} bytes; at most {MAX_RESUME_TOKEN}", text.len()));
        }
        match ResumeToken::decode(text) {
            Ok(token) => Some(token),
            Err(_) => self.refuse("resume_token", "must be the resume_token of a response of Watch"),
        }
    }
}
