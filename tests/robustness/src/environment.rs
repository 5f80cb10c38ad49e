//! The environment of one history: Redis in one topology, three instances of sessiond, and the handles that faults use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use sessiond_client::v1::CreateSessionRequest;
use tokio::{sync::watch, time::sleep};

use crate::history::Trace;
use crate::{
    fixtures::{CALL_TIMEOUT, RULES},
    instance::Instance,
    log_reader::LogReader,
    recorder::Recorder,
    seeded_rng::SeededRng,
    workload::{Slots, probe_session},
};
use harness::{
    Client, Redis,
    clock::Clock,
    cluster::Cluster,
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

/// Time in which Redis executes the commands that stopped instances have sent.
const EXECUTION_TIME: Duration = Duration::from_millis(100);

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
    /// Clock of the server, if the settings want one (standalone only).
    pub clock: Option<Clock>,
    /// Time by which the clock of Redis is ahead of that of the tests, in µs. Negative: it is behind.
    pub clock_ahead: i64,
    /// Proxy between the first instance and Redis; used in the standalone topology only.
    pub proxy: Proxy,
    /// The instances. The first one connects through the proxy; faults that end a process end the last one.
    pub instances: Vec<Instance>,
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
    /// What the present fault has done to single keys.
    pub trace: Trace,
    /// Number of times the present fault has verified its own effect.
    pub confirmed: usize,
    /// Violations that faults have found themselves.
    pub problems: Vec<String>,
    /// Number of sessions that [`Environment::new_probe`] has returned.
    probes: AtomicUsize,
    /// Directory of the configuration file, deleted on drop.
    _toml: tempfile::TempDir,
}

/// The replica of `Topology::Pair`, and the relay that connects clients to one of both servers.
pub struct Pair {
    pub replica: Redis,
    pub relay: Relay,
}

/// Number of instances.
const INSTANCES: usize = 3;

/// Configuration of the instances. The policy of the default namespace is that of the contract.
pub struct Settings {
    /// Lines at the top level.
    pub top: String,
    /// Lines of `[limits]`.
    pub limits: String,
    /// Further lines of `[default_policy]`, and further sections.
    pub policies: String,
    /// Whether the fault steps the clock of Redis (standalone only).
    pub steps_clock: bool,
}

impl Settings {
    fn toml(&self) -> String {
        let Settings { top, limits, policies, .. } = self;
        let policy = RULES.policy();
        let timeout = CALL_TIMEOUT.as_millis();
        format!("{top}\n[limits]\ncall_timeout = '{timeout}ms'\n{limits}\n[default_policy]\n{policy}{policies}\n")
    }
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
    clock: Option<Clock>,
}

impl RedisServers {
    async fn start(topology: Topology, steps_clock: bool) -> Self {
        let without_handles =
            |redis: Redis, url| RedisServers { redis, url, pair: None, sentinels: None, cluster: None, clock: None };
        match topology {
            Topology::Standalone if steps_clock => {
                let (redis, clock) = tokio::task::block_in_place(|| Clock::start_with(&DURABLE));
                let url = redis.url();
                RedisServers { clock: Some(clock), ..without_handles(redis, url) }
            }
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
        let pair = Some(Pair { replica, relay });
        RedisServers { redis: primary, url, pair, sentinels: None, cluster: None, clock: None }
    }
}

impl Environment {
    /// Starts Redis, the proxy, the reader and the instances.
    pub async fn start(topology: Topology, settings: &Settings, seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sessiond.toml");
        std::fs::write(&file, settings.toml()).unwrap();
        let servers = RedisServers::start(topology, settings.steps_clock).await;
        let RedisServers { redis, url, pair, sentinels, cluster, clock } = servers;
        let proxy = Proxy::start(&redis);
        let source = match topology {
            // Faults change the user of sessiond, or its rights.
            Topology::Standalone => redis.unrestricted_url(),
            Topology::Pair => redis.url(),
            Topology::Sentinel | Topology::Cluster => url.clone(),
        };
        let reader = LogReader::start(source, "ses:").await;
        let mut instances = Vec::new();
        for number in 0..INSTANCES {
            let is_behind_proxy = number == 0 && topology == Topology::Standalone;
            let url = if is_behind_proxy { proxy.url() } else { url.clone() };
            let config = format!("--config={}", file.display());
            instances
                .push(Instance::start(vec![format!("--redis={url}"), config, "--log-format=json".to_owned()]).await);
        }
        Environment {
            redis,
            pair,
            sentinels,
            cluster,
            clock,
            clock_ahead: 0,
            proxy,
            instances,
            reader,
            recorder: Arc::default(),
            slots: Arc::new(Slots::new(seed)),
            seed,
            rng: SeededRng::from_seed(seed),
            readers_stopped: watch::Sender::new(false),
            trace: Trace::default(),
            confirmed: 0,
            problems: Vec::new(),
            probes: AtomicUsize::new(0),
            _toml: directory,
        }
    }

    /// Starts another history with this seed, on the same servers. Its ground truth begins at the present ends of the
    /// logs, so all sessions must have ended.
    pub async fn begin(&mut self, seed: u64) {
        self.reader.forget().await;
        self.proxy.forget_replies();
        (self.recorder, self.slots) = (Arc::default(), Arc::new(Slots::new(seed)));
        (self.seed, self.rng) = (seed, SeededRng::from_seed(seed));
        self.problems.clear();
    }

    /// Returns a new session that matches every watcher except those by ids.
    pub fn new_probe(&self) -> CreateSessionRequest {
        let number = self.probes.fetch_add(1, Ordering::Relaxed);
        probe_session(self.seed, format!("request-of-a-probe-{number}"))
    }

    /// Returns the gRPC addresses of all instances, by number.
    pub fn addresses(&self) -> Vec<String> {
        self.instances.iter().map(|instance| instance.address.clone()).collect()
    }

    /// Records which entries of the present history the servers have removed from the logs.
    pub async fn note_trims(&mut self) {
        self.reader.read().await;
        for log in self.redis.keys("ses:*:log") {
            let partition = partition_of(&log);
            let first = self.redis.list(&["XRANGE", &log, "-", "+", "COUNT", "1"]);
            let revision = first.first().and_then(|position| position.split_once('-')?.0.parse().ok());
            let last_removed = match revision {
                Some(revision) => self.reader.before(partition, revision),
                None => Some(self.reader.end(partition)),
            };
            self.trace.trimmed.extend(last_removed.map(|position| (partition, position)));
        }
    }

    /// Sends a signal to all instances.
    pub fn signal_instances(&self, signal: Signal) {
        self.instances.iter().for_each(|instance| instance.signal(signal));
    }

    /// Stops the instances, and reads the entries that Redis still writes for them: none is unread until they go on.
    pub async fn stop_instances(&mut self) {
        self.signal_instances(Signal::STOP);
        sleep(EXECUTION_TIME).await;
        self.reader.read().await;
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

/// Returns the partition in the name of a key, as in `ses:{05:61}:log`.
pub fn partition_of(key: &str) -> usize {
    let (_, rest) = key.split_once("{").expect("a key of a partition");
    rest[..2].parse().expect("the number of a partition")
}
