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
pub use refusals::Source;

/// Maximum number of lines that wait to be written, those of actions in progress included.
const QUEUE: usize = 10_000;
/// Maximum time that the end of the process waits for the log.
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
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

/// Place of one line in the queue.
pub struct Place(OwnedSemaphorePermit);

impl AuditLog {
    /// Opens the output and starts the thread. The path `stderr` is standard error.
    pub fn start(path: &Path, requirement: Requirement, metrics: Arc<Metrics>) -> Result<Self, Unusable> {
        let unusable = |cause| Unusable { path: path.to_owned(), cause };
        let output = Output::open(path).map_err(unusable)?;
        let (sender, messages) = channel();
        let shared = Arc::new(Shared::default());
        metrics.network.set_audit_healthy(true);
        let writer =
            Writer { output, messages, shared: shared.clone(), metrics: metrics.clone(), batch: Batch::default() };
        thread::Builder::new().name("audit log".into()).spawn(move || writer.run()).map_err(unusable)?;
        let places = Arc::new(Semaphore::new(QUEUE));
        Ok(AuditLog(Some(Queue { requirement, messages: sender, places, shared, metrics })))
    }

    /// Whether lines are written.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Takes the place of a line before its action. None: the line will be lost, or the log is off.
    pub fn take_place(&self) -> Result<Option<Place>, Unavailable> {
        let Some(queue) = &self.0 else { return Ok(None) };
        let is_required = queue.requirement == Requirement::Required;
        if is_required && queue.shared.is_broken.load(Ordering::Relaxed) {
            return Err(Unavailable);
        }
        match queue.places.clone().try_acquire_owned() {
            Ok(place) => Ok(Some(Place(place))),
            Err(_) if is_required => Err(Unavailable),
            Err(_) => Ok(None),
        }
    }

    /// Writes a line soon, in this place. None: it is counted as lost.
    pub fn write(&self, place: Option<Place>, line: Line) {
        let Some(queue) = &self.0 else { return };
        let sent = place.map(|Place(place)| queue.messages.send(Message::Line(Box::new(line), place)));
        if !matches!(sent, Some(Ok(()))) {
            queue.shared.lost.fetch_add(1, Ordering::Relaxed);
            queue.metrics.network.count_lost_audit_line();
        }
    }

    /// Writes a line of the server itself, which needs no place before its action.
    pub fn note(&self, event: Event, target: Target, outcome: Outcome, reason: Option<String>) {
        let line = Line::new(Class::Admin, event, outcome, SystemTime::now());
        self.write(self.take_place().ok().flatten(), Line { target, reason, ..line });
    }

    /// Counts a refusal; at most one line per second is written for this source and the reason of the line.
    pub fn refuse(&self, source: Source, line: impl FnOnce() -> Line) {
        if let Some(queue) = &self.0 {
            queue.shared.refusals.add(source, line());
        }
    }

    /// Writes all lines, the last one about the shutdown, and ends the thread.
    pub async fn close(&self) {
        let Some(queue) = &self.0 else { return };
        self.note(Event::SysShutdown, Target::default(), Outcome::Ok, None);
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
        AuditLog::start(&directory.path().join("audit"), requirement, metrics.clone()).unwrap()
    }

    fn line() -> Line {
        Line::new(Class::Login, Event::SessionCreated, Outcome::Ok, SystemTime::now())
    }

    #[test]
    fn full_queue_refuses_required_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let log = AuditLog::start(&path, Requirement::Required, Arc::default()).unwrap();
        let places: Vec<_> = (0..QUEUE).map(|_| log.take_place().unwrap()).collect();
        assert_eq!(log.take_place().err(), Some(Unavailable));
        drop(places);
        assert!(log.take_place().is_ok_and(|place| place.is_some()));
    }

    #[tokio::test]
    async fn full_queue_loses_optional_lines_and_counts_them() {
        let metrics = Arc::new(Metrics::default());
        let log = broken(Requirement::Optional, &metrics);
        for _ in 0..QUEUE + 7 {
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
