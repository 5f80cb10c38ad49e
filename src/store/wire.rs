//! One connection: a client of fred that ends when it is dropped. By itself fred would go on connecting anew, for ever.

use std::{ops::Deref, time::Duration};

use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::ClientLike,
    types::{
        Builder, ConnectHandle,
        config::{Config, ConnectionConfig, ReconnectPolicy, TcpConfig, UnresponsiveConfig},
    },
};
use tokio::{sync::Notify, time::timeout};

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands waiting for a connection's writer.
const QUEUE: usize = 16_384;
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Wire {
    client: Client,
    task: ConnectHandle,
    abandoned: Notify,
}

impl Wire {
    /// Connects; afterwards reconnects by itself. So many messages may wait.
    pub async fn open(config: &Config, messages: usize) -> Result<Self, FredError> {
        let client = client(config, messages)?;
        let connect = async {
            let task = client.connect();
            Wire { client: client.clone(), task, abandoned: Notify::new() }
        };
        // It has to wait before it begins; and dropped amid this, it ends.
        let (connected, wire) = tokio::join!(biased; client.wait_for_connect(), connect);
        connected.map(|()| wire)
    }

    /// The answer, unless the server was found not to answer any more: then fred would have its callers wait on.
    pub async fn answer<T>(&self, asked: impl Future<Output = Result<T, FredError>>) -> Result<T, FredError> {
        tokio::select! {
            biased;
            answer = asked => answer,
            () = self.abandoned.notified() => Err(FredError::new(ErrorKind::Timeout, "Redis hangs")),
        }
    }

    /// Tells all who wait for an answer that none comes.
    pub fn abandon(&self) {
        self.abandoned.notify_waiters();
    }

    /// Has Redis close it.
    pub async fn close(&self) {
        let _ = timeout(QUIT_TIMEOUT, self.client.quit()).await;
        self.task.abort();
        self.abandon();
    }
}

impl Deref for Wire {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn client(config: &Config, messages: usize) -> Result<Client, FredError> {
    Builder::from_config(config.clone())
        .with_connection_config(|connection: &mut ConnectionConfig| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = QUEUE;
            // The heartbeats are our own.
            connection.unresponsive = UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() };
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
            // Their text tells the caller that nothing was applied; fred would send the command again.
            connection.reconnect_errors = Vec::new();
        })
        .with_performance_config(|performance| performance.broadcast_channel_capacity = messages)
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 2_000, 2))
        .build()
}
