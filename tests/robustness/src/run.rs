//! Records one history: load, fault, recovery, and the ground truth.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::history::{self, History, Micros, Outcome};
use crate::{
    environment::Environment,
    fault_observed::StateBeforeFault,
    faults::Fault,
    fixtures::RULES,
    ground_truth::GroundTruth,
    recorder::{Caller, Progress, RecordedHistory, now},
    validate::{lost_write_count, violations},
    watchers::{ReadPattern, Watcher, watcher_kinds},
    workload::{WORKERS, Worker, probe_session},
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
    /// Time from the end of the fault until a new write was answered and every watcher had received its event.
    pub recovery: Duration,
    /// Number of acknowledged writes that Redis lost.
    pub lost: usize,
    /// Errors and resyncs that calls and watches received, with their number.
    pub reported: BTreeMap<String, usize>,
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

/// Records a history with this fault and seed, and validates it.
pub async fn run(mut fault: Box<dyn Fault>, seed: u64) -> HistoryRun {
    let mut env = Environment::start(fault.topology(), fault.limits(), seed).await;
    let mut tasks = start_clients(&mut env).await;
    eventually("load before the fault", async || (env.recorder.writes() >= WRITES_BEFORE_FAULT).then_some(())).await;

    let before = StateBeforeFault::of(&env).await;
    let at = now();
    fault.inject(&mut env).await;
    sleep(fault.duration()).await;
    fault.heal(&mut env).await;
    let healed = now();
    let recovered = wait_for_recovery(&mut env).await;
    let answered = env.recorder.writes();
    let has_load = async || (env.recorder.writes() >= answered + WRITES_AFTER_RECOVERY).then_some(());
    eventually("load after the recovery", has_load).await;

    let drained = drain(&mut env, &mut tasks).await;
    let ended_servers: Vec<String> = env.servers.iter_mut().filter_map(|server| server.exit_reason()).collect();
    let ended = now();
    env.reader.read().await;
    let truth = env.reader.truth();
    env.reader.close().await;
    let RecordedHistory { operations, watches, open_failures, reported } = env.recorder.finish();
    let missing_evidence = before.missing_evidence(fault.evidence(), &env, &reported).await;
    let about = format!("{}, {:?}", fault.name(), fault.topology());
    let (effects, trimmed, deleted_keys) = (fault.effects().to_vec(), env.trimmed.clone(), env.deleted_keys.clone());
    let faults = vec![history::FaultRecord { at, healed, effects, trimmed, deleted_keys }];
    let history = History { seed, about, rules: RULES, operations, watches, open_failures, faults, truth, ended };
    let found = tokio::task::block_in_place(|| violations(&history));
    let mut violations: Vec<_> = found.into_iter().map(|(name, violation)| (name, violation.0)).collect();
    violations.extend(
        [recovered.as_ref().err(), drained.err().as_ref()]
            .into_iter()
            .flatten()
            .map(|error| ("Recovery", error.clone())),
    );
    if !missing_evidence.is_empty() {
        violations.push(("FaultObserved", format!("no evidence of the fault: {missing_evidence:?}: {reported:?}")));
    }
    violations.extend(ended_servers.into_iter().map(|error| ("ServersRunning", error)));
    let lost = lost_write_count(&history);
    HistoryRun { lost, violations, recovery: recovered.unwrap_or(RECOVERY_TIMEOUT), reported, history }
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
    let mut attempt = 0;
    loop {
        let (id, answered) = write_probe(env, started, &mut attempt).await?;
        let is_exempt = |progress: &Progress| progress.is_finished || progress.is_slow;
        let has_event = |progress: &Progress| {
            is_exempt(progress) || progress.received_ids.contains(&id) || progress.as_of >= answered
        };
        let elapsed = wait_for_watchers(env, started, has_event).await?;
        env.reader.read().await;
        if env.reader.truth().present().entries().any(|entry| entry.id == id) {
            return Ok(elapsed);
        }
    }
}

/// Creates a session that matches every watcher; returns its id and the time of the answer.
async fn write_probe(env: &Environment, started: Instant, attempt: &mut usize) -> Result<(String, Micros), String> {
    let clients = env.reachable_clients().await;
    loop {
        *attempt += 1;
        if started.elapsed() > RECOVERY_TIMEOUT {
            return Err("no new write is answered".into());
        }
        let create = probe_session(env.seed, format!("request-of-a-probe-{attempt}"));
        let id = id_of(&create.token);
        let (instance, client) = &clients[*attempt % clients.len()];
        let caller = Caller { client: WORKERS, instance: *instance };
        if let Outcome::Answered(_) = env.recorder.call(caller, client, Call::Create(create)).await {
            return Ok((id, now()));
        }
        sleep(Duration::from_millis(20)).await;
    }
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
        if !has_due_session(&env.reader.truth(), now()) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let end = now();
    let started = Instant::now();
    let drained = loop {
        let waited = wait_for_watchers(env, started, |progress| progress.is_finished || progress.as_of >= end).await;
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
