//! Which entries the hub appends to its ring.

use super::*;
use crate::session::{Event, Revision, Session};

const PARTITION: Partition = Partition(0);

fn position(revision: u64, nonce: u64) -> Position {
    Position { revision: Revision(revision), nonce }
}

fn entry(previous: Position, position: Position) -> store::Entry {
    let name = SessionRef { namespace: "web".parse().unwrap(), id: SessionId::from_bytes([0; 16]) };
    let event = Event {
        change: Change::Updated,
        revision: position.revision,
        session: Session::without_state(name),
        changed_attributes: Vec::new(),
        before: None,
    };
    store::Entry { partition: PARTITION, position, previous, event }
}

/// A hub with one partition at this position.
fn hub_at(tail: Position) -> Hub {
    let limits = WatchLimits {
        watches: 1,
        slow_consumer_timeout: Duration::from_secs(1),
        response_timeout: Duration::from_secs(1),
        ring_slots: 16,
        largest_session: 1,
    };
    Hub::new(StoreId([0; 16]), vec![tail], limits, Arc::default())
}

impl Hub {
    /// Pushes an entry. Returns the outcome, the partition's position after it, and the number of slots in the ring.
    fn push_and_inspect(&self, entry: store::Entry) -> (Pushed, Position, u64) {
        let pushed = self.push(entry);
        (pushed, self.position(PARTITION), self.state.lock().ring.end())
    }
}

#[test]
fn hub_push_appends_only_the_next_entry() {
    let (before, at, next) = (position(9, 1), position(10, 1), position(20, 1));
    let hub = hub_at(at);
    // Newer by revision, but on another branch of history: `previous` differs by nonce, by revision, or by both.
    for previous in [position(10, 2), position(9, 1), position(15, 1), position(15, 2)] {
        assert_eq!(hub.push_and_inspect(entry(previous, next)), (Pushed::Gap, at, 0), "{previous:?}");
    }
    // Appended already, or on a branch that has the same revision, or older.
    for stale in [at, position(10, 2), position(5, 1)] {
        assert_eq!(hub.push_and_inspect(entry(before, stale)), (Pushed::Stale, at, 0), "{stale:?}");
    }
    assert_eq!(hub.push_and_inspect(entry(at, next)), (Pushed::Appended, next, 1));
    assert_eq!(hub.push_and_inspect(entry(at, next)), (Pushed::Stale, next, 1), "appended once");
    assert_eq!(hub.metrics.events_received.get(), 1);
}
