//! Stores sessions in Redis, with one typed call per script. Results are outcome enums; an [`Error`] is a failure.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts are bounded by limits, and times and scores are whole numbers below 2^53"
)]

mod broken_keys;
mod channel;
mod codec;
mod create;
mod end;
mod error;
mod health;
mod index_entry;
mod key_repair;
mod keys;
mod keyspace;
mod large_reads;
mod leaving;
mod log;
mod log_entry;
mod log_page;
mod position;
mod preconditions;
mod queues;
mod random;
mod read;
mod record;
mod replies;
mod routing;
mod scan;
mod script_call;
pub mod scripts;
mod start;
mod store_id;
mod subjects;
mod survey;
mod trim;
mod trim_requests;
mod update;

use std::sync::Arc;

use parking_lot::RwLock;

pub use channel::{ChannelEvent, Channels};
pub use create::{Create, Created};
pub use end::{Condition, Ended, Expired, Settled};
pub use error::Error;
pub use health::Health;
pub use index_entry::{INDEX_PAGE, IndexEntry, RESERVATION_WINDOW, Reservation};
pub use keys::Partition;
pub use keyspace::{NotificationStatus, Notifications};
pub use leaving::{LeaveReason, Left};
pub use log::{Tail, Tails};
pub use log_entry::{Entry, Message};
pub use log_page::LogPage;
pub use position::Position;
pub use preconditions::{Eviction, Unmet};
pub use read::{EndLogged, Found, Get, Live, Validity};
pub use record::{CopyAnswer, Corrupt, RecordCopy, plain_attributes};
pub use replies::{SurveyedState, Trimmed};
pub use routing::Server;
pub use scan::{Due, ListPosition};
pub use start::{StartError, StoreOptions};
pub use store_id::StoreId;
pub use subjects::{Admitted, Claim, Limit};
pub use survey::{PER_SCRIPT, Partial, ScanPage, ScanPosition, ScanScope, Survey, Surveyed};
pub use trim::{LogBounds, Memory};
pub use trim_requests::History;
pub use update::{MAX_LABELS, Successor, Update, Updated};

pub use crate::redis::{
    Credentials as RedisCredentials, CurrentCredentials as CurrentRedisCredentials, PrimaryReads, ReplicatedWrites,
    uses_tls as uses_redis_tls,
};
use crate::{observe::Metrics, redis::Router, session::SessionId};
use broken_keys::BrokenKeys;
use keys::Keys;
use large_reads::LargeReads;
use leaving::Leaving;
use preconditions::Preconditions;
use queues::Queues;
use trim_requests::TrimRequests;

/// Client of the session store in Redis.
pub struct Store {
    router: Router,
    preconditions: Preconditions,
    keys: Keys,
    /// Number of the Redis database: keyspace notifications name it.
    database: u8,
    id: RwLock<StoreId>,
    leaving: Leaving,
    queues: Queues,
    broken_keys: Arc<BrokenKeys>,
    /// Random number of this instance, which marks its claims.
    instance: u64,
    large_reads: LargeReads,
    trim_requests: TrimRequests,
    metrics: Arc<Metrics>,
}

impl Store {
    /// Returns the current id of the store; it changes when the store is emptied.
    pub fn id(&self) -> StoreId {
        *self.id.read()
    }

    /// Iterates over all partitions.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + use<> {
        self.keys.partitions()
    }

    /// Returns the partition of a session.
    pub fn partition_of(&self, id: &SessionId) -> Partition {
        self.keys.partition_of(id)
    }

    /// Returns the estimated time in us of the server that owns this partition. None: its connections are reconnecting.
    pub fn now_at(&self, partition: Partition) -> Option<u64> {
        self.node(partition).now().ok()
    }

    /// Returns the latest estimated time in us of any server. Fails while all connections are reconnecting.
    pub fn now(&self) -> Result<u64, Error> {
        match self.router.nodes().iter().filter_map(|node| node.now().ok()).max() {
            Some(now) => Ok(now),
            None => Ok(self.node(Partition(0)).now()?),
        }
    }

    /// Returns the maximum number of connections that this store has open at the same time, with its current nodes.
    pub fn max_connections(&self) -> usize {
        self.router.max_connections()
    }

    /// Keeps the connections alive and follows the topology; never returns.
    pub async fn keep_alive(&self) {
        self.router.keep_alive().await;
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.router.close().await;
    }
}
