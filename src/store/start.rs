//! Opens a store: connects, checks server and format, and creates or reads the store id.

use std::{sync::Arc, time::Duration};

use fred::types::{RespVersion, Value, config::Config};
use parking_lot::RwLock;
use tokio::time::Instant;

use super::{
    Store, StoreId,
    connection::Connection,
    directory::Directory,
    error::Error,
    keys::{Keys, Partition},
    node::{Node, Opener, Waits},
    record::FORMAT,
    scripts,
    subjects::Leaving,
};
use crate::observe::Metrics;

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
    /// The server has this version.
    #[error("Redis {0} is too old: 7.0 or newer, or Valkey, is required")]
    TooOld(String),
    /// The server at this address is a replica.
    #[error("{0} is a replica: set --redis to its primary, or to the Sentinels that know it (redis-sentinel://)")]
    Replica(String),
    /// The server at this address is a Cluster node, but the URL names a single server.
    #[error("{0} is a node of a Cluster: use a URL that begins with redis-cluster://")]
    Cluster(String),
    /// The server has this maxmemory-policy.
    #[error(
        "Redis may evict keys (maxmemory-policy {0}), which would end sessions silently. Set maxmemory-policy to \
         noeviction, or start with --allow-eviction"
    )]
    Eviction(String),
    /// The store has another number of partitions.
    #[error("the store has {found} partitions, the configuration has {wanted}: set partitions = {found}")]
    Partitions {
        /// Number of partitions in the store.
        found: String,
        /// Number of partitions in the configuration.
        wanted: u16,
    },
    /// The store has this format.
    #[error("the store has format {0}, this version reads format {FORMAT}: use the version that wrote it")]
    Format(String),
    /// A command failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Whether a Redis that may evict keys is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Refuse it.
    Refused,
    /// Accept it: sessions may end early, some without an event.
    Allowed,
}

/// Arguments of [`Store::open`].
pub struct Open<'a> {
    /// URL of the server, Cluster or Sentinels.
    pub url: &'a str,
    /// Password; overrides the one in the URL. None: that of the URL.
    pub password: Option<&'a str>,
    /// Prefix of all keys.
    pub prefix: &'a str,
    /// Number of partitions, a power of two of at most 64.
    pub partitions: u16,
    /// Whether a Redis that may evict keys is accepted.
    pub eviction: Eviction,
    /// Whether connections for replicated writes are opened.
    pub waits: Waits,
    /// Maximum number of messages of one server that wait for the feed.
    pub feed_buffer: usize,
}

impl Store {
    /// Connects, checks servers and store, and creates the store if there is none.
    pub async fn open(open: Open<'_>, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let unreachable = |error: fred::error::Error| StartError::Connect(error.details().to_owned());
        let mut config = Config::from_url(open.url).map_err(unreachable)?;
        config.version = RespVersion::RESP3;
        if let Some(password) = open.password {
            config.password = Some(password.to_owned());
        }
        // Database 0 is already selected: SELECT would need another right.
        config.database = config.database.filter(|database| *database != 0);
        let database = config.database.unwrap_or(0);
        let directory = Directory::of(&config);
        let is_cluster = directory.is_cluster();
        let keys = Keys::new(open.prefix, open.partitions);
        let opener = Opener { config, waits: open.waits, messages: open.feed_buffer, metrics: metrics.clone() };
        let connection = Connection::open(directory, opener, keys.slots());
        let connection = match tokio::time::timeout(START_TIMEOUT, connection).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(Error::Unavailable(why))) => return Err(StartError::Connect(why)),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(StartError::Connect("no reply".into())),
        };
        for node in connection.nodes() {
            node.check(open.eviction, is_cluster).await?;
        }
        let (id, leaving) = (RwLock::new(StoreId([0; 16])), Leaving::default());
        let store = Store { connection, keys, database, id, leaving, metrics };
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
        let wanted = u16::try_from(self.keys.partitions().len()).unwrap_or(u16::MAX);
        let args = vec![
            id.to_text().into(),
            FORMAT.to_string().into(),
            wanted.to_string().into(),
            super::random_u64().to_string().into(),
            role.into(),
        ];
        let keys = vec![self.keys.meta(partition)];
        let reply = self.run(partition, &scripts::INITIALISE, keys, args, deadline).await?;
        let text = |at: usize| reply.get(at).and_then(Value::as_string).unwrap_or_default();
        if text(2) != FORMAT.to_string() {
            return Err(StartError::Format(text(2)));
        }
        if text(3) != wanted.to_string() {
            return Err(StartError::Partitions { found: text(3), wanted });
        }
        StoreId::from_text(text(1).as_bytes()).ok_or(StartError::Format("unknown".into()))
    }
}

impl Node {
    /// Checks version, role and eviction policy of the server.
    async fn check(&self, eviction: Eviction, is_cluster: bool) -> Result<(), StartError> {
        let info = self.info("everything", Instant::now() + START_TIMEOUT).await.map_err(Error::from)?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let version = field("redis_version").unwrap_or("of an unknown version");
        let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major < 7 {
            return Err(StartError::TooOld(version.to_owned()));
        }
        if field("cluster_enabled") == Some("1") && !is_cluster {
            return Err(StartError::Cluster(self.name()));
        }
        if field("role") == Some("slave") {
            return Err(StartError::Replica(self.name()));
        }
        match field("maxmemory_policy") {
            Some(policy) if policy != "noeviction" && eviction == Eviction::Refused => {
                Err(StartError::Eviction(policy.to_owned()))
            }
            _ => Ok(()),
        }
    }
}
