//! Maps partitions to servers, and routes each call to the server that owns its partition.
//!
//! Each server has separate connections, so that trouble with one server stalls no call to another. If a server redirects a
//! call, nothing was applied: the call waits until the directory names another owner, and is sent again before its deadline.

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
    connector::NodeConnector,
    directory::{Directory, Owner},
    error::{Error, Failure, is_halfway},
    keys::Partition,
    node::{Asking, Node, name_of},
};

/// Interval between two lookups of the directory.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Minimum time between two lookups, if a server reports that the map is out of date.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a redirected call is sent again for the first time; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// Maximum pause before a redirected call is sent again.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Assignment of partitions to servers.
pub(super) struct Map {
    /// All servers with open connections.
    pub nodes: Vec<Arc<Node>>,
    /// Owner of each partition.
    of: Vec<Arc<Node>>,
    /// Server to which the slot of each partition migrates. None: it does not migrate, or the target is not connected.
    next: Vec<Option<Arc<Node>>>,
}

impl Map {
    /// Owner of a partition.
    pub(super) fn node(&self, partition: Partition) -> &Arc<Node> {
        &self.of[partition.index()]
    }

    /// Partitions that this server owns.
    pub(super) fn partitions_of(&self, node: &Arc<Node>) -> impl Iterator<Item = Partition> {
        let has = move |(index, of): (u16, &Arc<Node>)| Arc::ptr_eq(of, node).then_some(Partition(index));
        (0..).zip(&self.of).filter_map(has)
    }

    /// Whether every partition has the same owner in both maps.
    pub(super) fn has_owners_of(&self, other: &Map) -> bool {
        self.of.iter().zip(&other.of).all(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// Whether every partition migrates to the same server in both maps.
    fn has_ways_of(&self, other: &Map) -> bool {
        let pointers = |map: &Map| map.next.iter().map(|next| next.as_ref().map(Arc::as_ptr)).collect::<Vec<_>>();
        pointers(self) == pointers(other)
    }
}

/// Connections to all servers of the store, and the map of partitions.
pub(super) struct Connection {
    directory: Directory,
    opener: NodeConnector,
    /// Cluster slot of each partition.
    slots: Vec<u16>,
    map: watch::Sender<Arc<Map>>,
    out_of_date: Notify,
}

impl Connection {
    /// Connects to every server that owns a partition.
    pub(super) async fn open(directory: Directory, opener: NodeConnector, slots: Vec<u16>) -> Result<Self, Error> {
        let owners = directory.look(&opener, &slots, &[]).await?;
        let unowned = |slot: &u16| Error::Unavailable(format!("no node of the Cluster serves slot {slot}"));
        let place = |(owner, slot): (&Option<Owner>, _)| Ok(owner.as_ref().ok_or_else(|| unowned(slot))?.place.clone());
        let places = owners.iter().zip(&slots).map(place).collect::<Result<Vec<_>, Error>>()?;
        let nodes = try_join_all(distinct(&places).iter().map(|place| open_node(&opener, place))).await?;
        let owner =
            |place| find(&nodes, place).ok_or_else(|| Error::Unavailable(format!("{}: not open", name_of(place))));
        let of = places.iter().map(owner).collect::<Result<Vec<_>, Error>>()?;
        let map = watch::Sender::new(Arc::new(Map { nodes, of, next: vec![None; slots.len()] }));
        let connection = Connection { directory, opener, slots, map, out_of_date: Notify::new() };
        // Targets of slot migrations that are already running.
        let next = connection.unknown(&owners);
        let opened = join_all(next.iter().map(|place| open_node(&connection.opener, place))).await;
        connection.arrange(&owners, opened.into_iter().flatten());
        Ok(connection)
    }

    /// Returns a receiver that holds the current map and is notified of changes.
    pub(super) fn map(&self) -> watch::Receiver<Arc<Map>> {
        self.map.subscribe()
    }

    /// Returns all servers with open connections.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.map.borrow().nodes.clone()
    }

    /// Returns the owner of a partition.
    pub(super) fn node(&self, partition: Partition) -> Arc<Node> {
        self.map.borrow().node(partition).clone()
    }

    /// Closes all connections.
    pub(super) async fn close(&self) {
        join_all(self.nodes().iter().map(|node| node.close())).await;
    }

    /// Returns the maximum number of connections at the same time, with the current servers: each connection twice, because
    /// a broken one can still be closing while its successor opens, and those that look up the directory.
    pub(super) fn max_connections(&self) -> usize {
        let nodes = self.nodes();
        2 * nodes.iter().map(|node| node.connections()).sum::<usize>() + self.directory.max_probes(nodes.len())
    }

    /// Keeps the connections alive and follows the directory; never returns.
    pub(super) async fn keep_alive(&self) {
        tokio::join!(self.keep_nodes_alive(), self.follow_directory());
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

    /// Looks up the directory until shutdown. Connects to new servers concurrently, so that one that hangs delays no other.
    async fn follow_directory(&self) {
        if self.directory.is_fixed() {
            return;
        }
        let open = async |place: ServerConfig| (place.clone(), open_node(&self.opener, &place).await);
        let (mut opening, mut opened) = (Vec::new(), FuturesUnordered::new());
        let (mut owners, mut is_known) = (vec![None; self.slots.len()], true);
        let mut looking = pin!(self.look());
        loop {
            tokio::select! {
                Some((place, node)) = opened.next() => {
                    opening.retain(|other| *other != place);
                    match node {
                        Ok(node) => self.arrange(&owners, Some(node)),
                        Err(error) => crate::observe::warning!(%error, "cannot connect to new Redis node"),
                    }
                }
                looked = &mut looking => {
                    looking.set(self.look());
                    let was_known = std::mem::replace(&mut is_known, looked.is_ok());
                    match looked {
                        Ok(found) => owners = found,
                        Err(error) if was_known => crate::observe::warning!(%error, "topology lookup failed"),
                        Err(_) => {}
                    }
                    self.arrange(&owners, None);
                    let mut new = self.unknown(&owners);
                    new.retain(|place| !opening.contains(place));
                    opened.extend(new.iter().cloned().map(open));
                    opening.extend(new);
                }
            }
        }
    }

    /// Addresses of the owners and migration targets that are not in the map yet.
    fn unknown(&self, owners: &[Option<Owner>]) -> Vec<ServerConfig> {
        let places = owners.iter().flatten().flat_map(|owner| iter::once(&owner.place).chain(&owner.next));
        let mut unknown = distinct(places);
        unknown.retain(|place| find(&self.map.borrow().nodes, place).is_none());
        unknown
    }

    /// Looks up the directory after the lookup interval, or earlier if the map is out of date.
    async fn look(&self) -> Result<Vec<Option<Owner>>, Error> {
        sleep(LOOK_AGAIN).await;
        let _ = timeout(LOOK_EVERY, self.out_of_date.notified()).await;
        self.directory.look(&self.opener, &self.slots, &self.nodes()).await
    }

    /// Fails if the directory does not name this server as the owner of any partition.
    pub(super) async fn confirm(&self, node: &Node) -> Result<(), Error> {
        let owners = self.directory.look(&self.opener, &self.slots, &self.nodes()).await?;
        if owners.iter().flatten().any(|owner| owner.place == node.place) {
            return Ok(());
        }
        self.note_out_of_date();
        Err(Error::Unavailable("the partitions of this node moved".into()))
    }

    /// Publishes a new map. A partition keeps its owner if the new one is unknown or not connected. Stops using servers that
    /// are neither owner nor migration target of any partition.
    fn arrange(&self, owners: &[Option<Owner>], opened: impl IntoIterator<Item = Arc<Node>>) {
        let before = self.map.borrow().clone();
        let known: Vec<Arc<Node>> = before.nodes.iter().cloned().chain(opened).collect();
        let owner = |owner: &Option<Owner>| find(&known, &owner.as_ref()?.place);
        let next = |owner: &Option<Owner>| find(&known, owner.as_ref()?.next.as_ref()?);
        let of = owners.iter().zip(&before.of).map(|(now, before)| owner(now).unwrap_or_else(|| before.clone()));
        let (of, next): (Vec<_>, Vec<_>) = (of.collect(), owners.iter().map(next).collect());
        let is_needed = |node: &Arc<Node>| of.iter().chain(next.iter().flatten()).any(|other| Arc::ptr_eq(node, other));
        let (nodes, left): (Vec<_>, Vec<_>) = known.into_iter().partition(is_needed);
        let map = Map { nodes, of, next };
        let have_moved = !map.has_owners_of(&before);
        if !have_moved && map.has_ways_of(&before) {
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
    pub(super) async fn at<T, F>(
        &self,
        partition: Partition,
        deadline: Instant,
        attempt: impl Fn(Arc<Node>, Asking) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (mut node, mut asking) = (self.node(partition), Asking::No);
        let mut pause = FIRST_PAUSE;
        loop {
            let why = match attempt(node, asking).await {
                Ok(done) => return Ok(done),
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Redirected(why)) => why,
            };
            let is_ask_redirect = asking == Asking::No && why.starts_with("ASK ");
            let next = self.map.borrow().next[partition.index()].clone();
            if let Some(next) = next.filter(|_| is_ask_redirect) {
                (node, asking) = (next, Asking::Yes);
                continue;
            }
            if self.directory.is_fixed() || Instant::now() + pause >= deadline {
                return Err(Error::Unavailable(why));
            }
            self.wait_for_move(&why, pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
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
    pub(super) fn note_out_of_date(&self) {
        self.out_of_date.notify_one();
    }

    /// Sends a command that reads or can be sent twice; the reply is from a primary.
    pub(super) async fn command(
        &self,
        partition: Partition,
        name: &'static str,
        args: Vec<Value>,
        deadline: Instant,
    ) -> Result<Value, Error> {
        let args = &args[..];
        let ask = async |node: Arc<Node>, asking| node.ask_primary(name, args, deadline, asking).await;
        self.at(partition, deadline, ask).await
    }
}

async fn open_node(opener: &NodeConnector, place: &ServerConfig) -> Result<Arc<Node>, Error> {
    let failed = |what: &str| Error::Unavailable(format!("{}: {what}", name_of(place)));
    match timeout(OPEN_TIMEOUT, opener.open(place)).await {
        Ok(opened) => opened.map(Arc::new).map_err(|error| failed(error.details())),
        Err(_) => Err(failed("no reply")),
    }
}

fn distinct<'a>(places: impl IntoIterator<Item = &'a ServerConfig>) -> Vec<ServerConfig> {
    let mut distinct: Vec<ServerConfig> = Vec::new();
    for place in places {
        if !distinct.contains(place) {
            distinct.push(place.clone());
        }
    }
    distinct
}

fn find(nodes: &[Arc<Node>], place: &ServerConfig) -> Option<Arc<Node>> {
    nodes.iter().find(|node| node.place == *place).cloned()
}
