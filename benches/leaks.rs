//! Checks that many sessions leave no keys in Redis after the lifetime of their tombstones.

mod support;

use std::time::{Duration, Instant};

use clap::Parser;

use harness::{Client, World, leaks, process::Process};
use support::{figures::print_table, load::CONNECTIONS, start_redis};

/// Creates and ends sessions in every way, concurrently, and counts the keys that remain.
#[derive(Parser)]
struct Arguments {
    /// Number of cycles. A cycle creates and ends one or more sessions.
    #[arg(long, env = "SESSIOND_BENCH_CYCLES", default_value_t = 100_000)]
    cycles: u64,
    /// Number of cycles that run at once.
    #[arg(long, default_value_t = 128)]
    workers: u64,
    /// Maximum wait until the last tombstone has expired, in seconds.
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let world = World { redis: start_redis(), prefix: "ses:".into() };
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), leaks::POLICY).expect("the file is written");
    let server =
        Process::start(&[format!("--redis={}", world.redis.url()), format!("--config={}", file.path().display())]);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect(&server.address).await);
    }
    let keys = || world.redis.number(&["DBSIZE"]);
    let partitions = keys();

    let started = Instant::now();
    let mut workers = Vec::new();
    for worker in 0..arguments.workers {
        let (client, cycles) = (clients[worker as usize % CONNECTIONS].clone(), arguments.cycles);
        let cycles = (worker..cycles).step_by(arguments.workers as usize).count() as u64;
        #[expect(clippy::disallowed_methods, reason = "awaited below")]
        workers.push(tokio::spawn(async move {
            for cycle in 0..cycles {
                leaks::run_cycle(&client, worker, cycle).await.expect("no call fails");
            }
        }));
    }
    for worker in workers {
        worker.await.expect("no worker panics");
    }
    let took = started.elapsed();
    let keys_after_calls = keys();

    // The meta key and the log of each partition remain.
    let ended = Instant::now();
    while keys() > 2 * partitions && ended.elapsed() < Duration::from_secs(arguments.patience) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let metrics = server.metrics().await;
    let metric = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or("0").to_owned()
    };
    let remaining = keys() - 2 * partitions;
    print_table(
        &["", "count"],
        &[
            vec!["cycles".into(), arguments.cycles.to_string()],
            vec!["seconds".into(), format!("{:.0}", took.as_secs_f64())],
            vec!["expired".into(), metric("sessiond_sessions_expired_total")],
            vec!["keys after the last call".into(), keys_after_calls.to_string()],
            vec!["index entries repaired".into(), metric("sessiond_index_repairs_total")],
            vec!["seconds until no key remained".into(), format!("{:.0}", ended.elapsed().as_secs_f64())],
            vec!["remaining keys except meta and logs".into(), remaining.to_string()],
        ],
    );
    assert_eq!(remaining, 0, "{:?}", world.leaked_keys());
}
