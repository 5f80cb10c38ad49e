//! What a call costs: CPU of the server, CPU of Redis, calls a second; beside two bare tonic servers in the same run.
//!
//! Every round gives every row a short slice in turn, and begins with another row than the round before. Figures are
//! medians and quartiles over the rounds; ratios are taken within a round. docs/benchmarks.md says what the rows are.

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;

use support::{
    baseline::{self, Baseline},
    cpu,
    figures::{Quartiles, print_table},
    harness::{Redis, client::id_of, process::Process},
    load::{self, Client},
    start_redis,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures what calls cost.
#[derive(Parser)]
struct Arguments {
    /// Slices of each row.
    #[arg(long, default_value_t = 24)]
    rounds: usize,
    /// Length of a slice, in ms.
    #[arg(long, default_value_t = 800)]
    slice: u64,
    /// Sessions that are read and changed.
    #[arg(long, default_value_t = 10_000)]
    sessions: u64,
    /// Only the row whose title begins so.
    #[arg(long, default_value = "")]
    only: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    baseline: Option<Baseline>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Nothing,
    Get,
    GetSession,
    GetSessionAndTouch,
    UpdateSession,
    CreateSession,
}

const ROWS: [Row; 6] =
    [Row::Nothing, Row::Get, Row::GetSession, Row::GetSessionAndTouch, Row::UpdateSession, Row::CreateSession];

impl Row {
    fn title(self) -> &'static str {
        match self {
            Row::Nothing => "(a) tonic, nothing",
            Row::Get => "(b) tonic, one GET",
            Row::GetSession => "GetSession by token",
            Row::GetSessionAndTouch => "GetSession by token, touch",
            Row::UpdateSession => "UpdateSession, one attribute",
            Row::CreateSession => "CreateSession",
        }
    }

    async fn call(self, client: &mut Client, token: &str, number: u64) -> Result<(), tonic::Status> {
        match self {
            Row::Nothing | Row::Get | Row::GetSession => client.get_session(load::get(token)).await.map(drop),
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

/// A server, the Redis behind it, and connections to it.
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

/// What one slice showed.
#[derive(Clone, Copy)]
struct Slice {
    /// µs of CPU a call.
    server: f64,
    redis: f64,
    /// Calls a second.
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
                    // Spread over all sessions, each worker on its own way, another value every time.
                    let number = started.elapsed().as_nanos() as u64 ^ worker << 56;
                    let place = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
                    let token = &tokens[place as usize % tokens.len()];
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

    let bytes = load::bytes_of_answer(&sessiond.clients[0], &tokens[0]).await;
    for token in tokens.iter() {
        plain_redis.command(&["SET", &id_of(token), &"x".repeat(bytes - baseline::FRAME)]);
    }
    let does_nothing = baseline::Process::start(&Baseline::Nothing { bytes });
    let gets = baseline::Process::start(&Baseline::Get { redis: plain_redis.unrestricted_url() });
    let nothing = Target::new(does_nothing.pid(), None, &does_nothing.address).await;
    let get = Target::new(gets.pid(), Some(&plain_redis), &gets.address).await;
    for target in [&nothing, &get] {
        assert_eq!(load::bytes_of_answer(&target.clients[0], &tokens[0]).await, bytes, "baseline::FRAME is off");
    }
    println!("{} rounds of {} ms; an answer of GetSession has {bytes} bytes\n", arguments.rounds, arguments.slice);

    let rows: Vec<Row> = ROWS.into_iter().filter(|row| row.title().starts_with(&arguments.only)).collect();
    let mut slices: Vec<Vec<Slice>> = vec![Vec::new(); rows.len()];
    // One round more than told: the first is to warm up.
    for round in 0..=arguments.rounds {
        for turn in 0..rows.len() {
            let place = (turn + round) % rows.len();
            let target = match rows[place] {
                Row::Nothing => &nothing,
                Row::Get => &get,
                _ => &sessiond,
            };
            let slice = Slice::run(rows[place], target, &tokens, Duration::from_millis(arguments.slice)).await;
            if round > 0 {
                slices[place].push(slice);
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
        let over = |figure: fn(&Slice) -> f64| Quartiles::of(slices.iter().map(figure));
        let redis = if *row == Row::Nothing { "–".to_owned() } else { format!("{:.3}", over(|slice| slice.redis)) };
        let server = over(|slice| slice.server);
        vec![row.title().to_owned(), format!("{server:.3}"), redis, format!("{:.3}", over(|slice| slice.rate))]
    };
    let lines: Vec<_> = rows.iter().zip(slices).map(line).collect();
    print_table(&["", "server CPU, µs a call", "Redis CPU, µs a call", "calls a second"], &lines);
}

fn print_ratios(rows: &[Row], slices: &[Vec<Slice>]) {
    let slices_of = |row: Row| &slices[rows.iter().position(|other| *other == row).expect("it has run")];
    let lines: Vec<_> = rows
        .iter()
        .zip(slices)
        .map(|(row, slices)| {
            let to = |reference: Row, figure: fn(&Slice) -> f64| {
                let pairs = slices.iter().zip(slices_of(reference));
                format!("{:.3}", Quartiles::of(pairs.map(|(own, reference)| figure(own) / figure(reference))))
            };
            let redis = |text: String| if *row == Row::Nothing { "–".to_owned() } else { text };
            vec![
                row.title().to_owned(),
                to(Row::Nothing, |slice| slice.server),
                to(Row::Get, |slice| slice.server),
                redis(to(Row::Get, |slice| slice.redis)),
                to(Row::Get, |slice| slice.server + slice.redis),
                to(Row::Nothing, |slice| slice.rate),
                to(Row::Get, |slice| slice.rate),
            ]
        })
        .collect();
    let head = [
        "ratios within a round",
        "server CPU to (a)",
        "server CPU to (b)",
        "Redis CPU to (b)",
        "server and Redis CPU to (b)",
        "calls a second to (a)",
        "calls a second to (b)",
    ];
    print_table(&head, &lines);
}
