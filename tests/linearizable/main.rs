//! S1, S2, S3, S6: concurrent calls on one session through two servers are linearizable.

mod actors;
mod plan;
mod scenario;

use actors::run_plan;
use futures_util::future::join_all;
use harness::contract::{Reply, Rules, TokenReuse};
use harness::linearizability::{format_history, is_linearizable};
use harness::{Client, World, client::*};
use plan::{first_seed, plan_of};
use scenario::Scenario;
use sessiond_client::v1::TokenState;

/// Number of random plans, one session each.
const ROUNDS: u64 = 400;
/// Number of plans that run at once.
const CONCURRENT_PLANS: usize = 4;

const RULES: [(&str, Rules); 3] = [
    ("grace", Rules { token_reuse: TokenReuse::InGrace, limit: None, every_touch_is_written: true }),
    ("end", Rules { token_reuse: TokenReuse::EndSession, limit: None, every_touch_is_written: true }),
    ("report", Rules { token_reuse: TokenReuse::Report, limit: None, every_touch_is_written: true }),
];

async fn two_servers(world: &World) -> ([harness::Server; 2], [Client; 2]) {
    let toml: String = RULES.iter().map(|(name, rules)| format!("[namespace.{name}]\n{}", rules.policy())).collect();
    let servers = [world.server_with(&toml).await, world.server_with(&toml).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    (servers, clients)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_on_one_session_are_linearizable() {
    let world = World::shared();
    let (_servers, clients) = two_servers(&world).await;
    let first = first_seed();
    println!("first seed: {first}");
    for seeds in (first..first + ROUNDS).collect::<Vec<_>>().chunks(CONCURRENT_PLANS) {
        join_all(seeds.iter().map(async |&seed| {
            let (namespace, rules) = RULES[(seed % RULES.len() as u64) as usize];
            let plan = plan_of(seed);
            let mut history = run_plan(&plan, &clients, namespace).await;
            if !is_linearizable(&rules, &history) {
                history.sort_by_key(|recorded| recorded.called);
                panic!("SEED={seed}: no linearization in namespace {namespace}:\n{}", format_history(&history));
            }
        }))
        .await;
    }
}

#[tokio::test]
async fn checker_impossible_history_is_not_linearizable() {
    let world = World::shared();
    let (_servers, [client, _]) = two_servers(&world).await;
    let [grace, no_grace, _] = RULES;

    let mut lost_update = Scenario::start(&client, grace).await;
    lost_update.set("a", None).await;
    let Reply::Session(with_a, ..) = lost_update.get().await else { panic!() };
    let Reply::Session(mut without_a, ..) = lost_update.set("b", None).await else { panic!() };
    without_a.attributes.retain(|name, _| !with_a.attributes.contains_key(name));
    lost_update.assert_impossible_end(Reply::Session(without_a, String::new(), TokenState::Unspecified), false);

    let mut stale_read = Scenario::start(&client, grace).await;
    let before = stale_read.get().await;
    stale_read.set("a", None).await;
    stale_read.get().await;
    stale_read.assert_impossible_end(before, false);

    let mut two_conditional_updates = Scenario::start(&client, grace).await;
    let Reply::Session(read, ..) = two_conditional_updates.get().await else { panic!() };
    let Reply::Session(mut session, ..) = two_conditional_updates.set("a", Some(read.revision)).await else { panic!() };
    assert!(matches!(two_conditional_updates.set("b", Some(read.revision)).await, Reply::Rejected(..)));
    session.revision += 1;
    session.attributes.insert("b".into(), text("x"));
    two_conditional_updates
        .assert_impossible_end(Reply::Session(session, String::new(), TokenState::Unspecified), true);

    let mut read_after_delete = Scenario::start(&client, grace).await;
    let alive = read_after_delete.get().await;
    read_after_delete.delete().await;
    read_after_delete.get().await;
    read_after_delete.assert_impossible_end(alive, false);

    let mut deleted_twice = Scenario::start(&client, grace).await;
    deleted_twice.delete().await;
    deleted_twice.delete().await;
    deleted_twice.assert_impossible_end(Reply::Deleted(true), true);

    let mut two_rotations = Scenario::start(&client, no_grace).await;
    let Reply::Session(mut session, ..) = two_rotations.rotate().await else { panic!() };
    assert!(matches!(two_rotations.rotate().await, Reply::Rejected(..)));
    session.revision += 1;
    session.token_generation += 1;
    two_rotations.assert_impossible_end(Reply::Session(session, String::new(), TokenState::Unspecified), true);

    // A second rotation returns the successor of the first one, never another token.
    let mut second_successor = Scenario::start(&client, grace).await;
    second_successor.rotate_by_server().await;
    let Reply::Session(session, first, _) = second_successor.rotate_by_server().await else { panic!() };
    let other = successor_of(&first);
    second_successor.assert_impossible_end(Reply::Session(session, other, TokenState::Unspecified), true);

    let mut second_generation = Scenario::start(&client, grace).await;
    second_generation.rotate_by_server().await;
    let Reply::Session(mut session, token, _) = second_generation.rotate_by_server().await else { panic!() };
    session.revision += 1;
    session.token_generation += 1;
    second_generation.assert_impossible_end(Reply::Session(session, token, TokenState::Unspecified), true);
}
