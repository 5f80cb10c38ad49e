//! Slots of a Redis Cluster.

/// Slot of a Redis Cluster, below [`Slot::COUNT`]. All keys of a slot are on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// Number of slots of a Cluster.
    pub const COUNT: u16 = 16_384;

    /// Returns the slot of a key or hash tag.
    pub fn of(key: &str) -> Self {
        Slot(fred::util::redis_keyslot(key.as_bytes()))
    }
}
