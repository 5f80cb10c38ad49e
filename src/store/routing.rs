//! Routes requests to the servers of their partitions.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Store, error::Error, keys::Partition};
use crate::redis::{self, Asking, Node, Reply};

/// One Redis server and the partitions it owns.
#[derive(Clone)]
pub struct Server {
    pub(super) node: Arc<Node>,
    /// Partitions that the server owns.
    pub partitions: Vec<Partition>,
}

impl Server {
    /// Returns the address of the server for logs.
    pub fn name(&self) -> String {
        self.node.name()
    }
}

impl Store {
    /// Returns the servers that own partitions, with their partitions.
    pub fn servers(&self) -> Vec<Server> {
        let map = self.router.map().borrow().clone();
        let server = |node: &Arc<Node>| {
            let is_owner = |partition: &Partition| Arc::ptr_eq(map.owner(self.keys.slot(*partition)), node);
            Server { partitions: self.partitions().filter(is_owner).collect(), node: node.clone() }
        };
        map.nodes.iter().map(server).filter(|server| !server.partitions.is_empty()).collect()
    }

    /// Returns a future that completes when the owner of any partition changes after this call.
    pub fn moved(&self) -> impl Future<Output = ()> + use<> {
        self.router.moved()
    }

    /// Returns the server that owns a partition.
    pub(super) fn node(&self, partition: Partition) -> Arc<Node> {
        self.router.owner(self.keys.slot(partition))
    }

    /// Whether the topology named the owner of a partition within the last second.
    pub(super) fn is_confirmed(&self, partition: Partition) -> bool {
        self.router.is_confirmed(self.keys.slot(partition))
    }

    /// Runs the attempt at the owner of a partition. Runs it again before the deadline if the server redirects it.
    pub(super) async fn route<T, F>(
        &self,
        partition: Partition,
        deadline: Instant,
        attempt: impl Fn(Arc<Node>, Asking) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, redis::Error>>,
    {
        Ok(self.router.route(self.keys.slot(partition), deadline, attempt).await?)
    }

    /// Sends a command that reads or can be sent twice; the reply is from a primary.
    pub(super) async fn command(
        &self,
        partition: Partition,
        name: &'static str,
        args: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        Ok(self.router.command(self.keys.slot(partition), name, args, deadline).await?)
    }

    /// Converts the failure of a server that may no longer own a partition; triggers a lookup of the topology.
    pub(super) fn note_redirect(&self, error: redis::Error) -> Error {
        if let redis::Error::Redirect(_) = error {
            self.router.note_out_of_date();
        }
        error.into()
    }
}
