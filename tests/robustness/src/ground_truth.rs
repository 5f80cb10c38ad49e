//! The ground truth: the logs of all partitions of all stores, including lost entries.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use sessiond_client::v1::{Cause, EventType, SessionEvent};

use crate::history::{DecodedToken, Filter, Scope};
use harness::{client::NAMESPACE, contract::state::Content};

/// Position of an entry in the log of its partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Revision of the change; increases within a branch.
    pub revision: u64,
    /// Random number that distinguishes entries of different branches with the same revision.
    pub nonce: u64,
}

/// One log entry.
#[derive(Clone, Debug)]
pub struct Entry {
    pub position: Position,
    /// Position of the entry before it on its branch.
    pub previous: Position,
    /// Namespace of the session. No watcher watches another one than that of the test clients.
    pub namespace: String,
    /// Session id.
    pub id: String,
    /// Type of the change. Never LEFT or SNAPSHOT, which depend on the watcher.
    pub kind: EventType,
    /// Reason for the end. Unspecified: the session has not ended.
    pub cause: Cause,
    /// State after the change. None: only namespace and id are known (out-of-band deletion).
    pub after: Option<SessionState>,
    /// Subject and labels before the change. None: the change did not modify them.
    pub before: Option<(String, BTreeMap<String, String>)>,
    /// Names of the changed attributes.
    pub changed: Vec<String>,
}

/// State of a session after a change; after ENDED the last state.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionState {
    pub content: Content,
    /// Deadline in seconds and nanoseconds since the epoch. None: never expires.
    pub expires: Option<(i64, i32)>,
}

/// The log of one partition.
#[derive(Clone)]
pub struct Log {
    /// Position before the first entry.
    pub start: Position,
    /// Entries of the current branch. Each names the one before it as `previous`.
    pub entries: Vec<Entry>,
    /// Entries of lost branches that were read before the rollback.
    pub lost: Vec<Entry>,
}

/// The logs that Redis held from one initialisation to the next flush.
#[derive(Clone)]
pub struct Store {
    /// Store id, which every resume token contains.
    pub id: [u8; 16],
    /// Logs in the order of the partitions.
    pub logs: Vec<Log>,
}

/// The logs of all stores of one history.
#[derive(Clone)]
pub struct GroundTruth {
    /// Stores in the order of their initialisation; the last one is the present store.
    pub stores: Vec<Store>,
}

/// Relation of one position of a log to another.
#[derive(Debug)]
pub enum LogPath<'a> {
    /// The entries after the first position, up to and including the second.
    Forward(Vec<&'a Entry>),
    /// The second position is before the first.
    Backward,
    /// One of the positions is on a lost or unknown branch.
    Unknown,
}

impl Position {
    /// Returns the revision as a time in µs since the epoch: the time of the change, or a later one.
    pub fn time(self) -> u64 {
        self.revision
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:04x}", self.revision, self.nonce & 0xffff)
    }
}

impl fmt::Debug for GroundTruth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for store in &self.stores {
            writeln!(f, "store {}", data_encoding::HEXLOWER.encode(&store.id))?;
            for (partition, log) in store.logs.iter().enumerate() {
                let all = log.entries.iter().map(|entry| (entry, "")).chain(log.lost.iter().map(|e| (e, " lost")));
                for (Entry { position, previous, id, kind, cause, .. }, lost) in all {
                    writeln!(f, "    {partition}: {position:?} after {previous:?} {kind:?} {cause:?} {id}{lost}")?;
                }
            }
        }
        Ok(())
    }
}

impl Log {
    /// Returns the index of the entry at this position. None: no entry of the current branch has this position.
    fn index_of(&self, position: Position) -> Option<usize> {
        let index = self.entries.binary_search_by_key(&position.revision, |entry| entry.position.revision).ok()?;
        (self.entries[index].position == position).then_some(index)
    }

    /// Returns the number of entries of the current branch up to this position. None: not on the current branch.
    fn depth(&self, position: Position) -> Option<usize> {
        match self.index_of(position) {
            Some(index) => Some(index + 1),
            None => (self.start == position).then_some(0),
        }
    }

    /// Returns the entries from one position to another, on the current branch or on lost ones.
    pub fn path(&self, from: Position, to: Position) -> LogPath<'_> {
        if from == to {
            return LogPath::Forward(Vec::new());
        }
        if let (Some(from), Some(to)) = (self.depth(from), self.depth(to)) {
            return if from <= to {
                LogPath::Forward(self.entries[from..to].iter().collect())
            } else {
                LogPath::Backward
            };
        }
        match (self.walk_back(from, to), self.walk_back(to, from)) {
            (Some(entries), _) => LogPath::Forward(entries),
            (None, Some(_)) => LogPath::Backward,
            (None, None) => LogPath::Unknown,
        }
    }

    /// Returns the entries after `from` up to `to`, including lost ones: follows `previous` from `to`. None: `from` is
    /// not before `to` on its branch.
    fn walk_back(&self, from: Position, to: Position) -> Option<Vec<&Entry>> {
        let mut path = Vec::new();
        let mut position = to;
        while position != from {
            if let (Some(from), Some(to)) = (self.depth(from), self.depth(position)) {
                path.extend(self.entries.get(from..to)?.iter().rev());
                break;
            }
            let entry = self.lost.iter().find(|entry| entry.position == position)?;
            path.push(entry);
            position = entry.previous;
        }
        path.reverse();
        Some(path)
    }

    /// Returns whether the position is on the current branch.
    pub fn contains(&self, position: Position) -> bool {
        self.depth(position).is_some()
    }

    /// Returns the last common position of the current branch and the branch of `lost`. None: the branch is not known.
    pub fn fork_point(&self, lost: Position) -> Option<Position> {
        let mut position = lost;
        while self.depth(position).is_none() {
            position = self.lost.iter().find(|entry| entry.position == position)?.previous;
        }
        Some(position)
    }
}

impl GroundTruth {
    /// Returns the store with this id. None: unknown.
    pub fn store(&self, id: [u8; 16]) -> Option<&Store> {
        self.stores.iter().find(|store| store.id == id)
    }

    /// Returns whether all positions of the token are on the current branches of the present store.
    pub fn contains(&self, token: &DecodedToken) -> bool {
        let store = self.present();
        let mut logs = store.logs.iter().zip(&token.positions);
        store.id == token.store && logs.all(|(log, position)| log.contains(*position))
    }

    /// Returns the last store.
    pub fn present(&self) -> &Store {
        self.stores.last().expect("there is a store")
    }
}

impl Store {
    /// Returns the path between two tokens in each partition. It starts at the fork point if the first position is
    /// lost. None: one of the tokens belongs to another store.
    pub fn paths<'a>(&'a self, from: &DecodedToken, to: &DecodedToken) -> Option<Vec<LogPath<'a>>> {
        if from.store != self.id || to.store != self.id {
            return None;
        }
        let path = |(log, (from, to)): (&'a Log, (&Position, &Position))| match log.path(*from, *to) {
            LogPath::Unknown => log.fork_point(*from).map_or(LogPath::Unknown, |fork| log.path(fork, *to)),
            path => path,
        };
        let ends = from.positions.iter().zip(&to.positions);
        Some(self.logs.iter().zip(ends).map(path).collect())
    }

    /// Returns the entries of all current branches, in the order of the partitions.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.logs.iter().flat_map(|log| &log.entries)
    }

    /// Returns the entries of the current branches by session id, in log order.
    pub fn by_session(&self) -> BTreeMap<&str, Vec<&Entry>> {
        let mut sessions: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in self.entries() {
            sessions.entry(&entry.id).or_default().push(entry);
        }
        sessions
    }
}

impl Entry {
    /// Returns session id and revision, which identify the event.
    pub fn key(&self) -> (&str, i64) {
        (&self.id, self.position.revision as i64)
    }

    /// Returns whether the session is live and its deadline, rounded down to the second, is before `time` in µs.
    pub fn expires_before(&self, time: u64) -> bool {
        let expires = self.after.as_ref().and_then(|after| after.expires);
        self.kind != EventType::Ended && expires.is_some_and(|(seconds, _)| (seconds as u64 * 1_000_000) < time)
    }
}

/// The log entry of an event, and its log.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub store: &'a Store,
    pub partition: usize,
    pub entry: &'a Entry,
    /// Whether the entry is on the current branch of the present store.
    pub is_current: bool,
}

/// Index of log entries by event.
pub struct Origins<'a>(HashMap<(&'a str, i64), Origin<'a>>);

impl<'a> Origins<'a> {
    /// Builds the index over all branches of all stores.
    pub fn of(truth: &'a GroundTruth) -> Self {
        let mut origins = HashMap::new();
        for store in &truth.stores {
            let is_present = store.id == truth.present().id;
            for (partition, log) in store.logs.iter().enumerate() {
                // The current branch is inserted last, so that its entries replace lost ones with the same key.
                for (entry, is_current) in
                    log.lost.iter().map(|lost| (lost, false)).chain(log.entries.iter().map(|entry| (entry, is_present)))
                {
                    origins.insert(entry.key(), Origin { store, partition, entry, is_current });
                }
            }
        }
        Origins(origins)
    }

    /// Returns the entry of an event. None: no log contains it.
    pub fn find(&self, event: &SessionEvent) -> Option<Origin<'a>> {
        self.0.get(&(&event.id[..], event.revision)).copied()
    }
}

impl Filter {
    /// Returns the event type that a watcher receives for a change. None: no event.
    pub fn event_type(&self, entry: &Entry) -> Option<EventType> {
        if entry.namespace != NAMESPACE || matches!(&self.scope, Scope::Ids(ids) if !ids.contains(&entry.id)) {
            return None;
        }
        let after = entry.after.as_ref().map(|after| self.matches(&after.content.subject, &after.content.labels));
        let before = entry.before.as_ref().map(|(subject, labels)| self.matches(subject, labels));
        let event_type = match (after, before) {
            // Out-of-band deletion: subject and labels are not known, every watcher receives it.
            (None, _) | (Some(true), _) => entry.kind,
            (Some(false), Some(true)) => EventType::Left,
            (Some(false), _) => return None,
        };
        (self.kinds.is_empty() || self.kinds.contains(&event_type)).then_some(event_type)
    }

    /// Returns whether subject and labels match. The ids of the scope are not checked.
    pub fn matches(&self, subject: &str, labels: &BTreeMap<String, String>) -> bool {
        let has_subject = !matches!(&self.scope, Scope::Subject(wanted) if wanted != subject);
        has_subject && self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    }

    /// Returns whether the session of this entry, with this content, matches.
    pub fn matches_session(&self, entry: &Entry, content: &Content) -> bool {
        let has_id = !matches!(&self.scope, Scope::Ids(ids) if !ids.contains(&entry.id));
        has_id && entry.namespace == NAMESPACE && self.matches(&content.subject, &content.labels)
    }
}
