//! Delay of expiry: ENDED events of a gRPC Watch, of sessions that expire evenly over a window and of as many that expire at
//! one instant. For comparison, the `expired` events of a plain Redis with as many keys that expire in the same window.
//!
//! The delay is the time of arrival at the client minus the stored deadline, both by the clock of this machine.

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

use harness::{
    WatchReader,
    client::{NAMESPACE, millis, seconds, text, whole_namespace},
    process::Process,
};
use support::{
    cpu,
    figures::{now_us, print_table},
    keyspace::{self, Listener},
    load::{self, Client},
    start_redis,
};

/// Measures the delay of ENDED events after the deadline.
#[derive(Parser)]
struct Arguments {
    /// Number of live sessions, and of keys of the plain Redis.
    #[arg(long, env = "SESSIOND_BENCH_SESSIONS", default_value_t = 500_000)]
    sessions: u64,
    /// Number of them that expire in the window, and again at one instant.
    #[arg(long, env = "SESSIOND_BENCH_DUE", default_value_t = 20_000)]
    due: u64,
    /// Length of the window in which they expire, evenly distributed, in seconds.
    #[arg(long, env = "SESSIOND_BENCH_WINDOW", default_value_t = 20)]
    window: u64,
    /// Maximum wait for events from the start of the window, in seconds.
    #[arg(long, env = "SESSIOND_BENCH_PATIENCE", default_value_t = 60)]
    patience: u64,
    /// Minimum number of sessions created per second: it determines the start of the window.
    #[arg(long, env = "SESSIOND_BENCH_RATE", default_value_t = 1_500)]
    rate: u64,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn not_due(&self) -> u64 {
        self.sessions - self.due
    }
}

/// Window in which sessions expire, evenly distributed.
#[derive(Clone, Copy)]
struct Window {
    begin: Instant,
    /// Begin in ms since the epoch.
    begin_ms: u64,
    length_ms: u64,
    sessions: u64,
    /// End of the wait for their events.
    until: Instant,
}

impl Window {
    /// A window that begins when its sessions can have been created.
    fn new(arguments: &Arguments, length_ms: u64) -> Self {
        let lead = Duration::from_millis(arguments.due * 1000 / arguments.rate + 3_000);
        let (begin, begin_ms) = (Instant::now() + lead, now_us() / 1000 + lead.as_millis() as u64);
        let until = begin + Duration::from_secs(arguments.patience);
        Window { begin, begin_ms, length_ms, sessions: arguments.due, until }
    }

    /// Deadline of the n-th session in ms since the epoch.
    fn deadline(self, n: u64) -> u64 {
        self.begin_ms + n * self.length_ms / self.sessions
    }

    /// Creates the sessions, and returns a watch of their ends when the window begins.
    async fn fill(self, clients: &[Client]) -> WatchReader {
        let watching = watch(&clients[0]).await;
        let lifetime = move |n| Duration::from_millis(self.deadline(n).saturating_sub(now_us() / 1000));
        create(&clients[1..], self.sessions, lifetime).await;
        assert!(Instant::now() < self.begin, "creating the sessions took too long; use a lower --rate");
        tokio::time::sleep_until(self.begin.into()).await;
        watching
    }
}

/// Lifetime of the sessions and keys that do not expire during the benchmark.
const LONG_LIFETIME: Duration = Duration::from_secs(2 * 3600);
/// Number of create calls in flight per connection.
const IN_FLIGHT: usize = 64;
const BOOKMARK_INTERVAL_MS: i64 = 1_000;

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let (redis, plain_redis) = (start_redis(), keyspace::start());
    let server = Process::start(&[format!("--redis={}", redis.url())]);
    let clients = load::connect(&server.address).await;

    let started = Instant::now();
    create(&clients, arguments.not_due(), |_| LONG_LIFETIME).await;
    let far = now_us() / 1000 + LONG_LIFETIME.as_millis() as u64;
    keyspace::populate(&plain_redis, (0..arguments.not_due()).map(|_| far));
    println!("{} sessions and keys that do not expire: {:.0?}", arguments.not_due(), started.elapsed());

    let spread = Window::new(&arguments, arguments.window * 1000);
    let listener = Listener::start(&plain_redis, arguments.due, spread.until);
    keyspace::populate(&plain_redis, (0..arguments.due).map(|n| spread.deadline(n)));
    let watching = spread.fill(&clients).await;
    let pids = [server.pid(), redis.pid(), plain_redis.pid()];
    let before = pids.map(cpu::used_by);
    let spread_delays = receive(watching, &spread).await;
    let after = pids.map(cpu::used_by);
    let took = spread.begin.elapsed();
    let redis_delays = tokio::task::spawn_blocking(|| listener.delays()).await.unwrap();

    let [server_cpu, redis_cpu, _] = std::array::from_fn(|i| share(after[i] - before[i], took));
    let plain_cpu = share(cpu::used_by(pids[2]) - before[2], spread.begin.elapsed());
    let burst = Window::new(&arguments, 0);
    let watching = burst.fill(&clients).await;
    let burst_delays = receive(watching, &burst).await;
    println!("CPU during the window: sessiond {server_cpu}, its Redis {redis_cpu}; the plain Redis {plain_cpu}\n");
    let received = format!("received of {} within {} s", arguments.due, arguments.patience);
    print_table(
        &["", &received, "delay p50, ms", "delay p99, ms", "delay max, ms"],
        &[
            line("ENDED of Watch", &spread_delays),
            line("ENDED of Watch, all at one instant", &burst_delays),
            line("`expired` of a plain Redis", &redis_delays),
        ],
    );
}

fn share(used: Duration, of: Duration) -> String {
    format!("{:.1} % of a core", 100.0 * used.as_secs_f64() / of.as_secs_f64())
}

fn line(title: &str, delays: &Histogram<u64>) -> Vec<String> {
    let ms = |us: u64| if delays.is_empty() { "–".to_owned() } else { format!("{:.1}", us as f64 / 1e3) };
    let [p50, p99] = [0.5, 0.99].map(|quantile| ms(delays.value_at_quantile(quantile)));
    vec![title.to_owned(), delays.len().to_string(), p50, p99, ms(delays.max())]
}

/// Creates sessions concurrently; `lifetime` returns the absolute timeout of the n-th one.
async fn create(clients: &[Client], count: u64, lifetime: impl Fn(u64) -> Duration + Copy + Send + Sync + 'static) {
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
                    idle_timeout: seconds(LONG_LIFETIME.as_secs() as i64),
                    absolute_timeout: millis(lifetime(n).as_millis() as i64),
                    ..Default::default()
                };
                client.create_session(request).await.expect("the session is created");
            }
        }
    })
    .await;
}

/// Opens a watch of all ENDED events.
async fn watch(client: &Client) -> WatchReader {
    let request = WatchRequest {
        namespace: NAMESPACE.to_owned(),
        types: vec![EventType::Ended.into()],
        view: SessionView::Basic.into(),
        bookmark_interval: millis(BOOKMARK_INTERVAL_MS),
        ..whole_namespace()
    };
    let mut watching = WatchReader::new(client.clone().watch(request).await.expect("the watch opens").into_inner());
    watching.bookmark().await;
    watching
}

/// Receives ENDED events until all have arrived or the wait is over; returns their delays in µs.
async fn receive(mut watching: WatchReader, window: &Window) -> Histogram<u64> {
    let mut delays = Histogram::new(3).unwrap();
    while delays.len() < window.sessions && Instant::now() < window.until {
        let response = watching.response().await.expect("the watch is open").expect("the watch is open");
        let now = now_us();
        assert!(!matches!(response.control, Some(Control::Resync(_))), "the watch received a resync");
        for event in response.events {
            assert_eq!(event.r#type(), EventType::Ended);
            let due = event.session.and_then(|session| session.expire_time).expect("the event has the last state");
            let due_us = due.seconds as u64 * 1_000_000 + due.nanos as u64 / 1_000;
            assert!(now >= due_us, "a session ended {} us before its deadline", due_us - now);
            delays.record(now - due_us).unwrap();
        }
    }
    delays
}
