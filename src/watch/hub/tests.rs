//! What the hub appends to its ring for entries and gaps of the feed.

use super::*;
use crate::watch::{
    fixtures::{self, PARTITION, append, position},
    response::ResyncReason,
};

/// A hub of one partition that received the entries 1 to 4, with a ring of this size.
fn hub(ring_slots: usize) -> Arc<Hub> {
    let hub = fixtures::hub(ring_slots);
    append(&hub, 1..=4);
    hub
}

/// Passes a gap to a hub. Returns the resync in its ring, after which the resume token is at the end of the gap.
fn pass_gap(hub: &Hub, reason: GapReason, end: Position) -> Arc<Resync> {
    let store = StoreId([1; 16]);
    hub.on_gap(&Gap { reason, store, ends: vec![(PARTITION, end)] });
    let state = hub.recent();
    assert_eq!(state.end, ResumeToken { store, positions: vec![end] });
    let last = state.ring.from(state.ring.end() - 1).next().unwrap();
    assert_eq!(last.token, state.end.encode());
    let Item::Resync(resync) = &last.item else { panic!("the last slot is an entry") };
    resync.clone()
}

#[test]
fn rollback_in_the_ring_names_the_lost_entries() {
    let hub = hub(16);
    let resync = pass_gap(&hub, GapReason::RolledBack, position(2));
    let lost = resync.rolled_back.as_ref().unwrap();
    assert_eq!(resync.reason, ResyncReason::RolledBack);
    assert_eq!(lost.entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), [position(4), position(3)]);
    assert_eq!(lost.fork_before(PARTITION, position(3)), Some(position(2)));
    assert!(hub.recent().rollback_of(PARTITION, position(4)).is_some());
    assert!(hub.recent().rollback_of(PARTITION, position(2)).is_none());
}

#[test]
fn rollback_beyond_the_ring_affects_all_sessions() {
    assert!(pass_gap(&hub(2), GapReason::RolledBack, position(2)).rolled_back.is_some());
    assert!(pass_gap(&hub(2), GapReason::RolledBack, position(1)).rolled_back.is_none());
    let of_other_branch = Position { nonce: 2, ..position(9) };
    assert!(pass_gap(&hub(16), GapReason::RolledBack, of_other_branch).rolled_back.is_none());
}

#[test]
fn compacted_log_affects_all_sessions() {
    let resync = pass_gap(&hub(16), GapReason::Compacted, position(9));
    assert!(resync.reason == ResyncReason::Compacted && resync.rolled_back.is_none());
}
