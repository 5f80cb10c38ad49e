//! Reads the ground truth: all logs from their start, including lost branches, trimmed entries and emptied stores.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use prost::Message;
use sessiond::{
    observe::Metrics,
    session::{self, Change},
    store::{self, Eviction, LogPage, Partition, ReplicatedWrites, Store, StoreOptions},
};
use sessiond_client::v1::{Cause, EventType};
use tokio::time::Instant;

use crate::ground_truth::{Entry, GroundTruth, Log, Position, SessionState, Store as StoreTruth};
use harness::contract::state::Content;
use harness::{WAIT_LIMIT, eventually};

/// Reader of all logs, with every entry that it has read.
pub struct LogReader {
    store: Arc<Store>,
    /// Key prefix.
    prefix: String,
    /// All stores in order; the last one is the present store.
    stores: Vec<StoreLogs>,
}

/// The logs of one store.
struct StoreLogs {
    id: [u8; 16],
    logs: Vec<LogBranches>,
}

/// The log of one partition: the current branch, and all entries of all branches.
struct LogBranches {
    /// Position before the first entry.
    start: Position,
    /// Entries of the current branch, from the start.
    current: Vec<Entry>,
    /// Every entry that was read.
    all: HashMap<Position, Entry>,
}

async fn open(url: &str, prefix: &str) -> Arc<Store> {
    let open = StoreOptions {
        url,
        credentials: &Arc::default(),
        prefix,
        partitions: 16,
        eviction: Eviction::Refused,
        replicated_writes: ReplicatedWrites::Disabled,
        feed_buffer: 1024,
    };
    let store = Arc::new(Store::open(open, Arc::new(Metrics::default())).await.expect("the store can be read"));
    let heartbeat = store.clone();
    #[expect(clippy::disallowed_methods, reason = "the test's runtime owns it")]
    tokio::spawn(async move { heartbeat.keep_alive().await });
    store
}

/// Returns the positions before the first entries of all logs, in the order of the partitions.
async fn origins(store: &Store) -> Vec<store::Position> {
    let mut tails = Vec::new();
    for server in store.servers() {
        tails.extend(store.tails(&server, deadline()).await.expect("the tails can be read").tails);
    }
    tails.sort_by_key(|(partition, _)| *partition);
    tails.into_iter().map(|(_, tail)| tail.origin.expect("every log has an origin")).collect()
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(2)
}

impl LogReader {
    /// Opens the store, which must have no entries yet.
    pub async fn start(url: String, prefix: &str) -> Self {
        let store = open(&url, prefix).await;
        let logs = origins(&store).await.into_iter().map(|tail| LogBranches::from(position(tail))).collect();
        let store_logs = StoreLogs { id: store.id().0, logs };
        LogReader { store, prefix: prefix.to_owned(), stores: vec![store_logs] }
    }

    /// Reads from another server from now on.
    pub async fn switch_to(&mut self, url: &str) {
        self.store.close().await;
        self.store = open(url, &self.prefix).await;
    }

    fn present(&mut self) -> &mut StoreLogs {
        self.stores.last_mut().expect("it exists")
    }

    /// Initialises the emptied store and reads the new one from now on.
    pub async fn store_flushed(&mut self) {
        let all: Vec<Partition> = self.store.partitions().collect();
        let initialise = async || self.store.initialise(&all).await.ok();
        eventually("the store is initialised", initialise).await;
        let (id, origins) = (self.store.id(), origins(&self.store).await);
        let logs = origins.into_iter().map(|origin| LogBranches::from(position(origin))).collect();
        self.stores.push(StoreLogs { id: id.0, logs });
    }

    /// Reads all logs to their ends.
    pub async fn read(&mut self) {
        let mut unread: Vec<Partition> = self.store.partitions().collect();
        while !unread.is_empty() {
            let pages = join_all(unread.iter().map(|partition| self.read_page(*partition))).await;
            let pages: Vec<(Partition, LogPage)> = unread.into_iter().zip(pages).collect();
            unread = pages.into_iter().filter_map(|(partition, page)| self.add(partition, page)).collect();
        }
    }

    /// Returns the last `kept` entries of each log with more entries, by partition.
    pub fn last_entries(&mut self, kept: usize) -> Vec<(usize, &[Entry])> {
        let logs = self.present().logs.iter().enumerate();
        let last = |log: &'_ LogBranches| log.current.len().checked_sub(kept).filter(|first| *first > 0);
        logs.filter_map(|(partition, log)| last(log).map(|first| (partition, &log.current[first..]))).collect()
    }

    /// Returns the position of the last entry that was read, or the start of the log.
    pub fn end(&mut self, partition: usize) -> Position {
        self.present().logs[partition].end()
    }

    /// Returns the position before the entry with this revision. None: the entry was not read.
    pub fn before(&mut self, partition: usize, revision: u64) -> Option<Position> {
        let mut entries = self.present().logs[partition].current.iter();
        entries.find(|entry| entry.position.revision == revision).map(|entry| entry.previous)
    }

    /// Reads all logs to their ends, and forgets all entries: the logs begin there from now on.
    pub async fn forget(&mut self) {
        self.read().await;
        let logs = self.present().logs.iter_mut();
        logs.for_each(|log| *log = LogBranches::from(log.end()));
    }

    /// Reads one page after the last entry that was read.
    async fn read_page(&self, partition: Partition) -> LogPage {
        let Position { revision, nonce } = self.stores.last().expect("it exists").logs[partition.index()].end();
        let after = store::Position { revision: session::Revision(revision), nonce };
        // Boxed: the nested future exceeds the recursion limit of the compiler.
        let read = async || Box::pin(self.store.read_after(partition, after, deadline())).await.ok();
        eventually("the log is read", read).await
    }

    /// Adds a page; returns the partition if there may be more.
    fn add(&mut self, partition: Partition, page: LogPage) -> Option<Partition> {
        let branches = &mut self.present().logs[partition.index()];
        match page {
            LogPage::Entries(entries) => branches.extend(entries),
            LogPage::Tail => return None,
            // The position is on another branch: read again from the start.
            LogPage::RolledBack | LogPage::Compacted | LogPage::Flushed if !branches.current.is_empty() => {
                branches.current.clear()
            }
            LogPage::RolledBack | LogPage::Compacted | LogPage::Flushed => {
                panic!("the log of {partition:?} cannot be read from its start")
            }
        }
        Some(partition)
    }

    /// Returns the position of the last entry of each log that was read, or its start.
    pub fn ends(&mut self) -> Vec<Position> {
        self.present().logs.iter().map(LogBranches::end).collect()
    }

    /// Returns all entries that were read.
    pub fn truth(&self) -> GroundTruth {
        let log = |branches: &LogBranches| {
            let current: HashSet<Position> = branches.current.iter().map(|entry| entry.position).collect();
            let lost = branches.all.values().filter(|entry| !current.contains(&entry.position));
            Log { start: branches.start, entries: branches.current.clone(), lost: lost.cloned().collect() }
        };
        let store = |store: &StoreLogs| StoreTruth { id: store.id, logs: store.logs.iter().map(log).collect() };
        GroundTruth { stores: self.stores.iter().map(store).collect() }
    }

    /// Closes the connections to Redis.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(WAIT_LIMIT, self.store.close()).await;
    }
}

impl From<Position> for LogBranches {
    fn from(start: Position) -> Self {
        LogBranches { start, current: Vec::new(), all: HashMap::new() }
    }
}

impl LogBranches {
    /// Returns the position after which the next entry follows.
    fn end(&self) -> Position {
        self.current.last().map_or(self.start, |last| last.position)
    }

    fn extend(&mut self, entries: Vec<store::Entry>) {
        for entry in entries.into_iter().map(parse) {
            assert_eq!(entry.previous, self.end(), "each entry names the previous one");
            assert!(entry.position.revision > self.end().revision, "revisions increase");
            self.all.insert(entry.position, entry.clone());
            self.current.push(entry);
        }
    }
}

fn position(position: store::Position) -> Position {
    Position { revision: position.revision.0, nonce: position.nonce }
}

fn parse(entry: store::Entry) -> Entry {
    let event = Arc::unwrap_or_clone(entry.event);
    let (kind, cause) = match event.change {
        Change::Created => (EventType::Created, Cause::Unspecified),
        Change::Updated => (EventType::Updated, Cause::Unspecified),
        Change::Rotated => (EventType::Rotated, Cause::Unspecified),
        Change::TokenReused => (EventType::TokenReused, Cause::Unspecified),
        Change::Ended(cause) => {
            (EventType::Ended, Cause::try_from(cause as i32).expect("causes have the numbers of the proto"))
        }
    };
    let session = &event.session;
    Entry {
        position: position(entry.position),
        previous: position(entry.previous),
        namespace: session.name.namespace.to_string(),
        id: session.name.id.to_string(),
        kind,
        cause,
        after: (!session.lacks_state()).then(|| state_of(session)),
        before: event.before.map(|fields| (fields.subject().to_owned(), labels_of(&fields))),
        changed: event.changed_attributes,
    }
}

/// Fields of a stored session in the form of the client's stubs.
fn decoded(session: &session::Session) -> sessiond_client::v1::Session {
    let attributes =
        session.attributes.as_ref().map(|block| store::plain_attributes(block).expect("attributes can be read"));
    let attributes = attributes.unwrap_or_default();
    let encoded = [&session.basic.bytes()[..], &attributes.bytes()[..]].concat();
    sessiond_client::v1::Session::decode(&encoded[..]).expect("the content is encoded fields of a session")
}

fn labels_of(basic: &session::Basic) -> BTreeMap<String, String> {
    basic.labels().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn state_of(session: &session::Session) -> SessionState {
    let decoded = decoded(session);
    let content = Content {
        subject: decoded.subject,
        attributes: decoded.attributes.into_iter().collect(),
        labels: decoded.labels.into_iter().collect(),
        authentication: decoded.authentication,
        idle_timeout: session.idle_timeout.map_or(0, |timeout| (timeout / 1000) as i64),
        generation: session.token_generation as i32,
    };
    let expires = session.expires().map(|at| ((at.0 / 1000) as i64, (at.0 % 1000 * 1_000_000) as i32));
    SessionState { content, expires }
}
