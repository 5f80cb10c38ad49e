//! Model test: random commands on two servers, compared with the contract: replies, lists, and events of watchers.

mod commands;
mod run;

use std::sync::atomic::{AtomicUsize, Ordering};

use commands::{Step, step, subject_name};
use futures_util::future::join_all;
use harness::contract::{OverLimit, Rules, TokenReuse, watchers::Watcher};
use harness::{Server, World, client::*};
use proptest::{prelude::*, test_runner::TestRunner};
use run::Run;

/// Number of random cases of each test.
const CASES: u32 = 20;
/// Maximum number of commands of a case.
const MAX_COMMANDS: usize = 60;

/// Runs one case in its own namespace.
async fn run_case(rules: Rules, servers: &[Server; 2], case: usize, steps: Vec<Step>) {
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
        if let Err(error) = run.run(step).await {
            panic!("{error}");
        }
    }
    let received = join_all(watching.iter_mut().map(|watch| watch.events_until_now())).await;
    for (watcher, events) in watchers.iter().zip(received) {
        if let Err(error) = watcher.check(&run.model.events, &events) {
            panic!("{error}");
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
        .run(&proptest::collection::vec(step(), 1..MAX_COMMANDS), |steps| {
            let case = cases.fetch_add(1, Ordering::Relaxed);
            let case_run = std::panic::AssertUnwindSafe(|| {
                runtime.block_on(run_case(rules, &servers, case, steps));
            });
            std::panic::catch_unwind(case_run).map_err(|_| TestCaseError::fail("see the panic above"))
        })
        .unwrap();
}

#[test]
fn commands_old_token_in_grace_match_the_contract() {
    random_commands(Rules { token_reuse: TokenReuse::InGrace, limit: None, every_touch_is_written: true });
}

#[test]
fn commands_token_reuse_ends_session_match_the_contract() {
    random_commands(Rules { token_reuse: TokenReuse::EndSession, limit: None, every_touch_is_written: false });
}

#[test]
fn commands_token_reuse_reported_match_the_contract() {
    random_commands(Rules { token_reuse: TokenReuse::Report, limit: None, every_touch_is_written: false });
}

#[test]
fn commands_session_limit_replaces_match_the_contract() {
    let limit = Some((2, OverLimit::ReplaceOldest));
    random_commands(Rules { token_reuse: TokenReuse::InGrace, limit, every_touch_is_written: false });
}

#[test]
fn commands_session_limit_rejects_match_the_contract() {
    let limit = Some((2, OverLimit::Reject));
    random_commands(Rules { token_reuse: TokenReuse::InGrace, limit, every_touch_is_written: false });
}
