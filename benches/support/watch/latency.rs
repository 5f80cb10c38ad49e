//! Time from a write to its event, on one instance.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use sessiond_client::v1::WatchRequest;

use crate::support::figures::{Goal, Quartiles, print_table};

use super::{
    Options,
    instances::{Instances, ids},
    of_session,
    watchers::{Received, Watchers},
    writer::{Times, Writer},
};

/// Watchers by id, each of a session of its own.
const WATCHERS: usize = 1_000;
/// Updates per second, spread evenly over the sessions.
const PER_SECOND: usize = 1_000;
/// Updates of each session before the measurement, and during it.
const WARM_UP: usize = 2;
const UPDATES: usize = 10;
/// Maximum number of runs.
const RUNS: usize = 3;
const TITLE: &str = "latency";
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];
/// Limit of the 0.99 quantile, in ms.
const GOAL: Goal = Goal::AtMost(5.0);

/// Delays of one run in ms, at each of [`QUANTILES`], then their maximum.
type Delays = [f64; QUANTILES.len() + 1];

/// Returns the delays from this time of each update to the arrival of its event.
fn delays(updates: &[Times], arrivals: &[Instant], from: fn(&Times) -> Instant) -> Delays {
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    for (times, arrival) in updates.iter().zip(arrivals) {
        histogram.record(arrival.duration_since(from(times)).as_nanos() as u64).unwrap();
    }
    let [p50, p99, p999] = QUANTILES.map(|quantile| histogram.value_at_quantile(quantile));
    [p50, p99, p999, histogram.max()].map(|ns| ns as f64 / 1e6)
}

/// Makes the updates of one run. Returns the delays from the sending of the call, and from its scheduled time.
fn run(options: &Options, instances: &Instances) -> [Delays; 2] {
    let ids = ids(&instances.create(WATCHERS));
    let requests: Vec<WatchRequest> = ids.iter().map(|id| of_session(id)).collect();
    let all = WATCHERS * (WARM_UP + UPDATES);
    // Time of arrival of the event of each update in ns since `begin`.
    let arrivals: Arc<[AtomicU64]> = (0..all).map(|_| AtomicU64::new(0)).collect();
    let (begin, received) = (Instant::now(), arrivals.clone());
    let on_response = move |response: &Received<'_>, before: u64| {
        let now = begin.elapsed().as_nanos() as u64;
        for number in before..before + response.events {
            received[number as usize * WATCHERS + response.watcher].store(now, Ordering::Relaxed);
        }
    };
    let address = &instances.writing.address;
    let watchers = Watchers::open_with(&options.runtime, address, &requests, Box::new(on_response));
    let updates = Writer::new(&options.runtime, address, ids).write(all, PER_SECOND);
    watchers.wait_for((WARM_UP + UPDATES) as u64);
    let arrival = |at: &AtomicU64| begin + Duration::from_nanos(at.load(Ordering::Relaxed));
    let arrivals: Vec<Instant> = arrivals.iter().map(arrival).collect();
    let first = WATCHERS * WARM_UP;
    [|times: &Times| times.sent, |times: &Times| times.scheduled]
        .map(|from| delays(&updates[first..], &arrivals[first..], from))
}

/// Measures the runs and prints their table.
pub fn measure(options: &Options) {
    if !options.selects(TITLE) {
        return;
    }
    let instances = Instances::start(&options.program, "");
    let runs: Vec<_> = (0..options.rounds.min(RUNS)).map(|_| run(options, &instances)).collect();
    let quartiles = |row: usize, column: usize| Quartiles::of(runs.iter().map(|run| run[row][column]));
    let line = |(row, title): (usize, &str)| {
        let cells = (0..=QUANTILES.len()).map(|column| quartiles(row, column).to_string());
        // The goal does not cover the time in which the benchmark is late.
        let judged = if row == 0 { GOAL.judge(&quartiles(row, 1)) } else { Default::default() };
        [format!("{TITLE}, {title}")].into_iter().chain(cells).chain(judged).collect()
    };
    let titles = ["from the sending of the call", "from its scheduled time"];
    println!("{WATCHERS} watchers by id, {PER_SECOND} updates per second, {} runs of {UPDATES} s\n", runs.len());
    let head = ["ms until the event arrives", "p50", "p99", "p99.9", "longest", "goal of p99", "met"];
    print_table(&head, &titles.into_iter().enumerate().map(line).collect::<Vec<_>>());
}
