//! Effect of one unresponsive Cluster node on calls to the other nodes and on their events, and the time to detect it.
//!
//! The load is the same before and during the hang: updates of sessions on all nodes at a fixed rate. The delay of an
//! event is its time of arrival minus its event_time, both by the clock of this machine.

mod support;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use sessiond_client::v1::Session;
use tokio::{sync::watch, time::interval};

use harness::{
    Client, Redis, WatchReader,
    client::{by_id, text},
    cluster::{Cluster, create_many, sessions_on},
    process::Process,
    servers::run_blocking,
};
use support::figures::{Quartiles, now_us, print_table};

/// Measures the effect of one unresponsive Cluster node on the others.
#[derive(Parser)]
struct Arguments {
    /// Number of rounds.
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Length of each phase, before and during the hang, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Maximum number of calls in flight to all nodes. Half of the workers use the node that hangs.
const WORKERS: usize = 24;
/// Minimum time between two calls of a worker.
const CALL_INTERVAL: Duration = Duration::from_millis(20);
/// Settings with which the Cluster does not react to the hang.
const NO_FAILOVER: [&str; 4] = ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "60000"];

type Delays = Histogram<u64>;

/// Delays in µs before and during the hang.
type BeforeAndDuring = [Delays; 2];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    During,
    After,
}

struct Round {
    /// Durations of calls to the other nodes.
    calls: BeforeAndDuring,
    /// Delays of events of the other nodes.
    events: BeforeAndDuring,
    /// Durations of calls to the node that hangs.
    unresponsive: BeforeAndDuring,
    /// Time until the last connection detected the hang.
    detected: Duration,
    /// Time from the resume until the first successful update.
    recovered: Duration,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let cluster = run_blocking(|| Cluster::start_with(0, &NO_FAILOVER)).await;
    let server = Process::start(&[format!("--redis={}", cluster.url())]);
    let client = server.client().await;
    let sessions = create_many(&client).await;
    let mut rounds = Vec::new();
    for number in 0..arguments.rounds {
        let nodes = cluster.primaries();
        let node = nodes[number % nodes.len()].clone();
        rounds.push(round(&server, &client, &node, &sessions, Duration::from_secs(arguments.seconds)).await);
    }
    report(&rounds);
}

async fn round(server: &Process, client: &Client, node: &Redis, sessions: &[Session], length: Duration) -> Round {
    let unresponsive = sessions_on(node, sessions);
    let others: Vec<Session> = sessions.iter().filter(|session| !unresponsive.contains(session)).cloned().collect();
    let (sender, phase) = watch::channel(Phase::Before);
    let receiving = receive(client.watch_all().await, &others, phase.clone());
    let calling = |sessions: Vec<Session>| {
        let sessions = Arc::<[Session]>::from(sessions);
        join_all((0..WORKERS / 2).map(|worker| call(client.clone(), sessions.clone(), worker, phase.clone())))
    };
    let hanging = async {
        tokio::time::sleep(length).await;
        let logged = warnings(server);
        node.pause();
        sender.send_replace(Phase::During);
        let paused = Instant::now();
        while warnings(server) == logged {
            assert!(paused.elapsed() < length, "the hang is detected within the phase");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let detected = paused.elapsed();
        tokio::time::sleep(length.saturating_sub(detected)).await;
        sender.send_replace(Phase::After);
        detected
    };
    let (events, unresponsive_calls, other_calls, detected) =
        tokio::join!(receiving, calling(unresponsive.clone()), calling(others.clone()), hanging);
    node.resume();
    let resumed = Instant::now();
    while change(client, &unresponsive[0]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let recovered = resumed.elapsed();
    // Wait until all connections are restored and delayed events are delivered.
    tokio::time::sleep(Duration::from_secs(3)).await;
    Round { calls: sum(other_calls), events, unresponsive: sum(unresponsive_calls), detected, recovered }
}

/// Returns the number of log lines about an unresponsive connection.
fn warnings(server: &Process) -> usize {
    server.log.lock().unwrap().matches("Redis unresponsive; reconnecting").count()
}

fn empty() -> BeforeAndDuring {
    [(); 2].map(|()| Histogram::new(3).expect("three significant digits are valid"))
}

fn sum(all: Vec<BeforeAndDuring>) -> BeforeAndDuring {
    let mut sum = empty();
    for both in all {
        sum.iter_mut().zip(both).for_each(|(sum, one)| *sum += one);
    }
    sum
}

async fn change(client: &Client, session: &Session) -> Result<Session, tonic::Status> {
    client.set(by_id(&session.id), &[("at", text(&now_us().to_string()))]).await
}

/// Updates the sessions in turn until the round ends; returns the duration of each call.
async fn call(
    client: Client,
    sessions: Arc<[Session]>,
    worker: usize,
    phase: watch::Receiver<Phase>,
) -> BeforeAndDuring {
    let (mut durations, mut pace) = (empty(), interval(CALL_INTERVAL));
    for session in sessions.iter().cycle().skip(worker) {
        pace.tick().await;
        if *phase.borrow() == Phase::After {
            break;
        }
        let started = Instant::now();
        // The duration counts, whether the call succeeds or fails.
        let _ = change(&client, session).await;
        let at = if *phase.borrow() == Phase::Before { Phase::Before } else { Phase::During };
        durations[at as usize].record(started.elapsed().as_micros() as u64).expect("the histogram resizes itself");
    }
    durations
}

/// Receives events; returns the delays of those of these sessions.
async fn receive(
    mut watching: WatchReader,
    sessions: &[Session],
    mut phase: watch::Receiver<Phase>,
) -> BeforeAndDuring {
    let ids: HashSet<&String> = sessions.iter().map(|session| &session.id).collect();
    let (mut delays, mut until) = (empty(), phase.clone());
    loop {
        let event = tokio::select! {
            event = watching.event() => event,
            _ = until.wait_for(|phase| *phase == Phase::After) => return delays,
        };
        let time = event.event_time.expect("every event has a time");
        let at = *phase.borrow_and_update();
        if ids.contains(&event.id) && at != Phase::After {
            let time = time.seconds as u64 * 1_000_000 + time.nanos as u64 / 1_000;
            delays[at as usize].record(now_us().saturating_sub(time)).expect("the histogram resizes itself");
        }
    }
}

fn report(rounds: &[Round]) {
    let line = |title: &str, figure: &dyn Fn(&Round) -> &BeforeAndDuring, quantile: f64| {
        let at =
            |phase: Phase| rounds.iter().map(move |round| figure(round)[phase as usize].value_at_quantile(quantile));
        let ms = |phase| Quartiles::of(at(phase).map(|us| us as f64 / 1e3));
        let ratio = at(Phase::Before).zip(at(Phase::During)).map(|(before, during)| during as f64 / before as f64);
        let figures = [ms(Phase::Before), ms(Phase::During), Quartiles::of(ratio)];
        [title.to_owned()].into_iter().chain(figures.map(|quartiles| quartiles.to_string())).collect::<Vec<_>>()
    };
    print_table(
        &["ms", "before", "during the hang", "ratio"],
        &[
            line("calls to the other nodes, p50", &|round| &round.calls, 0.5),
            line("calls to the other nodes, p99", &|round| &round.calls, 0.99),
            line("calls to the other nodes, longest", &|round| &round.calls, 1.0),
            line("events of the other nodes, p50", &|round| &round.events, 0.5),
            line("events of the other nodes, p99", &|round| &round.events, 0.99),
            line("events of the other nodes, longest", &|round| &round.events, 1.0),
            line("calls to the unresponsive node, longest", &|round| &round.unresponsive, 1.0),
        ],
    );
    let seconds =
        |figure: fn(&Round) -> Duration| Quartiles::of(rounds.iter().map(move |round| figure(round).as_secs_f64()));
    println!("the hang was detected after {} s", seconds(|round| round.detected));
    println!("first successful update {} s after the node resumed", seconds(|round| round.recovered));
}
