//! How late an expiry is told: ENDED as a gRPC Watch hears it, beside the `expired` events of a bare Redis with as many
//! keys, of which as many fall due in the same window.
//!
//! Lateness is the moment of arrival at the client less the stored deadline, both by the one clock of this machine.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use hdrhistogram::Histogram;
use sessiond_client::v1::{CreateSessionRequest, EventType, SessionView, WatchRequest, watch_response::Control};

use support::{
    cpu,
    figures::{now_us, print_table},
    harness::{
        Watching,
        client::{NAMESPACE, millis, seconds, text, whole_namespace},
        process::Process,
    },
    keyspace::{self, Listener},
    load::{self, Client},
    start_redis,
};

/// Measures how late expiries are told.
#[derive(Parser)]
struct Arguments {
    /// Live sessions, and keys of the bare Redis.
    #[arg(long, env = "SESSIOND_BENCH_SESSIONS", default_value_t = 500_000)]
    sessions: u64,
    /// How many of them fall due.
    #[arg(long, env = "SESSIOND_BENCH_DUE", default_value_t = 20_000)]
    due: u64,
    /// Seconds within which they fall due, evenly.
    #[arg(long, env = "SESSIOND_BENCH_WINDOW", default_value_t = 20)]
    window: u64,
    /// Seconds from the window's beginning until the last event is waited for.
    #[arg(long, env = "SESSIOND_BENCH_PATIENCE", default_value_t = 60)]
    patience: u64,
    /// Sessions made a second, at the least: the window begins when those that fall due are made at this rate.
    #[arg(long, env = "SESSIOND_BENCH_RATE", default_value_t = 1_500)]
    rate: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn quiet(&self) -> u64 {
        self.sessions - self.due
    }
}

/// Of the sessions and keys that do not fall due.
const LONG: Duration = Duration::from_secs(2 * 3600);
const IN_FLIGHT: usize = 64;
const BOOKMARKS_MS: i64 = 1_000;

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let (redis, plain_redis) = (start_redis(), keyspace::start());
    let server = Process::start(&[format!("--redis={}", redis.url())]);
    let clients = load::connect(&server.address).await;

    let started = Instant::now();
    create(&clients, arguments.quiet(), |_| LONG).await;
    let far = now_us() / 1000 + LONG.as_millis() as u64;
    keyspace::populate(&plain_redis, (0..arguments.quiet()).map(|_| far));
    println!("{} sessions and keys that do not fall due: {:.0?}", arguments.quiet(), started.elapsed());

    let lead = Duration::from_millis(arguments.due * 1000 / arguments.rate + 3_000);
    let begin = Instant::now() + lead;
    let begin_ms = now_us() / 1000 + lead.as_millis() as u64;
    let until = begin + Duration::from_secs(arguments.patience);
    let (window_ms, due) = (arguments.window * 1000, arguments.due);
    let moment = move |n: u64| begin_ms + n * window_ms / due;
    let listener = Listener::start(&plain_redis, due, until);
    keyspace::populate(&plain_redis, (0..due).map(moment));
    let watching = watch(&clients[0]).await;
    create(&clients[1..], due, move |n| Duration::from_millis(moment(n).saturating_sub(now_us() / 1000))).await;
    assert!(Instant::now() < begin, "those that fall due were made too slowly; give a lower --rate");

    tokio::time::sleep_until(begin.into()).await;
    let pids = [server.pid(), redis.pid(), plain_redis.pid()];
    let before = pids.map(cpu::used_by);
    let ours = hear(watching, due, until).await;
    let after = pids.map(cpu::used_by);
    let took = begin.elapsed();
    let redis_own = tokio::task::spawn_blocking(|| listener.lateness()).await.unwrap();

    let [server_cpu, redis_cpu, _] = std::array::from_fn(|i| share(after[i] - before[i], took));
    let plain_cpu = share(cpu::used_by(pids[2]) - before[2], begin.elapsed());
    println!("CPU while they fell due: sessiond {server_cpu}, its Redis {redis_cpu}; the bare Redis {plain_cpu}\n");
    let heard = format!("heard of {} within {} s", arguments.due, arguments.patience);
    print_table(
        &["", &heard, "p50, ms late", "p99, ms late", "max, ms late"],
        &[line("ENDED of Watch", &ours), line("`expired` of a bare Redis", &redis_own)],
    );
}

fn share(used: Duration, of: Duration) -> String {
    format!("{:.1} % of a core", 100.0 * used.as_secs_f64() / of.as_secs_f64())
}

fn line(title: &str, lateness: &Histogram<u64>) -> Vec<String> {
    let ms = |us: u64| if lateness.is_empty() { "–".to_owned() } else { format!("{:.1}", us as f64 / 1e3) };
    let [p50, p99] = [0.5, 0.99].map(|quantile| ms(lateness.value_at_quantile(quantile)));
    vec![title.to_owned(), lateness.len().to_string(), p50, p99, ms(lateness.max())]
}

/// Makes sessions, in order as far as many calls in flight allow; the n-th lives as long as told.
async fn create(clients: &[Client], count: u64, life: impl Fn(u64) -> Duration + Copy + Send + Sync + 'static) {
    let next = Arc::new(AtomicU64::new(0));
    load::with_workers(clients, IN_FLIGHT, |mut client, _| {
        let next = next.clone();
        async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                let request = CreateSessionRequest {
                    namespace: NAMESPACE.to_owned(),
                    attributes: [("name".to_owned(), text("0123456789abcdef"))].into(),
                    idle_timeout: seconds(LONG.as_secs() as i64),
                    absolute_timeout: millis(life(n).as_millis() as i64),
                    ..Default::default()
                };
                client.create_session(request).await.expect("a session is made");
            }
        }
    })
    .await;
}

/// A watch of every ending.
async fn watch(client: &Client) -> Watching {
    let request = WatchRequest {
        namespace: NAMESPACE.to_owned(),
        types: vec![EventType::Ended.into()],
        view: SessionView::Basic.into(),
        bookmark_interval: millis(BOOKMARKS_MS),
        ..whole_namespace()
    };
    let mut watching = Watching::new(client.clone().watch(request).await.expect("the watch opens").into_inner());
    watching.bookmark().await;
    watching
}

/// Hears endings until all have come or it is too late; their lateness in us.
async fn hear(mut watching: Watching, endings: u64, until: Instant) -> Histogram<u64> {
    let mut lateness = Histogram::new(3).unwrap();
    while lateness.len() < endings && Instant::now() < until {
        let response = watching.response().await.expect("the watch is open").expect("the watch is open");
        let now = now_us();
        assert!(!matches!(response.control, Some(Control::Resync(_))), "the watch missed changes");
        for event in response.events {
            assert_eq!(event.r#type(), EventType::Ended);
            let due = event.session.and_then(|session| session.expire_time).expect("the last state comes with it");
            let due_us = due.seconds as u64 * 1_000_000 + due.nanos as u64 / 1_000;
            assert!(now >= due_us, "a session ended {} us before its deadline", due_us - now);
            lateness.record(now - due_us).unwrap();
        }
    }
    lateness
}
