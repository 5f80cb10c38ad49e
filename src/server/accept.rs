//! Accepts the connections of one listener, within a limit.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use crate::{observe, tasks::ConnectionTasks};

/// Pause after a failed accept, for example because the whole system has no free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listening socket with a maximum number of connections.
pub(super) struct Acceptor {
    /// Name of the port in log lines.
    pub port: &'static str,
    /// Listening socket.
    pub listener: TcpListener,
    /// Maximum number of open connections. Further ones are closed at once, so that their clients can try another
    /// instance.
    pub max_connections: usize,
}

impl Acceptor {
    /// Accepts the next connection within the limit; `open` has the tasks of the open connections.
    pub(super) async fn accept(&self, open: &mut ConnectionTasks) -> (TcpStream, SocketAddr) {
        let (port, limit) = (self.port, self.max_connections);
        loop {
            let accepted = tokio::select! {
                biased;
                () = open.wait_for_one() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok(_) if open.count() >= limit => {
                    observe::warning!(port, limit, "connection limit reached; closing a new connection");
                }
                Ok(accepted) => return accepted,
                Err(error) => {
                    observe::warning!(port, %error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
