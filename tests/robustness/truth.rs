//! What really happened: the logs of all partitions, of each store that there was, and what of them was lost.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use sessiond_client::v1::{Cause, EventType, SessionEvent};

use crate::{
    contract::state::Content,
    history::{Filter, Scope, Token},
};

/// Place of an entry in its partition's log.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    pub revision: u64,
    pub nonce: u64,
}

/// One change, as the log has it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub position: Position,
    pub previous: Position,
    pub id: String,
    /// Never LEFT or SNAPSHOT, which depend on who looks.
    pub kind: EventType,
    pub cause: Cause,
    /// None = nothing is known of the session but its name.
    pub after: Option<After>,
    /// Subject and labels before, where the change touched them.
    pub before: Option<(String, BTreeMap<String, String>)>,
    pub changed: Vec<String>,
}

/// A session after a change; at its end: the last state.
#[derive(Clone, Debug, PartialEq)]
pub struct After {
    pub content: Content,
    /// Seconds and nanoseconds; None = never.
    pub expires: Option<(i64, i32)>,
}

/// A partition's log.
#[derive(Clone)]
pub struct Log {
    /// Where it began to be read, before its first entry.
    pub start: Position,
    /// In order; each has the one before it as its previous one.
    pub entries: Vec<Entry>,
    /// Of branches that were lost, as far as they were seen.
    pub lost: Vec<Entry>,
}

#[derive(Clone)]
pub struct Store {
    pub id: [u8; 16],
    pub logs: Vec<Log>,
}

/// The stores one after another, the present one last.
#[derive(Clone)]
pub struct Truth {
    pub stores: Vec<Store>,
}

/// How one position of a log lies to another.
#[derive(Debug)]
pub enum Way<'a> {
    /// These entries lead from the first to the second, the second included.
    Forward(Vec<&'a Entry>),
    /// The second is before the first.
    Backward,
    /// One of them is of a branch that was lost, or of which nothing is known.
    None,
}

impl Position {
    /// Its time, in us since 1970.
    pub fn moment(self) -> u64 {
        self.revision
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:04x}", self.revision, self.nonce & 0xffff)
    }
}

impl fmt::Debug for Truth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for store in &self.stores {
            writeln!(f, "store {}", data_encoding::HEXLOWER.encode(&store.id))?;
            for (partition, log) in store.logs.iter().enumerate() {
                let stands = log.entries.iter().map(|entry| (entry, "")).chain(log.lost.iter().map(|e| (e, " lost")));
                for (Entry { position, previous, id, kind, cause, .. }, lost) in stands {
                    writeln!(f, "    {partition}: {position:?} after {previous:?} {kind:?} {cause:?} {id}{lost}")?;
                }
            }
        }
        Ok(())
    }
}

impl Log {
    fn place(&self, position: Position) -> Option<usize> {
        let at = self.entries.binary_search_by_key(&position.revision, |entry| entry.position.revision).ok()?;
        (self.entries[at].position == position).then_some(at)
    }

    /// How many entries there are up to this position; None = it is not of what stands.
    fn depth(&self, position: Position) -> Option<usize> {
        match self.place(position) {
            Some(at) => Some(at + 1),
            None => (self.start == position).then_some(0),
        }
    }

    pub fn way(&self, from: Position, to: Position) -> Way<'_> {
        if from == to {
            return Way::Forward(Vec::new());
        }
        if let (Some(from), Some(to)) = (self.depth(from), self.depth(to)) {
            return if from <= to { Way::Forward(self.entries[from..to].iter().collect()) } else { Way::Backward };
        }
        match (self.walk(from, to), self.walk(to, from)) {
            (Some(way), _) => Way::Forward(way),
            (None, Some(_)) => Way::Backward,
            (None, None) => Way::None,
        }
    }

    /// Back along the entries before, from what may be lost.
    fn walk(&self, from: Position, to: Position) -> Option<Vec<&Entry>> {
        let mut way = Vec::new();
        let mut at = to;
        while at != from {
            if let (Some(from), Some(here)) = (self.depth(from), self.depth(at)) {
                way.extend(self.entries.get(from..here)?.iter().rev());
                break;
            }
            let entry = self.lost.iter().find(|entry| entry.position == at)?;
            way.push(entry);
            at = entry.previous;
        }
        way.reverse();
        Some(way)
    }

    pub fn stands(&self, position: Position) -> bool {
        self.depth(position).is_some()
    }

    /// The last position that stands, on the way to one that was lost; None = that way is not known.
    pub fn fork(&self, position: Position) -> Option<Position> {
        let mut at = position;
        while self.depth(at).is_none() {
            at = self.lost.iter().find(|entry| entry.position == at)?.previous;
        }
        Some(at)
    }
}

impl Truth {
    pub fn store(&self, id: [u8; 16]) -> Option<&Store> {
        self.stores.iter().find(|store| store.id == id)
    }

    /// Whether the token is a place in what stands.
    pub fn stands(&self, token: &Token) -> bool {
        let store = self.present();
        let mut places = store.logs.iter().zip(&token.positions);
        store.id == token.store && places.all(|(log, position)| log.stands(*position))
    }

    pub fn present(&self) -> &Store {
        self.stores.last().expect("there is a store")
    }
}

impl Store {
    /// The way between two tokens in each partition, from the fork on where the first was lost; None = one of them is of
    /// another store.
    pub fn ways<'a>(&'a self, from: &Token, to: &Token) -> Option<Vec<Way<'a>>> {
        if from.store != self.id || to.store != self.id {
            return None;
        }
        let way = |(log, (from, to)): (&'a Log, (&Position, &Position))| match log.way(*from, *to) {
            Way::None => log.fork(*from).map_or(Way::None, |fork| log.way(fork, *to)),
            way => way,
        };
        let ends = from.positions.iter().zip(&to.positions);
        Some(self.logs.iter().zip(ends).map(way).collect())
    }

    /// All that stands, one partition after another.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.logs.iter().flat_map(|log| &log.entries)
    }

    /// What stands of each session, in order.
    pub fn by_session(&self) -> BTreeMap<&str, Vec<&Entry>> {
        let mut sessions: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in self.entries() {
            sessions.entry(&entry.id).or_default().push(entry);
        }
        sessions
    }
}

impl Entry {
    /// What its event is known by.
    pub fn name(&self) -> (&str, i64) {
        (&self.id, self.position.revision as i64)
    }

    /// Whether its session lives, and is to end by then.
    pub fn is_due(&self, then: u64) -> bool {
        let expires = self.after.as_ref().and_then(|after| after.expires);
        self.kind != EventType::Ended && expires.is_some_and(|(seconds, _)| (seconds as u64 * 1_000_000) < then)
    }
}

/// Where an event comes from.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub store: &'a Store,
    pub partition: usize,
    pub entry: &'a Entry,
    /// Whether it is in the logs of the present store.
    pub stands: bool,
}

/// Finds the entries of events.
pub struct Origins<'a>(HashMap<(&'a str, i64), Origin<'a>>);

impl<'a> Origins<'a> {
    pub fn of(truth: &'a Truth) -> Self {
        let mut origins = HashMap::new();
        for store in &truth.stores {
            let is_present = store.id == truth.present().id;
            for (partition, log) in store.logs.iter().enumerate() {
                // What stands beats what was lost.
                for (entry, stands) in
                    log.lost.iter().map(|lost| (lost, false)).chain(log.entries.iter().map(|entry| (entry, is_present)))
                {
                    origins.insert(entry.name(), Origin { store, partition, entry, stands });
                }
            }
        }
        Origins(origins)
    }

    pub fn find(&self, event: &SessionEvent) -> Option<Origin<'a>> {
        self.0.get(&(&event.id[..], event.revision)).copied()
    }
}

impl Filter {
    /// How a watcher sees a change; None = not at all.
    pub fn sees(&self, entry: &Entry) -> Option<EventType> {
        if matches!(&self.scope, Scope::Ids(ids) if !ids.contains(&entry.id)) {
            return None;
        }
        let after = entry.after.as_ref().map(|after| self.matches(&after.content.subject, &after.content.labels));
        let before = entry.before.as_ref().map(|(subject, labels)| self.matches(subject, labels));
        let seen = match (after, before) {
            // It vanished, and nobody knows what it was.
            (None, _) | (Some(true), _) => entry.kind,
            (Some(false), Some(true)) => EventType::Left,
            (Some(false), _) => return None,
        };
        (self.kinds.is_empty() || self.kinds.contains(&seen)).then_some(seen)
    }

    pub fn matches(&self, subject: &str, labels: &BTreeMap<String, String>) -> bool {
        let is_its = !matches!(&self.scope, Scope::Subject(of) if of != subject);
        is_its && self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    }

    /// Whether a session in this state is the watcher's.
    pub fn holds(&self, id: &str, content: &Content) -> bool {
        let is_named = !matches!(&self.scope, Scope::Ids(ids) if !ids.contains(id));
        is_named && self.matches(&content.subject, &content.labels)
    }
}
