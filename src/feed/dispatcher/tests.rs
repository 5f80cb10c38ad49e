//! Every consumer receives the entries of a partition in the order of the log, each once, and all receive one order.

use proptest::prelude::*;

use super::*;
use crate::{
    feed::GapReason,
    session::{Change, Event, Revision, Session, SessionId, SessionRef},
    store::StoreId,
};

/// Number of partitions, and of log entries in each.
const PARTITIONS: u16 = 3;
const ENTRIES: usize = 12;

fn position(revision: usize) -> Position {
    Position { revision: Revision(revision as u64), nonce: 1 }
}

/// Entry of a log at position `number`.
fn entry(partition: u16, number: usize) -> Entry {
    let name = SessionRef { namespace: "web".parse().unwrap(), id: SessionId::from_bytes([0; 16]) };
    let event = Event {
        change: Change::Updated,
        revision: position(number).revision,
        session: Session::without_state(name),
        changed_attributes: Vec::new(),
        before: None,
    };
    let (position, previous) = (position(number), position(number - 1));
    Entry { partition: Partition(partition), position, previous, event: Arc::new(event) }
}

/// What a consumer received.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Received {
    Entry(Partition, Position),
    Gap(Gap),
}

/// A consumer that records what it receives.
#[derive(Default)]
struct Recorder(Mutex<Vec<Received>>);

impl Consumer for Recorder {
    fn on_entry(&self, entry: &Entry) {
        self.0.lock().push(Received::Entry(entry.partition, entry.position));
    }

    fn on_gap(&self, gap: &Gap) {
        self.0.lock().push(Received::Gap(gap.clone()));
    }
}

/// A dispatcher at the start of all logs, with two recorders.
fn dispatcher() -> (Dispatcher, [Arc<Recorder>; 2]) {
    let recorders = [(); 2].map(|()| Arc::new(Recorder::default()));
    let consumers = recorders.iter().map(|recorder| recorder.clone() as Arc<dyn Consumer>).collect();
    let tails = (0..PARTITIONS).map(|_| position(0)).collect();
    (Dispatcher::new(tails, consumers, Arc::default()), recorders)
}

/// One step of a follower: a message arrives, or a range of the log is read.
#[derive(Clone, Debug)]
enum Step {
    Message(u16, usize),
    LogRead(u16, usize),
}

fn step() -> impl Strategy<Value = Step> {
    (0..PARTITIONS, 1..=ENTRIES, any::<bool>()).prop_map(|(partition, number, is_message)| match is_message {
        true => Step::Message(partition, number),
        false => Step::LogRead(partition, number),
    })
}

proptest! {
    /// Messages are lost, repeated and delayed, and log reads start at or before the position that was reached.
    #[test]
    fn consumers_receive_each_entry_once_in_log_order(steps in prop::collection::vec(step(), 0..200)) {
        let (dispatcher, [first, second]) = dispatcher();
        for step in steps {
            match step {
                Step::Message(partition, number) => drop(dispatcher.accept(&entry(partition, number))),
                Step::LogRead(partition, first) => {
                    for number in first..(first + 4).min(ENTRIES) {
                        dispatcher.accept_from_log(&entry(partition, number));
                    }
                }
            }
        }
        let received = first.0.lock().clone();
        prop_assert_eq!(&received, &*second.0.lock(), "one order for all consumers");
        for partition in (0..PARTITIONS).map(Partition) {
            let is_of = |received: &&Received| matches!(received, Received::Entry(of, _) if *of == partition);
            let of_partition: Vec<_> = received.iter().filter(is_of).cloned().collect();
            let last = dispatcher.position(partition).revision.0 as usize;
            let log: Vec<_> = (1..=last).map(|number| Received::Entry(partition, position(number))).collect();
            prop_assert_eq!(of_partition, log);
        }
    }
}

#[test]
fn gap_reaches_every_consumer_before_later_entries() {
    let (dispatcher, recorders) = dispatcher();
    let partition = Partition(0);
    for number in 1..=3 {
        assert_eq!(dispatcher.accept(&entry(0, number)), Acceptance::Next);
    }
    let gap = Gap { reason: GapReason::RolledBack, store: StoreId([0; 16]), ends: vec![(partition, position(1))] };
    dispatcher.pass_gap(&gap);
    assert_eq!(dispatcher.positions(partition), [position(1), position(0)]);
    // The message of a lost entry was in flight.
    assert_eq!(dispatcher.accept(&entry(0, 2)), Acceptance::Stale);
    assert!(!dispatcher.contains(partition, position(2)));
    let other_branch = Position { revision: Revision(2), nonce: 2 };
    let next = Entry { position: other_branch, ..entry(0, 2) };
    assert_eq!(dispatcher.accept(&next), Acceptance::Next);
    for recorder in recorders {
        let last_two = recorder.0.lock()[3..].to_vec();
        assert_eq!(last_two, [Received::Gap(gap.clone()), Received::Entry(partition, other_branch)]);
    }
}
