//! Updates of sessions at a fixed pace, each of which creates an event.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use sessiond_client::v1::{AttributeValue, CreateSessionRequest, UpdateSessionRequest};
use tokio::runtime::Runtime;

use harness::client::by_id;

use crate::support::{
    content::{Content, Kind},
    load::{self, Client},
    requests::{QUIET, RANDOM_ATTRIBUTE},
};

/// Number of different values. A prime: a session never receives the value that it has.
const VALUES: u64 = 101;

/// Returns the request that creates a session of this subject, with ten attributes of 1 KiB together.
pub fn create_request(subject: &str) -> CreateSessionRequest {
    let (namespace, subject) = (QUIET.to_owned(), subject.to_owned());
    let attributes = Content::new(Kind::Session, 0).as_attributes();
    CreateSessionRequest { namespace, subject, attributes, ..Default::default() }
}

/// Times of one update.
pub struct Times {
    /// Time at which the pace required it.
    pub scheduled: Instant,
    /// Time just before the call was sent.
    pub sent: Instant,
}

/// Updates sessions in turn.
pub struct Writer<'a> {
    runtime: &'a Runtime,
    clients: Vec<Client>,
    ids: Vec<String>,
    values: Vec<BTreeMap<String, AttributeValue>>,
    turn: AtomicUsize,
}

impl<'a> Writer<'a> {
    /// A writer of these sessions at this server. Their number must not be a multiple of [`VALUES`].
    pub fn new(runtime: &'a Runtime, address: &str, ids: Vec<String>) -> Self {
        let clients = runtime.block_on(load::connect(address));
        let value = |number| BTreeMap::from([Content::new(Kind::Session, number).attribute(RANDOM_ATTRIBUTE)]);
        let values = (0..VALUES).map(|number| value(1_000_000 + number)).collect();
        assert!(!(ids.len() as u64).is_multiple_of(VALUES));
        Writer { runtime, clients, ids, values, turn: AtomicUsize::new(0) }
    }

    /// Makes so many updates at this pace, whether or not the earlier ones have completed, and waits for all of them.
    pub fn write(&self, updates: usize, per_second: usize) -> Vec<Times> {
        let begin = Instant::now();
        let calls = (0..updates).map(|number| {
            let scheduled = begin + Duration::from_secs_f64(number as f64 / per_second as f64);
            thread::sleep(scheduled.saturating_duration_since(Instant::now()));
            let (mut client, request) = self.next();
            self.runtime.spawn(async move {
                let sent = Instant::now();
                client.update_session(request).await.expect("the session is updated");
                Times { scheduled, sent }
            })
        });
        let calls: Vec<_> = calls.collect();
        calls.into_iter().map(|call| self.runtime.block_on(call).expect("the call succeeds")).collect()
    }

    fn next(&self) -> (Client, UpdateSessionRequest) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (namespace, key) = (QUIET.to_owned(), by_id(&self.ids[turn % self.ids.len()]));
        let set_attributes = self.values[turn % self.values.len()].clone();
        let request = UpdateSessionRequest { namespace, key, set_attributes, ..Default::default() };
        (self.clients[turn % self.clients.len()].clone(), request)
    }
}
