//! Ended sessions leave no keys in Redis except the logs and, until they expire, tombstones.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use harness::{World, eventually, leaks};

const WORKERS: u64 = 32;
/// Sessions or groups of sessions that each worker goes through.
const CYCLES: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_ended_sessions_leave_no_keys_in_redis() {
    let world = World::dedicated();
    let servers = [world.server_with(leaks::POLICY).await, world.server_with(leaks::POLICY).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    let work = (0..WORKERS).map(async |worker: u64| {
        for cycle in 0..CYCLES {
            leaks::run_cycle(&clients[(worker + cycle) as usize % 2], worker, cycle).await.unwrap();
        }
    });
    join_all(work).await;
    let mut left = BTreeSet::new();
    eventually("no key is left", async || {
        left = world.leaked_keys().into_iter().collect();
        left.is_empty().then_some(())
    })
    .await;
    // The reconciler had nothing to repair.
    for server in &servers {
        assert_eq!(server.metric("sessiond_index_repairs_total").await, 0.0);
    }
}
