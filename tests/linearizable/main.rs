//! S1, S2, S3, S6: what clients at two servers do to one session at once is as if it was done one after another.

mod actors;
#[path = "../contract/mod.rs"]
mod contract;
#[path = "../harness/mod.rs"]
mod harness;
mod history;
mod plan;
mod story;

use actors::happens;
use contract::{Answer, OldTokens, Rules};
use futures_util::future::join_all;
use harness::{Client, World, client::*};
use history::{is_linearizable, list};
use plan::{first_seed, plan_of};
use sessiond_client::v1::TokenState;
use story::Story;

const ROUNDS: u64 = 400;
/// Sessions that are worked on at the same time.
const AT_ONCE: usize = 4;

const RULES: [(&str, Rules); 3] = [
    ("grace", Rules { old_tokens: OldTokens::WorkOn, limit: None, every_use_counts: true }),
    ("end", Rules { old_tokens: OldTokens::EndTheSession, limit: None, every_use_counts: true }),
    ("report", Rules { old_tokens: OldTokens::AreReported, limit: None, every_use_counts: true }),
];

async fn two_servers(world: &World) -> ([harness::Server; 2], [Client; 2]) {
    let toml: String = RULES.iter().map(|(name, rules)| format!("[namespace.{name}]\n{}", rules.policy())).collect();
    let servers = [world.server_with(&toml).await, world.server_with(&toml).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    (servers, clients)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_do_to_a_session_at_once_is_as_if_done_one_after_another() {
    let world = World::shared();
    let (_servers, clients) = two_servers(&world).await;
    let first = first_seed();
    println!("the first seed is {first}");
    for seeds in (first..first + ROUNDS).collect::<Vec<_>>().chunks(AT_ONCE) {
        join_all(seeds.iter().map(async |&seed| {
            let (namespace, rules) = RULES[(seed % RULES.len() as u64) as usize];
            let plan = plan_of(seed);
            let mut history = happens(&plan, &clients, namespace).await;
            if !is_linearizable(&rules, &history) {
                history.sort_by_key(|recorded| recorded.called);
                panic!("SEED={seed}: no order explains this in namespace {namespace}:\n{}", list(&history));
            }
        }))
        .await;
    }
}

#[tokio::test]
async fn histories_that_cannot_be_are_told_from_those_that_can() {
    let world = World::shared();
    let (_servers, [client, _]) = two_servers(&world).await;
    let [grace, no_grace, _] = RULES;

    let mut lost_update = Story::begin(&client, grace).await;
    lost_update.set("a", None).await;
    let Answer::Session(with_a, ..) = lost_update.get().await else { panic!() };
    let Answer::Session(mut without_a, ..) = lost_update.set("b", None).await else { panic!() };
    without_a.attributes.retain(|name, _| !with_a.attributes.contains_key(name));
    lost_update.cannot_end_with(Answer::Session(without_a, String::new(), TokenState::Unspecified), false);

    let mut stale_read = Story::begin(&client, grace).await;
    let before = stale_read.get().await;
    stale_read.set("a", None).await;
    stale_read.get().await;
    stale_read.cannot_end_with(before, false);

    let mut both_win = Story::begin(&client, grace).await;
    let Answer::Session(seen, ..) = both_win.get().await else { panic!() };
    let Answer::Session(mut session, ..) = both_win.set("a", Some(seen.revision)).await else { panic!() };
    assert!(matches!(both_win.set("b", Some(seen.revision)).await, Answer::Refused(..)));
    session.revision += 1;
    session.attributes.insert("b".into(), text("x"));
    both_win.cannot_end_with(Answer::Session(session, String::new(), TokenState::Unspecified), true);

    let mut revival = Story::begin(&client, grace).await;
    let alive = revival.get().await;
    revival.delete().await;
    revival.get().await;
    revival.cannot_end_with(alive, false);

    let mut deleted_twice = Story::begin(&client, grace).await;
    deleted_twice.delete().await;
    deleted_twice.delete().await;
    deleted_twice.cannot_end_with(Answer::Deleted(true), true);

    let mut two_winners = Story::begin(&client, no_grace).await;
    let Answer::Session(mut session, ..) = two_winners.rotate().await else { panic!() };
    assert!(matches!(two_winners.rotate().await, Answer::Refused(..)));
    session.revision += 1;
    session.token_generation += 1;
    two_winners.cannot_end_with(Answer::Session(session, String::new(), TokenState::Unspecified), true);

    // The answer that told the successor may have been lost, once.
    let mut third_winner = Story::begin(&client, grace).await;
    third_winner.rotate().await;
    let Answer::Session(mut session, ..) = third_winner.rotate().await else { panic!("it is told anew") };
    assert!(matches!(third_winner.rotate().await, Answer::Refused(..)));
    session.revision += 1;
    session.token_generation += 1;
    third_winner.cannot_end_with(Answer::Session(session, String::new(), TokenState::Unspecified), true);
}
