//! Plays histories with every fault, or a soak, checks them against the contract, and writes the result into
//! docs/faults.md.

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use robustness::{
    campaign::{Campaign, first_seed, seeds},
    near_cache::{NearCacheHistories, random_seed},
    soak::Soak,
};

/// Path of docs/faults.md.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/faults.md");
/// Minimum duration of a soak whose report is written, in minutes.
const REPORTED_MINUTES: u64 = 15;

/// Plays faults under load and writes the results into docs/faults.md.
#[derive(Parser)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays histories, each with its own servers and one fault.
    Histories {
        /// Number of histories to play.
        #[arg(long, default_value_t = 336)]
        histories: usize,
        /// Replays the history with this seed, and writes nothing.
        #[arg(long, conflicts_with = "histories")]
        seed: Option<u64>,
        /// Names of faults, or parts of them: only these are played, or, with the prefix `-`, all others. Writes nothing.
        #[arg(long, value_delimiter = ',', allow_hyphen_values = true, conflicts_with = "seed")]
        faults: Vec<String>,
    },
    /// Plays long histories of reads from memory, each with its own servers and all faults of its kind.
    NearCache {
        /// Number of histories to play.
        #[arg(long, default_value_t = 12)]
        histories: u64,
        /// Minimum number of calls of each history.
        #[arg(long, default_value_t = 10_000)]
        steps: usize,
        /// Seed of the first history. The next ones have the next numbers.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Plays faults of ordinary operation one after the other on the same servers.
    Soak {
        /// Minimum duration in minutes. The report of a soak of 15 minutes or more is written.
        #[arg(long, default_value_t = REPORTED_MINUTES)]
        minutes: u64,
        /// Plays the faults of the soak with this seed.
        #[arg(long)]
        seed: Option<u64>,
        /// Names of faults, or parts of them: only these are played, or, with the prefix `-`, all others. Writes nothing.
        #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
        faults: Vec<String>,
    },
}

fn main() -> ExitCode {
    match CommandLine::parse().command {
        Command::Histories { histories, seed, faults } => play_histories(histories, seed, &faults),
        Command::NearCache { histories, steps, seed } => play_near_cache(histories, steps, seed),
        Command::Soak { minutes, seed, faults } => play_soak(minutes, seed, faults),
    }
}

fn play_histories(histories: usize, seed: Option<u64>, selection: &[String]) -> ExitCode {
    let seeds = seed.map_or_else(|| seeds(first_seed(), histories, selection), |seed| vec![seed]);
    println!("first seed: {}", seeds[0]);
    let (table, failures) = Campaign { seeds, failed_histories: std::env::temp_dir() }.play();
    println!("{}", table.text());
    finish(&failures, seed.is_none() && selection.is_empty(), |page| table.page(page))
}

fn play_near_cache(histories: u64, steps: usize, seed: Option<u64>) -> ExitCode {
    let first = seed.unwrap_or_else(random_seed);
    let seeds = (first..first + histories).collect();
    let (_, failures) =
        NearCacheHistories { seeds, steps, faults: None, failed_histories: std::env::temp_dir() }.play();
    finish(&failures, false, str::to_owned)
}

fn play_soak(minutes: u64, seed: Option<u64>, selection: Vec<String>) -> ExitCode {
    let seed = seed.unwrap_or_else(first_seed);
    println!("seed: {seed}");
    let is_written = minutes >= REPORTED_MINUTES && selection.is_empty();
    let duration = Duration::from_secs(60 * minutes);
    let soak = Soak { seed, duration, selection, once: false, failed_histories: std::env::temp_dir() };
    let report = soak.play();
    println!("{}", report.text());
    finish(&report.failures, is_written, |page| report.page(page))
}

/// Prints the failures. If there is none, writes the page if requested: it never shows violations.
fn finish(failures: &[String], is_written: bool, write: impl FnOnce(&str) -> String) -> ExitCode {
    if !failures.is_empty() {
        eprintln!("{}", failures.join("\n"));
        return ExitCode::FAILURE;
    }
    if is_written {
        let page = std::fs::read_to_string(PAGE).expect("docs/faults.md can be read");
        std::fs::write(PAGE, write(&page)).expect("docs/faults.md can be written");
    }
    ExitCode::SUCCESS
}
