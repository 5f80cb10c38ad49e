//! The catch-up without Redis: pages, targets, and what it returns if the log does not lead to the target.

use super::*;
use crate::{
    feed::{Consumer, Gap, GapReason},
    store::StoreId,
    watch::{
        filter::Scope,
        fixtures::{FakeSource, PARTITION, STORE, append, entry, hub, items, live_reader, position, token},
    },
};

fn page(after: u64, revisions: impl IntoIterator<Item = u64>) -> (u64, PageAfter) {
    (after, PageAfter::Entries(revisions.into_iter().map(|revision| LogEntry::new(entry(revision))).collect()))
}

fn source(pages: impl IntoIterator<Item = (u64, PageAfter)>) -> FakeSource {
    let source = FakeSource::default();
    source.pages.borrow_mut().extend(pages);
    source
}

#[tokio::test]
async fn catch_up_reads_pages_up_to_the_target_then_ends() {
    let mut live = live_reader(&hub(16), Scope::Namespace);
    let source = source([page(1, [2, 3]), page(3, [4, 5, 6])]);
    let mut catch_up = CatchUp::resumed(token(1), token(5));
    let Read::Items(slots) = catch_up.read(&source, &mut live).await.unwrap() else { panic!("no items") };
    assert_eq!(slots.iter().map(|slot| &slot.token).collect::<Vec<_>>(), [&token(2).encode(), &token(3).encode()]);
    assert_eq!(items(catch_up.read(&source, &mut live).await.unwrap()), ["4", "5"]);
    assert!(matches!(catch_up.read(&source, &mut live).await, Ok(Read::End(_))));
}

#[tokio::test]
async fn catch_up_failed_read_is_repeated_at_the_same_position() {
    let mut live = live_reader(&hub(16), Scope::Namespace);
    let mut catch_up = CatchUp::resumed(token(1), token(3));
    assert!(catch_up.read(&source([]), &mut live).await.is_err());
    assert_eq!(items(catch_up.read(&source([page(1, [2, 3])]), &mut live).await.unwrap()), ["2", "3"]);
}

#[tokio::test]
async fn catch_up_compacted_log_resyncs_or_ends_the_watch() {
    let mut live = live_reader(&hub(16), Scope::Namespace);
    let source = source([(1, PageAfter::Compacted), (1, PageAfter::Compacted), (1, PageAfter::Flushed)]);
    let mut resumed = CatchUp::resumed(token(1), token(5));
    let Read::Items(slots) = resumed.read(&source, &mut live).await.unwrap() else { panic!("no items") };
    assert_eq!(slots[0].token, token(5).encode());
    assert_eq!(items(Read::Items(slots)), ["resync Compacted"]);
    assert!(matches!(resumed.read(&source, &mut live).await, Ok(Read::End(_))));
    let mut overrun = CatchUp::overrun(token(1), token(5));
    assert!(matches!(overrun.read(&source, &mut live).await, Ok(Read::SlowConsumer)));
    assert_eq!(items(overrun.read(&source, &mut live).await.unwrap()), ["resync Flushed"]);
}

#[tokio::test]
async fn catch_up_token_of_another_store_resyncs_once() {
    let mut live = live_reader(&hub(16), Scope::Namespace);
    let other = ResumeToken { store: StoreId([7; 16]), ..token(1) };
    let mut catch_up = CatchUp::resumed(other, token(5));
    assert_eq!(items(catch_up.read(&source([]), &mut live).await.unwrap()), ["resync Flushed"]);
    assert!(matches!(catch_up.read(&source([]), &mut live).await, Ok(Read::End(_))));
}

#[tokio::test]
async fn catch_up_lost_target_reads_to_the_end_of_the_ring() {
    let hub = hub(16);
    let mut live = live_reader(&hub, Scope::Namespace);
    append(&hub, 1..=8);
    let source = FakeSource { history: vec![3], ..source([page(1, [2, 3, 6]), page(3, [6]), page(3, [6, 8])]) };
    let mut catch_up = CatchUp::resumed(token(1), token(5));
    assert_eq!(items(catch_up.read(&source, &mut live).await.unwrap()), ["2", "3"]);
    assert!(items(catch_up.read(&source, &mut live).await.unwrap()).is_empty());
    assert_eq!(items(catch_up.read(&source, &mut live).await.unwrap()), ["6", "8"]);
    assert!(matches!(catch_up.read(&source, &mut live).await, Ok(Read::End(_))));
    assert!(matches!(live.read(u64::MAX), Read::End(_)));
}

#[tokio::test]
async fn catch_up_lost_position_continues_at_the_fork() {
    let hub = hub(16);
    let mut live = live_reader(&hub, Scope::Namespace);
    append(&hub, 1..=4);
    hub.on_gap(&Gap { reason: GapReason::RolledBack, store: STORE, ends: vec![(PARTITION, position(2))] });
    let source = source([(4, PageAfter::RolledBack), (2, PageAfter::Tail)]);
    let mut catch_up = CatchUp::resumed(token(4), token(5));
    let Read::Items(slots) = catch_up.read(&source, &mut live).await.unwrap() else { panic!("no items") };
    assert_eq!(slots[0].token, token(2).encode());
    assert_eq!(items(Read::Items(slots)), ["resync RolledBack"]);
    // The ring knows no rollback of the fork, which this history lacks too.
    assert_eq!(items(catch_up.read(&source, &mut live).await.unwrap()), ["resync RolledBack"]);
    assert!(matches!(catch_up.read(&source, &mut live).await, Ok(Read::End(_))));
}
