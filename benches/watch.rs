//! Watches: the cost of a delivered event, compared with a bare stream; the memory of an idle watcher; the time from a
//! write to its event.
//!
//! docs/benchmarks.md describes the rows.

mod support;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use harness::process;
use support::{
    baseline::Baseline,
    watch::{Options, fan_out, growth, latency, memory, others},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures watches.
#[derive(Parser)]
struct Arguments {
    /// Number of rounds: slices of each row.
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// Length of a slice, in ms.
    #[arg(long, default_value_t = 1_500)]
    slice: u64,
    /// Runs only the rows whose title starts with this text; can be repeated. Ratios need the rows of the bare stream.
    #[arg(long)]
    only: Vec<String>,
    /// Program that is measured. Default: the one that was built with the benchmark.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    baseline: Option<Baseline>,
}

/// Number of threads of the runtime of watchers and writers.
const THREADS: usize = 2;

/// Raises the limit of open files of the process: each connection of watchers is one.
fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the limit can be raised to the hard one");
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(baseline) = arguments.baseline {
        return baseline.serve();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let options = Options {
        runtime: runtime.expect("the runtime starts"),
        program: arguments.server.unwrap_or_else(process::program),
        rounds: arguments.rounds,
        slice: Duration::from_millis(arguments.slice),
        only: arguments.only,
    };
    println!("{} rounds of {} ms\n", options.rounds, options.slice.as_millis());
    raise_descriptor_limit();
    fan_out::measure(&options);
    memory::measure(&options);
    latency::measure(&options);
    others::measure(&options);
    others::measure_feed(&options);
    growth::measure(&options);
}
