//! What a consumer of the feed has received when a read barrier passes, while channels break and entries are too large
//! for them.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use harness::{Client, Setup, World, client::*, eventually};
use sessiond::{
    feed::{Consumer, Feed, Gap},
    observe::Metrics,
    store::{ChannelEvent, Entry, Eviction, Message, Position, ReplicatedWrites, Store, StoreOptions},
};
use tokio::{runtime::Handle, sync::oneshot};

const PARTITIONS: u16 = 4;
const SESSIONS: usize = 60;

/// A consumer that keeps every entry. The logs of these tests have no gap.
#[derive(Default)]
struct Recorder {
    entries: Mutex<Vec<Entry>>,
    /// The next entry waits for this message. None: it does not wait.
    stopped: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Recorder {
    /// Checks that each entry follows the one before it, from these positions on. Returns the number of entries.
    fn check(&self, mut reached: Vec<Position>) -> usize {
        let entries = self.entries.lock().unwrap();
        for entry in entries.iter() {
            let last = std::mem::replace(&mut reached[entry.partition.index()], entry.position);
            assert_eq!(entry.previous, last, "each entry follows the one before it");
        }
        entries.len()
    }
}

impl Consumer for Recorder {
    fn on_entry(&self, entry: &Entry) {
        if let Some(stopped) = self.stopped.lock().unwrap().take() {
            stopped.recv().unwrap();
        }
        self.entries.lock().unwrap().push(entry.clone());
    }

    fn on_gap(&self, gap: &Gap) {
        panic!("{gap:?}");
    }
}

async fn open(world: &World, feed_buffer: usize) -> Arc<Store> {
    let open = StoreOptions {
        url: &world.redis.url(),
        credentials: &Arc::default(),
        prefix: &world.prefix,
        partitions: PARTITIONS,
        eviction: Eviction::Refused,
        replicated_writes: ReplicatedWrites::Disabled,
        feed_buffer,
    };
    Arc::new(Store::open(open, Arc::new(Metrics::default())).await.unwrap())
}

async fn ends(store: &Store) -> Vec<Position> {
    store.ends(tokio::time::Instant::now() + Duration::from_secs(10)).await.unwrap()
}

#[tokio::test]
async fn barrier_passed_means_every_entry_was_received_once() {
    let Setup { world, client, .. } = &World::dedicated().setup_with(&format!("partitions = {PARTITIONS}")).await;
    let store = open(world, 16).await;
    let tails = ends(&store).await;
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
            let entries = recorder.entries.lock().unwrap();
            assert_eq!(entries.last().unwrap().event.session.name.id.to_string(), session.id);
            assert_eq!(entries.len(), number + 1);
        }
    };
    tokio::select! {
        () = followers.run(vec![recorder.clone()]) => panic!("the feed ended"),
        () = store.keep_alive() => panic!("the connections ended"),
        () = writes => {}
    }
    assert_eq!(recorder.check(tails), SESSIONS);
    store.close().await;
}

/// Number of large events: more than 32 MiB of them, in fewer messages than may wait.
const LARGE_EVENTS: usize = 900;
/// Size of each of them. An event of this size is published whole.
const LARGE: usize = 60_000;

/// Creates sessions with large events and returns the id of the last one.
async fn create_large(client: &Client) -> String {
    for _ in 1..LARGE_EVENTS {
        client.create(&[("a", text(&incompressible(LARGE)))]).await;
    }
    client.create(&[("a", text(&incompressible(LARGE)))]).await.0.id
}

/// Receives the messages of large events after all of them were published. Returns the numbers of announced gaps and of messages.
async fn receive_late(store: &Store, client: &Client) -> (usize, usize) {
    let server = store.servers().pop().unwrap();
    let mut channels = store.listen(&server);
    assert!(matches!(channels.next(store).await, ChannelEvent::Connected));
    store.subscribe(&server).await.unwrap();
    let last = create_large(client).await;
    let (mut missed, mut received) = (0, 0);
    loop {
        match channels.next(store).await {
            ChannelEvent::Missed => missed += 1,
            ChannelEvent::Message(Message::Entry(entry)) => {
                received += 1;
                if entry.event.session.name.id.to_string() == last {
                    return (missed, received);
                }
            }
            _ => panic!("neither a message nor a gap"),
        }
    }
}

#[tokio::test]
async fn messages_beyond_32_mib_are_dropped_and_announced() {
    let Setup { world, client, .. } = &World::dedicated().setup_with(&format!("partitions = {PARTITIONS}")).await;
    let store = open(world, 8_192).await;
    let (missed, received) = tokio::select! {
        () = store.keep_alive() => panic!("the connections ended"),
        received = receive_late(&store, client) => received,
    };
    assert_eq!(missed, 1, "one announcement for all dropped messages");
    assert!(received * LARGE <= 32 * 1024 * 1024, "{received} messages waited");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn slow_consumer_of_large_events_loses_none() {
    let Setup { world, client, .. } = &World::dedicated().setup_with(&format!("partitions = {PARTITIONS}")).await;
    let store = open(world, 8_192).await;
    let tails = ends(&store).await;
    let (feed, followers) = Feed::new(store.clone(), tails.clone(), Arc::default());
    let recorder = Arc::new(Recorder::default());
    let (consumers, runtime) = (vec![recorder.clone() as Arc<dyn Consumer>], Handle::current());
    let (stop, stopped) = oneshot::channel::<()>();
    // The consumer blocks this thread only.
    let following = std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = followers.run(consumers) => panic!("the feed ended"),
                _ = stopped => {}
            }
        });
    });
    let (resume, waiting) = mpsc::channel();
    let writes = async {
        eventually("the feed has subscribed", async || feed.barrier.pass().await).await;
        *recorder.stopped.lock().unwrap() = Some(waiting);
        create_large(client).await;
        resume.send(()).unwrap();
        eventually("the barrier passes", async || feed.barrier.pass().await).await;
    };
    tokio::select! {
        () = store.keep_alive() => panic!("the connections ended"),
        () = writes => {}
    }
    assert_eq!(recorder.check(tails), LARGE_EVENTS);
    stop.send(()).unwrap();
    following.join().unwrap();
    store.close().await;
}
