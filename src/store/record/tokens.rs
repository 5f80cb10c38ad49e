//! Tokens of a record.

use subtle::ConstantTimeEq;

use super::format::number_of;
use crate::session::{SALT_BYTES, Salt, Verifier};

/// Bytes of the current token: verifier, valid since, flags.
pub(in crate::store) const NEW_TOKEN_BYTES: usize = 23;
/// Bytes of one superseded token.
const OLD_TOKEN_BYTES: usize = 29;
/// Maximum number of superseded tokens.
const MAX_OLD_TOKENS: usize = 16;
/// Flag of the current token: it was presented.
const USED: u8 = 1;
/// Flag of the current token: the tokens end with a salt. Zero bytes = it was removed.
const SALTED: u8 = 2;

/// The tokens of a record: the current one, the superseded ones, and the salt from which the server derived the current one.
#[derive(Clone, Copy)]
pub(in crate::store) struct Tokens<'a>(pub(super) &'a [u8]);

/// The current token of a session.
pub(in crate::store) struct CurrentToken<'a>(&'a [u8; NEW_TOKEN_BYTES]);

impl<'a> Tokens<'a> {
    /// Number of bytes.
    pub(in crate::store) fn bytes(self) -> usize {
        self.0.len()
    }

    /// The current token. None: the record has no tokens.
    pub(in crate::store) fn current(self) -> Option<CurrentToken<'a>> {
        self.0.first_chunk().map(CurrentToken)
    }

    /// Whether there are superseded tokens.
    pub(in crate::store) fn has_superseded(self) -> bool {
        !self.superseded().is_empty()
    }

    /// Salt from which the server derived the current token. None: the caller made it, it was presented, or it is the first one.
    pub(in crate::store) fn salt(self) -> Option<Salt> {
        self.salt_bytes().filter(|salt| *salt != [0; SALT_BYTES])
    }

    /// Whether one of the tokens has this verifier; takes the same time for each of them.
    pub(in crate::store) fn knows(self, verifier: Verifier) -> bool {
        let is_current = self.current().is_some_and(|token| token.has(verifier));
        let old = self.superseded().chunks(OLD_TOKEN_BYTES).filter_map(<[u8]>::first_chunk::<16>);
        old.fold(is_current, |found, token| bool::from(token.ct_eq(verifier.as_bytes())) | found)
    }

    /// Number of bytes after a change of the content. `keeps_salt` is whether the record keeps the salt of a new token; None: the
    /// current one stays. The same rule is in tokens_after.lua.
    pub(super) fn bytes_after(self, keeps_salt: Option<bool>) -> usize {
        let has_removed_salt = self.salt_bytes() == Some([0; SALT_BYTES]);
        match keeps_salt {
            Some(keeps_salt) => {
                let old = (self.superseded().len() + OLD_TOKEN_BYTES).min(MAX_OLD_TOKENS * OLD_TOKEN_BYTES);
                NEW_TOKEN_BYTES + old + if keeps_salt { SALT_BYTES } else { 0 }
            }
            None if has_removed_salt => self.0.len() - SALT_BYTES,
            None => self.0.len(),
        }
    }

    fn superseded(self) -> &'a [u8] {
        let end = self.0.len() - self.salt_bytes().map_or(0, |salt| salt.len());
        self.0.get(NEW_TOKEN_BYTES..end).unwrap_or_default()
    }

    /// The salt, or the zero bytes in its place. None: there is no place for one.
    fn salt_bytes(self) -> Option<Salt> {
        self.current().filter(|token| token.flags() & SALTED != 0)?;
        self.0[NEW_TOKEN_BYTES..].last_chunk().copied()
    }
}

impl CurrentToken<'_> {
    /// Whether the token has this verifier; takes the same time in any case.
    pub(in crate::store) fn has(&self, verifier: Verifier) -> bool {
        self.0[..16].ct_eq(verifier.as_bytes()).into()
    }

    /// Time in ms since which it is the current token.
    pub(in crate::store) fn since(&self) -> u64 {
        number_of(&self.0[16..22])
    }

    /// Whether it was presented.
    pub(in crate::store) fn is_used(&self) -> bool {
        self.flags() & USED != 0
    }

    fn flags(&self) -> u8 {
        self.0[22]
    }
}
