//! Reads pages of the log: the entries after a position, or the reason why the log does not continue from it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Store,
    error::Error,
    keys::Partition,
    log_entry::{Entry, EntryHead},
    position::Position,
    replies::{PageReply, Values},
    scripts,
};
use crate::redis::{self, Asking, Node, OnMigration, Request};

/// Maximum number of entries in a page.
const PAGE: usize = 32;

/// Result of reading the log after a position.
pub enum LogPage {
    /// At least one entry; each follows the one before it.
    Entries(Vec<Entry>),
    /// No entry: the position is the tail.
    Tail,
    /// The log no longer reaches back to the position.
    Compacted,
    /// The position is from before the store was emptied.
    Flushed,
    /// The position is not in the current history: it was lost by a rollback, or is of another branch.
    RolledBack,
}

/// Keeps the entries up to the first one that does not follow its predecessor; the next read finds the reason.
fn chained(mut entries: Vec<Entry>) -> Vec<Entry> {
    let follows = entries.windows(2).take_while(|pair| pair[1].previous == pair[0].position).count();
    entries.truncate(follows + 1);
    entries
}

impl Store {
    /// Reads at most one page of entries after a position.
    pub async fn read_after(&self, partition: Partition, after: Position, deadline: Instant) -> Result<LogPage, Error> {
        self.read_page(partition, after, PAGE, deadline).await
    }

    /// Returns whether a position is in the current history of its partition. Compacted positions are not.
    pub async fn is_in_history(
        &self,
        partition: Partition,
        position: Position,
        deadline: Instant,
    ) -> Result<bool, Error> {
        Ok(matches!(self.read_page(partition, position, 1, deadline).await?, LogPage::Entries(_) | LogPage::Tail))
    }

    async fn read_page(
        &self,
        partition: Partition,
        after: Position,
        most: usize,
        deadline: Instant,
    ) -> Result<LogPage, Error> {
        let from = format!("({}", after.to_text());
        let follows = |entries: &[Entry]| entries.first().is_some_and(|first| first.previous == after);
        // Redis replies in order: an entry that is appended after the tail was read can only be among the entries.
        let (tail, entries) = tokio::join!(
            biased;
            self.tail(partition, deadline),
            self.range(partition, &from, most, deadline)
        );
        let entries = match entries {
            Err(Error::UnexpectedRead(what)) => {
                crate::observe::error!(what, "log entry unreadable; watchers will receive resync");
                return Ok(LogPage::Compacted);
            }
            entries => entries?,
        };
        if follows(&entries) {
            return Ok(LogPage::Entries(chained(entries)));
        }
        let tail = tail?;
        if after == tail.position {
            return Ok(LogPage::Tail);
        }
        if tail.origin.is_some_and(|origin| after.revision < origin.revision) {
            return Ok(LogPage::Flushed);
        }
        // The tail may have been read after the entries: each may have waited for its turn, or was redirected separately
        // during a slot migration.
        let entries = self.range(partition, &from, most, deadline).await?;
        if follows(&entries) {
            return Ok(LogPage::Entries(chained(entries)));
        }
        if entries.is_empty() {
            // After a failover the new primary may lack entries of the old one.
            if self.tail(partition, deadline).await?.position != tail.position {
                return Err(Error::Unavailable("the log changed during the read".into()));
            }
            let is_behind = after.revision < tail.position.revision;
            return Ok(if is_behind { LogPage::Compacted } else { LogPage::RolledBack });
        }
        let first = self.range(partition, "-", 1, deadline).await?;
        let is_below = |first: &Entry| after.revision < first.previous.revision;
        Ok(if first.first().is_none_or(is_below) { LogPage::Compacted } else { LogPage::RolledBack })
    }

    /// Reads entries of a log, limited in count and size.
    async fn range(
        &self,
        partition: Partition,
        from: &str,
        count: usize,
        deadline: Instant,
    ) -> Result<Vec<Entry>, Error> {
        let reads = &self.large_reads;
        let keys = &[self.keys.log(partition)][..];
        let args: &[Bytes] = &[from.to_owned().into(), count.to_string().into(), reads.page().to_string().into()];
        let attempt = |node: Arc<Node>, asking: Asking| async move {
            let _reserved = node.reserve(reads.expected(), deadline).await?;
            let request = Request::Script { script: &scripts::PAGE, keys, args };
            let read = node.ask_primary(request, deadline, asking).await;
            if let Err(error) = &read
                && !matches!(error, redis::Error::Redirect(_))
            {
                reads.note(Err(&error.clone().into()));
            }
            read
        };
        let reply = Values::of(&scripts::PAGE, self.route(partition, deadline, OnMigration::Wait, attempt).await?)?;
        let entries = PageReply::decode(reply)?.entries;
        reads.note(Ok(entries.iter().flatten().map(Bytes::len).sum()));
        let unreadable = |_| Error::UnexpectedRead(format!("an entry of the log of partition {}", partition.0));
        let entry = |[entry, content]: &[Bytes; 2]| {
            let head = EntryHead::decode(partition, entry)?;
            let separate = head.has_separate_content().then_some(content);
            head.with_content(separate)
        };
        entries.iter().map(|pair| entry(pair).map_err(unreadable)).collect()
    }
}
