//! Listing live sessions, page by page.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;

use super::*;
use crate::{
    session::ID_BYTES,
    store::{Found, Lane, ListPosition, Partition},
};

/// No response is larger; about, before the last session.
const PAGE_BYTES: usize = 1024 * 1024;
/// Sessions read at once: bounds what one round trip brings.
const READ_AT_ONCE: usize = 100;

pub struct List {
    pub namespace: Namespace,
    /// All must match.
    pub labels: BTreeMap<String, String>,
    pub page_size: usize,
    pub from: PageToken,
    pub view: View,
}

pub struct Page {
    pub sessions: Vec<Session>,
    /// None = that was all.
    pub next: Option<PageToken>,
}

/// Where a list goes on. Bound to its request: another namespace or other labels do not take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken(ListPosition);

impl PageToken {
    pub const START: PageToken = PageToken(ListPosition::After(Partition(0), None));

    pub fn encode(&self) -> String {
        let mut text = Vec::new();
        match &self.0 {
            ListPosition::After(partition, after) => {
                text.push(0);
                text.extend(partition.0.to_be_bytes());
                text.extend(after.iter().flat_map(|id| *id.as_bytes()));
            }
            ListPosition::Cursor { partition, run, cursor } => {
                text.push(1);
                text.extend(partition.0.to_be_bytes());
                text.extend(run.to_be_bytes());
                text.extend(cursor.to_be_bytes());
            }
        }
        text.extend(crc32fast::hash(&text).to_be_bytes());
        BASE64URL_NOPAD.encode(&text)
    }

    /// None = not a page token of ours.
    pub fn decode(text: &str, partitions: usize) -> Option<Self> {
        let text = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let (text, checksum) = text.split_last_chunk()?;
        if crc32fast::hash(text) != u32::from_be_bytes(*checksum) {
            return None;
        }
        let (kind, rest) = text.split_first()?;
        let (partition, rest) = rest.split_first_chunk()?;
        let partition = Partition(u16::from_be_bytes(*partition));
        let position = match (kind, rest.len()) {
            (0, 0) => ListPosition::After(partition, None),
            (0, ID_BYTES) => ListPosition::After(partition, Some(SessionId::from_bytes(rest.try_into().ok()?))),
            (1, 12) => ListPosition::Cursor {
                partition,
                run: u32::from_be_bytes(rest[..4].try_into().ok()?),
                cursor: u64::from_be_bytes(rest[4..].try_into().ok()?),
            },
            _ => return None,
        };
        (partition.index() < partitions).then_some(PageToken(position))
    }
}

impl Service {
    /// One page. Goes on from partition to partition until it is full, or half of the call's time is over.
    pub async fn list(&self, call: List, deadline: Instant) -> Result<Page, Error> {
        let policy = self.policy(&call.namespace)?;
        let enough = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let mut sessions = Vec::new();
        let mut bytes = 0;
        let mut position = call.from.0;
        while sessions.len() < call.page_size && bytes < PAGE_BYTES && Instant::now() < enough {
            let limit = (call.page_size - sessions.len()).min(READ_AT_ONCE);
            let (ids, next) = self.store.list(&call.namespace, position, limit, deadline).await?;
            for chunk in ids.chunks(READ_AT_ONCE) {
                let names = chunk.iter().map(|id| SessionName { namespace: call.namespace.clone(), id: *id });
                let get =
                    store::Get { proof: Proof::Named, view: call.view, use_: Use::DoesNotCount, lane: Lane::Bulk };
                let reads = names.map(async |name| self.store.get(&name, get, policy, deadline).await);
                for found in futures_util::future::join_all(reads).await {
                    match found {
                        Ok(Found::Session(session)) if matches(&session, &call.labels) => {
                            bytes += size(&session);
                            sessions.push(session);
                        }
                        // One that cannot be read hides no others; whoever asks for it is told.
                        Ok(_) | Err(store::Error::Corrupt { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            match next {
                Some(next) => position = next,
                None => return Ok(Page { sessions, next: None }),
            }
        }
        Ok(Page { sessions, next: Some(PageToken(position)) })
    }
}

fn matches(session: &Session, labels: &BTreeMap<String, String>) -> bool {
    labels.iter().all(|(label, value)| session.labels.get(label) == Some(value))
}

fn size(session: &Session) -> usize {
    let values = session.attributes.iter().map(|(name, value)| name.len() + value.len() + 16);
    2048 + values.sum::<usize>()
}
