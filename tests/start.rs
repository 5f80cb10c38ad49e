//! Start of the server: it waits for a Redis that is not there yet, loading or full, and says why.

use harness::{client::*, process::Process, servers::run_blocking, *};

/// A `sessiond serve` process that may still wait for Redis; started on another thread, because it blocks.
async fn spawn(arguments: Vec<String>) -> tokio::task::JoinHandle<Process> {
    tokio::task::spawn_blocking(move || Process::start(&arguments))
}

/// A free port for `/readyz` of a server that does not name its port yet.
fn metrics_flag() -> (String, String) {
    let address = format!("127.0.0.1:{}", servers::free_ports()[0]);
    (format!("--metrics-listen={address}"), address)
}

async fn not_ready(address: &str, part: &str) {
    eventually("the server is not ready and says why", async || {
        let response = http(address, "/readyz").await?;
        (response.starts_with("HTTP/1.1 503") && response.contains(part)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_waits_for_a_redis_that_is_not_there_yet() {
    let redis =
        run_blocking(|| Redis::on_ports(|ports| redis::server_arguments(["--port", &ports[0].to_string()]))).await;
    redis.kill();
    let (flag, address) = metrics_flag();
    let url = format!("--redis=redis://sessiond:change-me@{}", redis.address());
    let starting = spawn(vec![url, flag]).await;
    not_ready(&address, "cannot connect to Redis").await;
    redis.restart();
    let process = starting.await.unwrap();
    process.client().await.create(&[]).await;
    let log = process.log.lock().unwrap().clone();
    assert!(log.contains("cannot open the store; retrying"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_ends_after_the_start_timeout() {
    let missing = "--redis=redis://127.0.0.1:1".to_owned();
    let (log, code) = run_blocking(|| Process::expect_start_failure(&[missing, "--start-timeout=500ms".into()])).await;
    assert!(code == Some(1) && log.contains("cannot connect to Redis"), "{log}");
    assert_eq!(log.matches("cannot open the store; retrying").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_of_another_format_is_refused() {
    let world = World::dedicated();
    drop(world.server().await);
    for meta in world.redis.keys("*:meta") {
        world.redis.must(&["HSET", &meta, "format", "1"]);
    }
    let url = format!("--redis={}", world.redis.url());
    let (log, code) = run_blocking(move || Process::expect_start_failure(&[url, "--start-timeout=1s".into()])).await;
    assert!(code == Some(1) && log.contains("the store has format 1, this version reads format 2"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_timeout_ends_an_attempt() {
    let redis = run_blocking(Redis::start).await;
    // The first write of a new store gets no reply.
    redis.must(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    let url = format!("--redis={}", redis.url());
    let (log, code) = run_blocking(move || Process::expect_start_failure(&[url, "--start-timeout=1s".into()])).await;
    assert!(code == Some(1) && log.contains("no reply within the start timeout"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn existing_store_starts_while_redis_is_full() {
    let world = World::dedicated();
    let mut first = world.server().await;
    let (session, token) = first.client().await.create(&[]).await;
    first.stop().await;
    world.redis.must(&["CONFIG", "SET", "maxmemory", "1"]);
    let server = world.server().await;
    let client = server.client().await;
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
    eventually("the problem is announced", async || server.http("/readyz").await?.contains("maxmemory").then_some(()))
        .await;
    assert!(client.delete(by_token(&token)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn existing_store_starts_while_redis_refuses_writes() {
    let world = World::dedicated();
    let mut first = world.server().await;
    let (session, token) = first.client().await.create(&[]).await;
    first.stop().await;
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let server = world.server().await;
    eventually("the problem is announced", async || server.http("/readyz").await?.contains("NOREPLICAS").then_some(()))
        .await;
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    assert_eq!(server.client().await.get(by_token(&token)).await.unwrap(), session);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_store_waits_until_redis_has_memory() {
    let world = World::dedicated();
    world.redis.must(&["CONFIG", "SET", "maxmemory", "1"]);
    let (flag, address) = metrics_flag();
    let starting = spawn(vec![format!("--redis={}", world.redis.url()), flag]).await;
    not_ready(&address, "no memory left").await;
    world.redis.must(&["CONFIG", "SET", "maxmemory", "0"]);
    starting.await.unwrap().client().await.create(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_waits_while_redis_loads_its_data() {
    let redis = run_blocking(Redis::start).await;
    redis.must(&["EVAL", "for key = 1, 4000 do redis.call('SET', 'other:' .. key, 'x') end", "0"]);
    redis.must(&["SAVE"]);
    redis.kill();
    // A delay in us per key, and events between every few keys; without the delay, loading takes no time.
    let directory = redis.socket().parent().unwrap().to_owned();
    let slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let mut child =
        run_blocking(move || servers::spawn(directory, redis::server_arguments(["--port", "0"].iter().chain(&slow))))
            .await;
    let (flag, address) = metrics_flag();
    let starting = spawn(vec![format!("--redis={}", redis.url()), flag]).await;
    not_ready(&address, "LOADING").await;
    starting.await.unwrap().client().await.create(&[]).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_refused_until_the_server_is_ready() {
    let (metrics, metrics_address) = metrics_flag();
    let address = format!("127.0.0.1:{}", servers::free_ports()[1]);
    let arguments =
        [metrics, format!("--listen={address}"), "--redis=redis://127.0.0.1:1".into(), "--start-timeout=3s".into()];
    let starting = tokio::task::spawn_blocking(move || Process::expect_start_failure(&arguments));
    not_ready(&metrics_address, "cannot connect to Redis").await;
    let refused = tokio::net::TcpStream::connect(&address).await;
    assert_eq!(refused.map(drop).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    starting.await.unwrap();
}
