//! Maps partitions to servers, and routes each call to the server that owns its partition.
//!
//! Each server has separate connections, so that trouble with one server stalls no call to another. If a server redirects a
//! call, nothing was applied: the call waits until the topology names another owner, and is sent again before its deadline.

use std::{iter, pin::pin, sync::Arc, time::Duration};

use fred::types::{Value, config::ServerConfig};
use futures_util::{
    StreamExt,
    future::{join_all, try_join_all},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    node::{Asking, Node, name_of},
    node_connector::NodeConnector,
    topology::{Owner, Topology},
};
use crate::store::{
    Error, Partition,
    error::{Failure, is_halfway},
};

/// Interval between two lookups of the topology.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(250);
/// Minimum time between two lookups, if a server reports that the map is out of date.
const MIN_LOOKUP_INTERVAL: Duration = Duration::from_millis(20);
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a redirected call is sent again for the first time; it doubles each time.
const FIRST_REDIRECT_PAUSE: Duration = Duration::from_millis(2);
/// Maximum pause before a redirected call is sent again.
const MAX_REDIRECT_PAUSE: Duration = Duration::from_millis(100);

/// Assignment of partitions to servers.
pub(crate) struct SlotMap {
    /// All servers with open connections.
    pub nodes: Vec<Arc<Node>>,
    /// Owner of each partition.
    of: Vec<Arc<Node>>,
    /// Server to which the slot of each partition migrates. None: it does not migrate, or the target is not connected.
    migrating_to: Vec<Option<Arc<Node>>>,
}

impl SlotMap {
    /// Owner of a partition.
    pub(crate) fn node(&self, partition: Partition) -> &Arc<Node> {
        &self.of[partition.index()]
    }

    /// Partitions that this server owns.
    pub(crate) fn partitions_of(&self, node: &Arc<Node>) -> impl Iterator<Item = Partition> {
        let has = move |(index, of): (u16, &Arc<Node>)| Arc::ptr_eq(of, node).then_some(Partition(index));
        (0..).zip(&self.of).filter_map(has)
    }

    /// Whether every partition has the same owner in both maps.
    pub(crate) fn has_owners_of(&self, other: &SlotMap) -> bool {
        self.of.iter().zip(&other.of).all(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// Whether every partition migrates to the same server in both maps.
    fn has_migrations_of(&self, other: &SlotMap) -> bool {
        let pointers =
            |map: &SlotMap| map.migrating_to.iter().map(|node| node.as_ref().map(Arc::as_ptr)).collect::<Vec<_>>();
        pointers(self) == pointers(other)
    }
}

/// Connections to all servers of the store, and the map of partitions.
pub(crate) struct Router {
    topology: Topology,
    connector: NodeConnector,
    /// Cluster slot of each partition.
    slots: Vec<u16>,
    map: watch::Sender<Arc<SlotMap>>,
    out_of_date: Notify,
}

impl Router {
    /// Connects to every server that owns a partition.
    pub(crate) async fn open(topology: Topology, connector: NodeConnector, slots: Vec<u16>) -> Result<Self, Error> {
        let owners = topology.lookup(&connector, &slots, &[]).await?;
        let unowned = |slot: &u16| Error::Unavailable(format!("no node of the Cluster serves slot {slot}"));
        let address =
            |(owner, slot): (&Option<Owner>, _)| Ok(owner.as_ref().ok_or_else(|| unowned(slot))?.address.clone());
        let addresses = owners.iter().zip(&slots).map(address).collect::<Result<Vec<_>, Error>>()?;
        let nodes = try_join_all(distinct(&addresses).iter().map(|address| open_node(&connector, address))).await?;
        let owner = |address| {
            find(&nodes, address).ok_or_else(|| Error::Unavailable(format!("{}: not open", name_of(address))))
        };
        let of = addresses.iter().map(owner).collect::<Result<Vec<_>, Error>>()?;
        let map = watch::Sender::new(Arc::new(SlotMap { nodes, of, migrating_to: vec![None; slots.len()] }));
        let connection = Router { topology, connector, slots, map, out_of_date: Notify::new() };
        // Targets of slot migrations that are already running.
        let next = connection.unknown(&owners);
        let opened = join_all(next.iter().map(|address| open_node(&connection.connector, address))).await;
        connection.apply_topology(&owners, opened.into_iter().flatten());
        Ok(connection)
    }

    /// Returns a receiver that holds the current map and is notified of changes.
    pub(crate) fn map(&self) -> watch::Receiver<Arc<SlotMap>> {
        self.map.subscribe()
    }

    /// Returns all servers with open connections.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.map.borrow().nodes.clone()
    }

    /// Returns the owner of a partition.
    pub(crate) fn node(&self, partition: Partition) -> Arc<Node> {
        self.map.borrow().node(partition).clone()
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        join_all(self.nodes().iter().map(|node| node.close())).await;
    }

    /// Returns the maximum number of connections at the same time, with the current servers: each connection twice, because
    /// a broken one can still be closing while its successor opens, and those that look up the topology.
    pub(crate) fn max_connections(&self) -> usize {
        let nodes = self.nodes();
        2 * nodes.iter().map(|node| node.connections()).sum::<usize>() + self.topology.max_probes(nodes.len())
    }

    /// Keeps the connections alive and follows the topology; never returns.
    pub(crate) async fn keep_alive(&self) {
        tokio::join!(self.keep_nodes_alive(), self.follow_topology());
    }

    /// Keeps each server alive while it is in the map, independent of the others; then closes its connections.
    async fn keep_nodes_alive(&self) {
        let mut map = self.map.subscribe();
        let (mut keeping, mut kept) = (FuturesUnordered::new(), Vec::<Arc<Node>>::new());
        loop {
            let nodes = map.borrow_and_update().nodes.clone();
            let is_new = |node: &&Arc<Node>| !kept.iter().any(|other| Arc::ptr_eq(node, other));
            for node in nodes.iter().filter(is_new) {
                let node = node.clone();
                keeping.push(async move {
                    node.keep_alive().await;
                    node.close().await;
                });
            }
            kept = nodes;
            loop {
                tokio::select! {
                    Some(()) = keeping.next() => {}
                    _ = map.changed() => break,
                }
            }
        }
    }

    /// Looks up the topology until shutdown. Connects to new servers concurrently, so that one that hangs delays no other.
    async fn follow_topology(&self) {
        if self.topology.is_fixed() {
            return;
        }
        let open = async |address: ServerConfig| (address.clone(), open_node(&self.connector, &address).await);
        let (mut opening, mut opened) = (Vec::new(), FuturesUnordered::new());
        let (mut owners, mut is_known) = (vec![None; self.slots.len()], true);
        let mut looking = pin!(self.lookup());
        loop {
            tokio::select! {
                Some((address, node)) = opened.next() => {
                    opening.retain(|other| *other != address);
                    match node {
                        Ok(node) => self.apply_topology(&owners, Some(node)),
                        Err(error) => crate::observe::warning!(%error, "cannot connect to new Redis node"),
                    }
                }
                looked = &mut looking => {
                    looking.set(self.lookup());
                    let was_known = std::mem::replace(&mut is_known, looked.is_ok());
                    match looked {
                        Ok(found) => owners = found,
                        Err(error) if was_known => crate::observe::warning!(%error, "topology lookup failed"),
                        Err(_) => {}
                    }
                    self.apply_topology(&owners, None);
                    let mut new = self.unknown(&owners);
                    new.retain(|address| !opening.contains(address));
                    opened.extend(new.iter().cloned().map(open));
                    opening.extend(new);
                }
            }
        }
    }

    /// Addresses of the owners and migration targets that are not in the map yet.
    fn unknown(&self, owners: &[Option<Owner>]) -> Vec<ServerConfig> {
        let addresses = owners.iter().flatten().flat_map(|owner| iter::once(&owner.address).chain(&owner.migrating_to));
        let mut unknown = distinct(addresses);
        unknown.retain(|address| find(&self.map.borrow().nodes, address).is_none());
        unknown
    }

    /// Looks up the topology after the lookup interval, or earlier if the map is out of date.
    async fn lookup(&self) -> Result<Vec<Option<Owner>>, Error> {
        sleep(MIN_LOOKUP_INTERVAL).await;
        let _ = timeout(LOOKUP_INTERVAL, self.out_of_date.notified()).await;
        self.topology.lookup(&self.connector, &self.slots, &self.nodes()).await
    }

    /// Fails if the topology does not name this server as the owner of any partition.
    pub(crate) async fn confirm(&self, node: &Node) -> Result<(), Error> {
        let owners = self.topology.lookup(&self.connector, &self.slots, &self.nodes()).await?;
        if owners.iter().flatten().any(|owner| owner.address == node.address) {
            return Ok(());
        }
        self.note_out_of_date();
        Err(Error::Unavailable("the partitions of this node moved".into()))
    }

    /// Publishes a new map. A partition keeps its owner if the new one is unknown or not connected. Stops using servers that
    /// are neither owner nor migration target of any partition.
    fn apply_topology(&self, owners: &[Option<Owner>], opened: impl IntoIterator<Item = Arc<Node>>) {
        let before = self.map.borrow().clone();
        let known: Vec<Arc<Node>> = before.nodes.iter().cloned().chain(opened).collect();
        let owner = |owner: &Option<Owner>| find(&known, &owner.as_ref()?.address);
        let target = |owner: &Option<Owner>| find(&known, owner.as_ref()?.migrating_to.as_ref()?);
        let of = owners.iter().zip(&before.of).map(|(now, before)| owner(now).unwrap_or_else(|| before.clone()));
        let (of, migrating_to): (Vec<_>, Vec<_>) = (of.collect(), owners.iter().map(target).collect());
        let is_needed =
            |node: &Arc<Node>| of.iter().chain(migrating_to.iter().flatten()).any(|other| Arc::ptr_eq(node, other));
        let (nodes, left): (Vec<_>, Vec<_>) = known.into_iter().partition(is_needed);
        let map = SlotMap { nodes, of, migrating_to };
        let have_moved = !map.has_owners_of(&before);
        if !have_moved && map.has_migrations_of(&before) {
            return;
        }
        if have_moved {
            let servers: Vec<String> = map.nodes.iter().map(|node| node.name()).collect();
            tracing::info!(?servers, "partitions moved");
        }
        self.map.send_replace(Arc::new(map));
        left.iter().for_each(|node| node.left.cancel());
    }

    /// Runs the attempt at the owner of the partition. Runs it again before the deadline if the server redirects it.
    pub(crate) async fn route<T, F>(
        &self,
        partition: Partition,
        deadline: Instant,
        attempt: impl Fn(Arc<Node>, Asking) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (mut node, mut asking) = (self.node(partition), Asking::No);
        let mut pause = FIRST_REDIRECT_PAUSE;
        loop {
            let why = match attempt(node, asking).await {
                Ok(done) => return Ok(done),
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Redirected(why)) => why,
            };
            let is_ask_redirect = asking == Asking::No && why.starts_with("ASK ");
            let next = self.map.borrow().migrating_to[partition.index()].clone();
            if let Some(next) = next.filter(|_| is_ask_redirect) {
                (node, asking) = (next, Asking::Yes);
                continue;
            }
            if self.topology.is_fixed() || Instant::now() + pause >= deadline {
                return Err(Error::Unavailable(why));
            }
            self.wait_for_move(&why, pause).await;
            pause = (pause * 2).min(MAX_REDIRECT_PAUSE);
            (node, asking) = (self.node(partition), Asking::No);
        }
    }

    async fn wait_for_move(&self, why: &str, pause: Duration) {
        let mut map = self.map.subscribe();
        if !is_halfway(why) {
            self.note_out_of_date();
        }
        let _ = timeout(pause, map.changed()).await;
    }

    /// Triggers a lookup, because a server redirected a call.
    pub(crate) fn note_out_of_date(&self) {
        self.out_of_date.notify_one();
    }

    /// Sends a command that reads or can be sent twice; the reply is from a primary.
    pub(crate) async fn command(
        &self,
        partition: Partition,
        name: &'static str,
        args: Vec<Value>,
        deadline: Instant,
    ) -> Result<Value, Error> {
        let args = &args[..];
        let ask = async |node: Arc<Node>, asking| node.ask_primary(name, args, deadline, asking).await;
        self.route(partition, deadline, ask).await
    }
}

async fn open_node(connector: &NodeConnector, address: &ServerConfig) -> Result<Arc<Node>, Error> {
    let failed = |what: &str| Error::Unavailable(format!("{}: {what}", name_of(address)));
    match timeout(OPEN_TIMEOUT, connector.open(address)).await {
        Ok(opened) => opened.map(Arc::new).map_err(|error| failed(error.details())),
        Err(_) => Err(failed("no reply")),
    }
}

fn distinct<'a>(addresses: impl IntoIterator<Item = &'a ServerConfig>) -> Vec<ServerConfig> {
    let mut distinct: Vec<ServerConfig> = Vec::new();
    for address in addresses {
        if !distinct.contains(address) {
            distinct.push(address.clone());
        }
    }
    distinct
}

fn find(nodes: &[Arc<Node>], address: &ServerConfig) -> Option<Arc<Node>> {
    nodes.iter().find(|node| node.address == *address).cloned()
}
