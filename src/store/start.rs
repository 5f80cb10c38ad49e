//! Opens a store: connects, checks server and format, and creates or reads the store id.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::{
    Store,
    broken_keys::BrokenKeys,
    error::Error,
    keys::{Keys, Partition},
    large_reads::LargeReads,
    leaving::Leaving,
    preconditions::{Eviction, Preconditions, Unmet},
    queues::Queues,
    random::{random_nonce, random_u64},
    replies::Meta,
    scripts,
    store_id::StoreId,
    trim_requests::TrimRequests,
};
use crate::{
    observe::Metrics,
    redis::{self, CurrentCredentials, Endpoint, NodeConnector, Probe, ReplicatedWrites, Router},
};

/// Storage format that this version reads and writes.
const STORE_FORMAT: u8 = 2;
/// Maximum time to connect, and to initialise the required partitions.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time to initialise a partition that another follower initialises too.
const OPTIONAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Reason why a store cannot be opened. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No server, or the topology could not be read.
    #[error("cannot connect to Redis: {0}. Check that it is running and that --redis is right")]
    Connect(String),
    /// The server refuses the user.
    #[error("Redis refuses the connection: {0}. Check user and password")]
    Refused(String),
    /// A server does not meet a requirement.
    #[error(transparent)]
    Unmet(#[from] Unmet),
    /// The store has another number of partitions.
    #[error("the store has {found} partitions, the configuration has {wanted}: set partitions = {found}")]
    Partitions {
        /// Number of partitions in the store.
        found: String,
        /// Number of partitions in the configuration.
        wanted: u16,
    },
    /// The store has this format.
    #[error("the store has format {0}, this version reads format {STORE_FORMAT}: use the version that wrote it")]
    Format(String),
    /// Another client has overwritten this key, which holds the id of the store. A running instance repairs it.
    #[error("key {0} has another Redis type. If no running instance repairs it, delete it: all sessions are kept")]
    BrokenMeta(String),
    /// A command failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl StartError {
    fn of_connecting(error: redis::Error) -> Self {
        let is_refused = error.is_not_permitted();
        match error {
            redis::Error::Unavailable(why) if is_refused => StartError::Refused(why),
            redis::Error::Unavailable(why) => StartError::Connect(why.trim_end_matches('.').to_owned()),
            error => Error::from(error).into(),
        }
    }

    /// Whether the state of Redis is the reason, so that a later attempt may succeed with the same configuration.
    pub fn is_temporary(&self) -> bool {
        match self {
            StartError::Connect(_) | StartError::Unmet(Unmet::Replica(_)) | StartError::BrokenMeta(_) => true,
            StartError::Refused(_) | StartError::Partitions { .. } | StartError::Format(_) => false,
            StartError::Unmet(Unmet::Version(_) | Unmet::Cluster(_) | Unmet::Eviction(_) | Unmet::Rights(_)) => false,
            StartError::Store(error) => !matches!(error, Error::Refused(_) | Error::Unexpected(_)),
        }
    }
}

/// Arguments of [`Store::open`].
#[derive(Clone, Copy)]
pub struct StoreOptions<'a> {
    /// URL of the server, Cluster or Sentinels.
    pub url: &'a str,
    /// Password and TLS.
    pub credentials: &'a Arc<CurrentCredentials>,
    /// Prefix of all keys.
    pub prefix: &'a str,
    /// Number of partitions, a power of two of at most 64.
    pub partitions: u16,
    /// Whether a Redis that may evict keys is accepted.
    pub eviction: Eviction,
    /// Whether connections for replicated writes are opened.
    pub replicated_writes: ReplicatedWrites,
    /// Maximum number of messages of one server that wait for the feed. At most 32 MiB of them wait.
    pub feed_buffer: usize,
}

impl Store {
    /// Connects, checks servers and store, and creates the store if there is none. Of an existing store it only reads.
    pub async fn open(open: StoreOptions<'_>, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let endpoint = Endpoint::parse(open.url, open.credentials.clone()).map_err(StartError::Connect)?;
        let database = endpoint.database();
        let preconditions = Preconditions { eviction: open.eviction, is_cluster: endpoint.is_cluster() };
        let keys = Keys::new(open.prefix, database, open.partitions);
        let broken_keys = Arc::new(BrokenKeys::default());
        let suspects = broken_keys.clone();
        let connector = NodeConnector {
            endpoint,
            replicated_writes: open.replicated_writes,
            probe: Probe { script: &scripts::PROBE, absent: keys.absent(Partition(0)) },
            messages: open.feed_buffer,
            metrics: metrics.clone(),
            on_wrong_type: Arc::new(move |keys| suspects.note(keys)),
        };
        let router = Router::open(connector, keys.slots());
        let router = match tokio::time::timeout(START_TIMEOUT, router).await {
            Ok(Ok(router)) => router,
            Ok(Err(error)) => return Err(StartError::of_connecting(error)),
            Err(_) => return Err(StartError::Connect("no reply".into())),
        };
        for node in router.nodes() {
            let checked = preconditions.check(&node, Instant::now() + START_TIMEOUT).await.map_err(Error::from)?;
            checked.unmet.into_iter().next().map_or(Ok(()), Err)?;
        }
        let (id, leaving, queues) = (RwLock::new(StoreId([0; 16])), Leaving::default(), Queues::default());
        let (instance, large_reads, trim_requests) = (random_u64(), LargeReads::new(), TrimRequests::default());
        let store = Store {
            router,
            preconditions,
            keys,
            database,
            id,
            leaving,
            queues,
            large_reads,
            trim_requests,
            broken_keys,
            instance,
            metrics,
        };
        store.initialise(&store.partitions().collect::<Vec<_>>()).await?;
        Ok(store)
    }

    /// Reads the store id, or generates one if there is none: on first use, and after the store was emptied. The first
    /// partition decides the id, so that concurrent instances agree; the other partitions copy it. Fails if a required
    /// partition cannot be initialised; the others are initialised if their servers answer.
    pub async fn initialise(&self, required: &[Partition]) -> Result<(), StartError> {
        let deadline = Instant::now() + START_TIMEOUT;
        let id = self.initialise_partition(Partition(0), StoreId::random(), "names", deadline).await?;
        let joins = self.keys.partitions().skip(1).map(async |partition| {
            let deadline = if required.contains(&partition) { deadline } else { Instant::now() + OPTIONAL_TIMEOUT };
            let joined = self.initialise_partition(partition, id, "joins", deadline).await;
            if required.contains(&partition) { joined.map(drop) } else { Ok(()) }
        });
        futures_util::future::try_join_all(joins).await?;
        *self.id.write() = id;
        Ok(())
    }

    async fn initialise_partition(
        &self,
        partition: Partition,
        id: StoreId,
        role: &'static str,
        deadline: Instant,
    ) -> Result<StoreId, StartError> {
        if let Some(found) = self.stored_id(partition, deadline).await?
            && (role == "names" || found == id)
        {
            return Ok(found);
        }
        let wanted = self.wanted_partitions();
        let args = vec![
            id.to_text().into(),
            STORE_FORMAT.to_string().into(),
            wanted.to_string().into(),
            random_nonce().to_string().into(),
            role.into(),
        ];
        let keys = vec![self.keys.meta(partition)];
        let meta = Meta::decode(self.run(partition, &scripts::INITIALISE, keys, args, deadline).await?)?;
        self.check_meta(&meta)
    }

    /// Reads the store id of a partition. None: it has none. Unlike the script, this works while Redis refuses writes.
    async fn stored_id(&self, partition: Partition, deadline: Instant) -> Result<Option<StoreId>, StartError> {
        let meta = self.keys.meta(partition);
        let args = [meta.clone()].into_iter().chain(Meta::FIELDS.map(Bytes::from)).collect();
        let reply = match self.command(partition, "HMGET", args, deadline).await {
            Err(error) if error.is_wrong_type() => {
                return Err(StartError::BrokenMeta(String::from_utf8_lossy(&meta).into_owned()));
            }
            reply => reply?,
        };
        Meta::of_fields(reply).map(|meta| self.check_meta(&meta)).transpose()
    }

    /// Checks format and number of partitions of a meta, and returns its store id.
    fn check_meta(&self, meta: &Meta) -> Result<StoreId, StartError> {
        if meta.format != STORE_FORMAT.to_string() {
            return Err(StartError::Format(meta.format.clone()));
        }
        let wanted = self.wanted_partitions();
        if meta.partitions != wanted.to_string() {
            return Err(StartError::Partitions { found: meta.partitions.clone(), wanted });
        }
        StoreId::from_text(meta.store.as_bytes()).ok_or(StartError::Format("unknown".into()))
    }

    fn wanted_partitions(&self) -> u16 {
        u16::try_from(self.keys.partitions().len()).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
impl Store {
    /// Opens a store of one partition for a unit test.
    pub(super) async fn of_one_partition(redis: &harness::Redis) -> Self {
        let open = StoreOptions {
            url: &redis.unrestricted_url(),
            credentials: &Arc::default(),
            prefix: "ses:",
            partitions: 1,
            eviction: Eviction::Refused,
            replicated_writes: ReplicatedWrites::Disabled,
            feed_buffer: 16,
        };
        Store::open(open, Arc::default()).await.expect("the store opens")
    }
}
