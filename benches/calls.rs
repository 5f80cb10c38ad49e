//! Cost of a call: CPU of the server, CPU of Redis and calls per second, compared with two bare tonic servers.
//!
//! A round runs each row for a short slice and starts with a different row than the previous round. Figures are medians
//! and quartiles over the rounds; ratios are computed within a round. docs/benchmarks.md describes the rows.

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;

use harness::{Redis, client::id_of, process::Process};
use support::{
    baseline::{self, Baseline},
    cpu,
    figures::{Quartiles, print_table},
    load::{self, Client},
    start_redis,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the cost of calls.
#[derive(Parser)]
struct Arguments {
    /// Number of rounds: slices of each row.
    #[arg(long, default_value_t = 24)]
    rounds: usize,
    /// Length of a slice, in ms.
    #[arg(long, default_value_t = 800)]
    slice: u64,
    /// Number of sessions that are read and updated.
    #[arg(long, default_value_t = 10_000)]
    sessions: u64,
    /// Runs only the rows whose title starts with this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    baseline: Option<Baseline>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    ConstantReply,
    OneGet,
    GetSession,
    GetSessionAndTouch,
    UpdateSession,
    CreateSession,
}

const ROWS: [Row; 6] =
    [Row::ConstantReply, Row::OneGet, Row::GetSession, Row::GetSessionAndTouch, Row::UpdateSession, Row::CreateSession];

impl Row {
    fn title(self) -> &'static str {
        match self {
            Row::ConstantReply => "(a) tonic, constant reply",
            Row::OneGet => "(b) tonic, one GET",
            Row::GetSession => "GetSession by token",
            Row::GetSessionAndTouch => "GetSession by token, touch",
            Row::UpdateSession => "UpdateSession, one attribute",
            Row::CreateSession => "CreateSession",
        }
    }

    async fn call(self, client: &mut Client, token: &str, number: u64) -> Result<(), tonic::Status> {
        match self {
            Row::ConstantReply | Row::OneGet | Row::GetSession => client.get_session(load::get(token)).await.map(drop),
            Row::GetSessionAndTouch => {
                let mut request = load::get(token);
                request.touch = true;
                client.get_session(request).await.map(drop)
            }
            Row::UpdateSession => client.update_session(load::update(token, number)).await.map(drop),
            Row::CreateSession => client.create_session(load::create(number)).await.map(drop),
        }
    }
}

/// A server process, its Redis process, and clients of the server.
struct Target {
    pid: u32,
    redis: Option<u32>,
    clients: Vec<Client>,
}

impl Target {
    async fn new(pid: u32, redis: Option<&Redis>, address: &str) -> Self {
        Target { pid, redis: redis.map(Redis::pid), clients: load::connect(address).await }
    }
}

/// Figures of one slice.
#[derive(Clone, Copy)]
struct Slice {
    /// CPU of the server per call, in µs.
    server: f64,
    /// CPU of Redis per call, in µs.
    redis: f64,
    /// Calls per second.
    rate: f64,
}

impl Slice {
    async fn run(row: Row, target: &Target, tokens: &Arc<[String]>, length: Duration) -> Self {
        let used = || (cpu::used_by(target.pid), target.redis.map(cpu::used_by).unwrap_or_default());
        let (before, started) = (used(), Instant::now());
        let end = started + length;
        let calls = load::with_workers(&target.clients, load::IN_FLIGHT, |mut client, worker| {
            let tokens = tokens.clone();
            async move {
                let mut calls = 0;
                while Instant::now() < end {
                    // A different session sequence for each worker, and a different value each time.
                    let number = started.elapsed().as_nanos() as u64 ^ worker << 56;
                    let index = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
                    let token = &tokens[index as usize % tokens.len()];
                    row.call(&mut client, token, number >> 1).await.expect("the call succeeds");
                    calls += 1;
                }
                calls
            }
        });
        let calls: u64 = calls.await.into_iter().sum();
        let (took, after) = (started.elapsed(), used());
        let per_call = |used: Duration| used.as_secs_f64() * 1e6 / calls as f64;
        Slice {
            server: per_call(after.0 - before.0),
            redis: per_call(after.1 - before.1),
            rate: calls as f64 / took.as_secs_f64(),
        }
    }
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    if let Some(baseline) = arguments.baseline {
        return baseline.serve().await;
    }

    let (redis, plain_redis) = (start_redis(), start_redis());
    let process = Process::start(&[format!("--redis={}", redis.url())]);
    let sessiond = Target::new(process.pid(), Some(&redis), &process.address).await;
    let tokens: Arc<[String]> = load::populate(&sessiond.clients, arguments.sessions).await.into();

    let bytes = load::response_bytes(&sessiond.clients[0], &tokens[0]).await;
    for token in tokens.iter() {
        plain_redis.command(&["SET", &id_of(token), &"x".repeat(bytes - baseline::FRAME)]);
    }
    let constant_process = baseline::Process::start(&Baseline::Constant { bytes });
    let get_process = baseline::Process::start(&Baseline::Get { redis: plain_redis.unrestricted_url() });
    let constant = Target::new(constant_process.pid(), None, &constant_process.address).await;
    let get = Target::new(get_process.pid(), Some(&plain_redis), &get_process.address).await;
    for target in [&constant, &get] {
        assert_eq!(load::response_bytes(&target.clients[0], &tokens[0]).await, bytes, "baseline::FRAME is wrong");
    }
    println!("{} rounds of {} ms; a GetSession response has {bytes} bytes\n", arguments.rounds, arguments.slice);

    let rows: Vec<Row> = ROWS.into_iter().filter(|row| row.title().starts_with(&arguments.only)).collect();
    let mut slices: Vec<Vec<Slice>> = vec![Vec::new(); rows.len()];
    // The additional first round is a warm-up.
    for round in 0..=arguments.rounds {
        for turn in 0..rows.len() {
            let index = (turn + round) % rows.len();
            let target = match rows[index] {
                Row::ConstantReply => &constant,
                Row::OneGet => &get,
                _ => &sessiond,
            };
            let slice = Slice::run(rows[index], target, &tokens, Duration::from_millis(arguments.slice)).await;
            if round > 0 {
                slices[index].push(slice);
            }
        }
    }
    print_figures(&rows, &slices);
    if rows.len() == ROWS.len() {
        print_ratios(&rows, &slices);
    }
}

fn print_figures(rows: &[Row], slices: &[Vec<Slice>]) {
    let line = |(row, slices): (&Row, &Vec<Slice>)| {
        let quartiles = |figure: fn(&Slice) -> f64| Quartiles::of(slices.iter().map(figure));
        let redis = if *row == Row::ConstantReply {
            "–".to_owned()
        } else {
            format!("{:.3}", quartiles(|slice| slice.redis))
        };
        let server = quartiles(|slice| slice.server);
        vec![row.title().to_owned(), format!("{server:.3}"), redis, format!("{:.3}", quartiles(|slice| slice.rate))]
    };
    let lines: Vec<_> = rows.iter().zip(slices).map(line).collect();
    print_table(&["", "server CPU, µs per call", "Redis CPU, µs per call", "calls per second"], &lines);
}

fn print_ratios(rows: &[Row], slices: &[Vec<Slice>]) {
    let slices_of = |row: Row| &slices[rows.iter().position(|other| *other == row).expect("all rows have run")];
    let lines: Vec<_> = rows
        .iter()
        .zip(slices)
        .map(|(row, slices)| {
            let ratio_to = |reference: Row, figure: fn(&Slice) -> f64| {
                let pairs = slices.iter().zip(slices_of(reference));
                format!("{:.3}", Quartiles::of(pairs.map(|(slice, reference)| figure(slice) / figure(reference))))
            };
            let redis_cell = |text: String| if *row == Row::ConstantReply { "–".to_owned() } else { text };
            vec![
                row.title().to_owned(),
                ratio_to(Row::ConstantReply, |slice| slice.server),
                ratio_to(Row::OneGet, |slice| slice.server),
                redis_cell(ratio_to(Row::OneGet, |slice| slice.redis)),
                ratio_to(Row::OneGet, |slice| slice.server + slice.redis),
                ratio_to(Row::ConstantReply, |slice| slice.rate),
                ratio_to(Row::OneGet, |slice| slice.rate),
            ]
        })
        .collect();
    let head = [
        "ratios within a round",
        "server CPU to (a)",
        "server CPU to (b)",
        "Redis CPU to (b)",
        "server and Redis CPU to (b)",
        "calls per second to (a)",
        "calls per second to (b)",
    ];
    print_table(&head, &lines);
}
