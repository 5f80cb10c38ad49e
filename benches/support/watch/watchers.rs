//! Watchers on connections of their own, and the number of events that each of them has received.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use harness::WAIT_LIMIT;
use sessiond_client::v1::WatchRequest;
use tokio::{runtime::Runtime, task::JoinHandle};

use super::connection::Connection;

/// Number of watches on one connection.
pub const PER_CONNECTION: usize = 100;
/// Number of connections whose watches are opened at the same time.
const OPENED_AT_ONCE: usize = 10;
/// Time in which a server removes watches whose connections were closed.
const CLOSING_TIME: Duration = Duration::from_millis(300);
/// Time between two looks at the numbers of events.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// A received response.
pub struct Received<'a> {
    /// Number of the watcher.
    pub watcher: usize,
    pub message: &'a [u8],
    /// Number of events in it.
    pub events: u64,
}

/// Uses a response; the number is that of the events that its watcher had received before.
pub type OnResponse = Box<dyn Fn(&Received<'_>, u64) + Send + Sync>;

/// What all watchers have received.
pub struct Reception {
    /// Number of watchers that have received their first response.
    open: AtomicUsize,
    /// Number of events of each watcher.
    events: Vec<AtomicU64>,
    /// Number of responses of each watcher.
    responses: Vec<AtomicU64>,
    on_response: OnResponse,
}

impl Reception {
    pub fn note(&self, received: Received<'_>) {
        if self.responses[received.watcher].fetch_add(1, Ordering::Relaxed) == 0 {
            self.open.fetch_add(1, Ordering::Relaxed);
        }
        let before = self.events[received.watcher].fetch_add(received.events, Ordering::Relaxed);
        (self.on_response)(&received, before);
    }
}

/// Open watches of one server. They are closed when dropped.
pub struct Watchers<'a> {
    runtime: &'a Runtime,
    reception: Arc<Reception>,
    connections: Vec<JoinHandle<()>>,
}

impl<'a> Watchers<'a> {
    /// Opens one watch per request, and returns when each has received its first response.
    pub fn open(runtime: &'a Runtime, address: &str, requests: &[WatchRequest]) -> Self {
        Watchers::open_with(runtime, address, requests, Box::new(|_, _| {}))
    }

    /// Opens watches like [`Watchers::open`] and passes each response to `on_response`.
    pub fn open_with(runtime: &'a Runtime, address: &str, requests: &[WatchRequest], on_response: OnResponse) -> Self {
        let zeros = || requests.iter().map(|_| AtomicU64::new(0)).collect();
        let reception =
            Arc::new(Reception { open: AtomicUsize::new(0), events: zeros(), responses: zeros(), on_response });
        let mut watchers = Watchers { runtime, reception, connections: Vec::new() };
        let mut opening = 0;
        for connections in requests.chunks(PER_CONNECTION * OPENED_AT_ONCE) {
            for requests in connections.chunks(PER_CONNECTION) {
                let connection = Connection::open(address, requests, opening, watchers.reception.clone());
                let connection = runtime.block_on(connection);
                watchers.connections.push(runtime.spawn(connection.run()));
                opening += requests.len();
            }
            watchers.wait("the watches are open", |reception| reception.open.load(Ordering::Relaxed) == opening);
        }
        watchers
    }

    /// Number of watchers.
    pub fn count(&self) -> usize {
        self.reception.events.len()
    }

    /// Number of responses that all watchers have received.
    pub fn responses(&self) -> u64 {
        self.reception.responses.iter().map(|of_one| of_one.load(Ordering::Relaxed)).sum()
    }

    /// Waits until every watcher has received this number of events since it was opened; panics if one receives more.
    pub fn wait_for(&self, events: u64) {
        let received = |reception: &Reception, is: fn(&u64, &u64) -> bool| {
            reception.events.iter().all(|of_one| is(&of_one.load(Ordering::Relaxed), &events))
        };
        self.wait("every watcher receives every event", |reception| received(reception, u64::ge));
        assert!(received(&self.reception, u64::eq), "a watcher received more events than there were changes");
    }

    fn wait(&self, what: &str, is_done: impl Fn(&Reception) -> bool) {
        let end = Instant::now() + WAIT_LIMIT;
        while !is_done(&self.reception) {
            assert!(self.connections.iter().all(|connection| !connection.is_finished()), "a watch failed");
            assert!(Instant::now() < end, "{what}: not within {WAIT_LIMIT:?}");
            thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Drop for Watchers<'_> {
    fn drop(&mut self) {
        for connection in &mut self.connections {
            connection.abort();
            let _ = self.runtime.block_on(connection);
        }
        if !thread::panicking() {
            thread::sleep(CLOSING_TIME);
        }
    }
}
