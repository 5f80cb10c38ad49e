//! Maps slots to servers, and routes each request to the server that owns its slot.
//!
//! Each server has separate connections, so that trouble with one server stalls no request to another. If a server redirects a
//! request, nothing was applied: the request waits until the topology names another owner, and is sent again before its
//! deadline.

use std::{collections::BTreeMap, iter, pin::pin, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{join_all, try_join_all},
    stream::FuturesUnordered,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    endpoint::Address,
    error::{Error, ReplyKind},
    node::Node,
    node_connector::NodeConnector,
    request::Asking,
    slot::Slot,
    topology::{Owner, Owners, Topology},
};

/// Interval between two lookups of the topology.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(250);
/// Minimum time between two lookups, if a server reports that the map is out of date.
const MIN_LOOKUP_INTERVAL: Duration = Duration::from_millis(20);
/// Time after a lookup named an owner for which a server that lacks replicas is taken to be the owner still.
const CONFIRMED_FOR: Duration = Duration::from_secs(1);
/// Maximum time to open all connections to a server.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a redirected request is sent again for the first time; it doubles each time.
const FIRST_REDIRECT_PAUSE: Duration = Duration::from_millis(2);
/// Maximum pause before a redirected request is sent again.
const MAX_REDIRECT_PAUSE: Duration = Duration::from_millis(100);

/// What happens to a request that needs several keys of a slot while the slot migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMigration {
    /// It waits for the end of the migration, at most until its deadline.
    Wait,
    /// It fails at once.
    Fail,
}

/// Servers of a slot.
struct Route {
    owner: Arc<Node>,
    /// Server to which the slot migrates. None: it does not migrate, or the target is not connected.
    migrating_to: Option<Arc<Node>>,
}

impl Route {
    fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        iter::once(&self.owner).chain(&self.migrating_to)
    }
}

/// Assignment of slots to servers.
pub struct SlotMap {
    /// All servers with open connections.
    pub nodes: Vec<Arc<Node>>,
    routes: BTreeMap<Slot, Route>,
}

impl SlotMap {
    /// Owner of a slot, which must be one of the router's.
    pub fn owner(&self, slot: Slot) -> &Arc<Node> {
        &self.routes[&slot].owner
    }

    /// Whether every slot has the same owner in both maps.
    fn has_owners_of(&self, other: &SlotMap) -> bool {
        self.routes.values().zip(other.routes.values()).all(|(one, other)| Arc::ptr_eq(&one.owner, &other.owner))
    }

    /// Whether every slot migrates to the same server in both maps.
    fn has_migrations_of(&self, other: &SlotMap) -> bool {
        let targets = |map: &SlotMap| -> Vec<_> {
            map.routes.values().map(|route| route.migrating_to.as_ref().map(Arc::as_ptr)).collect()
        };
        targets(self) == targets(other)
    }
}

/// Connections to all servers that own one of some slots, and the map of these slots.
pub struct Router {
    topology: Topology,
    connector: NodeConnector,
    slots: Vec<Slot>,
    map: watch::Sender<Arc<SlotMap>>,
    out_of_date: Notify,
    /// When the topology last named the owner of each slot.
    confirmed_at: Mutex<BTreeMap<Slot, Instant>>,
}

impl Router {
    /// Connects to every server that owns one of these slots. Requests can be routed to these slots only.
    pub async fn open(connector: NodeConnector, slots: Vec<Slot>) -> Result<Self, Error> {
        let topology = Topology::of(&connector.endpoint);
        let owners = topology.lookup(&slots, []).await?;
        let unowned = |slot: &Slot| Error::Unavailable(format!("no node of the Cluster serves slot {}", slot.0));
        let address = |slot: &Slot| Ok((*slot, owners.get(slot).ok_or_else(|| unowned(slot))?.address.clone()));
        let addresses = slots.iter().map(address).collect::<Result<BTreeMap<Slot, Address>, Error>>()?;
        let nodes = distinct(addresses.values());
        let nodes = try_join_all(nodes.iter().map(|address| open_node(&connector, address))).await?;
        let route = |(slot, address): (&Slot, &Address)| {
            let owner = find(&nodes, address).ok_or_else(|| Error::Unavailable(format!("{address}: not open")))?;
            Ok((*slot, Route { owner, migrating_to: None }))
        };
        let routes = addresses.iter().map(route).collect::<Result<_, Error>>()?;
        let map = watch::Sender::new(Arc::new(SlotMap { nodes, routes }));
        let router =
            Router { topology, connector, slots, map, out_of_date: Notify::new(), confirmed_at: Mutex::default() };
        router.note_confirmed(&owners);
        // Targets of slot migrations that are already running.
        let targets = router.unknown(&owners);
        let opened = join_all(targets.iter().map(|address| open_node(&router.connector, address))).await;
        router.apply_topology(&owners, opened.into_iter().flatten());
        Ok(router)
    }

    /// Returns a receiver that holds the current map and is notified of changes.
    pub fn map(&self) -> watch::Receiver<Arc<SlotMap>> {
        self.map.subscribe()
    }

    /// Returns a future that completes when the owner of any slot changes after this call.
    pub fn moved(&self) -> impl Future<Output = ()> + use<> {
        let mut map = self.map();
        let before = map.borrow().clone();
        async move {
            let _ = map.wait_for(|now| !now.has_owners_of(&before)).await;
        }
    }

    /// Returns all servers with open connections.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.map.borrow().nodes.clone()
    }

    /// Returns the owner of a slot.
    pub fn owner(&self, slot: Slot) -> Arc<Node> {
        self.map.borrow().owner(slot).clone()
    }

    /// Closes all connections.
    pub async fn close(&self) {
        join_all(self.nodes().iter().map(|node| node.close())).await;
    }

    /// Returns the maximum number of connections at the same time, with the current servers: each connection twice, because
    /// a broken one can still be closing while its successor opens, and those that look up the topology.
    pub fn max_connections(&self) -> usize {
        let nodes = self.nodes();
        2 * nodes.iter().map(|node| node.connections()).sum::<usize>() + self.topology.max_probes(nodes.len())
    }

    /// Keeps the connections alive and follows the topology; never returns.
    pub async fn keep_alive(&self) {
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
        let open = async |address: Address| (address.clone(), open_node(&self.connector, &address).await);
        let (mut opening, mut opened) = (Vec::new(), FuturesUnordered::new());
        let (mut owners, mut is_known) = (Owners::new(), true);
        let mut looking = pin!(self.next_lookup());
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
                    looking.set(self.next_lookup());
                    let was_known = std::mem::replace(&mut is_known, looked.is_ok());
                    match looked {
                        Ok(found) => {
                            owners = found;
                            self.note_confirmed(&owners);
                        }
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
    fn unknown(&self, owners: &Owners) -> Vec<Address> {
        let mut unknown =
            distinct(owners.values().flat_map(|owner| iter::once(&owner.address).chain(&owner.migrating_to)));
        unknown.retain(|address| find(&self.map.borrow().nodes, address).is_none());
        unknown
    }

    /// Looks up the topology after the lookup interval, or earlier if the map is out of date.
    async fn next_lookup(&self) -> Result<Owners, Error> {
        sleep(MIN_LOOKUP_INTERVAL).await;
        let _ = timeout(LOOKUP_INTERVAL, self.out_of_date.notified()).await;
        self.lookup().await
    }

    async fn lookup(&self) -> Result<Owners, Error> {
        let known = self.nodes().into_iter().map(|node| node.address.clone());
        self.topology.lookup(&self.slots, known).await
    }

    /// Whether the last lookups named the owner of this slot. False for a fixed address: there is nothing to look up.
    pub fn is_confirmed(&self, slot: Slot) -> bool {
        !self.topology.is_fixed() && self.confirmed_at.lock().get(&slot).is_some_and(|at| at.elapsed() < CONFIRMED_FOR)
    }

    /// Notes for which slots the topology names the owner that the map has.
    fn note_confirmed(&self, owners: &Owners) {
        let map = self.map.borrow().clone();
        let is_owner = |slot: &Slot, owner: &Owner| map.owner(*slot).address == owner.address;
        let named = owners.iter().filter(|(slot, owner)| is_owner(slot, owner));
        self.confirmed_at.lock().extend(named.map(|(slot, _)| (*slot, Instant::now())));
    }

    /// Fails if the topology does not name this server as the owner of any slot.
    pub async fn confirm(&self, node: &Node) -> Result<(), Error> {
        if self.lookup().await?.values().any(|owner| owner.address == node.address) {
            return Ok(());
        }
        self.note_out_of_date();
        Err(Error::Unavailable("the slots of this node moved".into()))
    }

    /// Publishes a new map. A slot keeps its owner if the new one is unknown or not connected. Stops using servers that are
    /// neither owner nor migration target of any slot.
    fn apply_topology(&self, owners: &Owners, opened: impl IntoIterator<Item = Arc<Node>>) {
        let before = self.map.borrow().clone();
        let known: Vec<Arc<Node>> = before.nodes.iter().cloned().chain(opened).collect();
        let route = |(slot, before): (&Slot, &Route)| {
            let now = owners.get(slot);
            let owner = now.and_then(|now| find(&known, &now.address)).unwrap_or_else(|| before.owner.clone());
            (*slot, Route { owner, migrating_to: now.and_then(|now| find(&known, now.migrating_to.as_ref()?)) })
        };
        let routes: BTreeMap<Slot, Route> = before.routes.iter().map(route).collect();
        let is_needed = |node: &Arc<Node>| routes.values().flat_map(Route::nodes).any(|other| Arc::ptr_eq(node, other));
        let (nodes, retired): (Vec<_>, Vec<_>) = known.into_iter().partition(is_needed);
        let map = SlotMap { nodes, routes };
        let have_moved = !map.has_owners_of(&before);
        if !have_moved && map.has_migrations_of(&before) {
            return;
        }
        if have_moved {
            let servers: Vec<String> = map.nodes.iter().map(|node| node.name()).collect();
            tracing::info!(?servers, "slots moved");
        }
        self.map.send_replace(Arc::new(map));
        retired.iter().for_each(|node| node.retire());
    }

    /// Runs the attempt at the owner of the slot. Runs it again before the deadline if the server redirects it.
    pub async fn route<T, F>(
        &self,
        slot: Slot,
        deadline: Instant,
        on_migration: OnMigration,
        attempt: impl Fn(Arc<Node>, Asking) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (mut node, mut asking) = (self.owner(slot), Asking::No);
        let mut pause = FIRST_REDIRECT_PAUSE;
        loop {
            let why = match attempt(node, asking).await {
                Err(Error::Redirect(why)) => why,
                done => return done,
            };
            let kind = ReplyKind::of(&why);
            let is_migrating = [ReplyKind::Ask, ReplyKind::TryAgain].contains(&kind);
            if is_migrating && on_migration == OnMigration::Fail {
                return Err(Error::Migrating(why));
            }
            let migrating_to = self.map.borrow().routes[&slot].migrating_to.clone();
            if let Some(target) = migrating_to.filter(|_| kind == ReplyKind::Ask && asking == Asking::No) {
                (node, asking) = (target, Asking::Yes);
                continue;
            }
            // After the pause it has as much time left for the reply: a write that is refused again has a certain outcome.
            if self.topology.is_fixed() || Instant::now() + 2 * pause >= deadline {
                return Err(if is_migrating { Error::Migrating(why) } else { Error::Unavailable(why) });
            }
            self.wait_for_move(&why, pause).await;
            pause = (pause * 2).min(MAX_REDIRECT_PAUSE);
            (node, asking) = (self.owner(slot), Asking::No);
        }
    }

    async fn wait_for_move(&self, why: &str, pause: Duration) {
        let mut map = self.map.subscribe();
        if ReplyKind::of(why) != ReplyKind::TryAgain {
            self.note_out_of_date();
        }
        let _ = timeout(pause, map.changed()).await;
    }

    /// Triggers a lookup, because a server redirected a call.
    pub fn note_out_of_date(&self) {
        self.out_of_date.notify_one();
    }
}

async fn open_node(connector: &NodeConnector, address: &Address) -> Result<Arc<Node>, Error> {
    let failed = |what: &str| Error::Unavailable(format!("{address}: {what}"));
    match timeout(OPEN_TIMEOUT, connector.open(address)).await {
        Ok(opened) => opened.map(Arc::new).map_err(|error| failed(error.details())),
        Err(_) => Err(failed("no reply")),
    }
}

fn distinct<'a>(addresses: impl IntoIterator<Item = &'a Address>) -> Vec<Address> {
    let mut distinct: Vec<Address> = Vec::new();
    for address in addresses {
        if !distinct.contains(address) {
            distinct.push(address.clone());
        }
    }
    distinct
}

fn find(nodes: &[Arc<Node>], address: &Address) -> Option<Arc<Node>> {
    nodes.iter().find(|node| node.address == *address).cloned()
}
