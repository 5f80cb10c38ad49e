//! Records one history: load, fault, recovery, and the ground truth.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::history::{FaultRecord, History, Micros, Outcome, Trace};
use crate::{
    environment::{Environment, Settings},
    fault_observed::StateBeforeFault,
    faults::Fault,
    fixtures::RULES,
    ground_truth::GroundTruth,
    instance::Instance,
    recorder::{Caller, Progress, RecordedHistory, now},
    seeded_rng::SeededRng,
    validate::{lost_write_count, violations},
    watchers::{ReadPattern, Watcher, watcher_kinds},
    workload::{WORKERS, Worker},
};
use harness::contract::Call;
use harness::{client::*, eventually};

/// Minimum number of answered writes before the fault. With fewer, the history proves nothing.
const WRITES_BEFORE_FAULT: usize = 250;
/// Minimum number of answered writes after the recovery.
const WRITES_AFTER_RECOVERY: usize = 100;
/// Maximum wait for the end of sessions that are due when the load ends. A session that has not ended by then never
/// does.
const EXPIRY_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum wait for a write and its events. A longer one is a violation.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// Result of one history.
pub struct HistoryRun {
    pub history: History,
    /// Violations with the names of their validators.
    pub violations: Vec<(&'static str, String)>,
    /// The faults in order.
    pub faults: Vec<PlayedFault>,
    /// Number of acknowledged writes that Redis lost.
    pub lost: usize,
    /// Errors and resyncs that calls and watches received, with their number.
    pub reported: BTreeMap<String, usize>,
}

/// Result of one fault.
pub struct PlayedFault {
    /// Name of the fault.
    pub name: &'static str,
    /// Time from the end of the fault until a new write was answered and every watcher had received its event.
    pub recovery: Duration,
    /// Errors and resyncs that calls and watches received since the start of the fault, with their number.
    pub reported: BTreeMap<String, usize>,
    record: FaultRecord,
}

/// Tasks of the workload and of the watchers.
struct ClientTasks {
    stop: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<()>>,
}

#[expect(clippy::disallowed_methods, reason = "the history owns the task")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(task)
}

/// Starts a runtime for one history or one soak.
pub fn start_runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("the runtime starts")
}

/// Sizes of the ring, in events. A watcher that falls further behind reads the log.
const RING_SLOTS: [usize; 2] = [512, 65_536];

/// Starts an environment, records a history with this fault and seed, and validates it.
pub async fn run(fault: Box<dyn Fault>, seed: u64) -> HistoryRun {
    let ring_slots = SeededRng::for_name(seed, "ring").choose(&RING_SLOTS);
    let settings = Settings {
        top: "log_max_age = '1d'\nlog_max_bytes = '1024 MiB'".to_owned(),
        limits: format!("ring_slots = {ring_slots}\n{}", fault.limits()),
        policies: String::new(),
        steps_clock: fault.steps_clock(),
    };
    let mut env = Environment::start(fault.topology(), &settings, seed).await;
    let run = play(&mut env, vec![fault], Duration::ZERO).await;
    env.reader.close().await;
    run
}

/// Records a history with these faults, one after the other, and validates it. The load continues for at least `shortest`.
pub async fn play(env: &mut Environment, faults: Vec<Box<dyn Fault>>, shortest: Duration) -> HistoryRun {
    let started = Instant::now();
    let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
    let about = format!("{}, {:?}", names.join(", then "), faults[0].topology());
    let mut tasks = start_clients(env).await;
    let (mut played, mut failures) = (Vec::new(), Vec::new());
    for fault in faults {
        played.push(play_fault(env, fault, &mut failures).await);
    }
    wait_for_writes(env, WRITES_AFTER_RECOVERY, "load after the recovery").await;
    sleep(shortest.saturating_sub(started.elapsed())).await;

    let drained = drain(env, &mut tasks).await;
    failures.extend(drained.err().map(|error| ("Recovery", error)));
    let ended = now();
    env.reader.read().await;
    let truth = env.reader.truth();
    let RecordedHistory { operations, watches, open_failures, reported } = env.recorder.finish();
    let faults = played.iter().map(|fault| fault.record.clone()).collect();
    let history =
        History { seed: env.seed, about, rules: RULES, operations, watches, open_failures, faults, truth, ended };
    let found = tokio::task::block_in_place(|| violations(&history));
    let mut violations: Vec<_> = found.into_iter().map(|(name, violation)| (name, violation.0)).collect();
    violations.extend(failures);
    violations.extend(env.problems.drain(..).map(|problem| ("FaultHandled", problem)));
    let unexpected_ends = env.instances.iter_mut().filter_map(Instance::unexpected_end);
    violations.extend(unexpected_ends.map(|error| ("InstancesRunning", error)));
    let lost = lost_write_count(&history);
    HistoryRun { lost, violations, faults: played, reported, history }
}

/// Waits until this many more writes are answered.
async fn wait_for_writes(env: &Environment, count: usize, what: &str) {
    let before = env.recorder.writes();
    eventually(what, async || (env.recorder.writes() >= before + count).then_some(())).await;
}

/// Injects the fault under load, heals it, and waits for the recovery and the evidence. Adds what fails to `failures`.
async fn play_fault(
    env: &mut Environment,
    mut fault: Box<dyn Fault>,
    failures: &mut Vec<(&'static str, String)>,
) -> PlayedFault {
    wait_for_writes(env, WRITES_BEFORE_FAULT, "load before the fault").await;
    (env.trace, env.confirmed) = (Trace::default(), 0);
    let before = StateBeforeFault::of(env).await;
    let at = now();
    fault.inject(env).await;
    sleep(fault.duration()).await;
    fault.heal(env).await;
    let healed = now();
    let recovered = wait_for_recovery(env).await;
    let missing_evidence = before.missing_evidence(fault.evidence(), env).await;
    let reported = before.reported_since(env);
    failures.extend(recovered.as_ref().err().map(|error| ("Recovery", error.clone())));
    if !missing_evidence.is_empty() {
        let name = fault.name();
        let text = format!("no evidence of the fault {name:?}: {missing_evidence:?}: {reported:?}");
        failures.push(("FaultObserved", text));
    }
    let (effects, failures, trace) = (fault.effects().to_vec(), fault.failures(), env.trace.clone());
    let record = FaultRecord { at, healed, effects, failures, trace };
    PlayedFault { name: fault.name(), recovery: recovered.unwrap_or(RECOVERY_TIMEOUT), reported, record }
}

async fn start_clients(env: &mut Environment) -> ClientTasks {
    let stop = watch::Sender::new(false);
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let worker = Worker {
            number,
            clients: env.clients().await,
            slots: env.slots.clone(),
            recorder: env.recorder.clone(),
            rng: env.rng.split(),
        };
        workers.push(spawn(worker.run(stop.subscribe())));
    }
    eventually("the workers create sessions", async || (env.slots.ids().len() >= 3).then_some(())).await;
    let ids = env.slots.ids().into_iter().collect();
    let mut watchers = Vec::new();
    for (filter, pattern, initial_state) in watcher_kinds(ids, &mut env.rng) {
        let watcher = Watcher {
            filter,
            pattern,
            initial_state,
            addresses: env.addresses(),
            recorder: env.recorder.clone(),
            rng: env.rng.split(),
            readers_stopped: env.readers_stopped.subscribe(),
        };
        let number = env.recorder.new_watcher(pattern == ReadPattern::Slow);
        watchers.push(spawn(watcher.run(number)));
    }
    ClientTasks { stop, workers, watchers }
}

/// Waits until a new write is answered and in the current log, and every watcher has received its event; returns the
/// duration.
async fn wait_for_recovery(env: &mut Environment) -> Result<Duration, String> {
    let started = Instant::now();
    loop {
        let (id, answered) = write_probe(env, started).await?;
        let is_exempt = |progress: &Progress| progress.is_finished || progress.is_slow;
        let has_event = |progress: &Progress| {
            is_exempt(progress) || progress.received_ids.contains(&id) || is_complete(env, progress, answered)
        };
        let elapsed = wait_for_watchers(env, started, has_event).await?;
        env.reader.read().await;
        if env.reader.truth().present().entries().any(|entry| entry.id == id) {
            return Ok(elapsed);
        }
    }
}

/// Returns whether a bookmark states that the watcher has every event up to this time.
fn is_complete(env: &Environment, progress: &Progress, until: Micros) -> bool {
    // An `as_of` from before the clock of Redis was set back is ahead of the new clock.
    progress.bookmark_at >= until && progress.as_of >= until.saturating_add_signed(env.clock_ahead)
}

/// Creates a session that matches every watcher; returns its id and the time of the answer.
async fn write_probe(env: &Environment, started: Instant) -> Result<(String, Micros), String> {
    let clients = env.reachable_clients().await;
    for (instance, client) in clients.iter().cycle() {
        if started.elapsed() > RECOVERY_TIMEOUT {
            return Err("no new write is answered".into());
        }
        let create = env.new_probe();
        let id = id_of(&create.token);
        let caller = Caller { client: WORKERS, instance: *instance };
        if let Outcome::Answered(_) = env.recorder.call(caller, client, Call::Create(create)).await {
            return Ok((id, now()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err("no instance accepts a connection".into())
}

/// Waits until every watcher satisfies the condition; returns the duration since `started`.
async fn wait_for_watchers(
    env: &Environment,
    started: Instant,
    condition: impl Fn(&Progress) -> bool,
) -> Result<Duration, String> {
    loop {
        let progress = env.recorder.progress();
        let Some(behind) = progress.iter().position(|progress| !condition(progress)) else {
            return Ok(started.elapsed());
        };
        if started.elapsed() > RECOVERY_TIMEOUT {
            let as_of = progress[behind].as_of;
            return Err(format!("watcher {behind} does not receive the events; its last bookmark is {as_of}"));
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Stops the workers, then waits until no session is due and every watcher has received all events.
async fn drain(env: &mut Environment, tasks: &mut ClientTasks) -> Result<(), String> {
    tasks.stop.send_replace(true);
    for worker in tasks.workers.drain(..) {
        worker.await.expect("no worker panics");
    }
    let stopped = Instant::now();
    let has_due_session = |truth: &GroundTruth, now: Micros| {
        let mut sessions = truth.present().by_session().into_values();
        sessions.any(|entries| entries[entries.len() - 1].expires_before(now + 2_500_000))
    };
    while stopped.elapsed() < EXPIRY_TIMEOUT {
        env.reader.read().await;
        if !has_due_session(&env.reader.truth(), now().saturating_add_signed(env.clock_ahead)) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let end = now();
    let started = Instant::now();
    let drained = loop {
        let has_all = |progress: &Progress| progress.is_finished || is_complete(env, progress, end);
        let waited = wait_for_watchers(env, started, has_all).await;
        // A server that has not detected a rollback yet still delivers events of the lost branch.
        env.reader.read().await;
        let truth = env.reader.truth();
        let is_current = |progress: &Progress| progress.token.as_ref().is_none_or(|token| truth.contains(token));
        if waited.is_err()
            || env.recorder.progress().iter().all(|progress| progress.is_finished || is_current(progress))
        {
            break waited;
        }
        if started.elapsed() > RECOVERY_TIMEOUT {
            break Err("a watcher stays at a position that a rollback lost".to_owned());
        }
        sleep(Duration::from_millis(50)).await;
    };
    for watcher in tasks.watchers.drain(..) {
        watcher.abort();
        let _ = watcher.await;
    }
    drained.map(drop)
}
