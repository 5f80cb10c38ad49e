//! Which entries the hub takes.

use super::*;
use crate::session::{Event, Revision, Session};

const PARTITION: Partition = Partition(0);

fn position(revision: u64, nonce: u64) -> Position {
    Position { revision: Revision(revision), nonce }
}

/// What a channel might bring.
fn entry(previous: Position, position: Position) -> store::Entry {
    let name = SessionName { namespace: "web".parse().unwrap(), id: SessionId::from_bytes([0; 16]) };
    let event = Event {
        change: Change::Updated,
        revision: position.revision,
        session: Session::bare(name),
        changed_attributes: Vec::new(),
        before: None,
    };
    store::Entry { partition: PARTITION, position, previous, event }
}

/// A hub whose one partition stands there.
fn hub_at(tail: Position) -> Hub {
    let limits = Limits { watches: 1, patience: Duration::from_secs(1), ring_slots: 16 };
    Hub::new(StoreId([0; 16]), vec![tail], limits, Arc::default())
}

impl Hub {
    /// What became of the entry, where the partition stands now, and how many slots the ring has.
    fn takes(&self, entry: store::Entry) -> (Pushed, Position, u64) {
        let pushed = self.push(entry);
        (pushed, self.position(PARTITION), self.state.lock().ring.end())
    }
}

#[test]
fn of_all_entries_the_next_one_alone_is_taken() {
    let (before, at, next) = (position(9, 1), position(10, 1), position(20, 1));
    let hub = hub_at(at);
    // Newer by its revision, and of another branch by what it follows: by its nonce, by its revision, by both.
    for foreign in [position(10, 2), position(9, 1), position(15, 1), position(15, 2)] {
        assert_eq!(hub.takes(entry(foreign, next)), (Pushed::Gap, at, 0), "{foreign:?}");
    }
    // Here already, or of a branch that gave the same revision, or an older one.
    for stale in [at, position(10, 2), position(5, 1)] {
        assert_eq!(hub.takes(entry(before, stale)), (Pushed::Stale, at, 0), "{stale:?}");
    }
    assert_eq!(hub.takes(entry(at, next)), (Pushed::Taken, next, 1));
    assert_eq!(hub.takes(entry(at, next)), (Pushed::Stale, next, 1), "taken once");
    assert_eq!(hub.metrics.events_received.get(), 1);
}
