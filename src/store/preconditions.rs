//! What the store requires of every Redis server: version, role, topology, eviction policy and rights.

use tokio::time::Instant;

use crate::redis::{self, Node};

/// Requirement that a Redis server does not meet. Each text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    /// The server has this version.
    #[error("Redis {0} is too old: 7.0 or newer, or Valkey, is required")]
    Version(String),
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
    /// The user may not run these commands.
    #[error("{0}. Give it the rights that the manual lists")]
    Rights(String),
}

/// Whether a Redis that may evict keys is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Refuse it.
    Refused,
    /// Accept it: sessions may end early, some without an event.
    Allowed,
}

/// Requirements that depend on the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preconditions {
    /// Whether a Redis that may evict keys is accepted.
    pub eviction: Eviction,
    /// Whether the URL names a Cluster.
    pub is_cluster: bool,
}

/// Result of a check of a server.
pub(super) struct Checked {
    /// Requirements that it does not meet.
    pub unmet: Vec<Unmet>,
    /// Whether it has used all memory that `maxmemory` permits.
    pub is_full: bool,
}

impl Preconditions {
    /// Checks all requirements of a server.
    pub(super) async fn check(self, node: &Node, deadline: Instant) -> Result<Checked, redis::Error> {
        let info = node.info("everything", deadline).await?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = |name| field(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        let mut unmet = Vec::new();
        let version = field("redis_version").unwrap_or("of an unknown version");
        let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major < 7 {
            // The other checks use commands and flags that this version does not have.
            return Ok(Checked { unmet: vec![Unmet::Version(version.to_owned())], is_full: false });
        }
        if field("cluster_enabled") == Some("1") && !self.is_cluster {
            unmet.push(Unmet::Cluster(node.name()));
        }
        if field("role") == Some("slave") {
            unmet.push(Unmet::Replica(node.name()));
        }
        if let Some(policy) = field("maxmemory_policy")
            && policy != "noeviction"
            && self.eviction == Eviction::Refused
        {
            unmet.push(Unmet::Eviction(policy.to_owned()));
        }
        match node.refused_commands(deadline).await {
            Ok(refused) => unmet.extend(refused.map(Unmet::Rights)),
            Err(redis::Error::Refused(reply)) => unmet.push(Unmet::Rights(reply)),
            // A replica, a server that is loading, or one that refuses writes for now: the heartbeats report that.
            Err(_) => {}
        }
        let limit = number("maxmemory");
        Ok(Checked { unmet, is_full: limit > 0 && number("used_memory") >= limit })
    }
}
