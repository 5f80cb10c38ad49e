//! All servers of the store, and which of them has a partition.
//!
//! Each server has connections of its own: trouble with one stalls no call to another. Where a server answers that it
//! does not have a partition, nothing was applied: the call waits for the directory to name another one, and is sent
//! again while it has time.

use std::{pin::pin, sync::Arc, time::Duration};

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
    directory::Directory,
    error::{Error, Failure, is_on_its_way},
    keys::Partition,
    node::{Asking, Node, Opener, name_of},
};

/// How often the directory is asked, and how soon again where a server said that it is out of date.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Before a call is sent again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Which server has which partition.
pub struct Map {
    pub nodes: Vec<Arc<Node>>,
    /// Of each partition: its place among them.
    of: Vec<usize>,
}

impl Map {
    pub fn node(&self, partition: Partition) -> &Arc<Node> {
        &self.nodes[self.of[partition.index()]]
    }

    /// The partitions that this server has.
    pub fn partitions_of(&self, node: &Arc<Node>) -> impl Iterator<Item = Partition> {
        let place = self.nodes.iter().position(|other| Arc::ptr_eq(node, other));
        self.of.iter().enumerate().filter(move |(_, of)| Some(**of) == place).map(|(index, _)| Partition(index as u16))
    }

    fn find(&self, place: &ServerConfig) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| node.place == *place)
    }
}

pub struct Connection {
    directory: Directory,
    opener: Opener,
    /// Of each partition.
    slots: Vec<u16>,
    map: watch::Sender<Arc<Map>>,
    out_of_date: Notify,
}

impl Connection {
    /// Connects to every server that has a partition, or says why that failed.
    pub async fn open(directory: Directory, opener: Opener, slots: Vec<u16>) -> Result<Self, Error> {
        let places = directory.look(&opener, &slots, &[]).await?;
        let unowned = |slot: &u16| Error::Unavailable(format!("no node of the Cluster serves slot {slot}"));
        let owned = places.into_iter().zip(&slots).map(|(place, slot)| place.ok_or_else(|| unowned(slot)));
        let places = owned.collect::<Result<Vec<_>, _>>()?;
        let distinct = distinct(&places);
        let nodes = try_join_all(distinct.iter().map(|place| open_node(&opener, place))).await?;
        let of = places.iter().map(|place| place_of(&nodes, place).expect("it was opened")).collect();
        let map = watch::Sender::new(Arc::new(Map { nodes, of }));
        Ok(Connection { directory, opener, slots, map, out_of_date: Notify::new() })
    }

    /// The servers, and which partitions they have; told whenever that changes.
    pub fn map(&self) -> watch::Receiver<Arc<Map>> {
        self.map.subscribe()
    }

    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.map.borrow().nodes.clone()
    }

    pub fn node(&self, partition: Partition) -> Arc<Node> {
        self.map.borrow().node(partition).clone()
    }

    pub async fn close(&self) {
        join_all(self.nodes().iter().map(|node| node.close())).await;
    }

    /// Of how many servers how many answer.
    pub fn up(&self) -> (usize, usize) {
        let map = self.map.borrow();
        (map.nodes.len(), map.nodes.iter().filter(|node| node.is_up()).count())
    }

    /// Keeps the connections alive, and follows the directory; for ever.
    pub async fn keep_alive(&self) {
        tokio::join!(self.keep_nodes_alive(), self.follow_directory());
    }

    /// Each from when it comes until it leaves, whatever the others do; then its connections are closed.
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

    /// Asks the directory for ever. Servers that are new are connected to meanwhile: one that hangs holds up no other move.
    async fn follow_directory(&self) {
        if self.directory.is_fixed() {
            return;
        }
        let open = async |place: ServerConfig| (place.clone(), open_node(&self.opener, &place).await);
        let (mut opening, mut opened) = (Vec::new(), FuturesUnordered::new());
        let (mut places, mut is_known) = (vec![None; self.slots.len()], true);
        let mut looking = pin!(self.look());
        loop {
            tokio::select! {
                Some((place, node)) = opened.next() => {
                    opening.retain(|other| *other != place);
                    match node {
                        Ok(node) => self.arrange(&places, Some(node)),
                        Err(error) => tracing::warn!(%error, "a new server cannot be used"),
                    }
                }
                looked = &mut looking => {
                    looking.set(self.look());
                    let was_known = std::mem::replace(&mut is_known, looked.is_ok());
                    match looked {
                        Ok(found) => places = found,
                        Err(error) if was_known => tracing::warn!(%error, "where the partitions lie cannot be found out"),
                        Err(_) => {}
                    }
                    self.arrange(&places, None);
                    let mut new = distinct(places.iter().flatten());
                    new.retain(|place| self.map.borrow().find(place).is_none() && !opening.contains(place));
                    opened.extend(new.iter().cloned().map(open));
                    opening.extend(new);
                }
            }
        }
    }

    /// Asks the directory once it is time.
    async fn look(&self) -> Result<Vec<Option<ServerConfig>>, Error> {
        sleep(LOOK_AGAIN).await;
        let _ = timeout(LOOK_EVERY, self.out_of_date.notified()).await;
        self.directory.look(&self.opener, &self.slots, &self.nodes()).await
    }

    /// Fails where the directory does not, or not any more, name this server.
    pub async fn confirm(&self, node: &Node) -> Result<(), Error> {
        let places = self.directory.look(&self.opener, &self.slots, &self.nodes()).await?;
        if places.iter().flatten().any(|place| *place == node.place) {
            return Ok(());
        }
        self.note_out_of_date();
        Err(Error::Unavailable("its partitions have moved".into()))
    }

    /// Has partitions asked for where they are to lie, as far as that is known and a server there too, and takes leave of
    /// those that have none any more.
    fn arrange(&self, places: &[Option<ServerConfig>], opened: Option<Arc<Node>>) {
        let before = self.map.borrow().clone();
        let nodes: Vec<Arc<Node>> = before.nodes.iter().cloned().chain(opened).collect();
        let known = places.iter().map(|place| place_of(&nodes, place.as_ref()?));
        let of: Vec<usize> = known.zip(&before.of).map(|(known, before)| known.unwrap_or(*before)).collect();
        let (kept, left): (Vec<usize>, Vec<usize>) = (0..nodes.len()).partition(|index| of.contains(index));
        let moved = kept.iter().map(|index| nodes[*index].clone()).collect::<Vec<_>>();
        let of: Vec<usize> = of.iter().map(|index| kept.iter().position(|k| k == index).expect("it is kept")).collect();
        let same = moved.len() == before.nodes.len()
            && of.iter().zip(&before.of).all(|(now, then)| Arc::ptr_eq(&moved[*now], &before.nodes[*then]));
        if same {
            return;
        }
        tracing::info!(servers = ?moved.iter().map(|node| node.name()).collect::<Vec<_>>(), "partitions have moved");
        self.map.send_replace(Arc::new(Map { nodes: moved, of }));
        left.into_iter().for_each(|index| nodes[index].left.cancel());
    }

    /// Does it at the server that has the partition, and again where that turns out to be another one, or none right now.
    pub async fn at<T, F>(
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
                Err(Failure::Elsewhere(why)) => why,
            };
            let asked_to = if asking == Asking::No { self.directory.asked_to(&why) } else { None };
            let target = asked_to.and_then(|place| self.map.borrow().find(&place).cloned());
            if let Some(target) = target {
                (node, asking) = (target, Asking::Yes);
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
        if !is_on_its_way(why) {
            self.note_out_of_date();
        }
        let _ = timeout(pause, map.changed()).await;
    }

    /// A server said that it has not what the directory says.
    pub fn note_out_of_date(&self) {
        self.out_of_date.notify_one();
    }

    /// Sends a command that reads, or that may as well be sent again; the answer is a primary's.
    pub async fn command(
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

async fn open_node(opener: &Opener, place: &ServerConfig) -> Result<Arc<Node>, Error> {
    let failed = |what: &str| Error::Unavailable(format!("{}: {what}", name_of(place)));
    match timeout(OPEN_TIMEOUT, opener.open(place)).await {
        Ok(opened) => opened.map(Arc::new).map_err(|error| failed(error.details())),
        Err(_) => Err(failed("no answer")),
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

fn place_of(nodes: &[Arc<Node>], place: &ServerConfig) -> Option<usize> {
    nodes.iter().position(|node| node.place == *place)
}
