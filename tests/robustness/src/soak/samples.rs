//! Samples of an instance at rest, and the check that they are flat.

use std::fmt;

use crate::instance::Instance;

/// Maximum number of descriptors above the first sample: connections to Redis that are being replaced.
const MORE_DESCRIPTORS: u64 = 4;
/// Maximum number of tasks above the first sample: those of connections that are being replaced.
const MORE_TASKS: u64 = 8;
/// Maximum number of threads above the first sample: the pool for blocking work starts and ends threads.
const MORE_THREADS: u64 = 4;
/// Maximum growth of memory in percent, from the minimum of the second third of the samples to that of the last third. The
/// ring and the cache of log pages hold up to 96 MiB of recent events, so that single samples differ by more.
const MEMORY_GROWTH: u64 = 25;
/// Minimum number of samples for the check of memory: a leak of 5 % per sample is found.
const MEMORY_SAMPLES: usize = 24;

/// Resources of one instance without load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Number of starts of the process before the sample.
    pub starts: usize,
    /// Anonymous memory in KiB.
    pub anonymous: u64,
    /// Resident memory in KiB.
    pub resident: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Tasks of the runtime.
    pub tasks: u64,
    /// Open gRPC connections.
    pub connections: u64,
    /// Open watches.
    pub watches: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { starts, anonymous, resident, descriptors, threads, tasks, connections, watches } = self;
        write!(
            f,
            "{anonymous} KiB anonymous, {resident} KiB resident, {descriptors} descriptors, {threads} threads, \
             {tasks} tasks, {connections} connections, {watches} watches, start {starts}"
        )
    }
}

impl Sample {
    /// Reads `/proc` and the metrics of an instance.
    pub(crate) async fn of(instance: &Instance) -> Self {
        let process = format!("/proc/{}", instance.pid());
        let status = std::fs::read_to_string(format!("{process}/status")).expect("the process runs");
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
            number.unwrap_or_else(|| panic!("{name} in {status}"))
        };
        let descriptors = std::fs::read_dir(format!("{process}/fd")).expect("the descriptors can be listed").count();
        Sample {
            starts: instance.starts,
            anonymous: field("RssAnon"),
            resident: field("VmRSS"),
            descriptors: descriptors as u64,
            threads: field("Threads"),
            tasks: instance.metric("sessiond_tasks").await as u64,
            connections: instance.metric("sessiond_grpc_connections").await as u64,
            watches: instance.metric("sessiond_watches").await as u64,
        }
    }
}

/// The samples of one instance, in order.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// Returns the samples since the last start of the process.
    pub fn of_last_start(&self) -> &[Sample] {
        self.by_start().last().unwrap_or_default()
    }

    /// Returns the samples of each start of the process.
    fn by_start(&self) -> impl Iterator<Item = &[Sample]> {
        self.0.chunk_by(|one, other| one.starts == other.starts)
    }

    /// Returns a text if the next sample has more of a resource than the first one since the same start permits.
    pub fn exceeded_by(&self, next: &Sample) -> Option<String> {
        exceeded(self.0.iter().find(|first| first.starts == next.starts)?, next)
    }

    /// Returns a text for each start after which a resource was not flat, and for each after which the memory grew.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for samples in self.by_start() {
            problems.extend(samples.iter().find_map(|sample| exceeded(&samples[0], sample)));
            if let Some((before, after)) = memory_minima(samples)
                && after * 100 > before * (100 + MEMORY_GROWTH)
            {
                problems.push(format!(
                    "anonymous memory grows from {before} KiB to {after} KiB, by more than {MEMORY_GROWTH} %"
                ));
            }
        }
        problems
    }
}

/// Returns a text if the sample has more of a resource than the first one permits.
fn exceeded(first: &Sample, sample: &Sample) -> Option<String> {
    let resources = [
        ("descriptors", first.descriptors, sample.descriptors, MORE_DESCRIPTORS),
        ("tasks", first.tasks, sample.tasks, MORE_TASKS),
        ("threads", first.threads, sample.threads, MORE_THREADS),
        ("connections", first.connections, sample.connections, 0),
        ("watches", first.watches, sample.watches, 0),
    ];
    let exceeded = resources.into_iter().find(|(_, first, now, more)| *now > first + more);
    exceeded.map(|(name, first, now, _)| format!("{now} {name} at rest, {first} after the first segment"))
}

/// Returns the minima of the anonymous memory in the second and in the last third. None: too few samples.
pub(super) fn memory_minima(samples: &[Sample]) -> Option<(u64, u64)> {
    if samples.len() < MEMORY_SAMPLES {
        return None;
    }
    let third = samples.len() / 3;
    let last = samples.len() - third;
    Some((minimum(&samples[last - third..last])?, minimum(&samples[last..])?))
}

fn minimum(samples: &[Sample]) -> Option<u64> {
    samples.iter().map(|sample| sample.anonymous).min()
}
