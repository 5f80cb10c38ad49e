//! Follows the logs into the hub: by the channels where they prove to be complete, by reading the log otherwise.
//!
//! An entry is taken if and only if the one before it is the last one taken. Anything else, every new connection, lost
//! messages, and once a second anyway, the tails of all partitions are read, and what is missing from the logs.
//! Subscribe first, then read the tails: nothing falls between.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior},
};

use crate::store::{Error, Heard, Message, Page, Partition, Position, Store};

use super::{
    hub::{Hub, Pushed, Verified},
    ring::Resync,
};

const TAIL_EVERY: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The connection to Redis was closed for good.
#[derive(Debug, thiserror::Error)]
#[error("the feed was closed")]
pub struct FeedClosed;

/// Runs until the store is closed.
pub async fn feed(store: Arc<Store>, hub: Arc<Hub>) -> Result<(), FeedClosed> {
    let mut channels = store.listen();
    let mut requests = hub.take_requests();
    let mut subscribed = store.subscribe().await.is_ok();
    let mut tick = tokio::time::interval(TAIL_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut waiting: Vec<oneshot::Sender<Verified>> = Vec::new();
        tokio::select! {
            heard = channels.next(&store) => match heard {
                Heard::Message(Message::Entry(entry)) => {
                    note_lag(&store, &hub, entry.position.revision.0);
                    match hub.push(*entry) {
                        Pushed::Taken | Pushed::Stale => continue,
                        Pushed::Gap => {}
                    }
                }
                Heard::Message(Message::InLog(partition, Some(position))) => {
                    if let Err(error) = read_log(&store, &hub, partition, position).await {
                        tracing::debug!(%error, "log could not be read");
                    }
                    continue;
                }
                Heard::Message(Message::InLog(_, None)) => {}
                Heard::Missed => {}
                Heard::Reconnected => subscribed = false,
                Heard::Closed => return Err(FeedClosed),
            },
            request = requests.recv() => waiting.extend(request),
            _ = tick.tick() => {}
        }
        while let Ok(request) = requests.try_recv() {
            waiting.push(request);
        }
        if !subscribed {
            subscribed = store.subscribe().await.is_ok();
        }
        match catch_up(&store, &hub).await {
            Ok(verified) => {
                for waiting in waiting {
                    let _ = waiting.send(verified);
                }
            }
            Err(error) => tracing::debug!(%error, "tails could not be read"),
        }
    }
}

fn note_lag(store: &Store, hub: &Hub, revision: u64) {
    if let Some(now) = store.now() {
        hub.metrics.feed_lag_seconds.observe(now.saturating_sub(revision) as f64 / 1e6);
    }
}

/// Reads all tails, and from the logs what the hub lacks.
async fn catch_up(store: &Store, hub: &Hub) -> Result<Verified, Error> {
    let deadline = Instant::now() + READ_TIMEOUT;
    let tails = match store.tails(deadline).await {
        Ok(tails) => tails,
        Err(Error::StoreChanged) => return flushed(store, hub).await,
        Err(error) => return Err(error),
    };
    for (partition, tail) in store.partitions().zip(tails.positions) {
        read_log(store, hub, partition, tail).await?;
    }
    Ok(Verified { as_of: tails.as_of })
}

/// Takes from the log what the hub lacks up to this position.
async fn read_log(store: &Store, hub: &Hub, partition: Partition, until: Position) -> Result<(), Error> {
    if hub.position(partition) == until {
        return Ok(());
    }
    hub.metrics.feed_gaps.inc();
    loop {
        let at = hub.position(partition);
        if at == until {
            return Ok(());
        }
        let deadline = Instant::now() + READ_TIMEOUT;
        let reason = match store.read_after(partition, at, deadline).await? {
            Page::Tail => return Ok(()),
            Page::Entries(entries) => {
                for entry in entries {
                    hub.push(entry);
                }
                continue;
            }
            Page::Compacted => Resync::Compacted,
            Page::RolledBack => Resync::RolledBack,
        };
        let tail = store.tails(deadline).await?.positions[partition.index()];
        tracing::warn!(partition = partition.0, ?reason, "history cannot be followed; watchers are told to resync");
        hub.restart(reason, store.id(), vec![(partition, tail)]);
        return Ok(());
    }
}

/// The store was emptied or exchanged: takes what is there now, or makes it anew.
async fn flushed(store: &Store, hub: &Hub) -> Result<Verified, Error> {
    let id = store.initialise().await.map_err(|error| Error::Unavailable(error.to_string()))?;
    let tails = store.tails(Instant::now() + READ_TIMEOUT).await?;
    tracing::warn!("the store was emptied or exchanged; watchers are told to resync");
    hub.restart(Resync::Flushed, id, store.partitions().zip(tails.positions).collect());
    Ok(Verified { as_of: tails.as_of })
}
