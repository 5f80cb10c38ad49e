//! The writer of log lines: a bounded queue, and a thread that writes the lines to standard error. Logging neither waits
//! nor fails: a line that cannot be queued or written is dropped and counted.

use std::{
    io::{self, Write},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;

/// Maximum total size of the lines in the queue.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// Maximum time that the end of the process waits for the queue.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two checks of the queue, or of a standard error that accepts nothing.
const POLL: Duration = Duration::from_millis(2);

/// Number of dropped lines of the process. Static, because logging starts before the metrics exist.
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Returns the counter of dropped lines.
pub(super) fn dropped() -> Counter {
    DROPPED.clone()
}

/// Queue of the thread. A write adds one line.
#[derive(Clone)]
pub(super) struct LogWriter {
    lines: Sender<Vec<u8>>,
    /// Total size of the lines that are queued or that the thread is writing.
    unwritten_bytes: Arc<AtomicUsize>,
}

impl LogWriter {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (lines, queue) = channel::<Vec<u8>>();
        let writer = LogWriter { lines, unwritten_bytes: Arc::default() };
        let unwritten_bytes = writer.unwritten_bytes.clone();
        thread::Builder::new().name("log writer".into()).spawn(move || {
            for line in queue {
                if write_to_stderr(&mut io::stderr(), &line).is_err() {
                    DROPPED.inc();
                }
                unwritten_bytes.fetch_sub(line.len(), Ordering::AcqRel);
            }
        })?;
        Ok(writer)
    }
}

/// Writes all bytes to standard error, or its lock. Waits while it accepts nothing: another process may have made it
/// non-blocking.
pub(crate) fn write_to_stderr(stderr: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stderr.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(POLL),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let unwritten_bytes = self.unwritten_bytes.fetch_add(line.len(), Ordering::AcqRel) + line.len();
        if unwritten_bytes > MAX_QUEUED_BYTES || self.lines.send(line.to_vec()).is_err() {
            self.unwritten_bytes.fetch_sub(line.len(), Ordering::AcqRel);
            DROPPED.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Owner of the log: when it is dropped, it waits until the queued lines are written, at most for one second.
pub struct LogGuard(pub(super) LogWriter);

impl Drop for LogGuard {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        while self.0.unwritten_bytes.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            thread::sleep(POLL);
        }
    }
}
