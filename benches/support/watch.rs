//! Parts of the watch benchmark: watchers, the writes whose events they receive, and what is measured.

pub mod connection;
pub mod fan_out;
pub mod growth;
pub mod instances;
pub mod latency;
pub mod memory;
pub mod others;
pub mod watchers;
pub mod writer;

use std::{path::PathBuf, time::Duration};

use sessiond_client::v1::{SessionView, WatchRequest};
use tokio::runtime::Runtime;

use harness::client::by_id;

use super::requests::QUIET;

/// What a run measures.
pub struct Options {
    /// Runtime of watchers and writers.
    pub runtime: Runtime,
    /// Program that is measured.
    pub program: PathBuf,
    pub rounds: usize,
    /// Length of a slice.
    pub slice: Duration,
    /// Beginnings of the titles of the rows that run. Empty: all rows run.
    pub only: Vec<String>,
}

impl Options {
    /// Whether the row with this title runs.
    pub fn selects(&self, title: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|start| title.starts_with(&start[..]))
    }

    /// Whether a row runs whose title starts with this text.
    pub fn selects_any_of(&self, part: &str) -> bool {
        self.selects(part) || self.only.iter().any(|start| start.starts_with(part))
    }

    /// Number of events in a slice at this pace.
    pub fn events(&self, per_second: usize) -> usize {
        (self.slice.as_secs_f64() * per_second as f64).ceil() as usize
    }
}

/// Request for a watch of the whole namespace in the FULL view.
pub fn whole_namespace() -> WatchRequest {
    let (namespace, view) = (QUIET.to_owned(), SessionView::Full.into());
    WatchRequest { namespace, whole_namespace: true, view, ..Default::default() }
}

/// Request for a watch of this subject in the FULL view.
pub fn of_subject(subject: &str) -> WatchRequest {
    WatchRequest { whole_namespace: false, subject: Some(subject.to_owned()), ..whole_namespace() }
}

/// Request for a watch of the session with this id in the FULL view.
pub fn of_session(id: &str) -> WatchRequest {
    WatchRequest { whole_namespace: false, keys: by_id(id).into_iter().collect(), ..whole_namespace() }
}
