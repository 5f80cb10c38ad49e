//! What a consumer of the feed has received when a read barrier passes, while channels break and entries are too large
//! for them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use harness::{Setup, World, client::*, eventually};
use sessiond::{
    feed::{Consumer, Feed, Gap},
    observe::Metrics,
    store::{Entry, Eviction, Open, ReplicatedWrites, Store},
};

const PARTITIONS: u16 = 4;
const SESSIONS: usize = 60;

/// A consumer that keeps every entry. The log of this test has no gap.
#[derive(Default)]
struct Recorder(Mutex<Vec<Entry>>);

impl Consumer for Recorder {
    fn on_entry(&self, entry: &Entry) {
        self.0.lock().unwrap().push(entry.clone());
    }

    fn on_gap(&self, gap: &Gap) {
        panic!("{gap:?}");
    }
}

async fn open(world: &World) -> Arc<Store> {
    let open = Open {
        url: &world.redis.url(),
        password: None,
        prefix: &world.prefix,
        partitions: PARTITIONS,
        eviction: Eviction::Refused,
        replicated_writes: ReplicatedWrites::Disabled,
        feed_buffer: 16,
    };
    Arc::new(Store::open(open, Arc::new(Metrics::default())).await.unwrap())
}

#[tokio::test]
async fn barrier_passed_means_every_entry_was_received_once() {
    let Setup { world, client, .. } = &World::dedicated().setup_with(&format!("partitions = {PARTITIONS}")).await;
    let store = open(world).await;
    let tails = store.ends(tokio::time::Instant::now() + Duration::from_secs(10)).await.unwrap();
    let (feed, followers) = Feed::new(store.clone(), tails.clone(), Arc::default());
    let recorder = Arc::new(Recorder::default());
    let writes = async {
        for number in 0..SESSIONS {
            if number % 5 == 0 {
                world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            }
            let bytes = if number % 3 == 0 { 20_000 } else { 1 };
            let (session, _) = client.create(&[("a", text(&incompressible(bytes)))]).await;
            eventually("the barrier passes", async || feed.barrier.pass().await).await;
            let entries = recorder.0.lock().unwrap();
            assert_eq!(entries.last().unwrap().event.session.name.id.to_string(), session.id);
            assert_eq!(entries.len(), number + 1);
        }
    };
    tokio::select! {
        () = followers.run(vec![recorder.clone()]) => panic!("the feed ended"),
        () = store.keep_alive() => panic!("the connections ended"),
        () = writes => {}
    }
    let mut reached = tails;
    for entry in recorder.0.lock().unwrap().iter() {
        let last = std::mem::replace(&mut reached[entry.partition.index()], entry.position);
        assert_eq!(entry.previous, last, "each entry follows the one before it");
    }
    store.close().await;
}
