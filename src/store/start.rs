//! The first look at a store: is it one that this server can serve, and which one is it.

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

const PATIENCE: Duration = Duration::from_secs(10);
/// For partitions that another follower looks after.
const BRIEFLY: Duration = Duration::from_millis(500);

/// Why a store cannot be served; each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot connect to Redis: {0}. Is it running, and is --redis right?")]
    Connect(String),
    #[error("Redis {0} is too old: 7.0 or newer, or Valkey, is needed")]
    TooOld(String),
    #[error("{0} is a replica: name its primary, or the Sentinels that know it (redis-sentinel://)")]
    Replica(String),
    #[error("{0} is a node of a Cluster: begin the URL with redis-cluster://")]
    Cluster(String),
    #[error(
        "Redis may evict keys (maxmemory-policy {0}), which would end sessions silently. Set maxmemory-policy to \
         noeviction, or start with --allow-eviction"
    )]
    Eviction(String),
    #[error("the store was made with {found} partitions, the configuration says {wanted}: set partitions = {found}")]
    Partitions { found: String, wanted: u16 },
    #[error("the store has format {0}, this version reads format {FORMAT}")]
    Format(String),
    #[error(transparent)]
    Store(#[from] Error),
}

/// Whether a Redis that may evict keys is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    Refused,
    Allowed,
}

/// Which store, and how it is used.
pub struct Open<'a> {
    pub url: &'a str,
    /// Beats one in the URL.
    pub password: Option<&'a str>,
    /// What all keys begin with.
    pub prefix: &'a str,
    /// A power of two of at most 64.
    pub partitions: u16,
    pub eviction: Eviction,
    pub waits: Waits,
    /// Messages that may wait for the feed of a server.
    pub feed_buffer: usize,
}

impl Store {
    /// Connects, checks the server and the store, and makes the store where there is none.
    pub async fn open(open: Open<'_>, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let unreachable = |error: fred::error::Error| StartError::Connect(error.details().to_owned());
        let mut config = Config::from_url(open.url).map_err(unreachable)?;
        config.version = RespVersion::RESP3;
        if let Some(password) = open.password {
            config.password = Some(password.to_owned());
        }
        // Nobody needs the right to select the one that is selected.
        config.database = config.database.filter(|database| *database != 0);
        let database = config.database.unwrap_or(0);
        let directory = Directory::of(&config);
        let is_cluster = directory.is_cluster();
        let keys = Keys::new(open.prefix, open.partitions);
        let opener = Opener { config, waits: open.waits, messages: open.feed_buffer, metrics: metrics.clone() };
        let connection = Connection::open(directory, opener, keys.slots());
        let connection = match tokio::time::timeout(PATIENCE, connection).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(Error::Unavailable(why))) => return Err(StartError::Connect(why)),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(StartError::Connect("no answer".into())),
        };
        for node in connection.nodes() {
            node.check(open.eviction, is_cluster).await?;
        }
        let (id, leaving) = (RwLock::new(StoreId([0; 16])), Leaving::default());
        let store = Store { connection, keys, database, id, leaving, metrics };
        store.initialise(&store.partitions().collect::<Vec<_>>()).await?;
        Ok(store)
    }

    /// Finds the store's id, and gives it one where it has none: at first use, and after it was emptied. The first
    /// partition names the store, so that of several instances one does; all others take its name. Those that have to,
    /// now; the rest where their servers answer.
    pub async fn initialise(&self, have_to: &[Partition]) -> Result<(), StartError> {
        let deadline = Instant::now() + PATIENCE;
        let id = self.initialise_partition(Partition(0), StoreId::random(), "names", deadline).await?;
        let joins = self.keys.partitions().skip(1).map(async |partition| {
            let deadline = if have_to.contains(&partition) { deadline } else { Instant::now() + BRIEFLY };
            let joined = self.initialise_partition(partition, id, "joins", deadline).await;
            if have_to.contains(&partition) { joined.map(drop) } else { Ok(()) }
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
        let wanted = self.keys.partitions().len() as u16;
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
    /// Whether a store can be kept there.
    async fn check(&self, eviction: Eviction, is_cluster: bool) -> Result<(), StartError> {
        let info = self.info("everything", Instant::now() + PATIENCE).await.map_err(Error::from)?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let version = field("redis_version").unwrap_or("of unknown version");
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
