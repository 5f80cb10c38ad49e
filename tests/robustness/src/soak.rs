//! The soak: many histories, one after the other, on the same servers. Memory, descriptors, tasks, connections and watches of
//! every instance must stay flat.

mod report;
mod samples;

use std::{
    panic::AssertUnwindSafe,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream};
use sessiond_client::v1::EventType;
use tokio::time::sleep;

pub use report::Report;
pub use samples::{Sample, Samples};

use crate::{
    environment::{Environment, Settings, Topology},
    faults::{Fault, SESSION_LIMIT, SIDE_NAMESPACE, is_selected, soak_faults},
    run::{play, start_runtime},
    seeded_rng::SeededRng,
};
use harness::client::by_id;

/// Maximum number of faults in one segment.
const FAULTS: usize = 3;
/// Minimum duration of the load of a segment.
const LOAD: Duration = Duration::from_secs(25);
/// Time without load before the instances are sampled.
const REST: Duration = Duration::from_secs(3);
/// Maximum time until connections, tasks and descriptors of the last load are released.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(20);
/// Number of attempts to end a session.
const ATTEMPTS: usize = 20;
/// Number of sessions that are ended at once.
const CONCURRENT_ENDS: usize = 16;

/// A soak: how long it plays, and with which faults.
pub struct Soak {
    /// Seed of all random choices.
    pub seed: u64,
    /// Minimum duration; the last segment is played to its end.
    pub duration: Duration,
    /// Names or parts of names of the faults to play, or, with the prefix `-`, not to play. Empty: all faults.
    pub selection: Vec<String>,
    /// Whether each segment has one fault, and the soak ends after every fault was played once.
    pub once: bool,
    /// Directory that receives the history of every segment with a violation.
    pub failed_histories: PathBuf,
}

/// Returns the names of all faults of the soak.
pub fn fault_names() -> Vec<&'static str> {
    soak_faults().iter().map(|fault| fault.name()).collect()
}

/// The faults in random order, as cards that are shuffled again when all were played.
struct Deck<'a> {
    rng: SeededRng,
    selection: &'a [String],
    rest: Vec<Box<dyn Fault>>,
}

impl Deck<'_> {
    /// Returns the next fault. None: every fault was played once.
    fn next(&mut self) -> Option<Box<dyn Fault>> {
        let next = self.rng.below(self.rest.len().max(1));
        (next < self.rest.len()).then(|| self.rest.swap_remove(next))
    }

    fn shuffle(&mut self) {
        self.rest = soak_faults().into_iter().filter(|fault| is_selected(fault.name(), self.selection)).collect();
        assert!(!self.rest.is_empty(), "no fault is selected: {:?}; faults: {:?}", self.selection, fault_names());
    }

    /// Returns the faults of a segment.
    fn hand(&mut self, most: usize) -> Vec<Box<dyn Fault>> {
        let count = 1 + self.rng.below(most);
        (0..count).filter_map(|_| self.next()).collect()
    }
}

/// Returns the configuration of the instances: every background work happens often within one soak.
fn settings() -> Settings {
    Settings {
        top: "log_max_age = '3m'\nlog_max_bytes = '1024 MiB'\nreconcile_interval = '2s'".to_owned(),
        limits: "ring_slots = 512\nslow_consumer_timeout = '3s'".to_owned(),
        policies: format!(
            "max_payload_bytes = '1 MiB'\n[namespace.{SIDE_NAMESPACE}]\nsession_limit = {SESSION_LIMIT}\n"
        ),
        steps_clock: false,
    }
}

impl Soak {
    /// Plays the soak; prints some lines for each segment.
    pub fn play(&self) -> Report {
        let runtime = start_runtime();
        let report = runtime.block_on(self.play_segments());
        runtime.shutdown_background();
        report
    }

    async fn play_segments(&self) -> Report {
        let started = Instant::now();
        let mut deck =
            Deck { rng: SeededRng::for_name(self.seed, "faults"), selection: &self.selection, rest: Vec::new() };
        deck.shuffle();
        let mut env = Environment::start(Topology::Standalone, &settings(), self.seed).await;
        let mut report = Report::new(self.seed, env.instances.len());
        loop {
            if deck.rest.is_empty() {
                if self.once {
                    break;
                }
                deck.shuffle();
            }
            let faults = deck.hand(if self.once { 1 } else { FAULTS });
            let is_complete = self.play_segment(&mut env, faults, &mut report).await;
            if !is_complete || !self.once && started.elapsed() >= self.duration {
                break;
            }
        }
        env.reader.close().await;
        report.finish(started.elapsed());
        report
    }

    /// Plays one segment and samples the instances after it. Returns false if it panicked: the soak cannot continue.
    async fn play_segment(&self, env: &mut Environment, faults: Vec<Box<dyn Fault>>, report: &mut Report) -> bool {
        let number = report.segments();
        let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
        let names = names.join(", then ");
        let seed = SeededRng::for_name(self.seed, &format!("segment {number}")).next_u64();
        let segment = async {
            env.begin(seed).await;
            let mut run = play(env, faults, if self.once { Duration::ZERO } else { LOAD }).await;
            run.violations.extend(end_sessions(env).await.err().map(|error| ("SessionsEnded", error)));
            run
        };
        let started = Instant::now();
        let Ok(run) = AssertUnwindSafe(segment).catch_unwind().await else {
            report.add_panicked(&names);
            return false;
        };
        let took = started.elapsed();
        println!("segment {number}, {names}: {} calls, {took:.0?}", run.history.operations.len());
        let failure = report.add(&run, &self.failed_histories);
        failure.inspect(|failure| eprintln!("{failure}"));
        for (number, sample) in sample(env, report.samples()).await.into_iter().enumerate() {
            println!("    instance {number}: {sample}");
            report.add_sample(number, sample);
        }
        true
    }
}

/// Waits until the instances have released what the load used, at most `RELEASE_TIMEOUT`; returns a sample of each instance.
async fn sample(env: &Environment, samples: &[Samples]) -> Vec<Sample> {
    sleep(REST).await;
    let started = Instant::now();
    loop {
        let mut taken = Vec::new();
        for instance in &env.instances {
            taken.push(Sample::of(instance).await);
        }
        let is_released = samples.iter().zip(&taken).all(|(samples, sample)| samples.exceeded_by(sample).is_none());
        if is_released || started.elapsed() > RELEASE_TIMEOUT {
            return taken;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Ends all sessions of the segment, so that the next one begins with an empty store. Fails if one cannot be ended.
async fn end_sessions(env: &mut Environment) -> Result<(), String> {
    env.reader.read().await;
    let live = live_sessions(env);
    let clients = env.clients().await;
    let ends = live.iter().enumerate().map(|(number, (namespace, id))| {
        let client = clients[number % clients.len()].in_namespace(namespace);
        async move {
            for _ in 0..ATTEMPTS {
                if client.delete(by_id(id)).await.is_ok() {
                    break;
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    stream::iter(ends).buffer_unordered(CONCURRENT_ENDS).collect::<Vec<_>>().await;
    for key in env.redis.keys("elsewhere:*") {
        env.redis.command(&["DEL", &key]);
    }
    env.reader.read().await;
    let live = live_sessions(env);
    if live.is_empty() { Ok(()) } else { Err(format!("sessions that cannot be ended: {live:?}")) }
}

/// Returns namespace and id of all live sessions.
fn live_sessions(env: &Environment) -> Vec<(String, String)> {
    let truth = env.reader.truth();
    let sessions = truth.present().by_session().into_values();
    let last = sessions.map(|entries| entries[entries.len() - 1]);
    last.filter(|last| last.kind != EventType::Ended).map(|last| (last.namespace.clone(), last.id.clone())).collect()
}
