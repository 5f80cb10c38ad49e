//! The snapshot without Redis: pages of sessions, its end, and the changes that it includes.

use super::*;
use crate::watch::fixtures::{FakeSource, append, entry_of, filter, hub, items, live_reader, session, token};

fn snapshot(filter: &Filter) -> Snapshot {
    Snapshot::of_all(filter, View::Basic, token(5), 0)
}

#[tokio::test]
async fn snapshot_is_complete_at_the_end_after_the_barrier() {
    let (hub, filter) = (hub(16), filter(Scope::Namespace));
    let live = live_reader(&hub, Scope::Namespace);
    let source = FakeSource { at_barrier: Some((hub.clone(), 6)), ..FakeSource::default() };
    let pages = [Ok(vec![session(1, 3), session(2, 4)]), Err(Error::Timeout), Ok(vec![session(3, 9)])];
    source.sessions.borrow_mut().extend(pages);
    let mut snapshot = snapshot(&filter);
    assert_eq!(items(snapshot.read(&source, &live, &filter, Credential::Id).await.unwrap()), ["session"; 2]);
    assert!(snapshot.read(&source, &live, &filter, Credential::Id).await.is_err());
    assert_eq!(items(snapshot.read(&source, &live, &filter, Credential::Id).await.unwrap()), ["session"]);
    assert!(!snapshot.is_sent());
    assert!(matches!(snapshot.read(&source, &live, &filter, Credential::Id).await, Ok(Read::End(_))));
    assert_eq!(snapshot.complete_at(), Some(1));
}

#[tokio::test]
async fn snapshot_includes_changes_up_to_the_revision_that_it_read() {
    let (hub, filter) = (hub(16), filter(Scope::Namespace));
    let live = live_reader(&hub, Scope::Namespace);
    append(&hub, 1..=5);
    let source = FakeSource::default();
    source.sessions.borrow_mut().push_back(Ok(vec![session(1, 5), session(2, 8)]));
    let mut snapshot = snapshot(&filter);
    snapshot.read(&source, &live, &filter, Credential::Id).await.unwrap();
    assert_eq!(snapshot.unconfirmed(), [session(2, 8).name.id]);
    let mut includes = |byte, revision| snapshot.includes(&entry_of(byte, revision).event);
    assert_eq!([includes(1, 6), includes(2, 7), includes(2, 8), includes(2, 9)], [false, true, true, false]);
    assert!(snapshot.unconfirmed().is_empty());
}
