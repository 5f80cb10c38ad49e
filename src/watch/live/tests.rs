//! The live reader without Redis: what it takes, and where it stops.

use std::collections::HashSet;

use futures_util::FutureExt;

use super::*;
use crate::{
    feed::{Consumer, Gap, GapReason},
    session::SessionId,
    watch::{
        filter::Scope,
        fixtures::{STORE, append, client_stream, entry_of, filter, hub, id, items, live_reader, token},
        response::Closing,
    },
};

fn by_id(byte: u8) -> Scope {
    Scope::Ids(Arc::new(HashSet::<SessionId>::from([id(byte)])))
}

#[tokio::test]
async fn live_reader_starts_at_the_first_slot_of_interest() {
    let hub = hub(16);
    let mut live = live_reader(&hub, by_id(1));
    append(&hub, 1..=3);
    assert!(live.woken().now_or_never().is_none(), "no slot is of interest");
    assert!(matches!(live.read(u64::MAX), Read::End(end) if end == token(3).encode()));
    assert_eq!(live.next(), 3);
    hub.on_entry(&entry_of(1, 4));
    append(&hub, [5]);
    assert!(live.woken().now_or_never().is_some());
    assert_eq!(items(live.read(u64::MAX)), ["4", "5"]);
    assert!(matches!(live.read(u64::MAX), Read::End(_)));
}

#[tokio::test]
async fn live_reader_stops_after_a_resync_and_before_a_limit() {
    let hub = hub(16);
    let mut live = live_reader(&hub, Scope::Namespace);
    append(&hub, 1..=4);
    assert!(items(live.read(0)).is_empty());
    assert_eq!(items(live.read(2)), ["1", "2"]);
    assert_eq!(live.next(), 2);
    hub.on_gap(&Gap { reason: GapReason::Compacted, store: STORE, ends: Vec::new() });
    append(&hub, [6]);
    assert_eq!(items(live.read(u64::MAX)), ["3", "4", "resync Compacted"]);
    assert_eq!(items(live.read(u64::MAX)), ["6"]);
    assert!(matches!(live.read(u64::MAX), Read::End(_)));
}

#[tokio::test]
async fn live_reader_is_overrun_only_by_slots_of_interest() {
    let hub = hub(2);
    let (mut interested, mut other) = (live_reader(&hub, by_id(0)), live_reader(&hub, by_id(1)));
    append(&hub, 1..=3);
    assert!(matches!(interested.read(u64::MAX), Read::Overrun));
    assert_eq!(interested.skip_to_end(), token(3));
    assert!(matches!(interested.read(u64::MAX), Read::End(_)));
    assert!(matches!(other.read(u64::MAX), Read::End(_)));
}

#[tokio::test]
async fn live_reader_large_backlog_is_read_in_parts() {
    let hub = hub(1_000);
    let mut live = live_reader(&hub, Scope::Namespace);
    append(&hub, 1..=600);
    let parts = [READ_SLOTS, READ_SLOTS, 600 - 2 * READ_SLOTS].map(|_| items(live.read(u64::MAX)));
    assert_eq!(parts.concat(), (1..=600).map(|revision| revision.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn live_reader_beyond_the_limit_of_watches_is_refused() {
    let hub = hub(16);
    let register = || {
        let filter = filter(Scope::Namespace);
        LiveReader::register(hub.clone(), filter, Duration::ZERO, client_stream()).map(|(live, _)| live)
    };
    let open = [(); 2].map(|()| register().unwrap());
    assert_eq!(register().err(), Some(NotRegistered::LimitReached));
    drop(open);
    let live = register().unwrap();
    hub.drain();
    assert_eq!(live.watcher().closed().now_or_never(), Some(Closing::Draining));
    assert_eq!(register().err(), Some(NotRegistered::Draining));
}
