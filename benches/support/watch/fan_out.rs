//! Fan-out: CPU of the server per delivered event, compared with a bare stream.

use std::sync::{Arc, Mutex};

use sessiond_client::v1::WatchRequest;
use tokio::runtime::Runtime;

use crate::support::{
    baseline::{self, Baseline},
    cpu,
    figures::{Goal, Quartiles, print_table},
    measure::in_rounds,
};

use super::{
    Options,
    instances::Instances,
    of_session, of_subject,
    watchers::{Received, Watchers},
    whole_namespace,
    writer::Writer,
};

/// Deliveries per second to all watchers together, the same for both servers: far from saturation.
const DELIVERIES: usize = 20_000;
/// Numbers of watchers that a bare stream is measured with.
const WATCHERS: [usize; 2] = [1_000, 5_000];
/// Events before a slice.
const WARM_UP: usize = 2;
const SUBJECT: &str = "user-0000001";
const GOAL: Goal = Goal::AtLeast(0.85);

/// Watchers of one server, all with the same request. A slice is the CPU of the server in µs per delivered event.
struct Row<'a> {
    title: String,
    pid: u32,
    address: &'a str,
    request: WatchRequest,
    watchers: usize,
    writer: &'a Writer<'a>,
    slices: Vec<f64>,
}

impl Row<'_> {
    fn run(&self, options: &Options) -> f64 {
        let requests = vec![self.request.clone(); self.watchers];
        let watchers = Watchers::open(&options.runtime, self.address, &requests);
        let per_second = DELIVERIES / self.watchers;
        self.writer.write(WARM_UP, per_second);
        watchers.wait_for(WARM_UP as u64);
        let (events, before) = (options.events(per_second), cpu::used_by(self.pid));
        self.writer.write(events, per_second);
        watchers.wait_for((WARM_UP + events) as u64);
        let used = cpu::used_by(self.pid) - before;
        used.as_secs_f64() * 1e6 / (events * self.watchers) as f64
    }
}

fn title(kind: &str, watchers: usize) -> String {
    format!("fan-out, {kind}, {watchers} watchers")
}

/// Title of the row of the bare stream with so many watchers.
fn bare(watchers: usize) -> String {
    title("bare stream", watchers)
}

/// Returns a bare stream with the responses of this server: the first one of a watch of the whole namespace, and one with
/// an event, whose size is returned, too.
pub fn bare_stream(runtime: &Runtime, sessiond: &str, writer: &Writer<'_>) -> (Baseline, usize) {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let received = messages.clone();
    let on_response = move |response: &Received<'_>, _| received.lock().unwrap().push(response.message.to_vec());
    let watchers = Watchers::open_with(runtime, sessiond, &[whole_namespace()], Box::new(on_response));
    writer.write(1, 1);
    watchers.wait_for(1);
    let messages = messages.lock().unwrap();
    let (first, event) = (&messages[0], messages.last().expect("a response"));
    (Baseline::stream(first, event), event.len())
}

/// Measures the rows and prints their table.
pub fn measure(options: &Options) {
    if !options.selects_any_of("fan-out") {
        return;
    }
    let runtime = &options.runtime;
    let instances = Instances::start(&options.program, "");
    let sessiond = instances.start_measured();
    let id = instances.create_for(runtime, SUBJECT);
    let writer = Writer::new(runtime, &instances.writing.address, vec![id.clone()]);
    let (bare_stream, event_bytes) = bare_stream(runtime, &sessiond.address, &writer);
    let bare_stream = baseline::Process::start(&bare_stream);
    let bare_writer = Writer::new(runtime, &bare_stream.address, vec![id.clone()]);
    eprintln!("process ids: sessiond {}, bare stream {}", sessiond.pid(), bare_stream.pid());

    let row = |kind: &str, watchers, request| {
        let (title, pid, address) = (title(kind, watchers), sessiond.pid(), &sessiond.address[..]);
        Row { title, pid, address, request, watchers, writer: &writer, slices: Vec::new() }
    };
    let mut rows = Vec::new();
    for watchers in WATCHERS {
        let namespace = row("whole namespace", watchers, whole_namespace());
        let (title, pid, address) = (bare(watchers), bare_stream.pid(), &bare_stream.address[..]);
        rows.push(Row { title, pid, address, writer: &bare_writer, ..row("", watchers, whole_namespace()) });
        rows.push(namespace);
    }
    rows.push(row("one subject", WATCHERS[0], of_subject(SUBJECT)));
    rows.push(row("one id", WATCHERS[0], of_session(&id)));
    rows.retain(|row| options.selects(&row.title));
    in_rounds(&mut rows, options.rounds, |row| row.run(options), |row| &mut row.slices);

    println!("An event has {event_bytes} bytes; {DELIVERIES} deliveries per second.\n");
    print(&rows);
}

fn print(rows: &[Row<'_>]) {
    let line = |row: &Row<'_>| {
        let mut line = vec![row.title.clone(), format!("{:.3}", Quartiles::of(row.slices.iter().copied()))];
        let reference = rows.iter().find(|other| other.title == bare(row.watchers) && other.title != row.title);
        let ratio = reference.map(|bare| {
            let ratio = Quartiles::of(bare.slices.iter().zip(&row.slices).map(|(bare, own)| bare / own));
            let [goal, met] = GOAL.judge(&ratio);
            [format!("{ratio:.3}"), goal, met]
        });
        line.extend(ratio.unwrap_or_else(|| ["–".to_owned(), String::new(), String::new()]));
        line
    };
    let head = ["", "server CPU, µs per delivered event", "CPU of the bare stream to it", "goal", "met"];
    print_table(&head, &rows.iter().map(line).collect::<Vec<_>>());
}
