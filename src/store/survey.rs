//! Reads many sessions or subject indexes with one script per partition, for checks of the whole store or of one subject.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    Store,
    error::Error,
    index_entry::IndexEntry,
    keys::Partition,
    record::{Extent, Record},
    replies::{FirstEntriesReply, MissingInIndexesReply, SurveyReply, SurveyedState},
    scripts,
};
use crate::redis::{Node, Priority, Reply};
use crate::session::{Namespace, SessionId, SessionRef, Subject};

/// Maximum number of sessions or indexes that one script reads, so that it does not delay other calls.
pub const PER_SCRIPT: usize = 500;
/// Number of keys that Redis visits for one page of a scan.
const SCAN_COUNT: usize = 1_000;

/// One session in a survey.
pub struct Surveyed {
    /// Id of the session.
    pub id: SessionId,
    /// Its state.
    pub state: SurveyedState,
    /// Its subject; empty = anonymous or unreadable.
    pub subject: String,
}

/// States of some sessions of one namespace and partition.
pub struct Survey {
    /// The sessions, in the order of the ids.
    pub sessions: Vec<Surveyed>,
    /// Whether the set of namespaces has the namespace.
    pub has_namespace: bool,
}

/// Keys that a scan visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanScope {
    /// Sessions and subject indexes of all partitions.
    All,
    /// Sessions of one partition.
    Sessions(Partition),
}

/// Position in a scan; the default is the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanPosition {
    server: usize,
    cursor: u64,
}

impl ScanPosition {
    /// Position at the start of the next server.
    pub fn next_server(self) -> Self {
        ScanPosition { server: self.server + 1, cursor: 0 }
    }
}

/// Page of a scan. An element may be returned twice.
#[derive(Default)]
pub struct ScanPage {
    /// Sessions and tombstones.
    pub sessions: Vec<SessionRef>,
    /// Subjects that have an index.
    pub subjects: Vec<Subject>,
    /// Next position. None: the end.
    pub next: Option<ScanPosition>,
}

/// What could be read of several partitions.
pub struct Partial<T> {
    /// Results of the partitions that could be read.
    pub found: Vec<T>,
    /// First error. None: all partitions were read.
    pub error: Option<Error>,
}

impl<T> Partial<T> {
    fn of(replies: Vec<Result<Vec<T>, Error>>) -> Self {
        let mut partial = Partial { found: Vec::new(), error: None };
        for reply in replies {
            match reply {
                Ok(found) => partial.found.extend(found),
                Err(error) => partial.error = partial.error.or(Some(error)),
            }
        }
        partial
    }
}

impl Store {
    /// Returns the states of sessions of one namespace and partition, at most [`PER_SCRIPT`]. Has no effect.
    pub async fn survey(
        &self,
        partition: Partition,
        namespace: &Namespace,
        ids: &[SessionId],
        deadline: Instant,
    ) -> Result<Survey, Error> {
        if ids.is_empty() {
            return Ok(Survey { sessions: Vec::new(), has_namespace: true });
        }
        let mut keys = vec![self.keys.due(partition, namespace), self.keys.namespaces(partition)];
        keys.extend(ids.iter().map(|id| self.keys.session(&SessionRef { namespace: namespace.clone(), id: *id })));
        let call = self.partition_call(partition, keys).arg(namespace.to_string());
        let call = ids.iter().fold(call, |call, id| call.arg(id.to_string()));
        let reply = SurveyReply::decode(self.read(&scripts::SURVEY, &call, deadline).await?)?;
        if reply.sessions.len() != ids.len() {
            return Err(Error::UnexpectedRead(format!("survey: {} of {} sessions", reply.sessions.len(), ids.len())));
        }
        let mut sessions = Vec::with_capacity(ids.len());
        for (id, (state, beginning)) in ids.iter().zip(reply.sessions) {
            sessions.push(self.surveyed(namespace, *id, state, &beginning, deadline).await?);
        }
        Ok(Survey { sessions, has_namespace: reply.has_namespace })
    }

    /// Reads the subject of a live session from the beginning of its record. Reads the record again if that is too short.
    async fn surveyed(
        &self,
        namespace: &Namespace,
        id: SessionId,
        state: SurveyedState,
        beginning: &Bytes,
        deadline: Instant,
    ) -> Result<Surveyed, Error> {
        if beginning.is_empty() {
            return Ok(Surveyed { id, state, subject: String::new() });
        }
        let name = SessionRef { namespace: namespace.clone(), id };
        let keys = self.keys.session_keys(&name);
        let record = match Record::parse(&keys.name, beginning, Extent::Beginning).ok().filter(Record::has_basic) {
            Some(record) => Some(record),
            None => self.read_beginning(None, &keys, deadline).await?,
        };
        let basic = record.and_then(|record| record.basic(&keys.name).ok());
        Ok(match basic {
            Some(basic) => Surveyed { id, state, subject: basic.subject().to_owned() },
            None => Surveyed { id, state: SurveyedState::Other, subject: String::new() },
        })
    }

    /// Returns the entries whose session is not live with the subject of the index: dead or only reserved ones. If a partition
    /// cannot be read, its entries are left out.
    pub async fn entries_without_session(
        &self,
        entries: Vec<(Subject, IndexEntry)>,
        deadline: Instant,
    ) -> Partial<(Subject, IndexEntry)> {
        let group =
            |(subject, entry): &(Subject, IndexEntry)| (self.partition_of(&entry.id), subject.namespace.clone());
        let surveys = grouped(entries, group).into_iter().map(async |((partition, namespace), entries)| {
            let ids: Vec<SessionId> = entries.iter().map(|(_, entry)| entry.id).collect();
            let survey = self.survey(partition, &namespace, &ids, deadline).await?;
            let has_session = |subject: &Subject, session: &Surveyed| {
                session.state == SurveyedState::Live && session.subject == subject.name
            };
            let pairs = entries.into_iter().zip(survey.sessions);
            Ok(pairs.filter(|((of, _), session)| !has_session(of, session)).map(|(entry, _)| entry).collect())
        });
        Partial::of(join_all(surveys).await)
    }

    /// Returns the sessions that the index of their subject lacks.
    pub async fn missing_in_indexes(
        &self,
        sessions: Vec<(Subject, SessionId)>,
        deadline: Instant,
    ) -> Partial<(Subject, SessionId)> {
        let group = |(subject, _): &(Subject, SessionId)| self.keys.partition_of_subject(subject);
        let checks = grouped(sessions, group).into_iter().map(async |(partition, sessions)| {
            let keys = sessions.iter().map(|(subject, _)| self.keys.subject(subject)).collect();
            let call = self.partition_call(partition, keys);
            let call = sessions.iter().fold(call, |call, (_, id)| call.arg(id.to_string()));
            let reply = self.read(&scripts::MISSING_IN_INDEXES, &call, deadline).await?;
            let missing = MissingInIndexesReply::decode(reply)?.numbers;
            Ok((1..).zip(sessions).filter(|(number, _)| missing.contains(number)).map(|(_, session)| session).collect())
        });
        Partial::of(join_all(checks).await)
    }

    /// Returns all entries of each of these indexes. None: the index has more than `page` entries or an invalid one, or cannot
    /// be read.
    pub async fn first_entries(
        &self,
        subjects: Vec<Subject>,
        page: usize,
        deadline: Instant,
    ) -> Partial<(Subject, Option<Vec<IndexEntry>>)> {
        let group = |subject: &Subject| self.keys.partition_of_subject(subject);
        let reads = grouped(subjects, group).into_iter().map(async |(partition, subjects)| {
            let keys = subjects.iter().map(|subject| self.keys.subject(subject)).collect();
            let call = self.partition_call(partition, keys).number(page as u64 + 1);
            let reply = self.read(&scripts::FIRST_ENTRIES, &call, deadline).await?;
            let indexes = FirstEntriesReply::decode(reply)?.indexes.into_iter();
            let is_whole = |entries: &Vec<IndexEntry>| entries.len() <= page;
            Ok(subjects.into_iter().zip(indexes.map(|entries| entries.filter(is_whole))).collect())
        });
        Partial::of(join_all(reads).await)
    }

    /// Returns a page of keys. Partitions that move to another server during the scan may be visited in part.
    pub async fn scan(&self, scope: ScanScope, from: ScanPosition, deadline: Instant) -> Result<ScanPage, Error> {
        let (nodes, pattern) = match scope {
            ScanScope::All => (self.router.nodes(), self.keys.scan_pattern(None)),
            ScanScope::Sessions(partition) => (vec![self.node(partition)], self.keys.scan_pattern(Some(partition))),
        };
        let Some(node) = nodes.get(from.server) else { return Ok(ScanPage::default()) };
        let (cursor, keys) = scan_node(node, from.cursor, pattern, deadline).await?;
        let next = if cursor == 0 { from.next_server() } else { ScanPosition { cursor, ..from } };
        let mut page = ScanPage { next: (next.server < nodes.len()).then_some(next), ..Default::default() };
        for key in keys {
            match self.keys.session_of_key(&key) {
                Some(name) => page.sessions.push(name),
                None => page.subjects.extend(self.keys.subject_of_key(&key)),
            }
        }
        Ok(page)
    }
}

/// Groups items by a key, at most [`PER_SCRIPT`] in a group.
fn grouped<K: Ord + Clone, T>(items: Vec<T>, key: impl Fn(&T) -> K) -> Vec<(K, Vec<T>)> {
    let mut groups: BTreeMap<K, Vec<T>> = BTreeMap::new();
    let mut full = Vec::new();
    for item in items {
        let key = key(&item);
        let group = groups.entry(key.clone()).or_default();
        group.push(item);
        if group.len() == PER_SCRIPT {
            full.push((key, std::mem::take(group)));
        }
    }
    full.extend(groups.into_iter().filter(|(_, group)| !group.is_empty()));
    full
}

async fn scan_node(node: &Node, cursor: u64, pattern: String, deadline: Instant) -> Result<(u64, Vec<String>), Error> {
    let words = [cursor.to_string(), "MATCH".into(), pattern, "COUNT".into(), SCAN_COUNT.to_string()];
    let reply = node.command(Priority::Background, "SCAN", &words.map(Bytes::from), deadline).await?;
    let mut reply = reply.array().unwrap_or_default().into_iter();
    let cursor = reply.next().and_then(|cursor| cursor.number());
    let cursor = cursor.ok_or_else(|| Error::UnexpectedRead("SCAN".into()))?;
    let keys = reply.next().and_then(Reply::array).unwrap_or_default();
    Ok((cursor, keys.iter().filter_map(|key| key.text().map(str::to_owned)).collect()))
}
