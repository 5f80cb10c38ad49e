//! Random commands over two servers, held against the contract: every answer, every list, and what watchers are told.

mod commands;
#[path = "../contract/mod.rs"]
mod contract;
#[path = "../harness/mod.rs"]
mod harness;
mod run;

use std::sync::atomic::{AtomicUsize, Ordering};

use commands::{Step, step, subject_name};
use contract::{Beyond, OldTokens, Rules, watchers::Watcher};
use futures_util::future::join_all;
use harness::{Server, World, client::*};
use proptest::{prelude::*, test_runner::TestRunner};
use run::Run;

const CASES: u32 = 20;
const LONGEST: usize = 60;

/// Every case has a namespace of its own.
async fn hold_against_the_contract(rules: Rules, servers: &[Server; 2], case: usize, steps: Vec<Step>) {
    let namespace = format!("case-{case}");
    let clients =
        [servers[0].client().await.in_namespace(&namespace), servers[1].client().await.in_namespace(&namespace)];
    let watchers = [
        Watcher::default(),
        Watcher { subject: Some(subject_name(1)), ..Watcher::default() },
        Watcher { labels: labels(&[("label", "1")]), ..Watcher::default() },
        Watcher { subject: Some(subject_name(2)), labels: labels(&[("label", "0")]) },
    ];
    let mut watching = Vec::new();
    for (number, watcher) in watchers.iter().enumerate() {
        let mut watch = clients[number % 2].watch(watcher.request()).await.unwrap();
        watch.bookmark().await;
        watching.push(watch);
    }
    let mut run = Run::new(&clients, rules);
    for step in steps {
        if let Err(wrong) = run.run(step).await {
            panic!("{wrong}");
        }
    }
    let told = join_all(watching.iter_mut().map(|watch| watch.everything_so_far())).await;
    for (watcher, told) in watchers.iter().zip(told) {
        if let Err(wrong) = watcher.hold(&run.model.events, &told) {
            panic!("{wrong}");
        }
    }
}

fn random_commands(rules: Rules) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = World::shared();
    let toml = format!("[default_policy]\n{}", rules.policy());
    let servers = runtime.block_on(async { [world.server_with(&toml).await, world.server_with(&toml).await] });
    let cases = AtomicUsize::new(0);
    let config =
        ProptestConfig { cases: CASES, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&proptest::collection::vec(step(), 1..LONGEST), |steps| {
            let case = cases.fetch_add(1, Ordering::Relaxed);
            let held = std::panic::AssertUnwindSafe(|| {
                runtime.block_on(hold_against_the_contract(rules, &servers, case, steps));
            });
            std::panic::catch_unwind(held).map_err(|_| TestCaseError::fail("see the panic above"))
        })
        .unwrap();
}

#[test]
fn random_commands_where_old_tokens_work_on_do_what_the_contract_says() {
    random_commands(Rules { old_tokens: OldTokens::WorkOn, limit: None, every_use_counts: true });
}

#[test]
fn random_commands_where_an_old_token_ends_the_session_do_what_the_contract_says() {
    random_commands(Rules { old_tokens: OldTokens::EndTheSession, limit: None, every_use_counts: false });
}

#[test]
fn random_commands_where_an_old_token_is_reported_do_what_the_contract_says() {
    random_commands(Rules { old_tokens: OldTokens::AreReported, limit: None, every_use_counts: false });
}

#[test]
fn random_commands_where_the_oldest_session_makes_room_do_what_the_contract_says() {
    let limit = Some((2, Beyond::TheOldestMakesRoom));
    random_commands(Rules { old_tokens: OldTokens::WorkOn, limit, every_use_counts: false });
}

#[test]
fn random_commands_where_sessions_beyond_the_limit_are_refused_do_what_the_contract_says() {
    let limit = Some((2, Beyond::NobodyIsAdmitted));
    random_commands(Rules { old_tokens: OldTokens::WorkOn, limit, every_use_counts: false });
}
