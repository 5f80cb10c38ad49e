//! Cost of an event while other watchers are connected that do not receive it, and of a log entry without watchers.

use std::{
    cell::Cell,
    thread,
    time::{Duration, Instant},
};

use harness::{client::seconds, process::Process};
use sessiond_client::v1::WatchRequest;

use crate::support::{
    cpu,
    figures::{Goal, Quartiles, print_table},
    measure::in_rounds,
};

use super::{
    Options,
    instances::{Instances, ids},
    of_session, of_subject,
    watchers::Watchers,
    writer::Writer,
};

/// Watchers by id that receive events, each of a session of its own.
const RECEIVERS: usize = 100;
/// Numbers of other watchers.
const FEW: usize = 100;
const MANY: usize = 50_000;
/// Events per second of all receivers together.
const PER_SECOND: usize = 1_000;
/// Log entries per second without watchers.
const ENTRIES_PER_SECOND: usize = 2_000;
/// Longest bookmark interval that the API allows, in seconds.
const BOOKMARK_INTERVAL: u64 = 60;
/// Time of the idle interval that contains a bookmark of each watcher.
const IDLE: Duration = Duration::from_secs(BOOKMARK_INTERVAL + 1);
/// Time in which the last entry of a slice reaches an instance without watchers.
const ARRIVAL: Duration = Duration::from_millis(20);
const GOAL: Goal = Goal::AtMost(1.2);

const FEW_BY_ID: &str = "others, 100 by id";
const MANY_BY_ID: &str = "others, 50000 by id";
const MANY_BY_SUBJECT: &str = "others, 50000 by subject";
const FEED: &str = "feed";

/// CPU of an instance in a slice.
struct Slice {
    /// CPU in µs per event, without that of an idle interval of the same length.
    per_event: f64,
    /// CPU in µs per event, with it.
    with_idle: f64,
}

/// An instance and its watchers, with a store of its own. The watchers are closed before the servers are stopped.
struct Row<'a> {
    title: &'static str,
    options: &'a Options,
    receivers: Option<Watchers<'a>>,
    others: Option<Watchers<'a>>,
    writer: Writer<'a>,
    process: Process,
    _instances: Instances,
    per_second: usize,
    /// Number of events of each receiver so far.
    received: Cell<usize>,
    slices: Vec<Slice>,
}

impl<'a> Row<'a> {
    /// Starts an instance with receivers and with others, whose requests `others` returns.
    fn start(title: &'static str, options: &'a Options, others: impl FnOnce(&Instances) -> Vec<WatchRequest>) -> Self {
        let instances = Instances::start(&options.program, "");
        let ids = ids(&instances.create(RECEIVERS));
        let writer = Writer::new(&options.runtime, &instances.writing.address, ids.clone());
        let mut requests = others(&instances);
        requests.iter_mut().for_each(|request| request.bookmark_interval = seconds(BOOKMARK_INTERVAL as i64));
        let process = instances.start_measured();
        let open = |requests: &[WatchRequest]| {
            (!requests.is_empty()).then(|| Watchers::open(&options.runtime, &process.address, requests))
        };
        let receivers: Vec<_> = ids.iter().map(|id| of_session(id)).collect();
        let receivers = if title == FEED { None } else { open(&receivers) };
        let others = open(&requests);
        let per_second = if title == FEED { ENTRIES_PER_SECOND } else { PER_SECOND };
        let (received, slices) = (Cell::new(0), Vec::new());
        eprintln!("process id of {title}: {}", process.pid());
        Row { title, options, _instances: instances, process, receivers, others, writer, per_second, received, slices }
    }

    /// Number of other watchers.
    fn others(&self) -> usize {
        self.others.as_ref().map_or(0, Watchers::count)
    }

    /// Number of responses that the other watchers have received.
    fn responses(&self) -> u64 {
        self.others.as_ref().map_or(0, Watchers::responses)
    }

    fn cpu(&self) -> Duration {
        cpu::used_by(self.process.pid())
    }

    /// Measures an idle interval, and then one with events.
    fn run(&self) -> Slice {
        // Half of a slice is idle. Each receiver receives the same number of events.
        let events = self.options.events(self.per_second / 2).next_multiple_of(RECEIVERS);
        let before = self.cpu();
        thread::sleep(Duration::from_secs_f64(events as f64 / self.per_second as f64));
        let idle = self.cpu() - before;
        self.writer.write(events, self.per_second);
        self.received.set(self.received.get() + events / RECEIVERS);
        match &self.receivers {
            Some(receivers) => receivers.wait_for(self.received.get() as u64),
            None => thread::sleep(ARRIVAL),
        }
        let used = self.cpu() - before - idle;
        let per_event = |used: f64| used * 1e6 / events as f64;
        let (used, idle) = (used.as_secs_f64(), idle.as_secs_f64());
        Slice { per_event: per_event(used - idle), with_idle: per_event(used) }
    }
}

fn quartiles(row: &Row<'_>, figure: fn(&Slice) -> f64) -> Quartiles {
    Quartiles::of(row.slices.iter().map(figure))
}

/// Prints the costs of an event, as ratios to that with few others.
fn print_costs(rows: &[Row<'_>]) {
    let few = rows.iter().find(|row| row.title == FEW_BY_ID);
    let line = |row: &Row<'_>| {
        let mut line = vec![row.title.to_owned(), format!("{:.3}", quartiles(row, |slice| slice.per_event))];
        let ratio = few.filter(|few| few.title != row.title).map(|few| {
            let pairs = row.slices.iter().zip(&few.slices);
            let ratio = Quartiles::of(pairs.map(|(own, few)| own.per_event / few.per_event));
            let [goal, met] = GOAL.judge(&ratio);
            [format!("{ratio:.3}"), goal, met]
        });
        line.extend(ratio.unwrap_or_else(|| ["–".to_owned(), String::new(), String::new()]));
        // The first response of each came before the slices.
        line.push((row.responses() - row.others() as u64).to_string());
        line
    };
    println!("{RECEIVERS} watchers by id receive {PER_SECOND} events per second\n");
    let head =
        ["other watchers", "server CPU, µs per event", "ratio to 100 others", "goal", "met", "bookmarks of others"];
    print_table(&head, &rows.iter().map(line).collect::<Vec<_>>());
}

/// Use of an instance in the idle interval.
struct Idle {
    /// CPU in µs per second.
    cpu: f64,
    /// Number of bookmarks of the other watchers.
    bookmarks: u64,
}

/// Measures all instances at the same time while they are idle, for one bookmark of each watcher.
fn measure_idle(rows: &[Row<'_>]) -> Vec<Idle> {
    let now = |row: &Row<'_>| (row.cpu(), row.responses());
    let before: Vec<_> = rows.iter().map(now).collect();
    let begin = Instant::now();
    thread::sleep(IDLE);
    let idle = |(row, (cpu_before, responses_before)): (&Row<'_>, (Duration, u64))| {
        let (cpu, responses) = now(row);
        let bookmarks = responses - responses_before;
        assert!(bookmarks >= row.others() as u64, "{bookmarks} bookmarks for {} watchers", row.others());
        Idle { cpu: (cpu - cpu_before).as_secs_f64() * 1e6 / begin.elapsed().as_secs_f64(), bookmarks }
    };
    rows.iter().zip(before).map(idle).collect()
}

/// Prints the CPU of idle instances. That of a watcher is the difference to the instance with few others.
fn print_idle(rows: &[Row<'_>]) {
    let all = measure_idle(rows);
    let few = rows.iter().position(|row| row.title == FEW_BY_ID);
    let line = |(row, idle): (&Row<'_>, &Idle)| {
        let per_watcher = few.filter(|few| row.others() > rows[*few].others()).map(|few| {
            let per_watcher = (idle.cpu - all[few].cpu) / (row.others() - rows[few].others()) as f64;
            format!("{per_watcher:.2}")
        });
        let cpu = format!("{:.2}", idle.cpu / 1e3);
        vec![row.title.to_owned(), cpu, per_watcher.unwrap_or_else(|| "–".to_owned()), idle.bookmarks.to_string()]
    };
    println!("No events for {} s, with a bookmark of each watcher every {BOOKMARK_INTERVAL} s\n", IDLE.as_secs());
    let head = ["other watchers", "server CPU, ms per second", "µs per other watcher and second", "bookmarks"];
    print_table(&head, &rows.iter().zip(&all).map(line).collect::<Vec<_>>());
}

/// Measures events with other watchers and prints the tables.
pub fn measure(options: &Options) {
    let by_id = |watchers: usize| {
        move |instances: &Instances| ids(&instances.create(watchers)).iter().map(|id| of_session(id)).collect()
    };
    let by_subject = |_: &Instances| (0..MANY).map(|number| of_subject(&format!("user-{number:07}"))).collect();
    let start = |title| match title {
        FEW_BY_ID => Row::start(title, options, by_id(FEW)),
        MANY_BY_ID => Row::start(title, options, by_id(MANY)),
        _ => Row::start(title, options, by_subject),
    };
    let titles = [FEW_BY_ID, MANY_BY_ID, MANY_BY_SUBJECT].into_iter().filter(|title| options.selects(title));
    let mut rows: Vec<_> = titles.map(start).collect();
    if !rows.is_empty() {
        in_rounds(&mut rows, options.rounds, Row::run, |row| &mut row.slices);
        print_costs(&rows);
        print_idle(&rows);
    }
}

/// Measures an instance without watchers and prints its table.
pub fn measure_feed(options: &Options) {
    if !options.selects(FEED) {
        return;
    }
    let mut rows = [Row::start(FEED, options, |_| Vec::new())];
    in_rounds(&mut rows, options.rounds, Row::run, |row| &mut row.slices);
    let [row] = &rows;
    let lines = [
        vec!["server CPU, µs per log entry".to_owned(), format!("{:.3}", quartiles(row, |slice| slice.per_event))],
        vec!["with what it uses when idle".to_owned(), format!("{:.3}", quartiles(row, |slice| slice.with_idle))],
        vec!["entries per CPU second".to_owned(), format!("{:.0}", quartiles(row, |slice| 1e6 / slice.with_idle))],
    ];
    let title = format!("{FEED}, {ENTRIES_PER_SECOND} entries per second, no watcher");
    print_table(&[&title, ""], &lines);
}
