//! Reads the truth: all logs from their beginning, through what was lost, what was trimmed, and stores that were emptied.

use std::{collections::HashMap, sync::Arc, time::Duration};

use prost::Message;
use sessiond::{
    observe::Metrics,
    session::{self, Change},
    store::{self, Error, Eviction, Open, Page, Partition, Store, Waits},
};
use sessiond_client::v1::{AttributeValue, Authentication, Cause, EventType};
use tokio::time::Instant;

use crate::{
    contract::state::Content,
    harness::{PATIENCE, eventually},
    truth::{After, Entry, Log, Position, Store as StoreTruth, Truth},
};

pub struct Reader {
    store: Arc<Store>,
    prefix: String,
    /// Stores that were, the present one last.
    stores: Vec<Seen>,
}

/// What was seen of one store.
struct Seen {
    id: [u8; 16],
    logs: Vec<Branches>,
}

struct Branches {
    start: Position,
    /// From the start.
    standing: Vec<Entry>,
    /// All that ever stood.
    all: HashMap<Position, Entry>,
}

async fn open(url: &str, prefix: &str) -> Arc<Store> {
    let open = Open {
        url,
        password: None,
        prefix,
        partitions: 16,
        eviction: Eviction::Refused,
        waits: Waits::Never,
        feed_buffer: 1024,
    };
    let store = Arc::new(Store::open(open, Arc::new(Metrics::default())).await.expect("the store can be read"));
    let heartbeat = store.clone();
    #[expect(clippy::disallowed_methods, reason = "the test's runtime owns it")]
    tokio::spawn(async move { heartbeat.keep_alive().await });
    store
}

/// Where all logs begin, in the order of their partitions.
async fn origins(store: &Store) -> Vec<store::Position> {
    let mut tails = Vec::new();
    for server in store.servers() {
        tails.extend(store.tails(&server, deadline()).await.expect("the tails can be read").tails);
    }
    tails.sort_by_key(|(partition, _)| *partition);
    tails.into_iter().map(|(_, tail)| tail.origin.expect("it is noted")).collect()
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(2)
}

impl Reader {
    /// Of a store in which nothing was written yet.
    pub async fn begin(url: String, prefix: &str) -> Self {
        let store = open(&url, prefix).await;
        let logs = origins(&store).await.into_iter().map(|tail| Branches::from(position(tail))).collect();
        let seen = Seen { id: store.id().0, logs };
        Reader { store, prefix: prefix.to_owned(), stores: vec![seen] }
    }

    /// Reads elsewhere from now on.
    pub async fn turn_to(&mut self, url: &str) {
        self.store.close().await;
        self.store = open(url, &self.prefix).await;
    }

    fn present(&mut self) -> &mut Seen {
        self.stores.last_mut().expect("there is one")
    }

    /// The store was emptied: goes on with what is there now.
    pub async fn flushed(&mut self) {
        let all: Vec<Partition> = self.store.partitions().collect();
        self.store.initialise(&all).await.expect("the store is made anew");
        let (id, origins) = (self.store.id(), origins(&self.store).await);
        let logs = origins.into_iter().map(|origin| Branches::from(position(origin))).collect();
        self.stores.push(Seen { id: id.0, logs });
    }

    /// Reads on to the ends of all logs.
    pub async fn read(&mut self) {
        for partition in self.store.partitions() {
            // Boxed: deeper than the compiler goes.
            eventually("the log is read", async || Box::pin(self.read_on(partition)).await.ok()).await;
        }
    }

    /// The last positions read, of each partition with so many entries before it that are kept.
    pub fn positions_before_last(&mut self, kept: usize) -> Vec<(usize, Position)> {
        let logs = self.present().logs.iter().enumerate();
        logs.filter_map(|(partition, log)| {
            let first_kept = log.standing.len().checked_sub(kept)?;
            Some((partition, log.standing.get(first_kept)?.position))
        })
        .collect()
    }

    async fn read_on(&mut self, partition: Partition) -> Result<(), Error> {
        loop {
            let store = self.store.clone();
            let branches = &mut self.present().logs[partition.index()];
            let at = branches.end();
            let after = store::Position { revision: session::Revision(at.revision), nonce: at.nonce };
            match store.read_after(partition, after, deadline()).await? {
                Page::Entries(entries) => branches.extend(entries),
                Page::Tail => return Ok(()),
                // Of another branch: once more from the start.
                Page::RolledBack | Page::Compacted | Page::Flushed if !branches.standing.is_empty() => {
                    branches.standing.clear()
                }
                Page::RolledBack | Page::Compacted | Page::Flushed => {
                    panic!("the log of {partition:?} does not begin at its start")
                }
            }
        }
    }

    /// The truth as far as it was read.
    pub fn truth(&self) -> Truth {
        let log = |branches: &Branches| {
            let standing: HashMap<Position, ()> = branches.standing.iter().map(|entry| (entry.position, ())).collect();
            let lost = branches.all.values().filter(|entry| !standing.contains_key(&entry.position));
            Log { start: branches.start, entries: branches.standing.clone(), lost: lost.cloned().collect() }
        };
        let store = |seen: &Seen| StoreTruth { id: seen.id, logs: seen.logs.iter().map(log).collect() };
        Truth { stores: self.stores.iter().map(store).collect() }
    }

    pub async fn close(&self) {
        let _ = tokio::time::timeout(PATIENCE, self.store.close()).await;
    }
}

impl From<Position> for Branches {
    fn from(start: Position) -> Self {
        Branches { start, standing: Vec::new(), all: HashMap::new() }
    }
}

impl Branches {
    fn end(&self) -> Position {
        self.standing.last().map_or(self.start, |last| last.position)
    }

    fn extend(&mut self, entries: Vec<store::Entry>) {
        for entry in entries.into_iter().map(read) {
            assert_eq!(entry.previous, self.end(), "entries follow one another");
            assert!(entry.position.revision > self.end().revision, "and their revisions grow");
            self.all.insert(entry.position, entry.clone());
            self.standing.push(entry);
        }
    }
}

fn position(of: store::Position) -> Position {
    Position { revision: of.revision.0, nonce: of.nonce }
}

fn read(entry: store::Entry) -> Entry {
    let (kind, cause) = match entry.event.change {
        Change::Created => (EventType::Created, Cause::Unspecified),
        Change::Updated => (EventType::Updated, Cause::Unspecified),
        Change::Rotated => (EventType::Rotated, Cause::Unspecified),
        Change::TokenReused => (EventType::TokenReused, Cause::Unspecified),
        Change::Ended(cause) => (EventType::Ended, Cause::try_from(cause as i32).expect("it has the proto's number")),
    };
    let session = &entry.event.session;
    Entry {
        position: position(entry.position),
        previous: position(entry.previous),
        id: session.name.id.to_string(),
        kind,
        cause,
        after: (!session.is_bare()).then(|| after(session)),
        before: entry.event.before.map(|facets| (facets.subject, facets.labels)),
        changed: entry.event.changed_attributes,
    }
}

fn after(session: &session::Session) -> After {
    let value = |encoded: &session::Encoded| AttributeValue::decode(encoded.clone()).expect("a value can be read");
    let authentication = session
        .authentication
        .clone()
        .map(|encoded| Authentication::decode(encoded).expect("an authentication can be read"));
    let content = Content {
        subject: session.subject.clone(),
        attributes: session.attributes.iter().map(|(name, encoded)| (name.clone(), value(encoded))).collect(),
        labels: session.labels.clone(),
        authentication,
        idle_timeout: session.idle_timeout.map_or(0, |timeout| (timeout / 1000) as i64),
        generation: session.token_generation as i32,
    };
    let expires = session.expires().map(|at| ((at.0 / 1000) as i64, (at.0 % 1000 * 1_000_000) as i32));
    After { content, expires }
}
