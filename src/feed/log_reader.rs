//! Reads the logs of one Redis node: their tails, and the entries that the feed lacks.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    moment::Moment,
    observe::Metrics,
    store::{Error, LogPage, Partition, Position, Server, Store, Tails},
};

use super::{
    barrier::TailRead,
    consumer::{Gap, GapReason},
    dispatcher::Dispatcher,
    rollback::find_fork,
};

/// Time limit of one read from Redis, which may wait behind large replies on a slow line. If Redis hangs, the heartbeats
/// fail earlier.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the logs of one Redis node into the dispatcher.
pub(super) struct LogReader {
    pub store: Arc<Store>,
    pub dispatcher: Arc<Dispatcher>,
    pub metrics: Arc<Metrics>,
    pub server: Server,
    /// Run id of the node at the last tail read. None: there was none.
    pub run: Option<String>,
}

/// A read of all tails of the node, and of the entries up to them.
pub(super) struct CaughtUp {
    pub read: TailRead,
    /// Whether the feed lacked entries before the read.
    pub was_behind: bool,
}

/// Deadline of a read that starts now.
fn deadline() -> Instant {
    Instant::now() + READ_TIMEOUT
}

impl LogReader {
    /// A reader of the logs of this node.
    pub(super) fn new(
        store: &Arc<Store>,
        dispatcher: &Arc<Dispatcher>,
        metrics: &Arc<Metrics>,
        server: Server,
    ) -> Self {
        LogReader { store: store.clone(), dispatcher: dispatcher.clone(), metrics: metrics.clone(), server, run: None }
    }

    /// Reads all tails, and from the logs the entries that the feed lacks. If a log does not continue from the feed's
    /// position, the feed has a gap. Entries that were lost by a restart of Redis may show in no log, so another run id
    /// counts as a rollback.
    pub(super) async fn catch_up(&mut self) -> Result<CaughtUp, Error> {
        let sent = Moment::now();
        let tails = self.tails().await?;
        // Read after the tails, which are therefore of this run or of an earlier one.
        let run = self.store.run_of(&self.server, deadline()).await?;
        if self.run.replace(run.clone()).is_some_and(|before| before != run) {
            self.dispatcher.pass_restart(&self.server.partitions);
        }
        let was_behind =
            tails.tails.iter().any(|(partition, tail)| self.dispatcher.position(*partition) != tail.position);
        let mut outcome = tails.unread.map_or(Ok(CaughtUp { read: TailRead { as_of: tails.as_of }, was_behind }), Err);
        let mut gaps: HashMap<GapReason, Vec<(Partition, Position)>> = HashMap::new();
        let mut read = Vec::with_capacity(tails.tails.len());
        for (partition, tail) in tails.tails {
            match self.read_log(partition, tail.position).await {
                Ok(None) => read.push(partition),
                Ok(Some(reason)) => gaps.entry(reason).or_default().push((partition, tail.position)),
                // The other partitions are still read.
                Err(error) => outcome = Err(error),
            }
        }
        self.dispatcher.pass_tail_read(&read, sent);
        if gaps.is_empty() {
            return outcome;
        }
        for (reason, tails) in gaps {
            self.pass_gap(reason, tails).await?;
        }
        // After a rollback the feed is at the fork point: read the new branch from there.
        let tails = self.tails().await?;
        outcome = tails.unread.map_or(outcome, Err);
        for (partition, tail) in tails.tails {
            if self.read_log(partition, tail.position).await?.is_some() {
                let cause = format!("log of partition {} was rolled back again; the feed retries", partition.0);
                outcome = Err(Error::Unavailable(cause));
            }
        }
        outcome
    }

    /// Passes on a gap in partitions with these tails. It ends at the fork points of a rollback if they are known, else at
    /// the tails.
    async fn pass_gap(&self, reason: GapReason, tails: Vec<(Partition, Position)>) -> Result<(), Error> {
        let is_rollback = reason == GapReason::RolledBack;
        let mut ends = tails;
        // Number of lost entries. None: unknown.
        let mut lost_entries = is_rollback.then_some(0);
        for (partition, end) in ends.iter_mut().filter(|_| is_rollback) {
            let positions = self.dispatcher.positions(*partition);
            let is_in_log = |position| self.store.is_in_history(*partition, position, deadline());
            let fork = find_fork(&positions, is_in_log).await?;
            *end = fork.map_or(*end, |fork| positions[fork]);
            lost_entries = lost_entries.zip(fork).map(|(entries, fork)| entries + fork);
        }
        match lost_entries {
            Some(entries) => crate::observe::warning!(entries, "log rollback detected; sending resync"),
            None => crate::observe::warning!(?reason, "log continuity lost; sending resync"),
        }
        self.dispatcher.pass_gap(&Gap { reason, store: self.store.id(), ends });
        Ok(())
    }

    /// Reads the tails of all logs. If the store was emptied or exchanged, adopts it as it is now, or initialises it.
    async fn tails(&self) -> Result<Tails, Error> {
        match self.store.tails(&self.server, deadline()).await {
            Err(Error::StoreChanged) => {
                // A former primary that returns empty is not the store.
                self.store.confirm(&self.server).await?;
                let initialised = self.store.initialise(&self.server.partitions).await;
                initialised.map_err(|error| Error::Unavailable(error.to_string()))?;
                self.store.tails(&self.server, deadline()).await
            }
            tails => tails,
        }
    }

    /// Reads from the log the entries that the feed lacks up to `until`. Returns the reason if the log does not continue
    /// from the feed's position.
    pub(super) async fn read_log(&self, partition: Partition, until: Position) -> Result<Option<GapReason>, Error> {
        if self.dispatcher.position(partition) != until {
            self.metrics.feed_gaps.inc();
        }
        loop {
            let before = self.dispatcher.position(partition);
            if before == until {
                return Ok(None);
            }
            match self.store.read_after(partition, before, deadline()).await? {
                LogPage::Tail => return Ok(None),
                LogPage::Entries(entries) => {
                    for entry in &entries {
                        self.dispatcher.accept_from_log(entry);
                    }
                    let reached = self.dispatcher.position(partition);
                    if reached == before {
                        let cause = format!("log of partition {} makes no progress; the feed retries", partition.0);
                        return Err(Error::Unavailable(cause));
                    }
                    // Later entries arrive by the channel, or with the next tail read.
                    if reached.revision >= until.revision {
                        return Ok(None);
                    }
                }
                LogPage::Compacted => return Ok(Some(GapReason::Compacted)),
                LogPage::Flushed => return Ok(Some(GapReason::Flushed)),
                LogPage::RolledBack => return Ok(Some(GapReason::RolledBack)),
            }
        }
    }
}
