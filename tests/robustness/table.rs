//! What came of many histories: a table of faults.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use crate::{run::Run, scene::Topology};

/// The histories with one fault in one topology.
#[derive(Default)]
struct Row {
    histories: usize,
    violations: usize,
    recoveries: Vec<Duration>,
    lost: usize,
    seen: BTreeMap<String, usize>,
}

#[derive(Default)]
pub struct Table(BTreeMap<(&'static str, Topology), Row>);

/// What says that a call or a watch failed, of all that clients saw.
fn is_of_interest(seen: &str) -> bool {
    let is_refusal = ["NotFound", "AlreadyExists", "Aborted", "FailedPrecondition", "InvalidArgument"];
    !is_refusal.iter().any(|code| seen.starts_with(code)) && !["watch: left", "watch: closed: OK"].contains(&seen)
}

impl Table {
    pub fn add(&mut self, fault: &'static str, topology: Topology, run: &Run) {
        let row = self.0.entry((fault, topology)).or_default();
        row.histories += 1;
        row.violations += usize::from(!run.violations.is_empty());
        row.recoveries.push(run.recovery);
        row.lost += run.lost;
        for (what, count) in run.seen.iter().filter(|(what, _)| is_of_interest(what)) {
            *row.seen.entry(what.clone()).or_default() += count;
        }
    }

    /// One that came to no end: what was wrong is not known.
    pub fn add_broken_off(&mut self, fault: &'static str, topology: Topology) {
        let row = self.0.entry((fault, topology)).or_default();
        row.histories += 1;
        row.violations += 1;
    }

    /// As Markdown.
    pub fn text(&self) -> String {
        let mut text =
            "| fault | topology | histories | with violations | recovery, median | longest | lost | seen |\n\
            |---|---|--:|--:|--:|--:|--:|---|\n"
                .to_owned();
        for ((fault, topology), row) in &self.0 {
            let mut recoveries = row.recoveries.clone();
            recoveries.sort();
            let median = recoveries.get(recoveries.len() / 2).copied().unwrap_or_default();
            let longest = recoveries.last().copied().unwrap_or_default();
            let seen: Vec<String> = row.seen.iter().map(|(what, count)| format!("{what} {count}")).collect();
            let topology = format!("{topology:?}").to_lowercase();
            let (histories, violations, lost) = (row.histories, row.violations, row.lost);
            let (median, longest) = (median.as_millis(), longest.as_millis());
            let seen = seen.join(", ");
            writeln!(
                text,
                "| {fault} | {topology} | {histories} | {violations} | {median} ms | {longest} ms | {lost} | {seen} |"
            )
            .expect("a text grows");
        }
        text
    }
}

const HEADING: &str = "## Histories";

/// What stands before the table.
const INTRODUCTION: &str = "

Each history has three instances, five clients that use a few hot sessions in every way at once, and watchers of every
kind: by namespace, ids, subject, labels and types; with and without the state first; steady, restless, forgetful, slow,
stopped and away. In its midst, after 250 answered writes at least, something fails. What clients were answered and
watchers told is recorded and held against the contract by the validators in
[tests/robustness/validate](../tests/robustness/validate.rs); the logs of Redis are the truth. `make test-faults` plays them
and writes this section; `SEED=<seed> cargo test --test robustness` plays one of them again.

*recovery*: from the end of the fault until a fresh write was answered and every watcher was told of it. *lost*:
acknowledged writes that Redis lost, which it may where a replica is promoted without them or it is emptied; every watcher
that had been told of one was told `resync`. *seen*: what calls and watches failed with, and how often.

";

impl Table {
    /// The page with this table in place of the one before.
    pub fn page(&self, before: &str) -> String {
        let rest = before.split(HEADING).next().unwrap_or_default();
        format!("{}\n\n{HEADING}{INTRODUCTION}{}", rest.trim_end(), self.text())
    }
}
