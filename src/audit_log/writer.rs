//! The thread that writes the lines. What cannot be written stays, with its places in the queue, and is tried again.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    line::{Class, Event, Line, Outcome},
    output::Output,
    refusals::Refusals,
};
use crate::observe::Metrics;

/// Maximum time that a line waits for others before all are written.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two lines of the same refusal.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a write that has not ended counts as failed.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Size of the lines above which they are written at once.
const BATCH_BYTES: usize = 256 * 1024;

/// Message to the thread.
pub(super) enum Message {
    /// Write a line, and return its place in the queue.
    Line(Box<Line>, OwnedSemaphorePermit),
    /// Write everything, then end.
    Close(oneshot::Sender<()>),
}

/// State that the thread shares with the log.
#[derive(Default)]
pub(super) struct Shared {
    /// Refusals since the last line about them.
    pub refusals: Refusals,
    /// Whether the last attempt to write failed.
    is_broken: AtomicBool,
    /// Number of lines without a place in the queue since the last line about them.
    pub lost: AtomicU64,
    /// Start of the write in progress. None: the thread waits for lines.
    writing_since: Mutex<Option<Instant>>,
}

impl Shared {
    /// Whether lines cannot be written now: the last attempt failed, or one takes too long.
    pub(super) fn is_broken(&self) -> bool {
        let is_stuck = |since: Instant| since.elapsed() >= STUCK_AFTER;
        self.is_broken.load(Ordering::Relaxed) || self.writing_since.lock().is_some_and(is_stuck)
    }
}

/// What the thread has received in one interval.
enum Collected {
    /// Lines, or nothing.
    Lines,
    /// [`Message::Close`] after them.
    Close(oneshot::Sender<()>),
    /// The log was dropped.
    Abandoned,
}

/// The thread.
pub(super) struct Writer {
    pub output: Output,
    pub messages: Receiver<Message>,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
    pub batch: Batch,
}

/// Lines that are not written yet.
#[derive(Default)]
pub(super) struct Batch {
    text: Vec<u8>,
    /// Number of bytes of the text that are written.
    written: usize,
    /// Places of the lines in the queue.
    places: Vec<OwnedSemaphorePermit>,
    /// Number of the last line.
    seq: u64,
}

impl Batch {
    fn add(&mut self, line: &Line, metrics: &Metrics) {
        self.seq += 1;
        line.append_to(&mut self.text, self.seq);
        metrics.network.count_audit_line(line.class.name());
    }

    /// Starts the line again of which a part was written to another file.
    fn repeat_line(&mut self) {
        let written = &self.text[..self.written];
        self.written = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    }

    /// Writes everything. What is written before an error is not written again.
    fn write_to(&mut self, output: &mut Output) -> io::Result<()> {
        while self.written < self.text.len() {
            match output.write(&self.text[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.text.clear();
        self.written = 0;
        self.places.clear();
        Ok(())
    }
}

impl Writer {
    /// Writes lines until [`Message::Close`].
    pub(super) fn run(mut self) {
        let mut checked = Instant::now();
        loop {
            let collected = self.collect();
            let is_last = !matches!(collected, Collected::Lines);
            // While the output is broken, refusals are only counted.
            if is_last || checked.elapsed() >= CHECK_INTERVAL && !self.shared.is_broken() {
                checked = Instant::now();
                self.add_counts();
            }
            self.flush();
            if is_last {
                self.note_unwritten();
            }
            match collected {
                Collected::Lines => {}
                Collected::Close(closed) => {
                    let _ = closed.send(());
                    return;
                }
                Collected::Abandoned => return,
            }
        }
    }

    /// Collects lines for one interval, or until they fill a batch.
    fn collect(&mut self) -> Collected {
        let end = Instant::now() + FLUSH_INTERVAL;
        // While the output is broken, the lines stay in the queue, which is bounded.
        while self.batch.text.len() < BATCH_BYTES || self.shared.is_broken.load(Ordering::Relaxed) {
            match self.messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Message::Line(line, place)) => {
                    self.batch.add(&line, &self.metrics);
                    self.batch.places.push(place);
                }
                Ok(Message::Close(closed)) => return Collected::Close(closed),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Collected::Abandoned,
            }
        }
        Collected::Lines
    }

    /// Adds the lines about refusals and about lost lines.
    fn add_counts(&mut self) {
        for line in self.shared.refusals.take() {
            self.batch.add(&line, &self.metrics);
        }
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let line = Line::new(Class::Admin, Event::AuditLinesLost, Outcome::Failed, SystemTime::now());
            self.batch.add(&Line { count: Some(lost), ..line }, &self.metrics);
        }
    }

    /// Counts the lines that cannot be written at the end.
    fn note_unwritten(&self) {
        let lines = self.batch.text[self.batch.written..].iter().filter(|byte| **byte == b'\n').count();
        if lines > 0 {
            self.metrics.network.count_lost_audit_lines(lines as u64);
            crate::observe::error!(lines, "audit log is closed; its last lines could not be written");
        }
    }

    /// Writes the batch, to the file that has the path now.
    fn flush(&mut self) {
        *self.shared.writing_since.lock() = Some(Instant::now());
        let written = self.output.is_new().and_then(|is_new| {
            if is_new {
                self.batch.repeat_line();
            }
            self.batch.write_to(&mut self.output)
        });
        *self.shared.writing_since.lock() = None;
        let was_broken = self.shared.is_broken.swap(written.is_err(), Ordering::Relaxed);
        self.metrics.network.set_audit_healthy(written.is_ok());
        match written {
            Err(error) if !was_broken => {
                crate::observe::error!(%error, "cannot write the audit log; its lines wait");
            }
            Ok(()) if was_broken => tracing::info!("audit log is written again"),
            Ok(()) | Err(_) => {}
        }
    }
}
