//! Positions that the feed has accepted in one partition: decides what the next entry is, and contains the fork point
//! of a rollback.

use std::collections::{HashSet, VecDeque};

use crate::store::Position;

/// What an entry is to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acceptance {
    /// The next entry, which is accepted.
    Next,
    /// Ignored, because it is not after the last position: it was read from the log already, or it is on another branch
    /// of history, which the next tail read detects.
    Stale,
    /// Not accepted, because entries before it are missing.
    Gap,
}

/// Accepted positions of a partition, each of which follows the one before it.
pub(super) struct History {
    last: Position,
    /// Positions before the last one, oldest first.
    earlier: VecDeque<Position>,
    /// Maximum number of earlier positions.
    limit: usize,
    /// Positions that the last rollback removed. Messages with them may still arrive.
    removed: HashSet<Position>,
}

impl History {
    /// A history that starts after this position, and keeps at most `limit` positions before the last one.
    pub(super) fn new(start: Position, limit: usize) -> Self {
        History { last: start, earlier: VecDeque::new(), limit, removed: HashSet::new() }
    }

    /// Position of the last accepted entry.
    pub(super) fn last(&self) -> Position {
        self.last
    }

    /// Accepts the entry at this position if it directly follows the last one.
    pub(super) fn accept(&mut self, previous: Position, position: Position) -> Acceptance {
        if self.removed.contains(&position) {
            return Acceptance::Stale;
        }
        if previous != self.last {
            let is_later = position.revision > self.last.revision;
            return if is_later { Acceptance::Gap } else { Acceptance::Stale };
        }
        self.earlier.push_back(std::mem::replace(&mut self.last, position));
        if self.earlier.len() > self.limit {
            self.earlier.pop_front();
        }
        Acceptance::Next
    }

    /// Notes that the entry at this position was read from the log: no rollback has removed it.
    pub(super) fn note_present(&mut self, position: Position) {
        self.removed.remove(&position);
    }

    /// Continues after this position. If it is in the history, a rollback has removed the positions after it. If not, the
    /// history starts again.
    pub(super) fn continue_after(&mut self, position: Position) {
        let lost = self.newest_first().position(|accepted| accepted == position);
        match lost {
            Some(lost) => {
                self.removed = self.newest_first().take(lost).collect();
                self.earlier.truncate(self.earlier.len() - lost);
            }
            None => self.earlier.clear(),
        }
        self.last = position;
    }

    /// Whether the entry at this position was accepted, and is among the last ones.
    pub(super) fn contains(&self, position: Position) -> bool {
        let mut candidates = self.newest_first().take_while(|accepted| accepted.revision >= position.revision);
        candidates.any(|accepted| accepted == position)
    }

    /// Iterates over the positions, from the last one to the oldest.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = Position> {
        std::iter::once(self.last).chain(self.earlier.iter().rev().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Revision;

    fn position(revision: u64, nonce: u64) -> Position {
        Position { revision: Revision(revision), nonce }
    }

    /// A history of the positions with these revisions and nonce 1, of which the first is its start.
    fn history(revisions: &[u64], limit: usize) -> History {
        let mut history = History::new(position(revisions[0], 1), limit);
        for pair in revisions.windows(2) {
            assert_eq!(history.accept(position(pair[0], 1), position(pair[1], 1)), Acceptance::Next);
        }
        history
    }

    #[test]
    fn history_accepts_only_the_next_entry() {
        let (before, at, next) = (position(9, 1), position(10, 1), position(20, 1));
        let mut history = History::new(at, 16);
        // Newer by revision, but on another branch of history: `previous` differs by nonce, by revision, or by both.
        for previous in [position(10, 2), position(9, 1), position(15, 1), position(15, 2)] {
            assert_eq!((history.accept(previous, next), history.last()), (Acceptance::Gap, at), "{previous:?}");
        }
        // Accepted already, or on a branch that has the same revision, or older.
        for stale in [at, position(10, 2), position(5, 1)] {
            assert_eq!((history.accept(before, stale), history.last()), (Acceptance::Stale, at), "{stale:?}");
        }
        assert_eq!((history.accept(at, next), history.last()), (Acceptance::Next, next));
        assert_eq!((history.accept(at, next), history.last()), (Acceptance::Stale, next), "accepted once");
    }

    #[test]
    fn history_full_drops_the_oldest_positions() {
        let history = history(&[1, 2, 3, 4, 5], 2);
        assert_eq!(history.newest_first().collect::<Vec<_>>(), [5, 4, 3].map(|revision| position(revision, 1)));
        assert!(history.contains(position(3, 1)) && !history.contains(position(2, 1)));
        assert!(!history.contains(position(4, 2)));
    }

    #[test]
    fn history_rolled_back_rejects_the_removed_entries() {
        let mut history = history(&[1, 2, 3, 4], 16);
        history.continue_after(position(2, 1));
        assert_eq!(history.newest_first().collect::<Vec<_>>(), [2, 1].map(|revision| position(revision, 1)));
        // A message that was in flight when the rollback was detected.
        assert_eq!(history.accept(position(2, 1), position(3, 1)), Acceptance::Stale);
        assert_eq!(history.accept(position(2, 1), position(3, 2)), Acceptance::Next);
        // The log has an entry that counts as removed: the rollback was undone.
        history.continue_after(position(2, 1));
        history.note_present(position(3, 2));
        assert_eq!(history.accept(position(2, 1), position(3, 2)), Acceptance::Next);
    }

    #[test]
    fn history_continued_elsewhere_starts_again() {
        let mut history = history(&[1, 2, 3], 16);
        history.continue_after(position(9, 2));
        assert_eq!(history.newest_first().collect::<Vec<_>>(), [position(9, 2)]);
    }
}
