//! Routes requests to the servers of their partitions.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Store, error::Error, keys::Partition};
use crate::redis::{self, Asking, Node, OnMigration, PrimaryReads, Reply, Request};

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
        on_migration: OnMigration,
        attempt: impl Fn(Arc<Node>, Asking) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, redis::Error>>,
    {
        Ok(self.router.route(self.keys.slot(partition), deadline, on_migration, attempt).await?)
    }

    /// Sends a command that reads or can be sent twice; the reply is from a primary.
    pub(super) async fn command(
        &self,
        partition: Partition,
        name: &'static str,
        args: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        self.command_in(None, partition, name, args, deadline).await
    }

    /// Sends a command that reads; the reply is from a primary. With `reads` this is proved when the page is verified, else by
    /// the read itself.
    pub(super) async fn command_in(
        &self,
        reads: Option<&PrimaryReads>,
        partition: Partition,
        name: &'static str,
        args: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let request = Request::Command { name, args: &args };
        let attempt = async |node: Arc<Node>, asking| match reads {
            Some(reads) => reads.ask(&node, request, deadline, asking).await,
            None => node.ask_primary(request, deadline, asking).await,
        };
        self.route(partition, deadline, OnMigration::Wait, attempt).await
    }

    /// Proves that all reads of a page are from primaries.
    pub async fn verify(&self, reads: PrimaryReads, deadline: Instant) -> Result<(), Error> {
        reads.verify(deadline).await.map_err(|error| self.note_redirect(error))
    }

    /// Converts the failure of a server that may no longer own a partition; triggers a lookup of the topology.
    pub(super) fn note_redirect(&self, error: redis::Error) -> Error {
        if let redis::Error::Redirect(_) = error {
            self.router.note_out_of_date();
        }
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use harness::Redis;

    use super::*;

    #[tokio::test]
    async fn reads_of_a_server_that_became_a_replica_are_refused() {
        let redis = Redis::start();
        let store = Store::of_one_partition(&redis).await;
        let deadline = Instant::now() + Duration::from_secs(10);
        let get = async |reads: Option<&PrimaryReads>| {
            store.command_in(reads, Partition(0), "GET", vec!["key".into()], deadline).await
        };
        let (verified, refused) = (PrimaryReads::default(), PrimaryReads::default());
        get(Some(&verified)).await.unwrap();
        store.verify(verified, deadline).await.unwrap();
        get(Some(&refused)).await.unwrap();
        redis.must(&["REPLICAOF", "127.0.0.1", "1"]);
        get(Some(&refused)).await.expect("a replica replies");
        assert!(store.verify(refused, deadline).await.is_err(), "the ROLE behind the page");
        assert!(get(Some(&PrimaryReads::default())).await.is_err(), "the ROLE before the page");
        assert!(get(None).await.is_err(), "a single read");
        redis.must(&["REPLICAOF", "NO", "ONE"]);
        get(None).await.unwrap();
        store.close().await;
    }

    #[tokio::test]
    async fn script_may_write_for_at_most_10_s() {
        let redis = Redis::start();
        let store = Store::of_one_partition(&redis).await;
        let node = store.node(Partition(0));
        let not_after = node.not_after(Instant::now() + Duration::from_secs(60)).unwrap();
        let left = not_after - node.now().unwrap() / 1_000;
        assert!((1..=10_000).contains(&left), "{left} ms");
        store.close().await;
    }
}
