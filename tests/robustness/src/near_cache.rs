//! Histories of the near cache: a few sessions that change all the time while two instances read them, from memory and from
//! Redis, under faults. Every answer is compared with what Redis held and when.
//!
//! The log contains every change with its time, so the states of a session and the times in which Redis held them are known
//! exactly, for any number of calls; no search for a linearization is necessary.

mod check;
mod faults;
pub mod fixture;
mod recording;
mod scene;
mod truth;
mod workload;

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

pub use check::violations;
pub use recording::{Deletion, Disturbance, Epoch, Kind, Recording};

use crate::{history::Micros, run::start_runtime, seeded_rng::SeededRng};
use scene::{READ_RESULTS, ReadCounts, Scene};

/// Maximum duration of a call.
const CALL_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum age of the state in an answer from memory, in µs.
const MAX_MEMORY_AGE: Micros = 1_000_000;
/// Maximum age in µs of the times of use in an answer from memory, and of the state if Redis did not report a deletion.
const MAX_COPY_AGE: Micros = 10_000_000;
/// Time without a fault at the end of a history with all faults.
const LAST_REST: Duration = Duration::from_secs(12);
/// Minimum share of the reads that accept memory and are answered from it. A history with fewer proves little.
const MIN_HIT_SHARE: f64 = 0.3;

/// Histories of the near cache, one for each seed.
pub struct NearCacheHistories {
    /// Seeds of the histories. A seed selects the kind, the order of the faults and all random choices.
    pub seeds: Vec<u64>,
    /// Minimum number of calls of each history.
    pub steps: usize,
    /// Minimum number of faults of each history. None: all of its kind, each at least once.
    pub faults: Option<usize>,
    /// Directory that receives every history with a violation.
    pub failed_histories: PathBuf,
}

/// Result of one history.
pub struct HistoryResult {
    recording: Recording,
    /// Reads that accept memory, by result.
    reads: ReadCounts,
    violations: Vec<String>,
}

/// Returns a random seed.
pub fn random_seed() -> u64 {
    getrandom::u32().expect("the system provides random numbers").into()
}

impl NearCacheHistories {
    /// Plays the histories one after the other. Returns a line for each, and a text for each one that failed.
    pub fn play(&self) -> (String, Vec<String>) {
        let (mut lines, mut failures) = (String::new(), Vec::new());
        for seed in &self.seeds {
            let runtime = start_runtime();
            let result = runtime.block_on(play(*seed, self.steps, self.faults));
            runtime.shutdown_background();
            println!("{}", result.line());
            writeln!(lines, "{}", result.line()).expect("a string can be written");
            failures.extend(result.failure(&self.failed_histories));
        }
        (lines, failures)
    }
}

/// Plays one history with this seed, of at least this number of calls and of faults.
async fn play(seed: u64, steps: usize, faults: Option<usize>) -> HistoryResult {
    let mut rng = SeededRng::from_seed(seed);
    let kind = Kind::ALL[(seed % Kind::ALL.len() as u64) as usize];
    let least_faults = faults.unwrap_or(faults::of_kind(kind).len());
    let mut scene = Scene::start(kind, seed, &mut rng).await;
    let tasks = scene.start_workload(&mut rng).await;
    let (mut remaining, mut played) = (Vec::new(), 0);
    while played < least_faults || scene.shared.recorder.calls() < steps {
        if remaining.is_empty() {
            remaining = faults::of_kind(kind);
        }
        let fault = remaining.swap_remove(rng.below(remaining.len()));
        scene.rest(&mut rng).await;
        faults::play(fault, &mut scene, &mut rng).await;
        played += 1;
    }
    scene.rest(&mut rng).await;
    if faults.is_none() {
        // Copies become too old.
        sleep(LAST_REST).await;
    }
    tasks.stop().await;
    let reads = scene.cache_reads().await;
    let mut problems = scene.problems();
    let recording = scene.finish().await;
    let mut violations = tokio::task::block_in_place(|| violations(&recording));
    violations.append(&mut problems);
    let result = HistoryResult { recording, reads, violations: Vec::new() };
    if result.hit_share() < MIN_HIT_SHARE {
        violations.push(format!("too few reads were answered from memory: {}", result.line()));
    }
    HistoryResult { violations, ..result }
}

impl HistoryResult {
    /// Returns one line about the history.
    fn line(&self) -> String {
        let Recording { seed, kind, operations, disturbances, .. } = &self.recording;
        let reads = READ_RESULTS.iter().zip(self.reads).map(|(result, count)| format!(" {result} {count}"));
        format!(
            "SEED={seed} {kind:?}: {} calls, {} log entries, {} faults, {} epochs, {:.0} % of the reads from memory \
             ({}), {} violations",
            operations.len(),
            self.recording.log_entries(),
            disturbances.len(),
            self.recording.epochs.len(),
            100.0 * self.hit_share(),
            reads.collect::<String>().trim_start(),
            self.violations.len()
        )
    }

    /// Returns the share of the reads that accept memory and were answered from it.
    fn hit_share(&self) -> f64 {
        self.reads[0] / self.reads.iter().sum::<f64>()
    }

    /// Returns a text with the violations, and writes the history into a file in this directory. None: no violation.
    fn failure(&self, directory: &Path) -> Option<String> {
        if self.violations.is_empty() {
            return None;
        }
        let seed = self.recording.seed;
        let file = directory.join(format!("near-cache-{seed}.txt"));
        std::fs::write(&file, format!("{:#?}\n{:#?}", self.violations, self.recording))
            .expect("the history is written");
        let first: String = self.violations.iter().take(3).map(|violation| format!("{violation}\n")).collect();
        Some(format!(
            "SEED={seed}, {:?}, {} violations; replay with `make test-cache SEED={seed}`; history in {}:\n\
             {first}",
            self.recording.kind,
            self.violations.len(),
            file.display()
        ))
    }
}
