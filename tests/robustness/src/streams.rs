//! Joins each watch with the watches that resume it into one stream, split at every resync of all sessions.

use std::collections::BTreeMap;

use sessiond_client::v1::{EventType, ResyncReason, SessionEvent};

use crate::history::{Control, DecodedToken, Filter, History, Response, STILL_OPEN};

/// A watch and all watches that resume it.
pub struct Stream<'a> {
    /// Number of the first watch.
    pub watch: usize,
    /// Filter of all its watches.
    pub filter: &'a Filter,
    /// Whether the last watch ended before the recording and was not resumed.
    pub has_ended: bool,
    /// Segments in order; at least one.
    pub segments: Vec<Segment<'a>>,
}

/// The responses between two resyncs of all sessions, including the second resync.
#[derive(Default)]
pub struct Segment<'a> {
    /// Responses in the order of receipt.
    pub responses: Vec<&'a Response>,
    /// Position from which the stream is complete. None: the segment has none.
    pub start: Option<Start<'a>>,
}

/// Position from which a segment is complete.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// Token with the position.
    pub token: &'a DecodedToken,
    /// Index of the first response after the position.
    pub index: usize,
}

impl<'a> Segment<'a> {
    /// Returns whether the response is a resync of all sessions, which ends the segment.
    pub fn is_full_resync(response: &Response) -> bool {
        match &response.control {
            // The watcher keeps its state and resumes.
            Some(Control::Resync(ResyncReason::SlowConsumer, _)) => false,
            Some(Control::Resync(_, ids)) => ids.is_empty(),
            Some(Control::Synced | Control::Bookmark(_)) | None => false,
        }
    }

    /// Returns all events with the index of their response.
    pub fn events(&self) -> impl Iterator<Item = (usize, &'a SessionEvent)> {
        self.responses
            .iter()
            .enumerate()
            .flat_map(|(index, response)| response.events.iter().map(move |event| (index, event)))
    }

    /// Returns all events except SNAPSHOT, with the index of their response.
    pub fn changes(&self) -> impl Iterator<Item = (usize, &'a SessionEvent)> {
        self.events().filter(|(_, event)| event.r#type() != EventType::Snapshot)
    }

    /// Returns the revision of the last SNAPSHOT event of each session, by id.
    pub fn snapshots(&self) -> BTreeMap<&'a str, i64> {
        let snapshots = self.events().filter(|(_, event)| event.r#type() == EventType::Snapshot);
        snapshots.map(|(_, event)| (&event.id[..], event.revision)).collect()
    }
}

/// Returns all streams of the history.
pub fn streams(history: &History) -> Vec<Stream<'_>> {
    let firsts = (0..history.watches.len()).filter(|number| history.watches[*number].resumes.is_none());
    firsts.map(|first| stream(history, first)).collect()
}

fn stream(history: &History, first: usize) -> Stream<'_> {
    let watch = &history.watches[first];
    let mut segments = vec![Segment::default()];
    let (mut is_first, mut has_ended) = (true, false);
    let mut next = Some(first);
    while let Some(number) = next {
        has_ended = history.watches[number].end != STILL_OPEN;
        for response in &history.watches[number].responses {
            let segment = segments.last_mut().expect("it exists");
            segment.responses.push(response);
            let is_start = if watch.initial_state { response.control == Some(Control::Synced) } else { is_first };
            if is_start && segment.start.is_none() {
                segment.start = Some(Start { token: &response.token, index: segment.responses.len() });
            }
            is_first = false;
            if Segment::is_full_resync(response) {
                let start = (!watch.initial_state).then_some(Start { token: &response.token, index: 0 });
                segments.push(Segment { responses: Vec::new(), start });
            }
        }
        // A watch without a response has no token to resume from.
        next = history.watches.iter().position(|watch| watch.resumes == Some(number) && !watch.responses.is_empty());
    }
    Stream { watch: first, filter: &watch.filter, has_ended, segments }
}

/// Returns whether the response is a resync that includes this session.
pub fn is_resynced(response: &Response, id: &str) -> bool {
    match &response.control {
        Some(Control::Resync(ResyncReason::SlowConsumer, _)) => false,
        Some(Control::Resync(_, ids)) => ids.is_empty() || ids.contains(id),
        Some(Control::Synced | Control::Bookmark(_)) | None => false,
    }
}
