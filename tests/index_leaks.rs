//! However sessions end, nothing of them is left in Redis but the logs, and tombstones for their time.

mod harness;

use std::collections::BTreeSet;

use futures_util::future::join_all;
use harness::{World, eventually, leaks};

const WORKERS: u64 = 32;
/// Of each worker.
const CYCLES: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_thousands_of_sessions() {
    let world = World::own();
    let servers = [world.server_with(leaks::POLICY).await, world.server_with(leaks::POLICY).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    let work = (0..WORKERS).map(async |worker: u64| {
        for cycle in 0..CYCLES {
            leaks::live(&clients[(worker + cycle) as usize % 2], worker, cycle).await.unwrap();
        }
    });
    join_all(work).await;
    let mut left = BTreeSet::new();
    eventually("nothing is left", async || {
        left = world.leaks().into_iter().collect();
        left.is_empty().then_some(())
    })
    .await;
    // And no audit was needed for it.
    for server in &servers {
        assert_eq!(server.metric("sessiond_index_repairs_total").await, 0.0);
    }
}
