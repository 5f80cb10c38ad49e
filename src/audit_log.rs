//! The audit log: one JSON line for each login, each refusal, and each act by id or subject, never with a token or an attribute.
//!
//! A line takes its place in a bounded queue before the action, and a thread writes it after the outcome is known.

mod line;
mod output;
mod refusals;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use crate::observe::Metrics;
use output::Output;
use writer::{Batch, Message, Shared, Writer};

pub use line::{Actor, Class, Event, Line, Outcome, Target, user_agent};
pub use refusals::{Refusal, Source};

/// Maximum number of lines that wait to be written, in addition to those of actions in progress.
const QUEUE: usize = 10_000;
/// Maximum time that the end of the process waits for actions in progress, and again for the log.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether actions are refused whose line cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// They are done, and their lines are counted as lost.
    Optional,
    /// They are refused.
    Required,
}

/// The output cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the audit log {}: {cause}", path.display())]
pub struct Unusable {
    /// Path in the configuration.
    pub path: PathBuf,
    /// Error of the operating system.
    pub cause: io::Error,
}

/// An action is refused: its line could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

/// The audit log of a server.
#[derive(Default)]
pub struct AuditLog(Option<Queue>);

struct Queue {
    requirement: Requirement,
    messages: Sender<Message>,
    /// Places of lines that are not written yet.
    places: Arc<Semaphore>,
    /// Number of places.
    capacity: usize,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

impl Queue {
    fn free_place(&self) -> Option<Place> {
        self.places.clone().try_acquire_owned().ok().map(Place)
    }
}

/// Place of one line in the queue.
pub struct Place(OwnedSemaphorePermit);

impl AuditLog {
    /// Opens the output and starts the thread, for at most `max_actions` at the same time. The path `stderr` is standard error.
    pub fn start(
        path: &Path,
        requirement: Requirement,
        max_actions: usize,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Unusable> {
        let unusable = |cause| Unusable { path: path.to_owned(), cause };
        let output = Output::open(path).map_err(unusable)?;
        let (sender, messages) = channel();
        let shared = Arc::new(Shared::default());
        metrics.network.set_audit_healthy(true);
        let writer =
            Writer { output, messages, shared: shared.clone(), metrics: metrics.clone(), batch: Batch::default() };
        thread::Builder::new().name("audit log".into()).spawn(move || writer.run()).map_err(unusable)?;
        let capacity = QUEUE + max_actions;
        let places = Arc::new(Semaphore::new(capacity));
        Ok(AuditLog(Some(Queue { requirement, messages: sender, places, capacity, shared, metrics })))
    }

    /// Whether lines are written.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Takes the place of a line before its action. None: the line will be lost, or the log is off.
    pub fn take_place(&self) -> Result<Option<Place>, Unavailable> {
        let Some(queue) = &self.0 else { return Ok(None) };
        let is_required = queue.requirement == Requirement::Required;
        if queue.shared.is_broken() {
            queue.metrics.network.set_audit_healthy(false);
            if is_required {
                return Err(Unavailable);
            }
        }
        match queue.free_place() {
            None if is_required => Err(Unavailable),
            place => Ok(place),
        }
    }

    /// Writes a line soon, in this place. None: in a free one; if there is none, it is counted as lost.
    pub fn write(&self, place: Option<Place>, line: Line) {
        let Some(queue) = &self.0 else { return };
        let place = place.or_else(|| queue.free_place());
        let sent = place.map(|Place(place)| queue.messages.send(Message::Line(Box::new(line), place)));
        if !matches!(sent, Some(Ok(()))) {
            queue.shared.lost.fetch_add(1, Ordering::Relaxed);
            queue.metrics.network.count_lost_audit_lines(1);
        }
    }

    /// Writes a line of the server itself, which needs no place before its action.
    pub fn note(&self, event: Event, target: Target, outcome: Outcome, reason: Option<String>) {
        let line = Line::new(Class::Admin, event, outcome, SystemTime::now());
        self.write(None, Line { target, reason, ..line });
    }

    /// Counts a refusal; at most one line per second is written for equal ones. `describe` is called for the first of them.
    pub fn refuse(&self, refusal: Refusal, describe: impl FnOnce() -> (Actor, Target)) {
        if let Some(queue) = &self.0 {
            queue.shared.refusals.add(refusal, describe);
        }
    }

    /// Waits for the actions in progress, writes all lines, the last one about the shutdown, and ends the thread. After that,
    /// required lines have no place.
    pub async fn close(&self) {
        let Some(queue) = &self.0 else { return };
        let all = u32::try_from(queue.capacity).unwrap_or(u32::MAX);
        let _ = timeout(CLOSE_TIMEOUT, queue.places.acquire_many(all)).await;
        self.note(Event::SysShutdown, Target::default(), Outcome::Ok, None);
        queue.places.close();
        let (sender, closed) = oneshot::channel();
        if queue.messages.send(Message::Close(sender)).is_err() || timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            crate::observe::error!("audit log is not written to its end");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log whose file cannot be opened again, so that its lines stay in the queue.
    fn broken(requirement: Requirement, metrics: &Arc<Metrics>) -> AuditLog {
        let directory = tempfile::tempdir().unwrap();
        AuditLog::start(&directory.path().join("audit"), requirement, 5, metrics.clone()).unwrap()
    }

    fn line() -> Line {
        Line::new(Class::Login, Event::SessionCreated, Outcome::Ok, SystemTime::now())
    }

    #[test]
    fn full_queue_refuses_required_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let log = AuditLog::start(&path, Requirement::Required, 5, Arc::default()).unwrap();
        let places: Vec<_> = (0..QUEUE + 5).map(|_| log.take_place().unwrap()).collect();
        assert_eq!(log.take_place().err(), Some(Unavailable));
        drop(places);
        assert!(log.take_place().is_ok_and(|place| place.is_some()));
    }

    #[tokio::test]
    async fn full_queue_loses_optional_lines_and_counts_them() {
        let metrics = Arc::new(Metrics::default());
        let log = broken(Requirement::Optional, &metrics);
        for _ in 0..QUEUE + 5 + 7 {
            log.write(log.take_place().unwrap(), line());
        }
        assert!(metrics.render().contains("sessiond_audit_lines_lost_total 7"));
        assert!(log.take_place().unwrap().is_none());
    }

    #[tokio::test]
    async fn broken_log_refuses_required_lines() {
        let log = broken(Requirement::Required, &Arc::default());
        while log.take_place().is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
