//! CPU of Redis alone for the commands of each call: no server and no load generator run at the same time.
//!
//! The commands of real calls are recorded, and replayed in every round on the state from before the recording.
//! docs/benchmarks.md describes the method.

mod support;

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use clap::Parser;

use harness::{Redis, process};
use support::{
    baseline,
    figures::{Quartiles, print_table},
    generator::Calls,
    measure::Target,
    recorder::{Recorder, RedisCommand},
    replay::{self, Replay},
    report::{BEFORE, ONE_GET},
    requests::{self, Get, Pool, QUIET, TOUCHED, limited, response_size},
    sessiond::{self, PAYLOADS},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the CPU of Redis alone for the commands of each call.
#[derive(Parser)]
struct Arguments {
    /// Number of rounds: replays of each row.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Number of calls of a replay; a quarter and an eighth of it with 16 and 64 KiB.
    #[arg(long, default_value_t = 2_000)]
    calls: usize,
    /// Replays only the rows whose title starts with this text; can be repeated. Ratios need row (b).
    #[arg(long)]
    only: Vec<String>,
    /// Program whose commands are recorded. Default: the one that was built with the benchmark.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Second program, such as an earlier version: adds its rows.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Number of calls that load the scripts before the recording.
const WARM_UP: usize = 64;
/// Number of recorded calls in flight. With many more, the server sometimes finds Redis slow, and reads with other commands.
const IN_FLIGHT: usize = 8;
/// For each of [`PAYLOADS`], the divisor of the number of calls.
const DIVISORS: [usize; 3] = [1, 4, 8];

const GET: &str = "GetSession by token";
const CREATE: &str = "CreateSession";
const DELETE: &str = "DeleteSession";
const LIFE: &str = "CreateSession + DeleteSession";

/// Maximum of the least CPU in µs per call, in addition to that of another row.
const GOALS: [(&str, f64, Option<&str>); 6] = [
    ("GetSession, touch written", 16.0, Some(GET)),
    ("UpdateSession, 1 KiB", 30.0, None),
    ("UpdateSession, 16 KiB", 75.0, None),
    ("UpdateSession, 64 KiB", 210.0, None),
    (CREATE, 34.0, None),
    (LIFE, 62.0, None),
];

/// Figures of a row, per call.
struct Costs {
    title: String,
    commands: f64,
    bytes: f64,
    /// CPU of the main thread of Redis in µs, one for each round.
    cpu: Vec<f64>,
}

impl Costs {
    fn least(&self) -> f64 {
        self.cpu.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Costs of a call of each kind.
    fn sum(title: String, [first, second]: [&Costs; 2]) -> Self {
        Costs {
            title,
            commands: first.commands + second.commands,
            bytes: first.bytes + second.bytes,
            cpu: first.cpu.iter().zip(&second.cpu).map(|(first, second)| first + second).collect(),
        }
    }
}

/// Recorded calls of one kind, which every round replays.
struct Row {
    redis: Redis,
    replay: Replay,
    calls: f64,
    costs: Costs,
}

impl Row {
    fn new(title: &str, redis: &Redis, calls: usize, commands: &[RedisCommand]) -> Self {
        let reads = commands.iter().filter(|command| command[0] == b"GETEX").count();
        assert!(reads == 0 || reads == calls, "{title}: Redis was too slow; {calls} calls sent {reads} times GETEX");
        let (replay, calls) = (Replay::new(commands), calls as f64);
        let (commands, bytes) = (replay.commands as f64 / calls, replay.bytes as f64 / calls);
        let costs = Costs { title: title.to_owned(), commands, bytes, cpu: Vec::new() };
        Row { redis: redis.clone(), replay, calls, costs }
    }

    /// Returns the CPU of the main thread of Redis, in µs per call.
    fn run(&self) -> f64 {
        self.replay.run(&self.redis).as_secs_f64() * 1e6 / self.calls
    }
}

/// Creates sessions and returns the calls of each row. Each call uses a session of its own: a replayed change has another
/// revision than the recorded one, so a second change of the session would be in conflict with it.
fn rows_of_calls(target: &Target, calls: usize) -> Vec<(&'static str, Calls)> {
    let create = |namespace, kib, sessions| sessiond::create(target, namespace, kib, sessions);
    let pool = || Pool::new(Mutex::new(create(QUIET, 1, calls).to_vec()));
    let get = |form, namespace| {
        limited(calls, requests::get(form, namespace, &create(namespace, 1, calls), response_size(1)))
    };
    let [one, sixteen, sixty_four] = std::array::from_fn(|size| {
        let (kib, calls) = (PAYLOADS[size], calls.div_ceil(DIVISORS[size]));
        limited(calls, requests::update(kib, &create(QUIET, kib, calls)))
    });
    vec![
        (GET, get(Get::Token, QUIET)),
        ("GetSession, touch written", get(Get::TokenAndTouch, TOUCHED)),
        ("UpdateSession, 1 KiB", one),
        ("UpdateSession, 16 KiB", sixteen),
        ("UpdateSession, 64 KiB", sixty_four),
        (CREATE, limited(calls, requests::create(1, QUIET, &Pool::default()))),
        (DELETE, requests::delete(&pool())),
        ("RotateSession", requests::rotate(&pool(), &Pool::default())),
    ]
}

/// Records the calls of each row with this program, and stops it. Its Redis has saved the state from before the recording.
fn record(program: &Path, calls: usize) -> Vec<Row> {
    let (_process, target) = sessiond::start(program);
    let redis = target.redis.as_ref().expect("the program has a Redis");
    for (_, calls) in rows_of_calls(&target, WARM_UP) {
        sessiond::run(&target, calls);
    }
    let rows = rows_of_calls(&target, calls);
    let read = sessiond::create(&target, QUIET, 1, calls);
    baseline::populate(redis, read.iter(), sessiond::mean_response(&target, 1, &read));
    replay::save(redis);

    let one_get: Vec<_> = read.iter().map(baseline::get).collect();
    let one_get = Row::new(ONE_GET, redis, calls, &one_get);
    let record = |(title, calls): (&str, _)| {
        let recorder = Recorder::start(redis);
        let calls = sessiond::run_in_flight(&target, calls, IN_FLIGHT).calls;
        Row::new(title, redis, calls as usize, &recorder.finish(redis))
    };
    std::iter::once(one_get).chain(rows.into_iter().map(record)).collect()
}

/// Returns the ratios to another row in the same rounds. None: that row did not run.
fn ratios(all: &[Costs], costs: &Costs, reference: &str) -> Option<Quartiles> {
    let reference = all.iter().find(|other| other.title == reference)?;
    Some(Quartiles::of(costs.cpu.iter().zip(&reference.cpu).map(|(cpu, reference)| cpu / reference)))
}

fn print_costs(all: &[Costs]) {
    let has_before = all.iter().any(|costs| costs.title.starts_with(BEFORE));
    let cell = |ratios: Option<Quartiles>| ratios.map_or_else(|| "–".to_owned(), |ratios| format!("{ratios:.3}"));
    let line = |costs: &Costs| {
        let mut line = vec![
            costs.title.clone(),
            format!("{:.2}", costs.commands),
            format!("{:.0}", costs.bytes),
            format!("{:.2}", costs.least()),
            format!("{:.3}", Quartiles::of(costs.cpu.iter().copied())),
            cell(ratios(all, costs, ONE_GET)),
        ];
        line.extend(has_before.then(|| cell(ratios(all, costs, &[BEFORE, &costs.title].concat()))));
        line
    };
    let mut head = vec!["CPU of Redis in µs per call", "commands", "bytes received", "least", "median", "ratio to (b)"];
    head.extend(has_before.then_some("ratio to before"));
    print_table(&head, &all.iter().map(line).collect::<Vec<_>>());
}

fn print_goals(all: &[Costs]) {
    let least = |title: &str| all.iter().find(|costs| costs.title == title).map(Costs::least);
    let line = |(title, most, base): &(&str, f64, Option<&str>)| {
        let (least, of_base) = (least(title)?, base.map_or(Some(0.0), least)?);
        let goal = base.map_or_else(|| format!("≤ {most}"), |base| format!("≤ {most} + {base}"));
        let is_met = if least <= most + of_base { "yes" } else { "no" };
        Some(vec![(*title).to_owned(), format!("{least:.2}"), goal, is_met.to_owned()])
    };
    let lines: Vec<_> = GOALS.iter().filter_map(line).collect();
    print_table(&["goals, µs per call", "least", "goal", "met"], &lines);
}

fn main() {
    let Arguments { rounds, calls, only, server, before, .. } = Arguments::parse();
    let now = record(&server.unwrap_or_else(process::program), calls);
    let before = before.map_or_else(Vec::new, |before| record(&before, calls));
    let redises: Vec<Redis> =
        [&now, &before].into_iter().filter_map(|rows| Some(rows.first()?.redis.clone())).collect();
    let (mut rows, mut before) = (Vec::new(), before.into_iter());
    for row in now {
        rows.push(row);
        rows.extend(before.next().map(|mut row| {
            row.costs.title.insert_str(0, BEFORE);
            row
        }));
    }
    rows.retain(|row| only.is_empty() || only.iter().any(|start| row.costs.title.starts_with(start)));

    // The additional first round is a warm-up.
    for round in 0..=rounds {
        redises.iter().for_each(replay::restore);
        let first = round % rows.len();
        for index in (first..rows.len()).chain(0..first) {
            let cpu = rows[index].run();
            if round > 0 {
                rows[index].costs.cpu.push(cpu);
            }
        }
    }

    let mut all: Vec<_> = rows.into_iter().map(|row| row.costs).collect();
    for start in ["", BEFORE] {
        let part = |title| all.iter().find(|costs| costs.title == [start, title].concat());
        if let (Some(create), Some(delete)) = (part(CREATE), part(DELETE)) {
            let life = Costs::sum([start, LIFE].concat(), [create, delete]);
            all.push(life);
        }
    }
    println!("{rounds} rounds of {calls} calls\n");
    print_costs(&all);
    print_goals(&all);
}
