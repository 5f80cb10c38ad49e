//! A real Redis, real servers on real sockets, and clients that speak to them.
//!
//! One Redis per test binary and one key prefix per test; tests of faults own their Redis.

#![allow(dead_code, reason = "every test binary uses a part of it")]

pub mod cli;
pub mod client;
pub mod cluster;
pub mod consumer;
pub mod index;
pub mod leaks;
pub mod listing;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod refusals;
pub mod relay;
pub mod resp;
pub mod sentinel;
pub mod servers;
pub mod tls;
pub mod tokens;
pub mod watching;
pub mod writers;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use sessiond::{
    config::{Config, Flags},
    server::{self, Listeners},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

pub use client::{Client, Status};
pub use redis::Redis;
pub use watching::Watching;

/// Longer than anything takes that is going to happen.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until the check answers something.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The whole answer to a GET; None = no answer.
pub async fn http(address: &str, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// A key prefix that no other test of this binary has.
pub fn prefix_of_its_own() -> String {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    format!("sessiond:test{}:", TESTS.fetch_add(1, Ordering::Relaxed))
}

/// A Redis, and a key prefix of this test's own in it.
pub struct World {
    pub redis: Redis,
    pub prefix: String,
}

impl World {
    /// On the Redis that the tests of this binary share.
    pub fn shared() -> Self {
        World { redis: Redis::shared(), prefix: prefix_of_its_own() }
    }

    /// On a Redis of the test's own, which it may hurt.
    pub fn own() -> Self {
        World { redis: Redis::start(), prefix: "sessiond:".into() }
    }

    /// A server in this process, with this TOML besides.
    pub async fn server_with(&self, toml: &str) -> Server {
        Server::start(&self.redis.url(), &self.prefix, toml).await
    }

    pub async fn server(&self) -> Server {
        self.server_with("").await
    }
}

/// A server in this process; stopped when dropped.
pub struct Server {
    pub address: String,
    pub metrics_address: String,
    shutdown: CancellationToken,
    running: Option<tokio::task::JoinHandle<Result<(), server::Error>>>,
}

impl Server {
    pub async fn start(redis_url: &str, prefix: &str, toml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sessiond.toml");
        std::fs::write(&file, toml).unwrap();
        let config = Config::load(&Flags::parse_from([
            "sessiond",
            "--listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            &format!("--redis={redis_url}"),
            &format!("--key-prefix={prefix}"),
            &format!("--config={}", file.display()),
        ]))
        .unwrap();
        let listeners = Listeners::bind(&config).await.unwrap();
        let address = listeners.grpc.local_addr().unwrap().to_string();
        let metrics_address = listeners.metrics.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "the test owns it")]
        let running = tokio::spawn(server::run(config, listeners, shutdown.clone()));
        let server = Server { address, metrics_address, shutdown, running: Some(running) };
        eventually("the server answers", async || {
            let ready = server.http("/readyz").await;
            ready.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")).then_some(())
        })
        .await;
        server
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.address).await
    }

    /// Begins to drain, and returns when the server has stopped.
    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        self.running.take().unwrap().await.unwrap().unwrap();
    }

    /// None = it runs.
    pub fn why_it_ended(&mut self) -> Option<String> {
        let ended = futures_util::FutureExt::now_or_never(self.running.as_mut()?)?;
        Some(format!("the server at {} ended: {ended:?}", self.address))
    }

    pub fn begin_to_stop(&self) {
        self.shutdown.cancel();
    }

    /// The whole answer of the monitoring port; None = no answer.
    pub async fn http(&self, path: &str) -> Option<String> {
        http(&self.metrics_address, path).await
    }

    /// The value of a metric, by its whole name with labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.http("/metrics").await.expect("metrics are served");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
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
