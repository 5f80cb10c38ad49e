//! Tokens of a record.

use subtle::ConstantTimeEq;

use crate::session::Verifier;

/// Bytes of the current token: verifier, valid since, used, salt.
pub(in crate::store) const NEW_TOKEN_BYTES: usize = 55;
/// Bytes of one superseded token.
pub(in crate::store) const OLD_TOKEN_BYTES: usize = 29;
/// Maximum number of superseded tokens.
const MAX_OLD_TOKENS: usize = 16;

/// The current token of a session.
pub(in crate::store) struct CurrentToken<'a>(&'a [u8; NEW_TOKEN_BYTES]);

impl<'a> CurrentToken<'a> {
    /// The current token at the beginning of the tokens of a record. None: the record has no tokens.
    pub(in crate::store) fn of(tokens: &'a [u8]) -> Option<Self> {
        tokens.first_chunk().map(CurrentToken)
    }

    /// Whether the token has this verifier; takes the same time in any case.
    pub(in crate::store) fn has(&self, verifier: Verifier) -> bool {
        self.0[..16].ct_eq(verifier.as_bytes()).into()
    }

    /// Time in ms since which it is the current token.
    pub(in crate::store) fn since(&self) -> u64 {
        self.0[16..22].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Whether it was presented.
    pub(in crate::store) fn is_used(&self) -> bool {
        self.0[22] == 1
    }

    /// Salt from which the server derived it. None: the caller made it, it was presented, or it is the first one.
    pub(in crate::store) fn salt(&self) -> Option<[u8; 32]> {
        let salt = std::array::from_fn(|at| self.0[23 + at]);
        (salt != [0; 32]).then_some(salt)
    }
}

/// Whether one of the tokens of a record has this verifier; takes the same time for each of them.
pub(in crate::store) fn knows(tokens: &[u8], verifier: Verifier) -> bool {
    let (current, old) = tokens.split_at(NEW_TOKEN_BYTES.min(tokens.len()));
    let all = std::iter::once(current).chain(old.chunks(OLD_TOKEN_BYTES)).filter_map(<[u8]>::first_chunk::<16>);
    all.fold(false, |found, token| bool::from(token.ct_eq(verifier.as_bytes())) | found)
}

/// Number of bytes of the tokens after a rotation.
pub(in crate::store) fn bytes_after_rotation(token_bytes: usize) -> usize {
    (token_bytes + OLD_TOKEN_BYTES).min(NEW_TOKEN_BYTES + MAX_OLD_TOKENS * OLD_TOKEN_BYTES)
}
