//! Identity of a store.

use super::random::random_u64;

/// Identity of a store: generated on first use, lost when the store is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub [u8; 16]);

impl StoreId {
    /// A random id.
    pub(super) fn random() -> Self {
        StoreId((u128::from(random_u64()) << 64 | u128::from(random_u64())).to_be_bytes())
    }

    pub(super) fn to_text(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    pub(super) fn from_text(text: &[u8]) -> Option<Self> {
        data_encoding::HEXLOWER.decode(text).ok()?.try_into().ok().map(StoreId)
    }
}
