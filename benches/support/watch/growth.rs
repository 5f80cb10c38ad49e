//! Cost of a change for Redis, by the number of instances that take in the log.

use crate::support::{
    cpu,
    figures::{Quartiles, print_table},
    measure::in_rounds,
};
use harness::process::Process;

use super::{
    Options,
    instances::{Instances, ids},
    writer::Writer,
};

/// Numbers of instances, the writing one included. The first is the reference of the ratios.
const INSTANCES: [usize; 3] = [1, 2, 8];
/// Sessions that are updated in turn.
const SESSIONS: usize = 100;
/// Changes per second.
const PER_SECOND: usize = 1_000;
const TITLE: &str = "growth";

/// A store with its instances. A slice is the CPU of Redis in µs per change.
struct Row<'a> {
    writer: Writer<'a>,
    instances: Instances,
    /// Instances that only take in the log.
    others: Vec<Process>,
    slices: Vec<f64>,
}

impl<'a> Row<'a> {
    fn start(options: &'a Options, number: usize) -> Self {
        let instances = Instances::start(&options.program, "");
        let ids = ids(&instances.create(SESSIONS));
        let writer = Writer::new(&options.runtime, &instances.writing.address, ids);
        let others = (1..number).map(|_| instances.start_measured()).collect();
        Row { writer, instances, others, slices: Vec::new() }
    }

    fn run(&self, options: &Options) -> f64 {
        let (changes, before) = (options.events(PER_SECOND), cpu::used_by(self.instances.redis.pid()));
        self.writer.write(changes, PER_SECOND);
        let used = cpu::used_by(self.instances.redis.pid()) - before;
        used.as_secs_f64() * 1e6 / changes as f64
    }
}

/// Measures the rows and prints their table.
pub fn measure(options: &Options) {
    if !options.selects(TITLE) {
        return;
    }
    let mut rows = INSTANCES.map(|number| Row::start(options, number));
    in_rounds(&mut rows, options.rounds, |row| row.run(options), |row| &mut row.slices);
    let line = |row: &Row<'_>| {
        let pairs = row.slices.iter().zip(&rows[0].slices);
        let ratio = Quartiles::of(pairs.map(|(own, first)| own / first));
        let cpu = Quartiles::of(row.slices.iter().copied());
        let number = 1 + row.others.len();
        let plural = if number == 1 { "" } else { "s" };
        vec![format!("{TITLE}, {number} instance{plural}"), format!("{cpu:.3}"), format!("{ratio:.3}")]
    };
    println!("{PER_SECOND} updates per second on one instance\n");
    print_table(
        &["", "CPU of Redis, µs per change", "ratio to 1 instance"],
        &rows.iter().map(line).collect::<Vec<_>>(),
    );
}
