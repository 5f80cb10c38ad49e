//! Plays histories with every fault, checks them against the contract, and writes their table into docs/faults.md.

use std::process::ExitCode;

use clap::Parser;
use robustness::campaign::{Campaign, FaultSelection, first_seed};

/// Path of docs/faults.md.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/faults.md");

/// Plays histories with every fault and writes their table into docs/faults.md.
#[derive(Parser)]
struct Arguments {
    /// Number of histories to play.
    #[arg(long, default_value_t = 240)]
    histories: u64,
    /// Replays the history with this seed, and writes nothing.
    #[arg(long, conflicts_with = "histories")]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let Arguments { histories, seed } = Arguments::parse();
    let first = seed.unwrap_or_else(first_seed);
    let count = if seed.is_some() { 1 } else { histories };
    println!("first seed: {first}");
    let seeds = first..first + count;
    let campaign = Campaign { seeds, selection: FaultSelection::All, failed_histories: std::env::temp_dir() };
    let (table, failures) = campaign.play();
    println!("{}", table.text());
    if !failures.is_empty() {
        eprintln!("{}", failures.join("\n"));
        return ExitCode::FAILURE;
    }
    // A campaign with failures has returned above, so the page never shows violations.
    if seed.is_none() {
        let page = std::fs::read_to_string(PAGE).expect("docs/faults.md can be read");
        std::fs::write(PAGE, table.page(&page)).expect("docs/faults.md can be written");
    }
    ExitCode::SUCCESS
}
