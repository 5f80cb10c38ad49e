//! Listing live sessions, page by page.

use std::collections::{BTreeMap, VecDeque};

use data_encoding::BASE64URL_NOPAD;

use super::*;
use crate::{
    session::{ID_BYTES, Subject},
    store::{Found, ListPosition, Partition},
};

/// Of the sessions in a page; the page token and the frame around them fit into what is left of 2 MiB.
const PAGE_BYTES: usize = 2 * 1024 * 1024 - 64 * 1024;
/// Sessions read at once: bounds what one round trip brings.
const READ_AT_ONCE: usize = 100;

/// What is listed: the sessions of a namespace, or of a subject, with these labels.
pub struct Listed {
    pub namespace: Namespace,
    /// None = whoever's.
    pub subject: Option<String>,
    /// All must match.
    pub labels: BTreeMap<String, String>,
}

impl Listed {
    fn matches(&self, session: &Session) -> bool {
        let is_subjects = self.subject.as_ref().is_none_or(|subject| *subject == session.subject);
        is_subjects && self.labels.iter().all(|(label, value)| session.labels.get(label) == Some(value))
    }

    fn checksum(&self, text: &[u8]) -> [u8; 4] {
        let mut hasher = crc32fast::Hasher::new();
        let labels = self.labels.iter().flat_map(|(name, value)| [name.as_str(), value]);
        let subject = self.subject.as_deref().unwrap_or_default();
        for part in [self.namespace.as_str(), subject].into_iter().chain(labels) {
            hasher.update(&(part.len() as u32).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(text);
        hasher.finalize().to_be_bytes()
    }
}

pub struct List {
    pub of: Listed,
    pub page_size: usize,
    pub from: PageToken,
    pub view: View,
}

pub struct Page {
    pub sessions: Vec<Session>,
    /// None = that was all.
    pub next: Option<PageToken>,
}

/// Where a list goes on; good for lists of the same namespace, subject and labels alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// Found, but not told yet: they come first.
    rest: Vec<SessionId>,
    /// None = nothing comes after them.
    next: Option<ListPosition>,
}

impl PageToken {
    pub fn start(of: &Listed) -> Self {
        let next = match of.subject {
            Some(_) => ListPosition::AddedBefore(None),
            None => ListPosition::After(Partition(0), None),
        };
        PageToken { rest: Vec::new(), next: Some(next) }
    }

    /// Kind of position, the position, the ids, a checksum over them and over what is listed.
    pub fn encode(&self, of: &Listed) -> String {
        let mut text = Vec::new();
        match &self.next {
            None => text.push(0),
            Some(ListPosition::After(partition, None)) => {
                text.push(1);
                text.extend(partition.0.to_be_bytes());
            }
            Some(ListPosition::After(partition, Some(after))) => {
                text.push(2);
                text.extend(partition.0.to_be_bytes());
                text.extend(after.as_bytes());
            }
            Some(ListPosition::Cursor { partition, run, cursor }) => {
                text.push(3);
                text.extend(partition.0.to_be_bytes());
                text.extend(run.to_be_bytes());
                text.extend(cursor.to_be_bytes());
            }
            Some(ListPosition::AddedBefore(added)) => {
                text.push(4);
                text.extend(added.unwrap_or(u64::MAX).to_be_bytes());
            }
        }
        text.extend(self.rest.iter().flat_map(|id| *id.as_bytes()));
        text.extend(of.checksum(&text));
        BASE64URL_NOPAD.encode(&text)
    }

    /// None = not a page token of ours for such a list.
    pub fn decode(text: &str, partitions: usize, of: &Listed) -> Option<Self> {
        let text = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let (text, checksum) = text.split_last_chunk()?;
        if of.checksum(text) != *checksum {
            return None;
        }
        let (kind, mut text) = text.split_first()?;
        let mut partition = || {
            let partition = Partition(u16::from_be_bytes(*take(&mut text)?));
            (partition.index() < partitions).then_some(partition)
        };
        let next = match kind {
            0 => None,
            1 => Some(ListPosition::After(partition()?, None)),
            2 => Some(ListPosition::After(partition()?, Some(SessionId::from_bytes(*take(&mut text)?)))),
            3 => Some(ListPosition::Cursor {
                partition: partition()?,
                run: u32::from_be_bytes(*take(&mut text)?),
                cursor: u64::from_be_bytes(*take(&mut text)?),
            }),
            4 => Some(ListPosition::AddedBefore(Some(u64::from_be_bytes(*take(&mut text)?)))),
            _ => return None,
        };
        let (ids, left) = text.as_chunks::<ID_BYTES>();
        let rest = ids.iter().map(|id| SessionId::from_bytes(*id)).collect();
        left.is_empty().then_some(PageToken { rest, next })
    }
}

fn take<'a, const N: usize>(text: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, rest) = text.split_first_chunk()?;
    *text = rest;
    Some(first)
}

impl Service {
    /// One page. Goes on from partition to partition until it is full, or half of the call's time is over.
    pub async fn list(&self, call: &List, deadline: Instant) -> Result<Page, Error> {
        self.policy(&call.of.namespace)?;
        let enough = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let mut sessions = Vec::new();
        let mut bytes = 0;
        let PageToken { rest, mut next } = call.from.clone();
        let mut rest = VecDeque::from(rest);
        while sessions.len() < call.page_size && Instant::now() < enough {
            let limit = (call.page_size - sessions.len()).min(READ_AT_ONCE);
            if rest.is_empty() {
                let Some(position) = next else { return Ok(Page { sessions, next: None }) };
                let (ids, after) = self.ids(&call.of, position, limit, deadline).await?;
                (rest, next) = (ids.into(), after);
            }
            let reads = rest.iter().take(limit).map(async |id| {
                let name = SessionName { namespace: call.of.namespace.clone(), id: *id };
                self.store.look(&name, Proof::Named, call.view, deadline).await
            });
            for found in futures_util::future::join_all(reads).await {
                match found {
                    Ok(Found::Session(session, _)) if call.of.matches(&session) => {
                        bytes += session.size();
                        if bytes > PAGE_BYTES && !sessions.is_empty() {
                            return Ok(Page { sessions, next: Some(PageToken { rest: rest.into(), next }) });
                        }
                        sessions.push(session);
                    }
                    // One that cannot be read hides no others; whoever asks for it is told.
                    Ok(_) | Err(store::Error::Corrupt { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                rest.pop_front();
            }
        }
        let is_over = rest.is_empty() && next.is_none();
        Ok(Page { sessions, next: (!is_over).then(|| PageToken { rest: rest.into(), next }) })
    }
    /// Some ids of what is listed from the position on, and where to go on; None = that was all.
    async fn ids(
        &self,
        of: &Listed,
        from: ListPosition,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<SessionId>, Option<ListPosition>), store::Error> {
        let (Some(name), ListPosition::AddedBefore(before)) = (&of.subject, &from) else {
            return self.store.list(&of.namespace, from, limit, deadline).await;
        };
        let subject = Subject { namespace: of.namespace.clone(), name: name.clone() };
        let entries = self.store.entries_before(&subject, *before, limit, deadline).await?;
        let next = entries.last().map(|last| ListPosition::AddedBefore(Some(last.added)));
        Ok((entries.into_iter().map(|entry| entry.id).collect(), next))
    }
}
