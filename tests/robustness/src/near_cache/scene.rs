//! The environment of one history: Redis, two instances that each reach it through a proxy, the workload, and the reader of
//! the logs.

use std::{sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::{
    CALL_TIMEOUT, Disturbance, Epoch, Kind, Recording,
    workload::{Reader, SESSIONS, Shared, Writer},
};
use crate::{history::Micros, instance::Instance, log_reader::LogReader, recorder::now, seeded_rng::SeededRng};
use harness::{
    Client, Redis,
    clock::Clock,
    eventually,
    proxy::Proxy,
    redis::{KEYSPACE_NOTIFICATIONS, server_arguments},
};

/// Number of readers.
const READERS: usize = 10;
/// Pause of a reader after a read.
const READ_PAUSE: Duration = Duration::from_millis(3);
/// Sessions of each writer, and the maximum pause after each of its calls in ms. Between two changes of some sessions there
/// must be more than a second, so that a wrong copy is not dropped in time.
const WRITERS: [(std::ops::Range<usize>, usize); 3] = [(0..2, 40), (2..5, 1_500), (5..SESSIONS, 600)];
/// Time after which readers follow the last change with a read from memory.
const SHORTEST_REST: usize = 150;
const LONGEST_REST: usize = 900;

/// Name of the file of the snapshot.
pub const SNAPSHOT: &str = "saved.rdb";

/// Everything that belongs to one history.
pub struct Scene {
    pub kind: Kind,
    pub shared: Arc<Shared>,
    /// The replica that a failover promotes. None: another kind, or the failover has happened.
    pub replica: Option<Redis>,
    /// Clock of Redis. None: another kind.
    pub clock: Option<Clock>,
    /// Proxy of each instance.
    pub proxies: Vec<Proxy>,
    pub instances: Vec<Instance>,
    /// Connections of the faults, one to each instance.
    pub clients: Vec<Client>,
    pub reader: LogReader,
    pub disturbances: Vec<Disturbance>,
    seed: u64,
    epochs: Vec<Epoch>,
    /// Interval that contains the begin of the present epoch.
    begun: [Micros; 2],
    /// Reads of instances that have ended.
    counted: ReadCounts,
    directory: tempfile::TempDir,
}

/// Tasks of the workload.
pub struct Tasks {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Stops the workload.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await.expect("no task of the workload panics");
        }
    }
}

fn start_redis(kind: Kind) -> (Redis, Option<Redis>, Option<Clock>) {
    let snapshots = [&KEYSPACE_NOTIFICATIONS[..], &["--dbfilename", SNAPSHOT]].concat();
    match kind {
        Kind::Restarts => (Redis::start_with(&snapshots), None, None),
        Kind::StepsClock => {
            let (redis, clock) = Clock::start_with(&snapshots);
            (redis, None, Some(clock))
        }
        Kind::FailsOver => {
            let start = |primary: Option<u16>| {
                Redis::on_ports(|[port, ..]| {
                    let (port, primary) = (port.to_string(), primary.map(|primary| primary.to_string()));
                    let mut arguments = vec!["--port", &port, "--repl-diskless-sync-delay", "0"];
                    if let Some(primary) = &primary {
                        arguments.extend(["--replicaof", "127.0.0.1", primary]);
                    }
                    server_arguments([&arguments, &KEYSPACE_NOTIFICATIONS[..]].concat())
                })
            };
            let primary = start(None);
            let replica = start(Some(primary.port()));
            primary.wait_for(&replica);
            (primary, Some(replica), None)
        }
    }
}

impl Scene {
    /// Starts Redis, the proxies and the instances.
    pub async fn start(kind: Kind, seed: u64, rng: &mut SeededRng) -> Self {
        let (redis, replica, clock) = tokio::task::block_in_place(|| start_redis(kind));
        let directory = tempfile::tempdir().expect("a directory can be made");
        let proxies = vec![Proxy::start(&redis), Proxy::start(&redis)];
        let reader = LogReader::start(redis.unrestricted_url(), "ses:").await;
        let (mut instances, mut clients) = (Vec::new(), Vec::new());
        for (number, proxy) in proxies.iter().enumerate() {
            let file = directory.path().join(format!("{number}.toml"));
            std::fs::write(&file, settings(Policy::First)).expect("the configuration can be written");
            let arguments = [format!("--redis={}", proxy.url()), format!("--config={}", file.display())];
            let instance = Instance::start(arguments.into()).await;
            clients.push(Client::connect(&instance.address).await);
            instances.push(instance);
        }
        let shared = Arc::new(Shared::new(redis, rng));
        let (disturbances, epochs) = (Vec::new(), Vec::new());
        Scene {
            kind,
            shared,
            replica,
            clock,
            proxies,
            instances,
            clients,
            reader,
            disturbances,
            seed,
            epochs,
            begun: [0; 2],
            counted: ReadCounts::default(),
            directory,
        }
    }

    /// Starts the writers and the readers, and waits until every session was created.
    pub async fn start_workload(&self, rng: &mut SeededRng) -> Tasks {
        let stop = watch::Sender::new(false);
        let mut tasks = Vec::new();
        for (number, (slots, pause)) in WRITERS.into_iter().enumerate() {
            let (clients, shared) = (self.clients.clone(), self.shared.clone());
            let writer = Writer { number, clients, shared, rng: rng.split(), slots, pause };
            tasks.push(spawn(writer.run(stop.subscribe())));
        }
        for number in 0..READERS {
            let (clients, shared) = (self.clients.clone(), self.shared.clone());
            let reader = Reader { number: 10 + number, clients, shared, rng: rng.split(), pause: READ_PAUSE };
            tasks.push(spawn(reader.run(stop.subscribe())));
        }
        eventually("the sessions are created", async || self.shared.all_live().then_some(())).await;
        Tasks { stop, tasks }
    }

    /// Lets the workload run without a fault for a while.
    pub async fn rest(&self, rng: &mut SeededRng) {
        sleep(Duration::from_millis((SHORTEST_REST + rng.below(LONGEST_REST - SHORTEST_REST)) as u64)).await;
        self.proxies.iter().for_each(Proxy::forget_replies);
    }

    /// Ends the epoch between the times of `until`. The next one begins between the times of `begun`, with the data of the time
    /// `kept_until`.
    pub fn end_epoch(&mut self, until: [Micros; 2], kept_until: Micros, begun: [Micros; 2]) {
        let log = self.reader.truth().present().entries().cloned().collect();
        self.epochs.push(Epoch { from: self.begun, until, kept_until, log });
        self.begun = begun;
    }

    /// Restarts an instance, after SIGKILL or SIGTERM, with this policy.
    pub async fn restart(&mut self, number: usize, signal: Signal, policy: Policy) {
        let file = self.directory.path().join(format!("{number}.toml"));
        std::fs::write(file, settings(policy)).expect("the configuration can be written");
        let counted = reads_of(&self.instances[number]).await;
        add(&mut self.counted, counted);
        let instance = &mut self.instances[number];
        match signal {
            Signal::KILL => instance.kill(),
            _ => drop(instance.terminate().await),
        }
        instance.restart().await;
    }

    /// Returns the number of reads that accept memory, of all instances, by result.
    pub async fn cache_reads(&self) -> ReadCounts {
        let mut all = self.counted;
        for instance in &self.instances {
            add(&mut all, reads_of(instance).await);
        }
        all
    }

    /// Returns the instances that have ended though no fault ended them.
    pub fn problems(&mut self) -> Vec<String> {
        self.instances.iter_mut().filter_map(Instance::unexpected_end).collect()
    }

    /// Reads the logs to their ends, and returns the record of the history.
    pub async fn finish(mut self) -> Recording {
        self.reader.read().await;
        self.end_epoch([Micros::MAX; 2], Micros::MAX, [0; 2]);
        self.reader.close().await;
        Recording {
            seed: self.seed,
            kind: self.kind,
            steps_clock: self.kind == Kind::StepsClock,
            operations: self.shared.recorder.finish().operations,
            epochs: self.epochs,
            deletions: std::mem::take(&mut *self.shared.deletions.lock().unwrap()),
            disturbances: self.disturbances,
        }
    }

    /// Records a fault that began at this time and has ended.
    pub fn record(&mut self, name: String, from: Micros) {
        self.disturbances.push(Disturbance { name, from, until: now() });
    }
}

/// Results of reads that accept memory. The first one: answered from it.
pub const READ_RESULTS: [&str; 7] = ["hit", "absent", "revision", "old", "unverified", "touch", "script"];

/// Numbers of reads by result, in the order of [`READ_RESULTS`].
pub type ReadCounts = [f64; READ_RESULTS.len()];

fn add(all: &mut ReadCounts, more: ReadCounts) {
    all.iter_mut().zip(more).for_each(|(all, more)| *all += more);
}

/// Returns the reads of an instance since its start.
async fn reads_of(instance: &Instance) -> ReadCounts {
    let mut counts = ReadCounts::default();
    for (count, result) in counts.iter_mut().zip(READ_RESULTS) {
        *count = instance.metric(&format!(r#"sessiond_cache_reads_total{{result="{result}"}}"#)).await;
    }
    counts
}

/// Policies between which an instance changes when it restarts.
#[derive(Clone, Copy)]
pub enum Policy {
    First,
    Second,
}

/// Maximum time in µs between two recorded touches, by all policies.
pub const LONGEST_TOUCH_INTERVAL: Micros = 500_000;

/// Configuration of an instance.
fn settings(policy: Policy) -> String {
    let changed = match policy {
        Policy::First => "touch_interval = '500ms'\nrotation_grace = '1d'",
        Policy::Second => "touch_interval = '200ms'\nrotation_grace = '1h'\nrenewal_timeout = '2s'",
    };
    format!(
        "log_max_age = '1d'\nlog_max_bytes = '1024 MiB'\n[limits]\ncall_timeout = '{}ms'\n\
         [default_policy]\ntoken_reuse = 'report'\n{changed}\n",
        CALL_TIMEOUT.as_millis()
    )
}

#[expect(clippy::disallowed_methods, reason = "the history owns the task")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(task)
}
