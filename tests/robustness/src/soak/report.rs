//! The result of a soak: failures, the table of faults and the table of instances.

use std::{collections::BTreeMap, fmt::Write, path::Path, time::Duration};

use super::samples::{Sample, Samples, memory_minima};
use crate::{
    page,
    run::{HistoryRun, PlayedFault},
    table::is_failure,
};

/// Totals of one fault.
#[derive(Default)]
struct Row {
    played: usize,
    longest_recovery: Duration,
    /// Number of failures, by text.
    errors: BTreeMap<String, usize>,
}

/// Totals of all segments.
#[derive(Default)]
struct Totals {
    segments: usize,
    calls: usize,
    /// Acknowledged writes.
    writes: usize,
    /// Log entries.
    entries: usize,
    /// Events that watchers received.
    events: usize,
}

/// Result of a soak.
pub struct Report {
    seed: u64,
    took: Duration,
    totals: Totals,
    faults: BTreeMap<&'static str, Row>,
    /// Samples by instance.
    samples: Vec<Samples>,
    /// Descriptions of everything that failed; empty if nothing did.
    pub failures: Vec<String>,
}

impl Report {
    pub(super) fn new(seed: u64, instances: usize) -> Self {
        let samples = vec![Samples::default(); instances];
        let (totals, faults) = (Totals::default(), BTreeMap::new());
        Report { seed, took: Duration::ZERO, totals, faults, samples, failures: Vec::new() }
    }

    /// Returns the number of segments that were played.
    pub fn segments(&self) -> usize {
        self.totals.segments
    }

    pub(super) fn samples(&self) -> &[Samples] {
        &self.samples
    }

    /// Adds a segment. If it has violations, returns them and writes its history into this directory.
    pub(super) fn add(&mut self, run: &HistoryRun, failed_histories: &Path) -> Option<&str> {
        let responses = run.history.watches.iter().flat_map(|watch| &watch.responses);
        self.totals.segments += 1;
        self.totals.calls += run.history.operations.len();
        self.totals.writes += run.history.acknowledged_writes();
        self.totals.entries += run.log_entries();
        self.totals.events += responses.map(|response| response.events.len()).sum::<usize>();
        for PlayedFault { name, recovery, reported, .. } in &run.faults {
            let row = self.faults.entry(name).or_default();
            row.played += 1;
            row.longest_recovery = row.longest_recovery.max(*recovery);
            for (error, count) in reported.iter().filter(|(error, _)| is_failure(error)) {
                *row.errors.entry(error.clone()).or_default() += count;
            }
        }
        let replay = format!("replay the soak with `make test-soak SEED={}`", self.seed);
        let failure = run.failure(&replay, failed_histories)?;
        self.failures.push(failure);
        self.failures.last().map(String::as_str)
    }

    pub(super) fn add_panicked(&mut self, names: &str) {
        self.totals.segments += 1;
        self.failures.push(format!("SEED={}, {names}: the segment panicked, see above", self.seed));
    }

    pub(super) fn add_sample(&mut self, instance: usize, sample: Sample) {
        self.samples[instance].0.push(sample);
    }

    pub(super) fn finish(&mut self, took: Duration) {
        self.took = took;
        for (instance, samples) in self.samples.iter().enumerate() {
            let problems = samples.problems().into_iter();
            self.failures.extend(problems.map(|problem| format!("instance {instance}: {problem}")));
        }
    }

    /// Returns the tables as Markdown.
    pub fn text(&self) -> String {
        let Totals { segments, calls, writes, entries, events } = self.totals;
        let (seed, minutes) = (self.seed, self.took.as_secs().div_ceil(60));
        let mut text = format!(
            "Seed {seed}: {segments} segments in {minutes} minutes, {calls} calls, {writes} acknowledged writes, \
             {entries} log\nentries, {events} events received by watchers.\n\n\
             | fault | played | longest recovery | errors |\n|---|--:|--:|---|\n"
        );
        for (name, Row { played, longest_recovery, errors }) in &self.faults {
            let errors: Vec<String> = errors.iter().map(|(error, count)| format!("{error} {count}")).collect();
            let (recovery, errors) = (longest_recovery.as_millis(), errors.join(", "));
            writeln!(text, "| {name} | {played} | {recovery} ms | {errors} |").expect("writing to a String succeeds");
        }
        text += "\n| instance | starts | samples | descriptors | tasks | threads | connections | watches | \
                 anonymous memory |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
        for (number, samples) in self.samples.iter().enumerate() {
            text += &instance_row(number, samples.of_last_start());
        }
        text
    }

    /// Returns the page with the section of the soak replaced by this report.
    pub fn page(&self, page: &str) -> String {
        page::with_section(page, HEADING, &(INTRODUCTION.to_owned() + &self.text()))
    }
}

/// Returns the table row of an instance since its last start.
fn instance_row(number: usize, samples: &[Sample]) -> String {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return String::new() };
    let change = |value: fn(&Sample) -> u64| format!("{} → {}", value(first), value(last));
    let (descriptors, tasks) = (change(|sample| sample.descriptors), change(|sample| sample.tasks));
    let (threads, connections) = (change(|sample| sample.threads), change(|sample| sample.connections));
    let watches = change(|sample| sample.watches);
    let (before, after) = memory_minima(samples).unwrap_or((first.anonymous, last.anonymous));
    let memory = format!("{} → {} MiB", before / 1024, after / 1024);
    let (starts, count) = (last.starts, samples.len());
    format!(
        "| {number} | {starts} | {count} | {descriptors} | {tasks} | {threads} | {connections} | {watches} | {memory} |\n"
    )
}

/// Heading of the section of docs/faults.md that the report fills.
const HEADING: &str = "## Soak";

/// Text between the heading and the tables.
const INTRODUCTION: &str = "\
A soak plays histories, called segments, one after the other on the same three instances and the same Redis. Each
segment has new sessions, up to three faults of ordinary operation, and the validators of the
[histories](#histories). Then all sessions are ended, the load rests, and every instance is sampled. `make test-soak`
plays at least 15 minutes and writes this section; `make test-soak SEED=<seed>` plays the same faults again.

A soak fails if a segment has a violation, or if an instance is not flat: at rest it has no more descriptors, tasks,
threads, connections and watches than after the first segment (with the tolerances in
[tests/robustness/src/soak/samples.rs](../tests/robustness/src/soak/samples.rs)), and its memory grows by at most 25 %.
*samples*: since the last start of the instance, without load; the other columns show the first and the last of them.
*anonymous memory*: minima of the second and of the last third of the samples; of fewer than 24 samples the first and
the last one, which are not compared. *longest recovery* and *errors*: as in the table of histories.

";
