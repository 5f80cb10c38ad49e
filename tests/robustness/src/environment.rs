//! The environment of one history: Redis in one topology, three instances of sessiond, and the handles that faults use.

use std::sync::Arc;

use tokio::sync::watch;

use crate::history::Micros;
use crate::{
    fixtures::RULES, ground_truth::Position, log_reader::LogReader, recorder::Recorder, seeded_rng::SeededRng,
    workload::Slots,
};
use harness::{
    Client, Redis, Server,
    cluster::Cluster,
    process::Process,
    proxy::Proxy,
    redis::{CREDENTIALS, server_arguments},
    relay::Relay,
    sentinel::Sentinels,
};

/// Topology of the Redis servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topology {
    /// One server, which writes every command to its AOF before it replies.
    Standalone,
    /// A primary and its replica behind a relay that connects clients to one of them.
    Pair,
    /// A primary, two replicas and three Sentinels.
    Sentinel,
    /// Three primaries with one replica each.
    Cluster,
}

const DURABLE: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--notify-keyspace-events", "Egxe"];
const NOTIFICATIONS: [&str; 2] = ["--notify-keyspace-events", "Egxe"];

/// Redis, the instances of sessiond, the clients' state and the recorders of one history.
pub struct Environment {
    /// The server, or the first primary.
    pub redis: Redis,
    /// Replica and relay (pair only).
    pub pair: Option<Pair>,
    /// Servers and Sentinels (Sentinel only).
    pub sentinels: Option<Sentinels>,
    /// Nodes of the cluster (cluster only).
    pub cluster: Option<Cluster>,
    /// Proxy between the first instance and Redis; used in the standalone topology only.
    pub proxy: Proxy,
    /// The first two instances, which run in this process.
    pub servers: Vec<Server>,
    /// The third instance, a process that a fault can kill.
    pub process: Process,
    /// Reader of the ground truth.
    pub reader: LogReader,
    /// Recorder of calls and watches.
    pub recorder: Arc<Recorder>,
    /// Sessions that the workload uses at present.
    pub slots: Arc<Slots>,
    /// Seed of the history.
    pub seed: u64,
    /// Generator for the choices of the fault and of new clients.
    pub rng: SeededRng,
    /// Whether readers with the patterns Stalled and Disconnected stop reading.
    pub readers_stopped: watch::Sender<bool>,
    /// Ids of sessions whose keys a fault deleted, and the times of deletion.
    pub deleted_keys: Vec<(String, Micros)>,
    /// Partition and oldest remaining entry for each trim of a log.
    pub trimmed: Vec<(usize, Position)>,
    /// Directory of the configuration file, deleted on drop.
    _toml: tempfile::TempDir,
}

/// The replica of `Topology::Pair`, and the relay that connects clients to one of both servers.
pub struct Pair {
    pub replica: Redis,
    pub relay: Relay,
}

/// Sizes of the ring, in events. A watcher that falls further behind reads the log.
const RING_SLOTS: [usize; 2] = [512, 65_536];

fn toml(limits: &str, ring_slots: usize) -> String {
    format!(
        "log_max_age = '1d'\nlog_max_bytes = '1024 MiB'\n[limits]\ncall_timeout = '1500ms'\n\
         ring_slots = {ring_slots}\n{limits}\n[default_policy]\n{}",
        RULES.policy()
    )
}

/// The Redis servers of one topology.
struct RedisServers {
    /// The server, or the first primary.
    redis: Redis,
    /// URL in the configuration of sessiond.
    url: String,
    pair: Option<Pair>,
    sentinels: Option<Sentinels>,
    cluster: Option<Cluster>,
}

impl RedisServers {
    async fn start(topology: Topology) -> Self {
        let without_handles =
            |redis: Redis, url| RedisServers { redis, url, pair: None, sentinels: None, cluster: None };
        match topology {
            Topology::Standalone => {
                let redis = Redis::start_with(&DURABLE);
                let url = redis.url();
                without_handles(redis, url)
            }
            Topology::Pair => RedisServers::pair().await,
            Topology::Sentinel => {
                let sentinels = tokio::task::block_in_place(|| Sentinels::start_with(2, &NOTIFICATIONS));
                RedisServers {
                    sentinels: Some(sentinels.clone()),
                    ..without_handles(sentinels.primary(), sentinels.url())
                }
            }
            Topology::Cluster => {
                let cluster = tokio::task::block_in_place(|| Cluster::start_with(1, &NOTIFICATIONS));
                RedisServers {
                    cluster: Some(cluster.clone()),
                    ..without_handles(cluster.nodes()[0].clone(), cluster.url())
                }
            }
        }
    }

    async fn pair() -> Self {
        let start = |primary: Option<u16>| {
            Redis::on_ports(|[port, ..]| {
                let (port, primary) = (port.to_string(), primary.map(|primary| primary.to_string()));
                let mut arguments = vec!["--port", &port, "--repl-diskless-sync-delay", "0"];
                if let Some(primary) = &primary {
                    arguments.extend(["--replicaof", "127.0.0.1", primary]);
                }
                server_arguments(&[&arguments, &NOTIFICATIONS[..]].concat())
            })
        };
        let primary = start(None);
        let replica = start(Some(primary.port()));
        tokio::task::block_in_place(|| primary.wait_for(&replica));
        let relay = Relay::start(&primary.address()).await;
        let url = format!("redis://{CREDENTIALS}@{}", relay.address);
        RedisServers { redis: primary, url, pair: Some(Pair { replica, relay }), sentinels: None, cluster: None }
    }
}

impl Environment {
    /// Starts Redis, the proxy, the reader and the instances. `limits`: additional lines for `[limits]` in their
    /// configuration.
    pub async fn start(topology: Topology, limits: &str, seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sessiond.toml");
        let mut rng = SeededRng::from_seed(seed);
        let toml = toml(limits, rng.choose(&RING_SLOTS));
        std::fs::write(&file, &toml).unwrap();
        let RedisServers { redis, url, pair, sentinels, cluster } = RedisServers::start(topology).await;
        let proxy = Proxy::start(&redis);
        let prefix = "sessiond:";
        let reader = LogReader::start(if pair.is_some() { redis.url() } else { url.clone() }, prefix).await;
        let first = if topology == Topology::Standalone { proxy.url() } else { url.clone() };
        let servers = vec![Server::start(&first, prefix, &toml).await, Server::start(&url, prefix, &toml).await];
        let arguments = [format!("--redis={url}"), format!("--config={}", file.display())];
        let process = tokio::task::block_in_place(|| Process::start(&arguments));
        Environment {
            redis,
            pair,
            sentinels,
            cluster,
            proxy,
            servers,
            process,
            reader,
            recorder: Arc::default(),
            slots: Arc::new(Slots::new(seed)),
            seed,
            rng,
            readers_stopped: watch::Sender::new(false),
            deleted_keys: Vec::new(),
            trimmed: Vec::new(),
            _toml: directory,
        }
    }

    /// Returns the gRPC addresses of all instances, by number.
    pub fn addresses(&self) -> Vec<String> {
        let servers = self.servers.iter().map(|server| server.address.clone());
        servers.chain([self.process.address.clone()]).collect()
    }

    /// Returns a client for each instance that accepts connections, with the number of the instance.
    pub async fn reachable_clients(&self) -> Vec<(usize, Client)> {
        let mut clients = Vec::new();
        for (instance, address) in self.addresses().iter().enumerate() {
            clients.extend(Client::try_connect(address).await.ok().map(|client| (instance, client)));
        }
        clients
    }

    /// Returns a client for each instance, by number. Panics if one accepts no connection.
    pub async fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for address in self.addresses() {
            clients.push(Client::connect(&address).await);
        }
        clients
    }
}
