//! What the hanging of one node of a Cluster does to calls and events of the others, and how soon it is noticed.
//!
//! The load is the same before and meanwhile: changes to sessions of all nodes at a fixed pace. How late an event comes is
//! the moment of its arrival less the time in it, both by the one clock of this machine.

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

use support::{
    figures::{Quartiles, now_us, print_table},
    harness::{
        Client, Redis, Watching,
        client::{by_id, text},
        cluster::{Cluster, many, on},
        process::Process,
        servers::aside,
    },
};

/// Measures what the hanging of one node does to the others.
#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Seconds before, and as many while it hangs.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Calls in flight at most, to the hanging node and to the others together.
const WORKERS: usize = 24;
/// Between two calls of a worker.
const PACE: Duration = Duration::from_millis(20);
/// Of a server there are so many, and each is noticed by itself: for calls, for bulk, and of the subscriber.
const CONNECTIONS: usize = 3;
const PATIENT: [&str; 4] = ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "60000"];

type Lateness = Histogram<u64>;

/// In us, before and while the node hangs.
type Both = [Lateness; 2];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Before,
    Meanwhile,
    Over,
}

struct Round {
    /// Of calls to the other nodes.
    calls: Both,
    /// Of their events.
    events: Both,
    /// Of calls to the one that hangs.
    hurt: Both,
    noticed: Duration,
    back: Duration,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let cluster = aside(|| Cluster::start_with(0, &PATIENT)).await;
    let server = Process::start(&[format!("--redis={}", cluster.url())]);
    let client = server.client().await;
    let sessions = many(&client).await;
    let mut rounds = Vec::new();
    for number in 0..arguments.rounds {
        let nodes = cluster.primaries();
        let node = nodes[number % nodes.len()].clone();
        rounds.push(round(&server, &client, &node, &sessions, Duration::from_secs(arguments.seconds)).await);
    }
    report(&rounds);
}

async fn round(server: &Process, client: &Client, node: &Redis, sessions: &[Session], lasts: Duration) -> Round {
    let hurt = on(node, sessions);
    let others: Vec<Session> = sessions.iter().filter(|session| !hurt.contains(session)).cloned().collect();
    let (sender, stage) = watch::channel(Stage::Before);
    let hearing = hear(client.watch_all().await, &others, stage.clone());
    let calling = |sessions: Vec<Session>| {
        let sessions = Arc::<[Session]>::from(sessions);
        join_all((0..WORKERS / 2).map(|worker| call(client.clone(), sessions.clone(), worker, stage.clone())))
    };
    let hanging = async {
        tokio::time::sleep(lasts).await;
        let logged = warnings(server);
        node.pause();
        sender.send_replace(Stage::Meanwhile);
        let paused = Instant::now();
        while warnings(server) < logged + CONNECTIONS {
            assert!(paused.elapsed() < lasts, "it is noticed while it lasts");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let noticed = paused.elapsed();
        tokio::time::sleep(lasts.saturating_sub(noticed)).await;
        sender.send_replace(Stage::Over);
        noticed
    };
    let (events, of_hurt, of_others, noticed) =
        tokio::join!(hearing, calling(hurt.clone()), calling(others.clone()), hanging);
    node.resume();
    let resumed = Instant::now();
    while change(client, &hurt[0]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let back = resumed.elapsed();
    // All connections are, and what waited is told.
    tokio::time::sleep(Duration::from_secs(3)).await;
    Round { calls: sum(of_others), events, hurt: sum(of_hurt), noticed, back }
}

/// How often it was logged that a connection hangs.
fn warnings(server: &Process) -> usize {
    server.log.lock().unwrap().matches("Redis hangs").count()
}

fn empty() -> Both {
    [(); 2].map(|()| Histogram::new(3).expect("three digits"))
}

fn sum(all: Vec<Both>) -> Both {
    let mut sum = empty();
    for both in all {
        sum.iter_mut().zip(both).for_each(|(sum, one)| *sum += one);
    }
    sum
}

async fn change(client: &Client, session: &Session) -> Result<Session, tonic::Status> {
    client.set(by_id(&session.id), &[("at", text(&now_us().to_string()))]).await
}

/// Changes one session after the other until it is over; how long each call took.
async fn call(client: Client, sessions: Arc<[Session]>, worker: usize, stage: watch::Receiver<Stage>) -> Both {
    let (mut took, mut pace) = (empty(), interval(PACE));
    for session in sessions.iter().cycle().skip(worker) {
        pace.tick().await;
        if *stage.borrow() == Stage::Over {
            break;
        }
        let started = Instant::now();
        // Refused or not: how long it took is asked.
        let _ = change(&client, session).await;
        let at = if *stage.borrow() == Stage::Before { Stage::Before } else { Stage::Meanwhile };
        took[at as usize].record(started.elapsed().as_micros() as u64).expect("it fits");
    }
    took
}

/// How late the events of these come.
async fn hear(mut watching: Watching, of: &[Session], mut stage: watch::Receiver<Stage>) -> Both {
    let of: HashSet<&String> = of.iter().map(|session| &session.id).collect();
    let (mut late, mut until) = (empty(), stage.clone());
    loop {
        let event = tokio::select! {
            event = watching.event() => event,
            _ = until.wait_for(|stage| *stage == Stage::Over) => return late,
        };
        let time = event.event_time.expect("every event has one");
        let at = *stage.borrow_and_update();
        if of.contains(&event.id) && at != Stage::Over {
            let time = time.seconds as u64 * 1_000_000 + time.nanos as u64 / 1_000;
            late[at as usize].record(now_us().saturating_sub(time)).expect("it fits");
        }
    }
}

fn report(rounds: &[Round]) {
    let line = |title: &str, of: &dyn Fn(&Round) -> &Both, quantile: f64| {
        let at = |stage: Stage| rounds.iter().map(move |round| of(round)[stage as usize].value_at_quantile(quantile));
        let ms = |stage| Quartiles::of(at(stage).map(|us| us as f64 / 1e3));
        let ratio =
            at(Stage::Before).zip(at(Stage::Meanwhile)).map(|(before, meanwhile)| meanwhile as f64 / before as f64);
        let figures = [ms(Stage::Before), ms(Stage::Meanwhile), Quartiles::of(ratio)];
        [title.to_owned()].into_iter().chain(figures.map(|figure| figure.to_string())).collect::<Vec<_>>()
    };
    print_table(
        &["ms", "before", "while a node hangs", "ratio"],
        &[
            line("calls to the other nodes, p50", &|round| &round.calls, 0.5),
            line("calls to the other nodes, p99", &|round| &round.calls, 0.99),
            line("calls to the other nodes, longest", &|round| &round.calls, 1.0),
            line("events of the other nodes, p50", &|round| &round.events, 0.5),
            line("events of the other nodes, p99", &|round| &round.events, 0.99),
            line("events of the other nodes, latest", &|round| &round.events, 1.0),
            line("calls to the node that hangs, longest", &|round| &round.hurt, 1.0),
        ],
    );
    let seconds = |of: fn(&Round) -> Duration| Quartiles::of(rounds.iter().map(move |round| of(round).as_secs_f64()));
    println!("noticed on the last of its {CONNECTIONS} connections after {} s", seconds(|round| round.noticed));
    println!("the first change at it {} s after it went on", seconds(|round| round.back));
}
