//! ListSessions: one page of live sessions, and the page token for the next one.

use std::collections::{BTreeMap, VecDeque};

use data_encoding::BASE64URL_NOPAD;

use super::*;
use crate::{
    session::ID_BYTES,
    store::{Found, ListPosition, Live, Partition, PrimaryReads, StoreId},
};

/// Maximum size of the sessions in a page, in bytes. The page token and the frame fit into the rest of 2 MiB.
const PAGE_BYTES: usize = 2 * 1024 * 1024 - 64 * 1024;
/// Maximum number of sessions that are read at the same time.
const CONCURRENT_READS: usize = 100;

/// Sessions that a list covers, and the store that holds them.
pub struct ListScope {
    /// Identity of the store.
    pub store: StoreId,
    /// Number of partitions of the store.
    pub partitions: usize,
    /// Namespace of the sessions.
    pub namespace: Authorized<Namespace>,
    /// Name of the subject, not empty. None: the sessions of all subjects and the anonymous ones.
    pub subject: Option<String>,
    /// Labels that a session must have, all of them.
    pub labels: BTreeMap<String, String>,
}

impl ListScope {
    fn matches(&self, session: &Session) -> bool {
        let has_subject = self.subject.as_ref().is_none_or(|subject| subject == session.basic.subject());
        has_subject && session.basic.has_labels(&self.labels)
    }

    /// Returns the position at which a list of this scope starts.
    fn start(&self) -> Position {
        match self.subject {
            Some(_) => Position::Subject { added_before: None },
            None => Position::Namespace(ListPosition::After(Partition(0), None)),
        }
    }

    /// Returns whether a list of this scope can reach the position.
    fn has(&self, position: &Position) -> bool {
        match position {
            Position::Namespace(ListPosition::After(partition, _) | ListPosition::Cursor { partition, .. }) => {
                self.subject.is_none() && partition.index() < self.partitions
            }
            Position::Subject { .. } => self.subject.is_some(),
        }
    }

    /// Returns a checksum over the scope and the content of a page token.
    fn checksum(&self, content: &[u8]) -> [u8; 4] {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.store.0);
        hasher.update(&(self.partitions as u64).to_be_bytes());
        let labels = self.labels.iter().flat_map(|(name, value)| [name.as_str(), value]);
        let subject = self.subject.as_deref().unwrap_or_default();
        for part in [self.namespace.as_str(), subject].into_iter().chain(labels) {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(content);
        hasher.finalize().to_be_bytes()
    }
}

/// Request of ListSessions.
pub struct List {
    /// Sessions that the list covers.
    pub scope: ListScope,
    /// Maximum number of sessions in the page.
    pub page_size: usize,
    /// Position at which the page starts.
    pub from: PageToken,
    /// Part of each session that is returned.
    pub view: View,
}

/// One page of a list.
pub struct SessionPage {
    /// Sessions of the page. It may be empty before the end of the list.
    pub sessions: Vec<Session>,
    /// Position of the next page. None: the end of the list.
    pub next: Option<PageToken>,
}

/// Position between two pages of a list. It is valid for lists of the same scope only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// Ids that were read from the index, but are not in a page yet. The next page starts with them.
    pending: Vec<SessionId>,
    /// Position in the index after the pending ids. None: the end of the index.
    next: Option<Position>,
}

/// Position in the index that a list reads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    /// Position in the partitions of the namespace.
    Namespace(ListPosition),
    /// Position in the subject index, which a list reads from the newest entry to the oldest.
    Subject {
        /// Time before which the next entry was added, in microseconds, Redis clock. None: start with the newest entry.
        added_before: Option<u64>,
    },
}

impl PageToken {
    /// Returns the position before the first page.
    pub fn start(scope: &ListScope) -> Self {
        PageToken { pending: Vec::new(), next: Some(scope.start()) }
    }

    /// Encodes the token: kind of the position, position, pending ids, checksum over all of that and the scope.
    pub fn encode(&self, scope: &ListScope) -> String {
        let mut content = Vec::new();
        match &self.next {
            None => content.push(0),
            Some(Position::Namespace(ListPosition::After(partition, None))) => {
                content.push(1);
                content.extend(partition.0.to_be_bytes());
            }
            Some(Position::Namespace(ListPosition::After(partition, Some(after)))) => {
                content.push(2);
                content.extend(partition.0.to_be_bytes());
                content.extend(after.as_bytes());
            }
            Some(Position::Namespace(ListPosition::Cursor { partition, run, cursor })) => {
                content.push(3);
                content.extend(partition.0.to_be_bytes());
                content.extend(run.to_be_bytes());
                content.extend(cursor.to_be_bytes());
            }
            Some(Position::Subject { added_before: None }) => content.push(4),
            Some(Position::Subject { added_before: Some(added) }) => {
                content.push(5);
                content.extend(added.to_be_bytes());
            }
        }
        content.extend(self.pending.iter().flat_map(|id| *id.as_bytes()));
        content.extend(scope.checksum(&content));
        BASE64URL_NOPAD.encode(&content)
    }

    /// Decodes a token. None: the text is not a page token for a list of this scope.
    ///
    /// The checksum is no secret, so the position is checked as well: one that the scope cannot reach would end the list
    /// early.
    pub fn decode(text: &str, scope: &ListScope) -> Option<Self> {
        let content = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let (content, checksum) = content.split_last_chunk()?;
        if scope.checksum(content) != *checksum {
            return None;
        }
        let (kind, mut content) = content.split_first()?;
        let mut partition = || Some(Partition(u16::from_be_bytes(*take(&mut content)?)));
        let next = match kind {
            0 => None,
            1 => Some(Position::Namespace(ListPosition::After(partition()?, None))),
            2 => {
                let partition = partition()?;
                let after = SessionId::from_bytes(*take(&mut content)?);
                Some(Position::Namespace(ListPosition::After(partition, Some(after))))
            }
            3 => Some(Position::Namespace(ListPosition::Cursor {
                partition: partition()?,
                run: u32::from_be_bytes(*take(&mut content)?),
                cursor: u64::from_be_bytes(*take(&mut content)?),
            })),
            4 => Some(Position::Subject { added_before: None }),
            5 => Some(Position::Subject { added_before: Some(u64::from_be_bytes(*take(&mut content)?)) }),
            _ => return None,
        };
        let (ids, rest) = content.as_chunks::<ID_BYTES>();
        let pending: Vec<_> = ids.iter().map(|id| SessionId::from_bytes(*id)).collect();
        // The end of a list has no token.
        let is_valid = next.as_ref().map_or(!pending.is_empty(), |position| scope.has(position));
        (is_valid && rest.is_empty()).then_some(PageToken { pending, next })
    }
}

/// Removes the first bytes and returns them. None: the content is shorter.
fn take<'a, const N: usize>(content: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, rest) = content.split_first_chunk()?;
    *content = rest;
    Some(first)
}

impl Service {
    /// Returns one page. Reads partition after partition until the page is full or half of the time to the deadline is
    /// over.
    pub async fn list(&self, call: &List, deadline: Instant) -> Result<SessionPage, Error> {
        self.policy(&call.scope.namespace)?;
        let reads = PrimaryReads::default();
        let page = self.read_page(&reads, call, deadline).await?;
        self.store.verify(reads, deadline).await?;
        Ok(page)
    }

    async fn read_page(&self, reads: &PrimaryReads, call: &List, deadline: Instant) -> Result<SessionPage, Error> {
        let stop_reading = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let mut sessions = Vec::new();
        let mut bytes = 0;
        let PageToken { pending, mut next } = call.from.clone();
        let mut pending = VecDeque::from(pending);
        while sessions.len() < call.page_size && Instant::now() < stop_reading {
            let limit = self.store.reads_at_once(call.view, CONCURRENT_READS).min(call.page_size - sessions.len());
            if pending.is_empty() {
                let Some(position) = next else { return Ok(SessionPage { sessions, next: None }) };
                let (ids, after) = self.ids(reads, &call.scope, position, limit, deadline).await?;
                (pending, next) = (ids.into(), after);
            }
            let reads = pending.iter().take(limit).map(async |id| {
                let name = call.scope.namespace.session(*id);
                self.store.peek(Some(reads), &name, Credential::Id, call.view, deadline).await
            });
            for found in futures_util::future::join_all(reads).await {
                match found {
                    Ok(Found::Live(Live { session, .. })) if call.scope.matches(&session) => {
                        bytes += session.size();
                        if bytes > PAGE_BYTES && !sessions.is_empty() {
                            return Ok(SessionPage {
                                sessions,
                                next: Some(PageToken { pending: pending.into(), next }),
                            });
                        }
                        sessions.push(session);
                    }
                    // A corrupt record must not fail the whole list. GetSession returns RECORD_CORRUPT for it.
                    Ok(_) | Err(store::Error::Corrupt { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                pending.pop_front();
            }
        }
        let is_end = pending.is_empty() && next.is_none();
        Ok(SessionPage { sessions, next: (!is_end).then(|| PageToken { pending: pending.into(), next }) })
    }

    /// Returns some ids from a position on, and the position after them. None: the end of the index.
    async fn ids(
        &self,
        reads: &PrimaryReads,
        scope: &ListScope,
        from: Position,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<SessionId>, Option<Position>), Error> {
        match (&scope.subject, from) {
            (None, Position::Namespace(from)) => {
                let (ids, next) = self.store.list(Some(reads), &scope.namespace, from, limit, deadline).await?;
                Ok((ids, next.map(Position::Namespace)))
            }
            (Some(name), Position::Subject { added_before }) => {
                let subject = scope.namespace.clone().subject(name.clone());
                let entries = self.store.entries_before(Some(reads), &subject, added_before, limit, deadline).await?;
                let next = entries.last().map(|last| Position::Subject { added_before: Some(last.added) });
                Ok((entries.into_iter().map(|entry| entry.id).collect(), next))
            }
            (Some(_), Position::Namespace(_)) | (None, Position::Subject { .. }) => {
                Err(violation("page_token", "is of a list with another scope"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Caller, Grant};

    fn authorized(namespace: &str) -> Authorized<Namespace> {
        Caller::anyone().authorize(Grant::Full, namespace.parse().unwrap()).unwrap()
    }

    fn scope(subject: Option<&str>) -> ListScope {
        ListScope {
            store: StoreId([7; 16]),
            partitions: 16,
            namespace: authorized("web"),
            subject: subject.map(str::to_owned),
            labels: BTreeMap::from([("app".to_owned(), "x".to_owned())]),
        }
    }

    fn id(byte: u8) -> SessionId {
        SessionId::from_bytes([byte; ID_BYTES])
    }

    fn namespace_positions() -> [Position; 4] {
        let cursor = ListPosition::Cursor { partition: Partition(15), run: 3, cursor: u64::MAX };
        [
            ListPosition::After(Partition(0), None),
            ListPosition::After(Partition(15), None),
            ListPosition::After(Partition(15), Some(id(9))),
            cursor,
        ]
        .map(Position::Namespace)
    }

    fn subject_positions() -> [Position; 3] {
        [None, Some(0), Some(u64::MAX)].map(|added_before| Position::Subject { added_before })
    }

    #[test]
    fn page_token_of_the_same_scope_is_decoded() {
        let of_namespace = namespace_positions().map(|position| (scope(None), Some(position)));
        let of_subject = subject_positions().map(|position| (scope(Some("alice")), Some(position)));
        let last = [(scope(None), None), (scope(Some("alice")), None)];
        for (scope, next) in of_namespace.into_iter().chain(of_subject).chain(last) {
            let token = PageToken { pending: vec![id(1), id(2)], next };
            assert_eq!(PageToken::decode(&token.encode(&scope), &scope), Some(token));
        }
    }

    #[test]
    fn page_token_of_another_scope_is_rejected() {
        let token = PageToken::start(&scope(None)).encode(&scope(None));
        let others = [
            ListScope { store: StoreId([8; 16]), ..scope(None) },
            ListScope { partitions: 8, ..scope(None) },
            ListScope { partitions: 32, ..scope(None) },
            ListScope { namespace: authorized("other"), ..scope(None) },
            ListScope { labels: BTreeMap::new(), ..scope(None) },
            scope(Some("alice")),
        ];
        for other in &others {
            assert_eq!(PageToken::decode(&token, other), None);
        }
    }

    /// The checksum is right in these tokens, as in one that a client computed.
    #[test]
    fn page_token_with_an_unreachable_position_is_rejected() {
        let of_namespace = namespace_positions().map(|position| (scope(Some("alice")), Some(position)));
        let of_subject = subject_positions().map(|position| (scope(None), Some(position)));
        let beyond = Position::Namespace(ListPosition::After(Partition(16), None));
        let others = [(scope(None), Some(beyond)), (scope(None), None), (scope(Some("alice")), None)];
        for (scope, next) in of_namespace.into_iter().chain(of_subject).chain(others) {
            let token = PageToken { pending: Vec::new(), next };
            assert_eq!(PageToken::decode(&token.encode(&scope), &scope), None, "{token:?}");
        }
    }

    #[test]
    fn truncated_page_token_is_rejected() {
        let scope = scope(None);
        for next in namespace_positions() {
            let text = PageToken { pending: Vec::new(), next: Some(next) }.encode(&scope);
            let content = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
            let content = &content[..content.len() - 4];
            for length in 0..content.len() {
                let mut cut = content[..length].to_vec();
                cut.extend(scope.checksum(&cut));
                let decoded = PageToken::decode(&BASE64URL_NOPAD.encode(&cut), &scope);
                assert!(decoded.is_none(), "{length} bytes: {decoded:?}");
            }
        }
    }
}
