//! Answers from memory: their cost, what they spare Redis while other sessions change, and the bound of their memory.
//!
//! docs/benchmarks.md describes the rows.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use harness::process::{self, Process};
use support::{
    baseline::{self, Baseline},
    cpu,
    figures::{Quartiles, print_table},
    generator::{Calls, Generator},
    load::CONNECTIONS,
    measure::{Slice, Target, in_rounds},
    memory::resident,
    requests::{self, Get, QUIET, Sessions, response_size},
    sessiond::{create, mean_response, run, start},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sessions that are read again and again.
const HOT: usize = 1_000;
/// Writes per second to other sessions.
const WRITES: usize = 1_000;
/// Length of a slice with writes.
const SLICE_WITH_WRITES: Duration = Duration::from_secs(2);
/// Maximum size of the copies by default.
const CACHE_BYTES: u64 = 64 << 20;
/// Reads of the zipf load.
const ZIPF_READS: usize = 1_000_000;

/// Measures answers from memory.
#[derive(Parser)]
struct Arguments {
    /// Number of rounds: slices of each row.
    #[arg(long, default_value_t = 16)]
    rounds: usize,
    /// Length of a slice without writes, in ms.
    #[arg(long, default_value_t = 400)]
    slice: u64,
    /// Number of different sessions that are read for the bound of the memory.
    #[arg(long, default_value_t = 1_000_000)]
    distinct: usize,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    baseline: Option<Baseline>,
}

/// Calls to one server, of which each round measures a slice.
struct Row<'a> {
    title: &'static str,
    target: &'a Target,
    calls: Calls,
    slices: Vec<Slice>,
}

fn get(form: Get, sessions: &Sessions) -> Calls {
    requests::get(form, QUIET, sessions, response_size(1))
}

/// Cost of an answer, compared with a server that returns a constant.
fn print_costs(target: &Target, hot: &Sessions, rounds: usize, length: Duration) {
    let bytes = mean_response(target, 1, hot);
    let constant = baseline::Process::start(&Baseline::Constant { bytes });
    let bare = Target::new(constant.pid(), constant.address.clone(), None);
    let constant_calls = requests::get(Get::Token, QUIET, hot, bytes..=bytes);
    let row = |title, target, calls| Row { title, target, calls, slices: Vec::new() };
    let mut rows = [
        row("(a) constant reply", &bare, constant_calls),
        row("GetSession from memory", target, get(Get::Memory, hot)),
        row("GetSession from memory, touch not due", target, get(Get::MemoryAndTouch, hot)),
        row("GetSession from Redis", target, get(Get::Token, hot)),
    ];
    let run = |row: &Row<'_>| Slice::run(row.target, CONNECTIONS, &row.calls, length);
    in_rounds(&mut rows, rounds, run, |row| &mut row.slices);
    let figure = |row: &Row<'_>, of: fn(&Slice) -> f64| format!("{:.3}", Quartiles::of(row.slices.iter().map(of)));
    let ratio = |row: &Row<'_>, of: fn(&Slice) -> f64| {
        let pairs = row.slices.iter().zip(&rows[0].slices);
        format!("{:.3}", Quartiles::of(pairs.map(|(slice, constant)| of(slice) / of(constant))))
    };
    let lines = rows.iter().map(|row| {
        vec![
            row.title.to_owned(),
            figure(row, |slice| slice.rate),
            figure(row, |slice| slice.server),
            row.target.redis.as_ref().map_or("–".into(), |_| figure(row, |slice| slice.redis)),
            ratio(row, |slice| slice.rate),
            ratio(row, |slice| slice.server),
        ]
    });
    let head = ["", "calls per second", "server CPU, µs", "Redis CPU, µs", "rate to (a)", "server CPU to (a)"];
    println!("A response of (a) has {bytes} bytes.\n");
    print_table(&head, &lines.collect::<Vec<_>>());
}

/// Sends updates of these sessions at the rate [`WRITES`] until `stop`.
fn write_elsewhere(target: &Target, sessions: &Sessions, stop: &AtomicBool) {
    let left = Arc::new(AtomicUsize::new(0));
    let calls = requests::within(&left, requests::update(1, sessions));
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        left.store(WRITES / 50, Ordering::Relaxed);
        Generator::open(&target.address, 1, calls.method).run(&calls, WRITES / 50, Duration::from_secs(10));
        thread::sleep(Duration::from_millis(20).saturating_sub(begun.elapsed()));
    }
}

/// Why a read is not answered from memory.
const MISSES: [&str; 6] = ["absent", "revision", "old", "unverified", "touch", "script"];

fn metrics(process: &Process) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(process.metrics())
}

/// Number of reads with this result.
fn cache_reads(process: &Process, result: &str) -> f64 {
    let metrics = metrics(process);
    let name = format!("sessiond_cache_reads_total{{result=\"{result}\"}} ");
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(&name))
        .map_or(0.0, |count| count.trim().parse().expect("a number"))
}

/// A slice with writes to other sessions. Redis CPU in µs of the whole slice, reads, and hits.
fn slice_with_writes(process: &Process, target: &Target, others: &Sessions, reads: Option<&Calls>) -> [f64; 3] {
    let redis = target.redis.as_ref().expect("a Redis").pid();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| write_elsewhere(target, others, &stop));
        let (hits, used) = (cache_reads(process, "hit"), cpu::used_by(redis));
        let calls = match reads {
            Some(calls) => {
                Generator::open(&target.address, CONNECTIONS, calls.method).run(calls, 32, SLICE_WITH_WRITES).calls
            }
            None => {
                thread::sleep(SLICE_WITH_WRITES);
                0
            }
        };
        let used = cpu::used_by(redis) - used;
        stop.store(true, Ordering::Relaxed);
        [used.as_secs_f64() * 1e6, calls as f64, cache_reads(process, "hit") - hits]
    })
}

/// What reads cost Redis while other sessions change.
fn print_with_writes(process: &Process, target: &Target, hot: &Sessions, rounds: usize) {
    let others = create(target, QUIET, 1, HOT);
    let misses_before = MISSES.map(|reason| cache_reads(process, reason));
    let mut all_reads = 0.0;
    let (from_redis, from_memory) = (get(Get::TokenAndTouch, hot), get(Get::MemoryAndTouch, hot));
    let (mut per_read, mut per_read_from_memory, mut ratio, mut hit_rate) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let [alone, ..] = slice_with_writes(process, target, &others, None);
        let [used, reads, _] = slice_with_writes(process, target, &others, Some(&from_redis));
        let [used_from_memory, reads_from_memory, hits] =
            slice_with_writes(process, target, &others, Some(&from_memory));
        let cost = (used - alone) / reads;
        let cost_from_memory = (used_from_memory - alone) / reads_from_memory;
        per_read.push(cost);
        per_read_from_memory.push(cost_from_memory);
        ratio.push(cost_from_memory / cost);
        hit_rate.push(100.0 * hits / reads_from_memory);
        all_reads += reads_from_memory;
    }
    let misses = MISSES
        .iter()
        .zip(misses_before)
        .map(|(reason, before)| format!("{reason} {:.2}", 100.0 * (cache_reads(process, reason) - before) / all_reads));
    let misses = misses.collect::<Vec<_>>().join(", ");
    let cell = |values: Vec<f64>| format!("{:.3}", Quartiles::of(values.into_iter()));
    print_table(
        &["1,000 hot sessions, touch asked, 1,000 writes/s elsewhere", ""],
        &[
            vec!["Redis CPU per read from Redis, µs".into(), cell(per_read)],
            vec!["Redis CPU per read with min_revision, µs".into(), cell(per_read_from_memory)],
            vec!["ratio".into(), cell(ratio)],
            vec!["hit rate, %".into(), cell(hit_rate)],
            vec!["misses by reason, % of all reads".into(), misses],
        ],
    );
}

/// Turns of a zipf distribution with exponent 1: rank r is read in proportion to 1/r. The approximation of the inverse
/// cumulative distribution is exact enough for a load.
fn zipf_rank(number: u64, ranks: usize) -> usize {
    // A multiplicative hash as the source of uniform numbers.
    let uniform = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64;
    ((ranks as f64).powf(uniform) - 1.0) as usize
}

/// The bound of the memory, and the hit rate of a load with few popular sessions.
fn print_bound(distinct: usize) {
    let (process, target) = start(&process::program());
    let sessions = create(&target, QUIET, 1, distinct);
    let before = resident(target.pid);
    run(&target, requests::limited(distinct, get(Get::Memory, &sessions)));
    let grown = resident(target.pid).saturating_sub(before);
    let (reads, count) = (AtomicU64::new(0), distinct);
    let next = move || sessions[zipf_rank(reads.fetch_add(1, Ordering::Relaxed), count)];
    let calls = requests::get_by(Get::Memory, QUIET, response_size(1), next);
    let before = cache_reads(&process, "hit");
    let made = run(&target, requests::limited(ZIPF_READS, calls)).calls as f64;
    let hits = cache_reads(&process, "hit") - before;
    print_table(
        &[&format!("{distinct} sessions of 1 KiB, cache_bytes 64 MiB"), ""],
        &[
            vec![
                "growth of the server, in multiples of cache_bytes".into(),
                format!("{:.2}", grown as f64 / CACHE_BYTES as f64),
            ],
            vec![
                format!("hit rate of {ZIPF_READS} reads, zipf with exponent 1, %"),
                format!("{:.1}", 100.0 * hits / made),
            ],
        ],
    );
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(baseline) = arguments.baseline {
        return baseline.serve();
    }
    let (process, target) = start(&process::program());
    let hot = create(&target, QUIET, 1, HOT);
    print_costs(&target, &hot, arguments.rounds, Duration::from_millis(arguments.slice));
    print_with_writes(&process, &target, &hot, arguments.rounds.min(8));
    if arguments.distinct > 0 {
        print_bound(arguments.distinct);
    }
}
