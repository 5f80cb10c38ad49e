//! Memory of an idle watcher, compared with a bare stream. Each slice starts a new process.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use harness::WAIT_LIMIT;
use sessiond_client::v1::WatchRequest;

use crate::support::{
    baseline::{self, Baseline},
    figures::{Goal, Quartiles, print_table},
    generator::{Calls, Generator, IN_FLIGHT},
    load::CONNECTIONS,
    measure::in_rounds,
    requests::{Sessions, update_with_event, within},
};

use super::{
    Options,
    fan_out::bare_stream,
    instances::{Instances, ids},
    of_session,
    watchers::Watchers,
    whole_namespace,
    writer::Writer,
};

const WATCHERS: usize = 5_000;
/// Number of events that each watcher receives before it is idle.
const EVENTS: usize = 3;
/// Maximum number of rounds.
const ROUNDS: usize = 3;
/// A ring that is full before the watchers open: its memory depends on the events, not on the watchers.
const LIMITS: &str = "ring_slots = 256";
/// Time without events after which a watcher is idle.
const IDLE: Duration = Duration::from_millis(1_500);
/// Limit of the difference to the bare stream, in KiB.
const GOAL: Goal = Goal::AtMost(4.0);

/// Server of a row, and what its watchers watch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    BareStream,
    WholeNamespace,
    ById,
}

/// Watchers of one kind. A slice is the growth of the server in KiB per watcher.
struct Row {
    kind: Kind,
    slices: Vec<f64>,
}

impl Row {
    fn title(&self) -> &'static str {
        match self.kind {
            Kind::BareStream => "memory, bare stream",
            Kind::WholeNamespace => "memory, whole namespace",
            Kind::ById => "memory, one id each",
        }
    }
}

/// What the slices share.
struct Setup<'a> {
    options: &'a Options,
    instances: &'a Instances,
    /// A session for each watcher.
    sessions: Sessions,
    /// Updates of these sessions in turn, and how many are left.
    updates: Calls,
    left: Arc<AtomicUsize>,
    /// Writer of one session, through the writing instance.
    writer: Writer<'a>,
    bare_stream: Baseline,
}

impl Setup<'_> {
    fn run(&self, kind: Kind) -> f64 {
        let requests: Vec<WatchRequest> = match kind {
            Kind::BareStream | Kind::WholeNamespace => vec![whole_namespace(); WATCHERS],
            Kind::ById => ids(&self.sessions).iter().map(|id| of_session(id)).collect(),
        };
        if kind == Kind::BareStream {
            let process = baseline::Process::start(&self.bare_stream);
            let writer = Writer::new(&self.options.runtime, &process.address, vec![String::new()]);
            let write = || drop(writer.write(1, 1));
            return self.growth(process.pid(), &process.address, &requests, &write);
        }
        let process = self.instances.start_measured();
        // The ring, and all else that grows with the log.
        self.update_each();
        let write = || match kind {
            Kind::ById => self.update_each(),
            Kind::BareStream | Kind::WholeNamespace => drop(self.writer.write(1, 1)),
        };
        self.growth(process.pid(), &process.address, &requests, &write)
    }

    /// Updates the session of each watcher.
    fn update_each(&self) {
        self.left.store(WATCHERS, Ordering::Relaxed);
        let generator = Generator::open(&self.instances.writing.address, CONNECTIONS, self.updates.method);
        generator.run(&self.updates, IN_FLIGHT, WAIT_LIMIT);
    }

    /// Returns the growth of a new server in KiB per watcher. `write` creates one event for each watcher.
    fn growth(&self, pid: u32, address: &str, requests: &[WatchRequest], write: &dyn Fn()) -> f64 {
        let runtime = &self.options.runtime;
        drop(Watchers::open(runtime, address, &[whole_namespace()]));
        thread::sleep(IDLE);
        let before = private_kib(pid);
        let watchers = Watchers::open(runtime, address, requests);
        for number in 1..=EVENTS {
            write();
            watchers.wait_for(number as u64);
        }
        thread::sleep(IDLE);
        (private_kib(pid) - before) / WATCHERS as f64
    }
}

/// Returns the memory of a process that it shares with no other one, in KiB.
fn private_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process runs");
    let private = text.lines().filter_map(|line| line.strip_prefix("Private_")?.strip_suffix(" kB"));
    private.map(|line| line.rsplit(' ').next().and_then(|kib| kib.parse::<f64>().ok()).expect("a number")).sum()
}

/// Measures the rows and prints their table.
pub fn measure(options: &Options) {
    let mut rows: Vec<Row> = [Kind::BareStream, Kind::WholeNamespace, Kind::ById]
        .into_iter()
        .map(|kind| Row { kind, slices: Vec::new() })
        .filter(|row| options.selects(row.title()))
        .collect();
    if rows.is_empty() {
        return;
    }
    let instances = Instances::start(&options.program, LIMITS);
    let id = instances.create_for(&options.runtime, "");
    let writer = Writer::new(&options.runtime, &instances.writing.address, vec![id]);
    let bare_stream = bare_stream(&options.runtime, &instances.start_measured().address, &writer).0;
    let (sessions, left) = (instances.create(WATCHERS), Arc::default());
    let updates = within(&left, update_with_event(&sessions));
    let setup = Setup { options, instances: &instances, sessions, updates, left, writer, bare_stream };
    in_rounds(&mut rows, options.rounds.min(ROUNDS), |row| setup.run(row.kind), |row| &mut row.slices);
    let bare = rows.iter().find(|row| row.kind == Kind::BareStream);
    let line = |row: &Row| {
        let mut line = vec![row.title().to_owned(), Quartiles::of(row.slices.iter().copied()).to_string()];
        let of_sessiond = bare.filter(|_| row.kind != Kind::BareStream);
        line.extend(of_sessiond.map_or_else(
            || ["–".to_owned(), String::new(), String::new()],
            |bare| {
                let more = Quartiles::of(row.slices.iter().zip(&bare.slices).map(|(own, bare)| own - bare));
                let [goal, met] = GOAL.judge(&more);
                [more.to_string(), goal, met]
            },
        ));
        line
    };
    println!("{WATCHERS} watchers, {EVENTS} events each, then none\n");
    let head = ["KiB per idle watcher", "private memory", "more than the bare stream", "goal", "met"];
    print_table(&head, &rows.iter().map(line).collect::<Vec<_>>());
}
