//! A Redis Cluster with failovers and slot migrations on demand.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use sessiond_client::v1::Session;

use super::{
    Client, Redis,
    redis::{CREDENTIALS, server_arguments},
    servers::wait_until,
    tls::Certificates,
};

/// Number of primaries of every new cluster.
pub const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;
/// Maximum duration of one failover attempt.
const FAILOVER_ATTEMPT: Duration = Duration::from_secs(6);
/// Number of keys that one MIGRATE moves.
const BATCH: usize = 10;
/// Arguments that make the nodes fail over a primary that does not respond for a second.
const FAST_FAILOVER: [&str; 4] = ["--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0"];

/// A Redis Cluster that ends when the last clone of this value is dropped.
///
/// Initial order of the nodes: the primaries in the order of their slots, then the first replica of each, the second of
/// each, and so on. Roles after a failover are read from the nodes.
#[derive(Clone)]
pub struct Cluster(Arc<Vec<Redis>>);

/// How a replica is promoted.
#[derive(Clone, Copy, Debug)]
pub enum Promotion {
    /// CLUSTER FAILOVER: coordinated with the primary, so that no write is lost.
    Coordinated,
    /// CLUSTER FAILOVER FORCE: without the primary, by a vote of the other primaries.
    Forced,
    /// CLUSTER FAILOVER TAKEOVER: without a vote.
    Takeover,
}

/// Number of sessions after which every primary holds at least one, whatever their ids.
pub const MANY: usize = 64;

/// Key prefix of a test with a dedicated cluster.
pub const PREFIX: &str = "ses:";

/// Creates [`MANY`] sessions.
pub async fn create_many(client: &Client) -> Vec<Session> {
    join_all((0..MANY).map(async |_| client.create(&[]).await.0)).await
}

/// Returns the key of a session.
pub fn key_of(cluster: &Cluster, session: &Session) -> String {
    cluster.keys(&format!("{PREFIX}*:s:*:{}", session.id)).remove(0)
}

/// Returns the sessions whose partition this node holds now.
pub fn sessions_on(node: &Redis, sessions: &[Session]) -> Vec<Session> {
    let keys: BTreeSet<String> = node.keys(&format!("{PREFIX}*:s:*")).into_iter().collect();
    sessions.iter().filter(|session| keys.iter().any(|key| key.ends_with(&session.id))).cloned().collect()
}

/// One line of CLUSTER NODES.
#[derive(PartialEq)]
struct NodeInfo {
    id: String,
    port: u16,
    is_primary: bool,
    /// Has none of the flags `fail`, `fail?`, `handshake` and `noaddr`.
    is_healthy: bool,
    /// Id of a replica's primary; `-` for a primary.
    primary: String,
    slots: Vec<(u16, u16)>,
}

impl Cluster {
    /// Returns the cluster that the tests of this binary share, without replicas. A test must not disturb it.
    pub fn shared() -> Self {
        static SHARED: Mutex<Weak<Vec<Redis>>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster =
            shared.upgrade().map_or_else(|| Cluster::create(0, &["--cluster-node-timeout", "15000"], None), Cluster);
        *shared = Arc::downgrade(&cluster.0);
        cluster
    }

    /// Starts a cluster that the test may disturb. It fails over a primary that does not respond for a second.
    pub fn start(replicas_per_primary: usize) -> Self {
        Cluster::start_with(replicas_per_primary, &[])
    }

    /// Like [`Cluster::start`], with additional arguments for every node.
    pub fn start_with(replicas_per_primary: usize, extra: &[&str]) -> Self {
        Cluster::create(replicas_per_primary, &[&FAST_FAILOVER, extra].concat(), None)
    }

    /// Starts a cluster whose nodes and clients use TLS. The returned URL names one node, by host name.
    pub fn start_over_tls(replicas_per_primary: usize, certificates: &Certificates) -> (Self, String) {
        let cluster = Cluster::create(replicas_per_primary, &FAST_FAILOVER, Some(certificates));
        let url = format!("rediss-cluster://{CREDENTIALS}@localhost:{}", cluster.0[0].config("tls-port"));
        (cluster, url)
    }

    fn create(replicas_per_primary: usize, extra: &[&str], certificates: Option<&Certificates>) -> Self {
        let nodes = (0..PRIMARIES * (1 + replicas_per_primary)).map(|_| node(extra, certificates));
        let cluster = Cluster(Arc::new(nodes.collect()));
        cluster.form();
        cluster
    }

    fn form(&self) {
        for (index, node) in self.initial_primaries().iter().enumerate() {
            let bound = |index: usize| index * SLOTS / PRIMARIES;
            let (first, last) = (bound(index).to_string(), (bound(index + 1) - 1).to_string());
            node.must(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            // With equal initial epochs the nodes could not distinguish an earlier owner of a slot from a later one.
            node.must(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for node in &self.0[1..] {
            meet(&self.0[0], node);
        }
        for (index, node) in self.0.iter().enumerate().skip(PRIMARIES) {
            let primary = id(&self.0[index % PRIMARIES]);
            // The node refuses this until gossip has announced the primary to it.
            wait_until("the replica has discovered its primary", || {
                node.command(&["CLUSTER", "REPLICATE", &primary]) == "+OK\r\n"
            });
        }
        self.wait_until_healthy();
    }

    fn initial_primaries(&self) -> &[Redis] {
        &self.0[..PRIMARIES]
    }

    /// Returns a URL that names the first node only.
    pub fn url_of_first_node(&self) -> String {
        format!("redis-cluster://{CREDENTIALS}@{}", self.0[0].address())
    }

    /// Returns a URL that names all nodes.
    pub fn url(&self) -> String {
        let others: Vec<String> = self.0[1..].iter().map(|node| format!("node={}", node.address())).collect();
        format!("redis-cluster://{CREDENTIALS}@{}?{}", self.0[0].address(), others.join("&"))
    }

    /// Returns all nodes, stopped ones included, in their initial order.
    pub fn nodes(&self) -> &[Redis] {
        &self.0
    }

    fn running(&self) -> impl Iterator<Item = &Redis> {
        self.0.iter().filter(|node| node.runs())
    }

    /// Adds a node without slots; returns the new cluster and the node.
    pub fn join(&self) -> (Self, Redis) {
        let added = node(&FAST_FAILOVER, None);
        meet(&self.0[0], &added);
        let grown = Cluster(Arc::new(self.0.iter().chain([&added]).cloned().collect()));
        let sees_all = |node| node_infos(node).iter().filter(|info| info.is_healthy).count() == grown.0.len();
        let serves = |node: &Redis| node.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
        wait_until("all nodes have discovered the new one", || {
            grown.running().all(|node| sees_all(node) && serves(node))
        });
        (grown, added)
    }

    /// Waits until all running nodes agree about the owners of all slots, and every replica has caught up.
    pub fn wait_until_healthy(&self) {
        wait_until("the cluster is healthy", || self.is_healthy());
    }

    fn is_healthy(&self) -> bool {
        let mut views = self.running().map(|node| {
            let mut infos = node_infos(node);
            infos.sort_by_key(|info| info.port);
            infos
        });
        let first = views.next().expect("a running node");
        // After a failover the old primary is a primary without slots until it becomes a replica.
        let is_settled = |info: &NodeInfo| info.is_primary != info.slots.is_empty();
        let is_expected = |info: &NodeInfo| !self.at(info.port).runs() || info.is_healthy && is_settled(info);
        let follows = |node: &Redis| !node.is_replica() || node.info("replication", "master_link_status") == "up";
        let serves = |node: &Redis| {
            let state = node.command(&["CLUSTER", "INFO"]);
            state.contains("cluster_state:ok") && state.contains("cluster_slots_ok:16384")
        };
        first.len() == self.0.len()
            && first.iter().all(is_expected)
            && views.all(|view| view == first)
            && self.running().all(|node| follows(node) && serves(node))
    }

    /// Returns CLUSTER NODES of the first running node.
    fn node_infos(&self) -> Vec<NodeInfo> {
        node_infos(self.running().next().expect("a running node"))
    }

    fn at(&self, port: u16) -> Redis {
        self.0.iter().find(|node| node.port() == port).expect("a node with this port").clone()
    }

    /// Returns the slot of a key.
    pub fn slot_of(&self, key: &str) -> u16 {
        self.running().next().expect("a running node").number(&["CLUSTER", "KEYSLOT", key]) as u16
    }

    /// Returns the primary that owns a slot.
    pub fn primary_of_slot(&self, slot: u16) -> Redis {
        let owns = |info: &NodeInfo| info.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
        self.at(self.node_infos().iter().find(|info| owns(info)).expect("the slot has an owner").port)
    }

    /// Returns the nodes that own slots, in the order of the slots.
    pub fn primaries(&self) -> Vec<Redis> {
        let mut infos = self.node_infos();
        infos.retain(|info| !info.slots.is_empty());
        infos.sort_by_key(|info| info.slots[0]);
        infos.iter().map(|info| self.at(info.port)).collect()
    }

    /// Returns the replicas of a primary.
    pub fn replicas_of(&self, primary: &Redis) -> Vec<Redis> {
        let id = id(primary);
        self.node_infos().iter().filter(|info| info.primary == id).map(|info| self.at(info.port)).collect()
    }

    /// Returns the keys of all primaries that match the pattern.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.primaries().iter().flat_map(|node| node.keys(pattern)).collect()
    }

    /// Returns whether this node considers itself a primary and owns slots.
    pub fn is_primary(&self, node: &Redis) -> bool {
        node_infos(node).iter().any(|info| info.port == node.port() && info.is_primary && !info.slots.is_empty())
    }

    /// Promotes the replica and waits until every running node has learned it.
    pub fn promote(&self, replica: &Redis, how: Promotion) {
        let words: &[&str] = match how {
            Promotion::Coordinated => &["CLUSTER", "FAILOVER"],
            Promotion::Forced => &["CLUSTER", "FAILOVER", "FORCE"],
            Promotion::Takeover => &["CLUSTER", "FAILOVER", "TAKEOVER"],
        };
        // An attempt may fail: the other primaries vote for a shard only once in two seconds. Attempts are more than
        // four seconds apart, because within four seconds a second attempt would count the votes of the first one and
        // make the replica primary in an old epoch.
        wait_until("the replica is promoted", || {
            replica.command(words);
            let started = Instant::now();
            while started.elapsed() < FAILOVER_ATTEMPT && !self.is_primary(replica) {
                std::thread::sleep(Duration::from_millis(20));
            }
            self.is_primary(replica)
        });
        self.wait_for_primary(replica);
    }

    /// Waits until every running node considers this node a primary that owns slots.
    pub fn wait_for_primary(&self, node: &Redis) {
        let is_one = |info: &NodeInfo| info.port == node.port() && info.is_primary && !info.slots.is_empty();
        wait_until("all nodes have learned the new primary", || {
            self.running().all(|other| node_infos(other).iter().any(is_one))
        });
    }

    /// Starts a slot migration without moving any key.
    pub fn start_slot_move(&self, slot: u16, to: &Redis) -> SlotMove {
        let from = self.primary_of_slot(slot);
        let number = slot.to_string();
        to.must(&["CLUSTER", "SETSLOT", &number, "IMPORTING", &id(&from)]);
        from.must(&["CLUSTER", "SETSLOT", &number, "MIGRATING", &id(to)]);
        SlotMove { cluster: self.clone(), slot, from, to: to.clone() }
    }

    /// Migrates a slot with all its keys.
    pub fn move_slot(&self, slot: u16, to: &Redis) {
        let moving = self.start_slot_move(slot, to);
        while moving.step(BATCH) > 0 {}
        moving.finish();
    }
}

/// Starts a node without connections to others.
fn node(extra: &[&str], certificates: Option<&Certificates>) -> Redis {
    Redis::on_ports(|[port, bus, tls]| {
        let own = format!("--port {port} --cluster-enabled yes --cluster-port {bus}");
        let common = "--cluster-announce-ip 127.0.0.1 --cluster-allow-replica-migration no \
                     --repl-diskless-sync-delay 0 --repl-ping-replica-period 1";
        let secure = certificates.map_or_else(Vec::new, |certificates| certificates.arguments(tls));
        let announced = if secure.is_empty() { "" } else { "--tls-cluster yes --cluster-announce-hostname localhost" };
        let words = own.split(' ').chain(common.split_whitespace()).chain(announced.split_whitespace());
        server_arguments(words.chain(extra.iter().copied()).chain(secure.iter().map(|word| &word[..])))
    })
}

fn meet(one: &Redis, other: &Redis) {
    one.must(&["CLUSTER", "MEET", "127.0.0.1", &peer_port(other), &other.config("cluster-port")]);
}

/// Returns the port that other nodes connect to.
fn peer_port(node: &Redis) -> String {
    if node.config("tls-cluster") == "yes" { node.config("tls-port") } else { node.port().to_string() }
}

/// A slot migration in progress.
pub struct SlotMove {
    cluster: Cluster,
    slot: u16,
    from: Redis,
    to: Redis,
}

impl SlotMove {
    /// Moves at most this many of the remaining keys; returns the number of moved keys.
    pub fn step(&self, most: usize) -> usize {
        self.migrate(self.remaining(most))
    }

    /// Moves the remaining keys that match; returns the number of moved keys.
    pub fn step_where(&self, which: impl Fn(&str) -> bool) -> usize {
        self.migrate(self.remaining(1_000).into_iter().filter(|key| which(key)).collect())
    }

    /// Moves all remaining keys and assigns the slot to the new owner on the old owner only: no other node learns it.
    pub fn assign_source_only(&self) {
        while self.step(BATCH) > 0 {}
        self.from.must(&["CLUSTER", "SETSLOT", &self.slot.to_string(), "NODE", &id(&self.to)]);
    }

    fn remaining(&self, most: usize) -> Vec<String> {
        self.from.list(&["CLUSTER", "GETKEYSINSLOT", &self.slot.to_string(), &most.to_string()])
    }

    fn migrate(&self, keys: Vec<String>) -> usize {
        if !keys.is_empty() {
            let port = peer_port(&self.to);
            let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            let words: Vec<&str> = words.into_iter().chain(keys.iter().map(|key| &key[..])).collect();
            self.from.must(&words);
        }
        keys.len()
    }

    /// Ends the migration. No key may have moved: the owner would not find it any more.
    pub fn abort(self) {
        for node in [&self.from, &self.to] {
            node.must(&["CLUSTER", "SETSLOT", &self.slot.to_string(), "STABLE"]);
        }
    }

    /// Moves all remaining keys, assigns the slot to its new owner on all primaries, and waits until all nodes agree.
    pub fn finish(self) {
        while self.step(BATCH) > 0 {}
        let (slot, id) = (self.slot.to_string(), id(&self.to));
        let others = self
            .cluster
            .primaries()
            .into_iter()
            .filter(|node| ![self.to.port(), self.from.port()].contains(&node.port()));
        for node in [self.to.clone(), self.from.clone()].into_iter().chain(others) {
            node.must(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        }
        wait_until("all nodes have learned the new owner", || {
            let owns = |info: &NodeInfo| {
                info.port == self.to.port() && info.slots.iter().any(|(a, b)| (*a..=*b).contains(&self.slot))
            };
            self.cluster.running().all(|node| node_infos(node).iter().any(owns))
        });
    }
}

fn id(node: &Redis) -> String {
    node.list(&["CLUSTER", "MYID"]).remove(0)
}

/// Returns CLUSTER NODES of this node.
fn node_infos(node: &Redis) -> Vec<NodeInfo> {
    let text = node.list(&["CLUSTER", "NODES"]).remove(0);
    text.lines().map(parse_node_info).collect()
}

/// `id address@bus,host flags primary ping pong epoch link slot slot-slot [slot->-id]`
fn parse_node_info(line: &str) -> NodeInfo {
    let words: Vec<&str> = line.split(' ').collect();
    let port =
        words[1].split('@').next().and_then(|address| address.rsplit(':').next()).and_then(|port| port.parse().ok());
    let slots = words[8..].iter().filter(|word| !word.starts_with('[')).map(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        (first.parse().unwrap(), last.parse().unwrap())
    });
    NodeInfo {
        id: words[0].into(),
        port: port.unwrap_or_default(),
        is_primary: words[2].split(',').any(|flag| flag == "master"),
        is_healthy: !["fail", "handshake", "noaddr"].iter().any(|flag| words[2].contains(flag)),
        primary: words[3].into(),
        slots: slots.collect(),
    }
}
