//! Numbers and checksum of the record format.

/// First byte of records and log entries. It never occurs in UTF-8.
pub(in crate::store) const FORMAT: u8 = 0xFA;
/// Bytes of one request id.
pub(in crate::store) const REQUEST_BYTES: usize = 31;
/// Maximum number of request ids of a session.
pub(in crate::store) const MAX_REQUESTS: usize = 64;

/// Checksum of a part of the content. It covers the name, so that a record copied to another key is detected.
pub(in crate::store) fn checksum(name: &[u8], part: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(name);
    hasher.update(part);
    hasher.finalize()
}

/// Big-endian number of at most 8 bytes.
pub(in crate::store) fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
