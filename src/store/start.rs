//! The first look at a store: is it one that this server can serve, and which one is it.

use std::{sync::Arc, time::Duration};

use fred::types::Value;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::{
    Store, StoreId,
    connection::{Connection, Effect, Lane, Waits},
    error::Error,
    keys::{Keys, Partition},
    record::FORMAT,
    scripts,
    subjects::Leaving,
};
use crate::observe::Metrics;

const PATIENCE: Duration = Duration::from_secs(10);

/// Why a store cannot be served; each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot connect to Redis: {0}. Is it running, and is --redis right?")]
    Connect(String),
    #[error("Redis {0} is too old: 7.0 or newer, or Valkey, is needed")]
    TooOld(String),
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
}

impl Store {
    /// Connects, checks the server and the store, and makes the store where there is none.
    pub async fn open(open: Open<'_>, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let connection = Connection::open(open.url, open.password, open.waits, metrics.clone());
        let connection = match tokio::time::timeout(PATIENCE, connection).await {
            Ok(connection) => connection.map_err(|error| StartError::Connect(error.details().to_owned()))?,
            Err(_) => return Err(StartError::Connect("no answer".into())),
        };
        connection.check_server(open.eviction).await?;
        let keys = Keys::new(open.prefix, open.partitions);
        let leaving = Leaving::default();
        let store = Store { connection, keys, id: RwLock::new(StoreId([0; 16])), leaving, metrics };
        store.initialise().await?;
        Ok(store)
    }

    /// Finds the store's id, and gives it one where it has none: at first use, and after it was emptied. The first
    /// partition names the store, so that of several instances one does.
    pub async fn initialise(&self) -> Result<StoreId, StartError> {
        let deadline = Instant::now() + PATIENCE;
        let mut id = StoreId::random();
        for partition in self.keys.partitions() {
            let role = if partition == Partition(0) { "names" } else { "joins" };
            id = self.initialise_partition(partition, id, role, deadline).await?;
        }
        *self.id.write() = id;
        Ok(id)
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
        let reply = self.connection.run(Lane::Bulk, &scripts::INITIALISE, keys, args, deadline, Effect::Writes).await?;
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

impl Connection {
    async fn check_server(&self, eviction: Eviction) -> Result<(), StartError> {
        let info = self.info("everything", Instant::now() + PATIENCE).await?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let version = field("redis_version").unwrap_or("of unknown version");
        let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major < 7 {
            return Err(StartError::TooOld(version.to_owned()));
        }
        match field("maxmemory_policy") {
            Some(policy) if policy != "noeviction" && eviction == Eviction::Refused => {
                Err(StartError::Eviction(policy.to_owned()))
            }
            _ => Ok(()),
        }
    }
}
