//! Test fixtures: a real Redis, sessiond servers on real sockets, and gRPC clients.
//!
//! The tests of one binary share one Redis, and each test has its own key prefix in it. A test that stops, pauses or
//! reconfigures Redis starts its own. [`setup`] starts a server with a client in one line.

pub mod callers;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config_file;
pub mod consumer;
pub mod contract;
pub mod index;
pub mod leaks;
pub mod linearizability;
pub mod listing;
pub mod pki;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod refusals;
pub mod relay;
pub mod resp;
pub mod rollback;
pub mod sentinel;
pub mod servers;
pub mod tls;
pub mod tokens;
pub mod watch_reader;
pub mod writers;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
use std::time::{Duration, Instant};

use clap::Parser;
use sessiond::{
    config::{Config, Flags},
    server::{self, Listeners},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use proxy::Proxy;

pub use client::{Client, Status};
pub use config_file::ConfigFile;
pub use redis::Redis;
pub use watch_reader::WatchReader;

/// Deadline of every wait in the tests. No step of a test takes this long unless it has failed.
pub const WAIT_LIMIT: Duration = Duration::from_secs(40);

/// Polls the check every 5 ms and returns its first `Some`. Panics after [`WAIT_LIMIT`] with `what` in the message.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(started.elapsed() < WAIT_LIMIT, "{what}: not within {WAIT_LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends an HTTP/1.1 GET and returns the whole response, headers included. None: the connection failed.
pub async fn http(address: &str, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.ok()?;
    Some(response)
}

/// Returns the value of a metric, given the metrics address and its full name with labels; 0 if it is absent.
pub async fn metric(metrics_address: &str, name: &str) -> f64 {
    let text = http(metrics_address, "/metrics").await.expect("metrics are served");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// Returns a key prefix that no other test of this binary uses.
pub fn unique_prefix() -> String {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    format!("ses:test{}:", TESTS.fetch_add(1, Ordering::Relaxed))
}

/// A server on the shared Redis with a client of it; see [`setup`].
///
/// Dropping `server` stops the server. A test that needs only some of the fields destructures a reference:
/// `let Setup { client, .. } = &setup().await;` keeps the others until the end of the test.
pub struct Setup {
    /// Redis of the server, and the key prefix in it.
    pub world: World,
    /// Server in this process.
    pub server: Server,
    /// Client of the server, in the namespace [`client::NAMESPACE`].
    pub client: Client,
}

/// Starts a server with default settings on the shared Redis, under a new key prefix, and connects a client.
pub async fn setup() -> Setup {
    World::shared().setup().await
}

/// Like [`setup`], with this TOML configuration.
pub async fn setup_with(toml: &str) -> Setup {
    World::shared().setup_with(toml).await
}

/// A Redis server and the key prefix that the sessiond servers of one test use in it.
pub struct World {
    /// Redis, shared by all tests of this binary or dedicated to this one.
    pub redis: Redis,
    /// Key prefix: unique in the shared Redis, `ses:` in a dedicated one.
    pub prefix: String,
}

impl World {
    /// Returns the Redis that all tests of this binary share, with a new key prefix. The test must not disturb it.
    pub fn shared() -> Self {
        World { redis: Redis::shared(), prefix: unique_prefix() }
    }

    /// Starts a Redis for this test only, which the test may stop, pause or reconfigure.
    pub fn dedicated() -> Self {
        World::dedicated_with(&[])
    }

    /// Like [`World::dedicated`], with these additional arguments for Redis.
    pub fn dedicated_with(arguments: &[&str]) -> Self {
        World { redis: Redis::start_with(arguments), prefix: "ses:".into() }
    }

    /// Starts a server in this process with this TOML configuration.
    pub async fn server_with(&self, toml: &str) -> Server {
        Server::start(&self.redis.url(), &self.prefix, toml).await
    }

    /// Starts a server in this process with default settings.
    pub async fn server(&self) -> Server {
        self.server_with("").await
    }

    /// Starts two servers in this process with this TOML configuration, and connects a client to each.
    pub async fn pair_with(&self, toml: &str) -> ([Server; 2], [Client; 2]) {
        let servers = [self.server_with(toml).await, self.server_with(toml).await];
        let clients = [servers[0].client().await, servers[1].client().await];
        (servers, clients)
    }

    /// Starts a proxy and two servers with default settings, and connects a client to each. The first server reaches Redis
    /// through the proxy.
    pub async fn proxied_pair(&self) -> (Proxy, [Server; 2], [Client; 2]) {
        let proxy = Proxy::start(&self.redis);
        let servers = [Server::start(&proxy.url(), &self.prefix, "").await, self.server().await];
        let clients = [servers[0].client().await, servers[1].client().await];
        (proxy, servers, clients)
    }

    /// Starts a server with default settings and connects a client: `World::dedicated().setup().await`.
    pub async fn setup(self) -> Setup {
        self.setup_with("").await
    }

    /// Like [`World::setup`], with this TOML configuration.
    pub async fn setup_with(self, toml: &str) -> Setup {
        let server = self.server_with(toml).await;
        let client = server.client().await;
        Setup { world: self, server, client }
    }
}

/// A sessiond server that runs in this process and is stopped when dropped.
pub struct Server {
    /// Address of the gRPC port.
    pub address: String,
    /// Address of the HTTP port with metrics and health checks.
    pub metrics_address: String,
    shutdown: CancellationToken,
    reload: Arc<Notify>,
    /// Task of the server. None: [`Server::stop`] was called.
    running: Option<tokio::task::JoinHandle<Result<(), server::Error>>>,
}

impl Server {
    /// Starts a server on free ports and returns when it is ready.
    pub async fn start(redis_url: &str, prefix: &str, toml: &str) -> Self {
        let file = ConfigFile::new(toml);
        let config = Config::load(&Flags::parse_from([
            "sessiond",
            "--listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            &format!("--redis={redis_url}"),
            &format!("--key-prefix={prefix}"),
            &file.flag(),
        ]))
        .unwrap();
        let listeners = Listeners::bind(&config).await.unwrap();
        let address = listeners.grpc.local_addr().unwrap().to_string();
        let metrics_address = listeners.metrics.local_addr().unwrap().to_string();
        let (shutdown, reload) = (CancellationToken::new(), Arc::new(Notify::new()));
        #[expect(clippy::disallowed_methods, reason = "the test owns it")]
        let running = tokio::spawn(server::run(config, listeners, shutdown.clone(), reload.clone()));
        let server = Server { address, metrics_address, shutdown, reload, running: Some(running) };
        eventually("the server is ready", async || {
            let ready = server.http("/readyz").await;
            ready.is_some_and(|response| response.starts_with("HTTP/1.1 200")).then_some(())
        })
        .await;
        server
    }

    /// Connects a client to this server.
    pub async fn client(&self) -> Client {
        Client::connect(&self.address).await
    }

    /// Makes the server check its files with credentials now, as SIGHUP does.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Reloads until the reload of the file of this setting has failed (0) or succeeded (1).
    pub async fn reload_until(&self, file: &str, result: f64) {
        self.reload();
        let name = format!("sessiond_reload_last_successful{{file=\"{file}\"}}");
        eventually("the file is reloaded", async || (self.metric(&name).await == result).then_some(())).await;
    }

    /// Starts the shutdown and returns when the server has drained and stopped.
    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        self.running.take().unwrap().await.unwrap().unwrap();
    }

    /// Returns a message with the result of the server's task if it has ended. None: the server runs, or was stopped by
    /// [`Server::stop`].
    pub fn exit_reason(&mut self) -> Option<String> {
        let ended = futures_util::FutureExt::now_or_never(self.running.as_mut()?)?;
        Some(format!("the server at {} ended: {ended:?}", self.address))
    }

    /// Starts the shutdown without waiting for its end.
    pub fn start_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Sends a GET to the metrics port and returns the whole response. None: the connection failed.
    pub async fn http(&self, path: &str) -> Option<String> {
        http(&self.metrics_address, path).await
    }

    /// Returns the value of a metric, given its full name with labels; 0 if it is absent.
    pub async fn metric(&self, name: &str) -> f64 {
        metric(&self.metrics_address, name).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}
