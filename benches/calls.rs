//! Cost of a call: CPU of the server, CPU of Redis and calls per second, compared with two bare tonic servers.
//!
//! A round runs each row for a short slice and starts with a different row than the previous round. Figures are medians
//! and quartiles over the rounds; ratios are computed within a round. docs/benchmarks.md describes the rows.

mod support;

use std::{path::PathBuf, time::Duration};

use clap::Parser;

use harness::process;
use support::{
    baseline::{self, Baseline},
    generator::Calls,
    measure::{Slice, Target, in_rounds, start_redis},
    report::{self, ONE_GET, Series},
    requests::{self, Get, Pool, QUIET, Sessions, TOUCHED, response_size},
    sessiond::{PAYLOADS, Sessiond},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the cost of calls.
#[derive(Parser)]
struct Arguments {
    /// Number of rounds: slices of each row.
    #[arg(long, default_value_t = 16)]
    rounds: usize,
    /// Length of a slice, in ms.
    #[arg(long, default_value_t = 400)]
    slice: u64,
    /// Number of connections of the rows whose title names no number.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Number of sessions of the cold set.
    #[arg(long, default_value_t = 200_000)]
    sessions: usize,
    /// Runs only the rows whose title starts with this text; can be repeated. Ratios need the rows (a) and (b).
    #[arg(long)]
    only: Vec<String>,
    /// Program that is measured. Default: the one that was built with the benchmark.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Second program, such as an earlier version: adds its rows.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    baseline: Option<Baseline>,
}

/// Sessions that are created before a slice whose calls use them up, for each ms of the slice.
const USED_UP_PER_MS: u64 = 12;

/// Calls to one server, of which each round measures a slice.
struct Row<'a> {
    target: &'a Target,
    connections: usize,
    calls: Calls,
    /// Server whose `created` sessions the calls use up.
    uses_up: Option<&'a Sessiond>,
    series: Series,
}

impl<'a> Row<'a> {
    fn new(title: &str, target: &'a Target, connections: usize, calls: Calls) -> Self {
        let references = [CONSTANT.to_owned(), ONE_GET.to_owned()];
        let has_redis = target.redis.is_some();
        let series = Series { title: title.to_owned(), references, has_redis, slices: Vec::new() };
        Row { target, connections, calls, uses_up: None, series }
    }

    fn run(&self, length: u64) -> Slice {
        if let Some(sessiond) = self.uses_up {
            sessiond.provide((USED_UP_PER_MS * length) as usize);
        }
        Slice::run(self.target, self.connections, &self.calls, Duration::from_millis(length))
    }
}

const CONSTANT: &str = "(a) constant reply";
/// Ends of the titles of reads that are compared with rows (a) and (b) of their own.
const COLD: &str = ", cold set";
const ONE_CONNECTION: &str = ", 1 connection";
const OF_16_KIB: &str = ", 16 KiB";
const OF_64_KIB: &str = ", 64 KiB";

/// The two bare tonic servers.
struct Baselines {
    _processes: [baseline::Process; 2],
    constant: Target,
    one_get: Target,
    /// Sizes of a response for the payloads of sessions. That of (a) is the first one.
    bytes: [usize; 3],
}

impl Baselines {
    /// Starts the servers, with responses of the mean size and a key for each session.
    fn start(sessiond: &Sessiond) -> Self {
        let (bytes, redis) = (sessiond.mean_responses(), start_redis());
        baseline::populate(&redis, sessiond.hot.iter().chain(sessiond.cold.iter()), bytes[0]);
        for (sessions, bytes) in sessiond.updated.iter().zip(bytes) {
            baseline::populate(&redis, sessions.iter(), bytes);
        }
        let constant = baseline::Process::start(&Baseline::Constant { bytes: bytes[0] });
        let one_get = baseline::Process::start(&Baseline::Get { redis: redis.url() });
        let target = |process: &baseline::Process, redis| Target::new(process.pid(), process.address.clone(), redis);
        Baselines {
            constant: target(&constant, None),
            one_get: target(&one_get, Some(redis)),
            _processes: [constant, one_get],
            bytes,
        }
    }

    fn rows(&self, sessiond: &Sessiond, connections: usize) -> Vec<Row<'_>> {
        let [one, sixteen, sixty_four] = self.bytes.map(|bytes| bytes..=bytes);
        let get = |sessions: &Sessions, size| requests::get(Get::Token, QUIET, sessions, size);
        let hot = || get(&sessiond.hot, one.clone());
        let one_get = |end: &str, calls| Row::new(&[ONE_GET, end].concat(), &self.one_get, connections, calls);
        vec![
            Row::new(CONSTANT, &self.constant, connections, hot()),
            one_get("", hot()),
            one_get(OF_16_KIB, get(&sessiond.updated[1], sixteen)),
            one_get(OF_64_KIB, get(&sessiond.updated[2], sixty_four)),
            one_get(COLD, get(&sessiond.cold, one.clone())),
            Row::new(&[CONSTANT, ONE_CONNECTION].concat(), &self.constant, 1, hot()),
            Row { connections: 1, ..one_get(ONE_CONNECTION, hot()) },
        ]
    }
}

fn sessiond_rows<'a>(sessiond: &'a Sessiond, connections: usize) -> Vec<Row<'a>> {
    let row = |title: &str, calls| Row::new(title, &sessiond.target, connections, calls);
    let uses_up = |title: &str, calls| Row { uses_up: Some(sessiond), ..row(title, calls) };
    let get = |form, sessions| requests::get(form, QUIET, sessions, response_size(1));
    let hot = &sessiond.hot;
    let touched = requests::get(Get::TokenAndTouch, TOUCHED, &sessiond.touched, response_size(1));
    let of_each_size = |calls: fn(usize, &Sessions) -> Calls| {
        std::array::from_fn(|size| calls(PAYLOADS[size], &sessiond.updated[size]))
    };
    let [_, get_16, get_64] =
        of_each_size(|kib, sessions| requests::get(Get::Token, QUIET, sessions, response_size(kib)));
    let [update_1, update_16, update_64] = of_each_size(requests::update);
    let by_token = "GetSession by token";
    vec![
        row(by_token, get(Get::Token, hot)),
        row("GetSession, touch not due", get(Get::TokenAndTouch, hot)),
        row("GetSession by id", get(Get::Id, hot)),
        row("GetSession, BASIC view", get(Get::BasicView, hot)),
        row("GetSession, 64 request ids", get(Get::Token, &sessiond.with_request_ids)),
        row("GetSession, 16 superseded tokens", get(Get::Token, &sessiond.with_superseded_tokens)),
        row("GetSession, touch written", touched),
        row("UpdateSession, 1 KiB", update_1),
        row("UpdateSession, 16 KiB", update_16),
        row("UpdateSession, 64 KiB", update_64),
        row("CreateSession", requests::create(1, QUIET, &sessiond.created)),
        uses_up("RotateSession", requests::rotate(&sessiond.created, &Pool::default())),
        uses_up("DeleteSession", requests::delete(&sessiond.created)),
        row(&[by_token, OF_16_KIB].concat(), get_16),
        row(&[by_token, OF_64_KIB].concat(), get_64),
        row(&[by_token, COLD].concat(), get(Get::Token, &sessiond.cold)),
        Row { connections: 1, ..row(&[by_token, ONE_CONNECTION].concat(), get(Get::Token, hot)) },
    ]
}

/// Directs the ratios of reads with such titles to their own rows (a) and (b). There is no (a) of 16 and 64 KiB.
fn set_references(series: &mut Series) {
    if series.title.contains("UpdateSession") {
        return;
    }
    let own = [COLD, ONE_CONNECTION, OF_16_KIB, OF_64_KIB].into_iter().find(|end| series.title.ends_with(end));
    let [constant, one_get] = &mut series.references;
    one_get.push_str(own.unwrap_or_default());
    constant.push_str(own.filter(|end| *end != COLD).unwrap_or_default());
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(baseline) = arguments.baseline {
        return baseline.serve();
    }

    let start = |program: &PathBuf| Sessiond::start(program, arguments.sessions);
    let sessiond = start(arguments.server.as_ref().unwrap_or(&process::program()));
    let before = arguments.before.as_ref().map(start);
    let baselines = Baselines::start(&sessiond);

    let mut rows = baselines.rows(&sessiond, arguments.connections);
    let mut rows_before = before.iter().flat_map(|before| sessiond_rows(before, arguments.connections));
    for row in sessiond_rows(&sessiond, arguments.connections) {
        rows.push(row);
        rows.extend(rows_before.next().map(|mut row| {
            row.series.title.insert_str(0, report::BEFORE);
            row
        }));
    }
    rows.retain(|row| {
        arguments.only.is_empty() || arguments.only.iter().any(|start| row.series.title.starts_with(start))
    });
    rows.iter_mut().for_each(|row| set_references(&mut row.series));
    eprintln!("process ids: sessiond {}, (b) {}", sessiond.target.pid, baselines.one_get.pid);

    in_rounds(&mut rows, arguments.rounds, |row| row.run(arguments.slice), |row| &mut row.series.slices);
    let Arguments { rounds, slice, connections, sessions, .. } = arguments;
    println!(
        "{rounds} rounds of {slice} ms, {connections} connections, {sessions} cold sessions; a response of (a) and (b) \
         has {} bytes\n",
        baselines.bytes[0]
    );
    report::print(&rows.into_iter().map(|row| row.series).collect::<Vec<_>>());
}
