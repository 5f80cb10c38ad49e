//! Reads from primaries: the proof that a server was a primary when it replied.
//!
//! A replica replies to reads too, and its data may be old: it may lack writes that the primary has acknowledged. ROLE returns
//! what a server is when it executes ROLE. A server executes the requests of one connection in their order, so a ROLE on the
//! same connection is before or behind a read at the server as well. On another connection it proves nothing: that one may lead
//! to another process, or be executed earlier or later.
//!
//! - ROLE behind the read alone does not prove it: the read may be from a replica that was promoted before ROLE.
//! - ROLE before the read alone does not prove it: the server may have become a replica before the read.
//! - Both together do: between two replies "master" a server is a primary, unless it became a replica and was promoted again
//!   between them. Sentinel closes all connections of clients at each of these changes, and a replica in a Cluster redirects
//!   reads. What remains is an operator who changes the role of one server twice within the time of one page.
//!
//! The two ROLE may enclose any number of reads. Nothing that was read may be used before the second one has replied.

use std::sync::Arc;

use fred::{error::Error as FredError, types::Value};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};

use super::{
    connection::Connection,
    error::{Effect, Error},
    node::Node,
    reply::Reply,
    request::{Asking, Request},
};

const ROLE: Request<'static> = Request::Command { name: "ROLE", args: &[] };

impl Node {
    /// Sends requests that read in one pipeline, in this order, between the two ROLE. Fails if the server is not a primary.
    pub async fn ask_primary_all(
        &self,
        requests: &[Request<'_>],
        deadline: Instant,
        asking: Asking,
    ) -> Result<Vec<Result<Reply, Error>>, Error> {
        let connection = &*self.background.ready()?;
        let all = [&[ROLE], requests, &[ROLE]].concat();
        let started = Instant::now();
        let sending = Box::pin(Request::send_all(connection, &all, asking));
        let replies = timeout_at(deadline, connection.reply(sending)).await.map_err(|_| Error::Timeout)?;
        let replies = replies.map_err(|error| Error::of(&error, Effect::Reads))?;
        let reply = |(request, reply): (&Request<'_>, Result<Value, FredError>)| {
            self.noted(*request, started, reply.map_err(|error| Error::of(&error, Effect::Reads)))
        };
        let mut replies: Vec<_> = all.iter().zip(replies).map(reply).collect();
        let roles = (replies.pop(), replies.drain(..1).next());
        for role in [roles.0, roles.1].into_iter().flatten() {
            require_primary(role?)?;
        }
        Ok(replies)
    }

    /// Sends a request that reads. Fails if the server is not a primary.
    pub async fn ask_primary(&self, request: Request<'_>, deadline: Instant, asking: Asking) -> Result<Reply, Error> {
        let mut replies = self.ask_primary_all(&[request], deadline, asking).await?;
        replies.pop().unwrap_or(Err(Error::UnexpectedReply(request.name())))
    }

    async fn require_primary_on(&self, connection: &Connection, deadline: Instant) -> Result<(), Error> {
        require_primary(self.send_on(connection, ROLE, deadline, Effect::Reads, Asking::No).await?)
    }
}

/// Fails if the reply to ROLE is that of a replica.
fn require_primary(role: Reply) -> Result<(), Error> {
    let role = role.array().unwrap_or_default();
    let is_primary = role.first().and_then(Reply::text) == Some("master");
    if is_primary { Ok(()) } else { Err(Error::Redirect("the node is a replica".into())) }
}

/// Connection of a page to one server. It is empty until ROLE has replied on it.
type PageConnection = Arc<OnceCell<Arc<Connection>>>;

/// Reads of one page. They share two ROLE for each server; until [`PrimaryReads::verify`] nothing is proved.
#[derive(Default)]
#[must_use = "the reads of a page are not from primaries unless they are verified"]
pub struct PrimaryReads {
    connections: Mutex<Vec<(Arc<Node>, PageConnection)>>,
}

impl PrimaryReads {
    /// Sends a request that reads; the first one to a server waits for ROLE.
    pub async fn ask(
        &self,
        node: &Arc<Node>,
        request: Request<'_>,
        deadline: Instant,
        asking: Asking,
    ) -> Result<Reply, Error> {
        let connection = self.connection(node);
        let connection = connection.get_or_try_init(async || {
            let connection = node.background.ready()?;
            node.require_primary_on(&connection, deadline).await?;
            Ok::<_, Error>(connection)
        });
        let connection = connection.await?;
        node.send_on(connection, request, deadline, Effect::Reads, asking).await
    }

    fn connection(&self, node: &Arc<Node>) -> PageConnection {
        let mut connections = self.connections.lock();
        if let Some((_, connection)) = connections.iter().find(|(of, _)| Arc::ptr_eq(of, node)) {
            return connection.clone();
        }
        let connection = PageConnection::default();
        connections.push((node.clone(), connection.clone()));
        connection
    }

    /// Proves that all reads that were answered before are from primaries. Fails if one may not be.
    pub async fn verify(self, deadline: Instant) -> Result<(), Error> {
        let connections = self.connections.into_inner();
        let used = connections.iter().filter_map(|(node, connection)| Some((node, connection.get()?)));
        try_join_all(used.map(|(node, connection)| node.require_primary_on(connection, deadline))).await?;
        Ok(())
    }
}
