//! Whether anything is left in Redis of very many sessions, once the tombstones' time is over.

mod support;

use std::time::{Duration, Instant};

use clap::Parser;

use support::{
    figures::print_table,
    harness::{Client, World, leaks, process::Process},
    load::CONNECTIONS,
    start_redis,
};

/// Lets sessions live and end in every way, many at a time, and counts the keys that are left.
#[derive(Parser)]
struct Arguments {
    /// Lives, some of more than one session.
    #[arg(long, env = "SESSIOND_BENCH_CYCLES", default_value_t = 100_000)]
    cycles: u64,
    /// At a time.
    #[arg(long, default_value_t = 128)]
    workers: u64,
    /// Seconds until the last tombstone must be gone.
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let world = World { redis: start_redis(), prefix: "sessiond:".into() };
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), leaks::POLICY).expect("it is written");
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
                leaks::live(&client, worker, cycle).await.expect("no call fails");
            }
        }));
    }
    for worker in workers {
        worker.await.expect("no worker panics");
    }
    let took = started.elapsed();
    let at_the_end = keys();

    // The logs stay: one of each partition.
    let ended = Instant::now();
    while keys() > 2 * partitions && ended.elapsed() < Duration::from_secs(arguments.patience) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let metrics = server.metrics().await;
    let metric = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or("0").to_owned()
    };
    let left = keys() - 2 * partitions;
    print_table(
        &["", "count"],
        &[
            vec!["cycles".into(), arguments.cycles.to_string()],
            vec!["seconds".into(), format!("{:.0}", took.as_secs_f64())],
            vec!["expired".into(), metric("sessiond_sessions_expired_total")],
            vec!["keys after the last call".into(), at_the_end.to_string()],
            vec!["entries repaired by audits".into(), metric("sessiond_index_repairs_total")],
            vec!["seconds until nothing was left".into(), format!("{:.0}", ended.elapsed().as_secs_f64())],
            vec!["keys left but for meta and logs".into(), left.to_string()],
        ],
    );
    assert_eq!(left, 0, "{:?}", world.leaks());
}
