//! One history: a load, a fault in its midst, the way back, and the truth.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::{
    contract::Call,
    faults::Fault,
    felt::Before,
    harness::{client::*, eventually},
    history::{self, History, Moment, Outcome},
    made::RULES,
    recorder::{Caller, Progress, Recorded, now},
    scene::Scene,
    truth::Truth,
    validate::{acknowledged_and_lost, violations},
    watchers::{Manner, Watcher, kinds},
    workload::{WORKERS, Worker, one_for_all},
};

/// Writes that were answered before the fault; fewer, and the run says nothing.
const LOAD: usize = 250;
/// And after it.
const LOAD_AFTER: usize = 100;
/// Sessions that are due by the end have ended so long after it, or never will.
const LONG_OVER: Duration = Duration::from_secs(4);

/// Whoever is not told by then is never told.
const AT_LAST: Duration = Duration::from_secs(60);

/// What came of a history.
pub struct Run {
    pub history: History,
    pub violations: Vec<(&'static str, String)>,
    /// From the end of the fault until a fresh write was answered, and all watchers told.
    pub recovery: Duration,
    pub lost: usize,
    pub seen: BTreeMap<String, usize>,
}

struct Cast {
    stop: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<()>>,
}

#[expect(clippy::disallowed_methods, reason = "the history owns it")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(task)
}

pub async fn run(mut fault: Box<dyn Fault>, seed: u64) -> Run {
    let mut scene = Scene::set(fault.topology(), fault.limits(), seed).await;
    let mut cast = begin(&mut scene).await;
    eventually("there is a load", async || (scene.recorder.writes() >= LOAD).then_some(())).await;

    let before = Before::of(&scene).await;
    let at = now();
    fault.inject(&mut scene).await;
    sleep(fault.lasts()).await;
    fault.heal(&mut scene).await;
    let healed = now();
    let recovered = recover(&mut scene).await;
    let answered = scene.recorder.writes();
    let goes_on = async || (scene.recorder.writes() >= answered + LOAD_AFTER).then_some(());
    eventually("there is a load again", goes_on).await;

    let quiet = quieten(&mut scene, &mut cast).await;
    let ended_early: Vec<String> = scene.servers.iter_mut().filter_map(|server| server.why_it_ended()).collect();
    let ended = now();
    scene.reader.read().await;
    let truth = scene.reader.truth();
    scene.reader.close().await;
    let Recorded { operations, watches, refusals, seen } = scene.recorder.finish();
    let unfelt = before.missing(fault.marks(), &scene, &seen).await;
    let about = format!("{}, {:?}", fault.name(), fault.topology());
    let (effects, trimmed, by_hand) = (fault.effects().to_vec(), scene.trimmed.clone(), scene.by_hand.clone());
    let faults = vec![history::Fault { at, healed, effects, trimmed, by_hand }];
    let history = History { seed, about, rules: RULES, operations, watches, refusals, faults, truth, ended };
    let held = tokio::task::block_in_place(|| violations(&history));
    let mut violations: Vec<_> = held.into_iter().map(|(name, violation)| (name, violation.0)).collect();
    violations.extend(
        [recovered.as_ref().err(), quiet.err().as_ref()].into_iter().flatten().map(|what| ("Recovers", what.clone())),
    );
    if !unfelt.is_empty() {
        violations.push(("Felt", format!("nobody felt the fault, {unfelt:?}: {seen:?}")));
    }
    violations.extend(ended_early.into_iter().map(|why| ("Stands", why)));
    let lost = acknowledged_and_lost(&history);
    Run { lost, violations, recovery: recovered.unwrap_or(AT_LAST), seen, history }
}

async fn begin(scene: &mut Scene) -> Cast {
    let stop = watch::Sender::new(false);
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let worker = Worker {
            number,
            clients: scene.clients().await,
            slots: scene.slots.clone(),
            recorder: scene.recorder.clone(),
            chance: scene.chance.split(),
        };
        workers.push(spawn(worker.run(stop.subscribe())));
    }
    eventually("there are sessions", async || (scene.slots.ids().len() >= 3).then_some(())).await;
    let ids = scene.slots.ids().into_iter().collect();
    let mut watchers = Vec::new();
    for (filter, manner, initial_state) in kinds(ids, &mut scene.chance) {
        let watcher = Watcher {
            filter,
            manner,
            initial_state,
            addresses: scene.addresses(),
            recorder: scene.recorder.clone(),
            chance: scene.chance.split(),
            stopped: scene.stopped.subscribe(),
        };
        let number = scene.recorder.new_watcher(manner == Manner::Slow);
        watchers.push(spawn(watcher.run(number)));
    }
    Cast { stop, workers, watchers }
}

/// Waits until a fresh write is answered that stands, and every watcher was told of it; how long that takes.
async fn recover(scene: &mut Scene) -> Result<Duration, String> {
    let began = Instant::now();
    let mut turn = 0;
    loop {
        let (id, answered) = fresh_write(scene, began, &mut turn).await?;
        let has_time = |progress: &Progress| progress.is_over || progress.is_slow;
        let is_told =
            |progress: &Progress| has_time(progress) || progress.told.contains(&id) || progress.as_of >= answered;
        let told = until(scene, began, is_told).await?;
        scene.reader.read().await;
        if scene.reader.truth().present().entries().any(|entry| entry.id == id) {
            return Ok(told);
        }
    }
}

async fn fresh_write(scene: &Scene, began: Instant, turn: &mut usize) -> Result<(String, Moment), String> {
    let clients = scene.clients_that_live().await;
    loop {
        *turn += 1;
        if began.elapsed() > AT_LAST {
            return Err("no fresh write is answered".into());
        }
        let create = one_for_all(scene.seed, format!("request-of-a-probe-{turn}"));
        let id = id_of(&create.token);
        let (instance, client) = &clients[*turn % clients.len()];
        let caller = Caller { client: WORKERS, instance: *instance };
        if let Outcome::Answered(_) = scene.recorder.call(caller, client, Call::Create(create)).await {
            return Ok((id, now()));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn until(scene: &Scene, began: Instant, is_so: impl Fn(&Progress) -> bool) -> Result<Duration, String> {
    loop {
        let progress = scene.recorder.progress();
        let Some(behind) = progress.iter().position(|progress| !is_so(progress)) else { return Ok(began.elapsed()) };
        if began.elapsed() > AT_LAST {
            return Err(format!("watcher {behind} is not told, its last moment is {}", progress[behind].as_of));
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// No more calls; then until everybody was told everything, and nothing more is due.
async fn quieten(scene: &mut Scene, cast: &mut Cast) -> Result<(), String> {
    cast.stop.send_replace(true);
    for worker in cast.workers.drain(..) {
        worker.await.expect("a worker goes on to its end");
    }
    let quiet = Instant::now();
    let due = |truth: &Truth, now: Moment| {
        truth.present().by_session().values().any(|entries| entries[entries.len() - 1].is_due(now + 2_500_000))
    };
    while quiet.elapsed() < LONG_OVER {
        scene.reader.read().await;
        if !due(&scene.reader.truth(), now()) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let all = now();
    let began = Instant::now();
    let told = loop {
        let told = until(scene, began, |progress| progress.is_over || progress.as_of >= all).await;
        // A server that has not noticed yet that history was rewound tells of what is lost.
        scene.reader.read().await;
        let truth = scene.reader.truth();
        let stands = |progress: &Progress| progress.token.as_ref().is_none_or(|token| truth.stands(token));
        if told.is_err() || scene.recorder.progress().iter().all(|progress| progress.is_over || stands(progress)) {
            break told;
        }
        if began.elapsed() > AT_LAST {
            break Err("a watcher stays where history was lost".to_owned());
        }
        sleep(Duration::from_millis(50)).await;
    };
    for watcher in cast.watchers.drain(..) {
        watcher.abort();
        let _ = watcher.await;
    }
    told.map(drop)
}
