//! What the duration of a refusal reveals to a caller who knows an id, but not the token.
//!
//! One caller on loopback makes the same call with wrong tokens, for ids with different records, in turn. It is the
//! most that a caller can see: nothing else uses the server, and no network adds its own variation.

mod support;

use std::time::Instant;

use clap::Parser;

use harness::{
    Client,
    client::{by_token, incompressible, new_token, successor_of, text},
    process::Process,
    tokens::Call,
};
use support::{
    figures::{Quartiles, print_table},
    start_redis,
};

/// Measures the duration of calls with wrong tokens.
#[derive(Parser)]
struct Arguments {
    /// Number of calls of each row.
    #[arg(long, default_value_t = 20_000)]
    calls: usize,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Calls of each row before the measurement.
const WARM_UP: usize = 500;

/// Calls that are measured.
const CALLS: [Call; 4] = [Call::Get, Call::Update, Call::Rotate, Call::Delete];

/// A wrong token for each state of a record. The first has none.
async fn wrong_tokens(client: &Client) -> Vec<(&'static str, String)> {
    let live = async |bytes| client.create(&[("data", text(&incompressible(bytes)))]).await.1;
    let (_, ended) = client.create(&[]).await;
    assert!(client.delete(by_token(&ended)).await.expect("it is deleted"));
    let (_, rotated) = client.create(&[]).await;
    client.rotate(&rotated).await.expect("it rotates");
    let tokens = [
        ("no record", new_token()),
        ("live, no attributes", client.create(&[]).await.1),
        ("live, rotated", rotated),
        ("live, 1 KiB", live(1 << 10).await),
        ("live, 16 KiB", live(16 << 10).await),
        ("live, 63 KiB", live(63 << 10).await),
        ("ended", ended),
    ];
    tokens.into_iter().map(|(state, token)| (state, successor_of(&token))).collect()
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let redis = start_redis();
    let server = Process::start(&[format!("--redis={}", redis.url())]);
    let client = server.client().await;
    let tokens = wrong_tokens(&client).await;
    let mut rows = Vec::new();
    for call in CALLS {
        let mut durations = vec![Vec::new(); tokens.len()];
        for round in 0..WARM_UP + arguments.calls {
            for at in 0..tokens.len() {
                let row = (round + at) % tokens.len();
                let started = Instant::now();
                let result = client.present(call, &tokens[row].1).await;
                let duration = started.elapsed();
                assert_eq!(result, call.rejection("SESSION_NOT_FOUND"));
                if round >= WARM_UP {
                    durations[row].push(duration.as_secs_f64() * 1e6);
                }
            }
        }
        let of_no_record = Quartiles::of(durations[0].iter().copied()).median;
        for ((state, _), durations) in tokens.iter().zip(&durations) {
            let quartiles = Quartiles::of(durations.iter().copied());
            let longer = durations.iter().filter(|&&duration| duration > of_no_record).count();
            rows.push(vec![
                format!("{call:?}Session, {state}"),
                quartiles.to_string(),
                format!("{:+.1}", quartiles.median - of_no_record),
                format!("{:.0} %", longer as f64 * 100.0 / durations.len() as f64),
            ]);
        }
    }
    let difference = "median minus that of no record, µs";
    print_table(&["call, state of the id", "µs", difference, "longer than the median of no record"], &rows);
}
