//! Watches with those that went on with them, as one stream each, cut where the stream itself says that it is.

use std::collections::BTreeMap;

use sessiond_client::v1::{EventType, ResyncReason, SessionEvent};

use crate::history::{Control, Filter, History, Response, STILL_OPEN, Token};

/// A watch and all that went on with it.
pub struct Stream<'a> {
    /// The first of them.
    pub watch: usize,
    pub filter: &'a Filter,
    /// It came to its end before the recording did, and nobody went on with it.
    pub is_over: bool,
    pub segments: Vec<Segment<'a>>,
}

/// What lies between two resyncs that are about everything, the second one's response included.
#[derive(Default)]
pub struct Segment<'a> {
    pub steps: Vec<&'a Response>,
    /// The first position that is promised: what follows it comes. None = it was never told.
    pub start: Option<Start<'a>>,
}

#[derive(Clone, Copy)]
pub struct Start<'a> {
    pub token: &'a Token,
    /// The first step after it.
    pub step: usize,
}

impl<'a> Segment<'a> {
    /// Whether it is the resync that ends the segment.
    pub fn is_cut(step: &Response) -> bool {
        match &step.control {
            // It is to resume, and has nothing to forget.
            Some(Control::Resync(ResyncReason::SlowConsumer, _)) => false,
            Some(Control::Resync(_, ids)) => ids.is_empty(),
            Some(Control::Synced | Control::Bookmark(_)) | None => false,
        }
    }

    /// Every event with the step that brought it.
    pub fn events(&self) -> impl Iterator<Item = (usize, &'a SessionEvent)> {
        self.steps.iter().enumerate().flat_map(|(at, step)| step.events.iter().map(move |event| (at, event)))
    }

    /// Every event but SNAPSHOT.
    pub fn changes(&self) -> impl Iterator<Item = (usize, &'a SessionEvent)> {
        self.events().filter(|(_, event)| event.r#type() != EventType::Snapshot)
    }

    /// The latest revision in a SNAPSHOT of each session.
    pub fn snapshots(&self) -> BTreeMap<&'a str, i64> {
        let snapshots = self.events().filter(|(_, event)| event.r#type() == EventType::Snapshot);
        snapshots.map(|(_, event)| (&event.id[..], event.revision)).collect()
    }
}

/// All streams of the history.
pub fn streams(history: &History) -> Vec<Stream<'_>> {
    let firsts = (0..history.watches.len()).filter(|number| history.watches[*number].resumes.is_none());
    firsts.map(|first| stream(history, first)).collect()
}

fn stream(history: &History, first: usize) -> Stream<'_> {
    let watch = &history.watches[first];
    let mut segments = vec![Segment::default()];
    let (mut is_first, mut is_over) = (true, false);
    let mut next = Some(first);
    while let Some(number) = next {
        is_over = history.watches[number].end != STILL_OPEN;
        for response in &history.watches[number].responses {
            let segment = segments.last_mut().expect("there is one");
            segment.steps.push(response);
            let begins = if watch.initial_state { response.control == Some(Control::Synced) } else { is_first };
            if begins && segment.start.is_none() {
                segment.start = Some(Start { token: &response.token, step: segment.steps.len() });
            }
            is_first = false;
            if Segment::is_cut(response) {
                let start = (!watch.initial_state).then_some(Start { token: &response.token, step: 0 });
                segments.push(Segment { steps: Vec::new(), start });
            }
        }
        // One that told nothing is gone on with by nobody.
        next = history.watches.iter().position(|it| it.resumes == Some(number) && !it.responses.is_empty());
    }
    Stream { watch: first, filter: &watch.filter, is_over, segments }
}

/// Whether the step says that something was missed of this session.
pub fn is_missed(step: &Response, id: &str) -> bool {
    match &step.control {
        Some(Control::Resync(ResyncReason::SlowConsumer, _)) => false,
        Some(Control::Resync(_, ids)) => ids.is_empty() || ids.contains(id),
        Some(Control::Synced | Control::Bookmark(_)) | None => false,
    }
}
