//! Position in a log.

use crate::session::Revision;

/// Position of an entry in its partition's log. The nonce distinguishes branches of history that used the same revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Revision of the change.
    pub revision: Revision,
    /// Random number of the send that made the change.
    pub nonce: u64,
}

impl Position {
    /// Upper bound of revisions: Lua numbers are exact below it. A position at or above it is malformed.
    pub const BEYOND: u64 = 1 << 53;

    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        let (revision, nonce) = std::str::from_utf8(text).ok()?.split_once('-')?;
        let position = Position { revision: Revision(revision.parse().ok()?), nonce: nonce.parse().ok()? };
        (position.revision.0 < Position::BEYOND).then_some(position)
    }

    pub(super) fn to_text(self) -> String {
        format!("{}-{}", self.revision.0, self.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_too_large_revision_is_rejected() {
        let last = Position { revision: Revision(Position::BEYOND - 1), nonce: u64::MAX };
        assert_eq!(Position::from_text(last.to_text().as_bytes()), Some(last));
        let beyond = Position { revision: Revision(Position::BEYOND), ..last };
        assert_eq!(Position::from_text(beyond.to_text().as_bytes()), None);
    }
}
