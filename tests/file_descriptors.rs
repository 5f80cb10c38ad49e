//! The limit of file descriptors: raised at the start, and reserved for Redis and the admin port.

use harness::{ConfigFile, Redis, World, client::*, eventually, process::Process};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// First bytes of an HTTP/2 client: the preface and an empty SETTINGS frame.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Opens this many connections to the address and sends these bytes on each.
async fn connections(address: &str, count: usize, sent: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The write fails if the server has closed the connection.
        let _ = stream.write_all(sent).await;
        streams.push(stream);
    }
    streams
}

/// Returns the value and the hard limit of the process's open files.
fn open_files_limit(process: &Process) -> (String, String) {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut words = line.split_whitespace().skip(3).map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

/// Returns the number of file descriptors that the process has open.
fn open_files(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

#[tokio::test]
async fn redis_reconnects_while_clients_use_all_descriptors() {
    let world = World::dedicated();
    // The idle clients do not answer pings.
    let file = ConfigFile::new("limits.keepalive_interval = '1h'");
    let arguments = [format!("--redis={}", world.redis.url()), file.flag()];
    let mut process = Process::start_with_ulimit("-n 128", &arguments);
    let mut idle = connections(&process.address, 200, GREETING).await;
    let _leaked = connections(&process.metrics_address, 100, b"").await;
    let log = process.log.lock().unwrap().clone();
    assert!(log.contains("\"connections\":10000") && log.contains("\"descriptors\":128"), "{log}");
    eventually("connections are rejected", async || {
        process.log.lock().unwrap().contains("connection limit reached").then_some(())
    })
    .await;
    assert!(open_files(&process) < 128);
    world.redis.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    world.redis.must(&["CLIENT", "KILL", "TYPE", "normal"]);
    wait_until_ready(&process).await;
    // The oldest clients are connected; the others were rejected.
    drop(idle.drain(..20));
    let client = eventually("a new client is accepted", async || {
        let client = Client::try_connect(&process.address).await.ok()?;
        client.create_with(Default::default()).await.ok()?;
        Some(client)
    })
    .await;
    client.create(&[]).await;
    wait_until_ready(&process).await;
    assert!(!process.log.lock().unwrap().contains("accept failed"));
    assert_eq!(process.stop().await, Some(0));
}

/// Waits until `/readyz` succeeds and all connections to Redis respond.
async fn wait_until_ready(process: &Process) {
    eventually("the server is ready", async || process.is_ready().await.then_some(())).await;
    eventually("Redis is connected", async || {
        (harness::metric(&process.metrics_address, "sessiond_redis_up").await == 1.0).then_some(())
    })
    .await;
}

#[test]
fn soft_descriptor_limit_is_raised_at_the_start() {
    let redis = Redis::start();
    let process = Process::start_with_ulimit("-Sn 64", &[format!("--redis={}", redis.url())]);
    let (soft, hard) = open_files_limit(&process);
    assert_eq!(soft, hard);
}

#[test]
fn descriptor_limit_without_room_for_clients_is_refused() {
    let redis = Redis::start();
    let (log, code) = Process::expect_start_failure_with_ulimit("-n 40", &[format!("--redis={}", redis.url())]);
    assert!(code == Some(1) && log.contains("file descriptors") && log.contains("40"), "{log}");
}

#[tokio::test]
async fn leaked_admin_connections_do_not_block_the_admin_port() {
    let world = World::shared();
    let server = world.server().await;
    let _leaked = connections(&server.metrics_address, 200, b"GET /metrics HTTP/1.1\r\n").await;
    eventually("the admin port answers", async || {
        server.http("/readyz").await.filter(|response| response.starts_with("HTTP/1.1 200"))
    })
    .await;
}
