//! Where a history happens: Redis in some topology, servers on it, and what faults take hold of.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    chance::Chance,
    harness::{
        Client, Redis, Server,
        cluster::Cluster,
        process::Process,
        proxy::Proxy,
        redis::{CREDENTIALS, plain},
        relay::Relay,
        sentinel::Sentinels,
    },
    history::Moment,
    made::RULES,
    reader::Reader,
    recorder::Recorder,
    truth::Position,
    workload::Slots,
};

/// How Redis is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topology {
    Standalone,
    /// A primary and its replica; clients are led to one of them.
    Pair,
    /// A primary, two replicas, three sentinels.
    Sentinel,
    /// Three primaries with a replica each.
    Cluster,
}

const DURABLE: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--notify-keyspace-events", "Egxe"];
const TOLD: [&str; 2] = ["--notify-keyspace-events", "Egxe"];

pub struct Scene {
    pub redis: Redis,
    pub pair: Option<Pair>,
    pub sentinels: Option<Sentinels>,
    pub cluster: Option<Cluster>,
    /// Before the first server.
    pub proxy: Proxy,
    pub servers: Vec<Server>,
    /// One more instance, which may be killed.
    pub process: Process,
    pub reader: Reader,
    pub recorder: Arc<Recorder>,
    pub slots: Arc<Slots>,
    pub seed: u64,
    pub chance: Chance,
    /// Whether stopping readers are to stop.
    pub stopped: watch::Sender<bool>,
    /// What was changed by hand.
    pub by_hand: Vec<(String, Moment)>,
    /// The oldest entry that a log kept when it was trimmed, and its partition.
    pub trimmed: Vec<(usize, Position)>,
    _toml: tempfile::TempDir,
}

/// A primary and its replica, each on a port of its own.
pub struct Pair {
    pub replica: Redis,
    pub relay: Relay,
}

/// Changes that an instance keeps for watchers that are a little behind: who is further behind reads the log.
const RING_SLOTS: [usize; 2] = [512, 65_536];

fn toml(limits: &str, ring_slots: usize) -> String {
    format!(
        "log_max_age = '1d'\nlog_max_bytes = '1024 MiB'\n[limits]\ncall_timeout = '1500ms'\n\
         ring_slots = {ring_slots}\n{limits}\n[default_policy]\n{}",
        RULES.policy()
    )
}

/// Redis in some topology.
struct Stage {
    /// The first of its servers.
    redis: Redis,
    /// Where the service finds it.
    url: String,
    pair: Option<Pair>,
    sentinels: Option<Sentinels>,
    cluster: Option<Cluster>,
}

impl Stage {
    async fn set(topology: Topology) -> Self {
        let of = |redis: Redis, url| Stage { redis, url, pair: None, sentinels: None, cluster: None };
        match topology {
            Topology::Standalone => {
                let redis = Redis::start_with(&DURABLE);
                let url = redis.url();
                of(redis, url)
            }
            Topology::Pair => Stage::pair().await,
            Topology::Sentinel => {
                let sentinels = tokio::task::block_in_place(|| Sentinels::start_with(2, &TOLD));
                Stage { sentinels: Some(sentinels.clone()), ..of(sentinels.primary(), sentinels.url()) }
            }
            Topology::Cluster => {
                let cluster = tokio::task::block_in_place(|| Cluster::start_with(1, &TOLD));
                Stage { cluster: Some(cluster.clone()), ..of(cluster.nodes()[0].clone(), cluster.url()) }
            }
        }
    }

    async fn pair() -> Self {
        let start = |of: Option<u16>| {
            Redis::on_ports(|[port, ..]| {
                let (port, of) = (port.to_string(), of.map(|of| of.to_string()));
                let mut words = vec!["--port", &port, "--repl-diskless-sync-delay", "0"];
                if let Some(of) = &of {
                    words.extend(["--replicaof", "127.0.0.1", of]);
                }
                plain(&[&words, &TOLD[..]].concat())
            })
        };
        let primary = start(None);
        let replica = start(Some(primary.port()));
        tokio::task::block_in_place(|| primary.wait_for(&replica));
        let relay = Relay::start(&primary.address()).await;
        let url = format!("redis://{CREDENTIALS}@{}", relay.address);
        Stage { redis: primary, url, pair: Some(Pair { replica, relay }), sentinels: None, cluster: None }
    }
}

impl Scene {
    /// The limits are what the servers' configuration says of them besides.
    pub async fn set(topology: Topology, limits: &str, seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sessiond.toml");
        let mut chance = Chance::of(seed);
        let toml = toml(limits, chance.of_these(&RING_SLOTS));
        std::fs::write(&file, &toml).unwrap();
        let Stage { redis, url, pair, sentinels, cluster } = Stage::set(topology).await;
        let proxy = Proxy::start(&redis);
        let prefix = "sessiond:";
        let reader = Reader::begin(if pair.is_some() { redis.url() } else { url.clone() }, prefix).await;
        let first = if topology == Topology::Standalone { proxy.url() } else { url.clone() };
        let servers = vec![Server::start(&first, prefix, &toml).await, Server::start(&url, prefix, &toml).await];
        let arguments = [format!("--redis={url}"), format!("--config={}", file.display())];
        let process = tokio::task::block_in_place(|| Process::start(&arguments));
        Scene {
            redis,
            pair,
            sentinels,
            cluster,
            proxy,
            servers,
            process,
            reader,
            recorder: Arc::default(),
            slots: Arc::new(Slots::of(seed)),
            seed,
            chance,
            stopped: watch::Sender::new(false),
            by_hand: Vec::new(),
            trimmed: Vec::new(),
            _toml: directory,
        }
    }

    pub fn addresses(&self) -> Vec<String> {
        let servers = self.servers.iter().map(|server| server.address.clone());
        servers.chain([self.process.address.clone()]).collect()
    }

    /// Clients of the instances that are there, with their numbers.
    pub async fn clients_that_live(&self) -> Vec<(usize, Client)> {
        let mut clients = Vec::new();
        for (instance, address) in self.addresses().iter().enumerate() {
            clients.extend(Client::try_connect(address).await.ok().map(|client| (instance, client)));
        }
        clients
    }

    pub async fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for address in self.addresses() {
            clients.push(Client::connect(&address).await);
        }
        clients
    }
}
