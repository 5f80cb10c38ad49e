//! The table of faults in docs/faults.md.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use crate::{environment::Topology, page, run::HistoryRun};

/// Totals of the histories with one fault in one topology.
#[derive(Default)]
struct Row {
    histories: usize,
    /// Number of histories with violations.
    violations: usize,
    recoveries: Vec<Duration>,
    /// Number of acknowledged writes that Redis lost.
    lost: usize,
    /// Number of failures, by text.
    errors: BTreeMap<String, usize>,
}

/// The results of a campaign, by fault and topology.
#[derive(Default)]
pub struct Table(BTreeMap<(&'static str, Topology), Row>);

/// Returns whether a reported text is a failure of a call or of a watch, not a rejection by the contract.
pub fn is_failure(outcome: &str) -> bool {
    let rejections = ["NotFound", "AlreadyExists", "Aborted", "FailedPrecondition", "InvalidArgument"];
    !rejections.iter().any(|code| outcome.starts_with(code))
        && !["watch: disconnected", "watch: closed: OK"].contains(&outcome)
}

impl Table {
    /// Adds the result of one history.
    pub fn add(&mut self, fault: &'static str, topology: Topology, run: &HistoryRun) {
        let row = self.0.entry((fault, topology)).or_default();
        row.histories += 1;
        row.violations += usize::from(!run.violations.is_empty());
        row.recoveries.extend(run.faults.iter().map(|fault| fault.recovery));
        row.lost += run.lost;
        for (outcome, count) in run.reported.iter().filter(|(outcome, _)| is_failure(outcome)) {
            *row.errors.entry(outcome.clone()).or_default() += count;
        }
    }

    /// Adds a history that panicked. It counts as one with violations.
    pub fn add_panicked(&mut self, fault: &'static str, topology: Topology) {
        let row = self.0.entry((fault, topology)).or_default();
        row.histories += 1;
        row.violations += 1;
    }

    /// Returns the table as Markdown.
    pub fn text(&self) -> String {
        let mut text =
            "| fault | topology | histories | with violations | recovery, median | longest | lost writes | errors |\n\
            |---|---|--:|--:|--:|--:|--:|---|\n"
                .to_owned();
        for ((fault, topology), row) in &self.0 {
            let mut recoveries = row.recoveries.clone();
            recoveries.sort();
            let median = recoveries.get(recoveries.len() / 2).copied().unwrap_or_default();
            let longest = recoveries.last().copied().unwrap_or_default();
            let errors: Vec<String> = row.errors.iter().map(|(error, count)| format!("{error} {count}")).collect();
            let topology = format!("{topology:?}").to_lowercase();
            let (histories, violations, lost) = (row.histories, row.violations, row.lost);
            let (median, longest) = (median.as_millis(), longest.as_millis());
            let errors = errors.join(", ");
            writeln!(
                text,
                "| {fault} | {topology} | {histories} | {violations} | {median} ms | {longest} ms | {lost} | {errors} |"
            )
            .expect("writing to a String succeeds");
        }
        text
    }
}

/// Heading of the section of docs/faults.md that the table fills.
const HEADING: &str = "## Histories";

/// Text between the heading and the table.
const INTRODUCTION: &str = "\
A history has three instances of sessiond, five clients and twelve watchers. The clients send every kind of call to a
few sessions at once. The watchers filter by namespace, ids, subject, labels and types, with and without an initial
snapshot. Some read steadily; the others reconnect, reconnect without a token, disconnect during the fault, read slowly,
or stop reading. The fault starts after at least 250 answered writes. The recorder stores every response of a call and
of a watch; the validators in [tests/robustness/src/validate.rs](../tests/robustness/src/validate.rs) check them against
the contract. The logs in Redis are the ground truth. `make test-faults` plays the histories and writes this section;
`make test-faults SEED=<seed>` replays one of them.

*recovery*: time from the end of the fault until a new write was acknowledged and every watcher received its event.
*lost writes*: acknowledged writes that Redis lost; this happens if a replica without them is promoted or Redis is
emptied. Every watcher that had received one of them received `resync`. *errors*: errors of calls and watches, with
their number.

";

impl Table {
    /// Returns the page with the section of the histories replaced by this table.
    pub fn page(&self, page: &str) -> String {
        page::with_section(page, HEADING, &(INTRODUCTION.to_owned() + &self.text()))
    }
}
