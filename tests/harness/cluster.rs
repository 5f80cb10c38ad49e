//! A Redis Cluster of the tests' own: primaries, replicas, and what may befall them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use sessiond_client::v1::Session;

use super::{
    Client, Redis,
    redis::{CREDENTIALS, plain},
    servers::until,
    tls::Certificates,
};

pub const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;
/// An attempt at a failover takes no longer.
const ATTEMPT: Duration = Duration::from_secs(6);
/// Keys that are moved in one go.
const BATCH: usize = 10;
const HURT: [&str; 4] = ["--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0"];

/// The first nodes are the primaries, in the order of their slots; then come the first replica of each, the second of each
/// and so on. So it is at first; who is what later the nodes tell.
#[derive(Clone)]
pub struct Cluster(Arc<Vec<Redis>>);

/// How a replica becomes primary.
#[derive(Clone, Copy, Debug)]
pub enum Promotion {
    /// Hand in hand with its primary: nothing is lost.
    Agreed,
    /// Without it, by a vote of the other primaries.
    Forced,
    /// Without anybody.
    TakenOver,
}

/// So many sessions that every node has some, whatever their ids.
pub const MANY: usize = 64;

/// The prefix of a test that has its Cluster for itself.
pub const PREFIX: &str = "sessiond:";

pub async fn many(client: &Client) -> Vec<Session> {
    join_all((0..MANY).map(async |_| client.create(&[]).await.0)).await
}

/// The key of a session.
pub fn key_of(cluster: &Cluster, session: &Session) -> String {
    cluster.keys(&format!("{PREFIX}*:s:*:{}", session.id)).remove(0)
}

/// Those whose partition this node has now.
pub fn on(node: &Redis, sessions: &[Session]) -> Vec<Session> {
    let keys: BTreeSet<String> = node.keys(&format!("{PREFIX}*:s:*")).into_iter().collect();
    sessions.iter().filter(|session| keys.iter().any(|key| key.ends_with(&session.id))).cloned().collect()
}

/// A line of CLUSTER NODES.
#[derive(PartialEq)]
struct Line {
    id: String,
    port: u16,
    is_primary: bool,
    /// Neither given up nor about to be.
    is_well: bool,
    /// Of a replica.
    primary: String,
    slots: Vec<(u16, u16)>,
}

impl Cluster {
    /// The one that the tests of this binary share, without replicas; nobody hurts it.
    pub fn shared() -> Self {
        static SHARED: Mutex<Weak<Vec<Redis>>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster =
            shared.upgrade().map_or_else(|| Cluster::formed(0, &["--cluster-node-timeout", "15000"], None), Cluster);
        *shared = Arc::downgrade(&cluster.0);
        cluster
    }

    /// One that the test may hurt: a node that does not answer for a second is given up by the others.
    pub fn start(replicas_per_primary: usize) -> Self {
        Cluster::start_with(replicas_per_primary, &[])
    }

    /// With these arguments for every node besides.
    pub fn start_with(replicas_per_primary: usize, extra: &[&str]) -> Self {
        Cluster::formed(replicas_per_primary, &[&HURT, extra].concat(), None)
    }

    /// One whose nodes speak TLS among themselves, and to the service. It is told of one of them, by its name.
    pub fn start_over_tls(replicas_per_primary: usize, certificates: &Certificates) -> (Self, String) {
        let cluster = Cluster::formed(replicas_per_primary, &HURT, Some(certificates));
        let url = format!("rediss-cluster://{CREDENTIALS}@localhost:{}", cluster.0[0].config("tls-port"));
        (cluster, url)
    }

    fn formed(replicas_per_primary: usize, extra: &[&str], certificates: Option<&Certificates>) -> Self {
        let nodes = (0..PRIMARIES * (1 + replicas_per_primary)).map(|_| node(extra, certificates));
        let cluster = Cluster(Arc::new(nodes.collect()));
        cluster.form();
        cluster
    }

    fn form(&self) {
        for (index, node) in self.primaries_at_first().iter().enumerate() {
            let bound = |index: usize| index * SLOTS / PRIMARIES;
            let (first, last) = (bound(index).to_string(), (bound(index + 1) - 1).to_string());
            node.must(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            // Else all begin with the same epoch, and a later owner of a slot is not told from an earlier one.
            node.must(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for node in &self.0[1..] {
            meet(&self.0[0], node);
        }
        for (index, node) in self.0.iter().enumerate().skip(PRIMARIES) {
            let primary = id(&self.0[index % PRIMARIES]);
            // It has to have heard of its primary.
            until("a replica knows its primary", || node.command(&["CLUSTER", "REPLICATE", &primary]) == "+OK\r\n");
        }
        self.wait_until_well();
    }

    fn primaries_at_first(&self) -> &[Redis] {
        &self.0[..PRIMARIES]
    }

    /// Where the service finds it, if it is told of the first node alone.
    pub fn url_of_one(&self) -> String {
        format!("redis-cluster://{CREDENTIALS}@{}", self.0[0].address())
    }

    /// Where the service finds it.
    pub fn url(&self) -> String {
        let others: Vec<String> = self.0[1..].iter().map(|node| format!("node={}", node.address())).collect();
        format!("redis-cluster://{CREDENTIALS}@{}?{}", self.0[0].address(), others.join("&"))
    }

    pub fn nodes(&self) -> &[Redis] {
        &self.0
    }

    fn running(&self) -> impl Iterator<Item = &Redis> {
        self.0.iter().filter(|node| node.runs())
    }

    /// One more node takes part, and has no slots yet; all, and that one.
    pub fn join(&self) -> (Self, Redis) {
        let newcomer = node(&HURT, None);
        meet(&self.0[0], &newcomer);
        let grown = Cluster(Arc::new(self.0.iter().chain([&newcomer]).cloned().collect()));
        let knows_all = |node| lines(node).iter().filter(|line| line.is_well).count() == grown.0.len();
        let serves = |node: &Redis| node.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
        until("all know the newcomer", || grown.running().all(|node| knows_all(node) && serves(node)));
        (grown, newcomer)
    }

    /// Returns when every node that runs takes part and knows the same owners of all slots, and every replica has caught up.
    pub fn wait_until_well(&self) {
        until("the cluster is well", || self.is_well());
    }

    fn is_well(&self) -> bool {
        let mut views = self.running().map(|node| {
            let mut lines = lines(node);
            lines.sort_by_key(|line| line.port);
            lines
        });
        let first = views.next().expect("a node runs");
        // One that was replaced is a primary without slots before it is a replica.
        let is_settled = |line: &Line| line.is_primary != line.slots.is_empty();
        let are_well = |line: &Line| !self.at(line.port).runs() || line.is_well && is_settled(line);
        let follows = |node: &Redis| {
            let is_replica = node.info("replication", "role") == "slave";
            !is_replica || node.info("replication", "master_link_status") == "up"
        };
        let serves = |node: &Redis| {
            let state = node.command(&["CLUSTER", "INFO"]);
            state.contains("cluster_state:ok") && state.contains("cluster_slots_ok:16384")
        };
        first.len() == self.0.len()
            && first.iter().all(are_well)
            && views.all(|view| view == first)
            && self.running().all(|node| follows(node) && serves(node))
    }

    /// What the nodes that run tell, by the first of them.
    fn lines(&self) -> Vec<Line> {
        lines(self.running().next().expect("a node runs"))
    }

    fn at(&self, port: u16) -> Redis {
        self.0.iter().find(|node| node.port() == port).expect("a node has this port").clone()
    }

    pub fn slot_of(&self, key: &str) -> u16 {
        self.running().next().expect("a node runs").number(&["CLUSTER", "KEYSLOT", key]) as u16
    }

    pub fn primary_of_slot(&self, slot: u16) -> Redis {
        let owns = |line: &Line| line.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
        self.at(self.lines().iter().find(|line| owns(line)).expect("somebody has the slot").port)
    }

    /// Those that have slots, in their order.
    pub fn primaries(&self) -> Vec<Redis> {
        let mut lines = self.lines();
        lines.retain(|line| !line.slots.is_empty());
        lines.sort_by_key(|line| line.slots[0]);
        lines.iter().map(|line| self.at(line.port)).collect()
    }

    pub fn replicas_of(&self, primary: &Redis) -> Vec<Redis> {
        let id = id(primary);
        self.lines().iter().filter(|line| line.primary == id).map(|line| self.at(line.port)).collect()
    }

    /// The keys of all primaries that match.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.primaries().iter().flat_map(|node| node.keys(pattern)).collect()
    }

    /// Whether this node is a primary that has slots, by its own account.
    pub fn is_primary(&self, node: &Redis) -> bool {
        lines(node).iter().any(|line| line.port == node.port() && line.is_primary && !line.slots.is_empty())
    }

    /// Makes the replica a primary; returns when every node that runs knows.
    pub fn promote(&self, replica: &Redis, how: Promotion) {
        let words: &[&str] = match how {
            Promotion::Agreed => &["CLUSTER", "FAILOVER"],
            Promotion::Forced => &["CLUSTER", "FAILOVER", "FORCE"],
            Promotion::TakenOver => &["CLUSTER", "FAILOVER", "TAKEOVER"],
        };
        // An attempt may come to nothing: the others vote for a place in a shard once in two seconds. And none may be
        // promoted twice within four: it would count the votes of the first time, and be primary in an epoch that is over.
        until("it is promoted", || {
            replica.command(words);
            let started = Instant::now();
            while started.elapsed() < ATTEMPT && !self.is_primary(replica) {
                std::thread::sleep(Duration::from_millis(20));
            }
            self.is_primary(replica)
        });
        self.wait_for_primary(replica);
    }

    /// Returns when every node that runs takes this one for a primary that has slots.
    pub fn wait_for_primary(&self, node: &Redis) {
        let is_one = |line: &Line| line.port == node.port() && line.is_primary && !line.slots.is_empty();
        until("all know the new primary", || self.running().all(|other| lines(other).iter().any(is_one)));
    }

    /// Begins to move a slot; nothing has moved yet.
    pub fn begin_to_move(&self, slot: u16, to: &Redis) -> Move {
        let from = self.primary_of_slot(slot);
        let number = slot.to_string();
        to.must(&["CLUSTER", "SETSLOT", &number, "IMPORTING", &id(&from)]);
        from.must(&["CLUSTER", "SETSLOT", &number, "MIGRATING", &id(to)]);
        Move { cluster: self.clone(), slot, from, to: to.clone() }
    }

    /// Moves a slot with all its keys.
    pub fn move_slot(&self, slot: u16, to: &Redis) {
        let moving = self.begin_to_move(slot, to);
        while moving.step(BATCH) > 0 {}
        moving.finish();
    }
}

/// One that knows no other yet.
fn node(extra: &[&str], certificates: Option<&Certificates>) -> Redis {
    Redis::on_ports(|[port, bus, tls]| {
        let own = format!("--port {port} --cluster-enabled yes --cluster-port {bus}");
        let alike = "--cluster-announce-ip 127.0.0.1 --cluster-allow-replica-migration no \
                     --repl-diskless-sync-delay 0 --repl-ping-replica-period 1";
        let secure = certificates.map_or_else(Vec::new, |certificates| certificates.arguments(tls));
        let announced = if secure.is_empty() { "" } else { "--tls-cluster yes --cluster-announce-hostname localhost" };
        let words = own.split(' ').chain(alike.split_whitespace()).chain(announced.split_whitespace());
        plain(words.chain(extra.iter().copied()).chain(secure.iter().map(|word| &word[..])))
    })
}

fn meet(one: &Redis, other: &Redis) {
    one.must(&["CLUSTER", "MEET", "127.0.0.1", &port_among_nodes(other), &other.config("cluster-port")]);
}

/// The port that other nodes connect to.
fn port_among_nodes(node: &Redis) -> String {
    if node.config("tls-cluster") == "yes" { node.config("tls-port") } else { node.port().to_string() }
}

/// A slot on its way.
pub struct Move {
    cluster: Cluster,
    slot: u16,
    from: Redis,
    to: Redis,
}

impl Move {
    /// Moves at most so many of the keys that are left; how many.
    pub fn step(&self, most: usize) -> usize {
        self.take(self.left(most))
    }

    /// Moves those of the keys that are left and for which this holds; how many.
    pub fn step_those(&self, which: impl Fn(&str) -> bool) -> usize {
        self.take(self.left(1_000).into_iter().filter(|key| which(key)).collect())
    }

    /// Its owner of old alone knows that it is that no more, and has none of its keys.
    pub fn renounce(&self) {
        while self.step(BATCH) > 0 {}
        self.from.must(&["CLUSTER", "SETSLOT", &self.slot.to_string(), "NODE", &id(&self.to)]);
    }

    fn left(&self, most: usize) -> Vec<String> {
        self.from.list(&["CLUSTER", "GETKEYSINSLOT", &self.slot.to_string(), &most.to_string()])
    }

    fn take(&self, keys: Vec<String>) -> usize {
        if !keys.is_empty() {
            let port = port_among_nodes(&self.to);
            let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            let words: Vec<&str> = words.into_iter().chain(keys.iter().map(|key| &key[..])).collect();
            self.from.must(&words);
        }
        keys.len()
    }

    /// The new owner is told to all. What has not moved by then is moved first.
    pub fn finish(self) {
        while self.step(BATCH) > 0 {}
        let (slot, id) = (self.slot.to_string(), id(&self.to));
        let told = self
            .cluster
            .primaries()
            .into_iter()
            .filter(|node| ![self.to.port(), self.from.port()].contains(&node.port()));
        for node in [self.to.clone(), self.from.clone()].into_iter().chain(told) {
            node.must(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        }
        until("all know the new owner", || {
            let owns = |line: &Line| {
                line.port == self.to.port() && line.slots.iter().any(|(a, b)| (*a..=*b).contains(&self.slot))
            };
            self.cluster.running().all(|node| lines(node).iter().any(owns))
        });
    }
}

fn id(node: &Redis) -> String {
    node.list(&["CLUSTER", "MYID"]).remove(0)
}

/// What this node knows of all.
fn lines(node: &Redis) -> Vec<Line> {
    let told = node.list(&["CLUSTER", "NODES"]).remove(0);
    told.lines().map(line).collect()
}

/// `id address@bus,host flags primary ping pong epoch link slot slot-slot [slot->-id]`
fn line(line: &str) -> Line {
    let words: Vec<&str> = line.split(' ').collect();
    let port =
        words[1].split('@').next().and_then(|address| address.rsplit(':').next()).and_then(|port| port.parse().ok());
    let slots = words[8..].iter().filter(|word| !word.starts_with('[')).map(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        (first.parse().unwrap(), last.parse().unwrap())
    });
    Line {
        id: words[0].into(),
        port: port.unwrap_or_default(),
        is_primary: words[2].split(',').any(|flag| flag == "master"),
        is_well: !["fail", "handshake", "noaddr"].iter().any(|flag| words[2].contains(flag)),
        primary: words[3].into(),
        slots: slots.collect(),
    }
}
