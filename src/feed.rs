//! Follows the logs of all Redis nodes, and passes every entry and every gap, in one order, to its consumers.
//!
//! A `Follower` per node receives the channel messages and reads the logs. The `Dispatcher` accepts an entry only if it
//! follows the last one of its partition, and passes it to every [`Consumer`]. [`Feed`] is what other components use: the
//! read [`Barrier`], and the consumers that the workers read.

mod barrier;
mod consumer;
mod deadlines;
mod dispatcher;
mod follower;
mod history;
mod log_reader;
mod missing_keys;
mod rollback;
mod throttle;

use std::sync::Arc;

use futures_util::future::join_all;

use crate::{
    observe::Metrics,
    store::{Position, Store},
};
use barrier::{BarrierRequests, barrier};
use dispatcher::Dispatcher;
use follower::Follower;
use log_reader::LogReader;

pub use barrier::{Barrier, PendingBarrier, TailRead};
pub use consumer::{Consumer, Gap, GapReason};
pub use deadlines::Deadlines;
pub use log_reader::READ_TIMEOUT;
pub use missing_keys::MissingKeys;
pub use rollback::{RollbackCount, Rollbacks};

/// What other components use of the feed.
#[derive(Clone)]
pub struct Feed {
    /// Read barrier over all nodes.
    pub barrier: Barrier,
    /// Rollbacks of the logs.
    pub rollbacks: Arc<Rollbacks>,
    /// Earliest known session deadline of each partition.
    pub deadlines: Arc<Deadlines>,
    /// Sessions whose keys may have been deleted out of band.
    pub missing_keys: Arc<MissingKeys>,
}

/// Followers of all nodes: the part of the feed that runs.
pub struct Followers {
    feed: Feed,
    store: Arc<Store>,
    /// Position of each partition after which the feed starts.
    tails: Vec<Position>,
    requests: BarrierRequests,
    metrics: Arc<Metrics>,
}

impl Feed {
    /// A feed of the entries after these tails of the store's logs, and its followers, which must run.
    pub fn new(store: Arc<Store>, tails: Vec<Position>, metrics: Arc<Metrics>) -> (Self, Followers) {
        let (barrier, requests) = barrier();
        let feed = Feed {
            barrier,
            rollbacks: Arc::default(),
            deadlines: Arc::new(Deadlines::new(tails.len())),
            missing_keys: Arc::new(MissingKeys::new(tails.len())),
        };
        (feed.clone(), Followers { feed, store, tails, requests, metrics })
    }
}

impl Followers {
    /// Follows the logs of all nodes. Passes every entry and every gap to the consumers of the feed, then to `consumers`,
    /// in this order. Never returns.
    pub async fn run(mut self, consumers: Vec<Arc<dyn Consumer>>) {
        let Feed { rollbacks, deadlines, missing_keys, .. } = self.feed.clone();
        let mut all: Vec<Arc<dyn Consumer>> = vec![rollbacks, deadlines, missing_keys.clone()];
        all.extend(consumers);
        let dispatcher = Arc::new(Dispatcher::new(self.tails, all, self.metrics.clone()));
        loop {
            // Created before the nodes are listed, so that it reports every later move of a partition.
            let moved = self.store.moved();
            let followers = self.store.servers().into_iter().map(|server| {
                let (barrier, requests) = barrier();
                let reader = LogReader::new(&self.store, &dispatcher, &self.metrics, server);
                (barrier, Follower::new(reader, &missing_keys, requests))
            });
            let (barriers, followers): (Vec<Barrier>, Vec<Follower>) = followers.unzip();
            tokio::select! {
                // In this order: after a move no message of the previous node is processed.
                biased;
                () = moved => dispatcher.pass_restart(&self.store.partitions().collect::<Vec<_>>()),
                _ = join_all(followers.into_iter().map(Follower::follow)) => {}
                () = serve_barrier(&barriers, &mut self.requests) => {}
                () = missing_keys.drop_old_ends() => {}
            }
        }
    }
}

/// Passes the barrier of every node for each request. If one node cannot be read, the request fails. Never returns.
async fn serve_barrier(nodes: &[Barrier], requests: &mut BarrierRequests) {
    loop {
        requests.wait().await;
        let last = requests.last();
        let reads = join_all(nodes.iter().map(Barrier::pass)).await;
        let reads: Option<Vec<TailRead>> = reads.into_iter().collect();
        requests.answer(last, reads.and_then(|reads| reads.into_iter().min_by_key(|read| read.as_of)));
    }
}
