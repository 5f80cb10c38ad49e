//! Reasons why a record cannot be read.

use crate::store::codec::Unreadable;

/// Reason why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Its key is not a string, or format, checksum or lengths of the head are wrong.
    #[error("head or tokens are damaged")]
    Head,
    /// The record, reply or log entry has another length than its head says.
    #[error("length is wrong")]
    Length,
    /// `basic` does not match its checksum or is not an encoded message.
    #[error("basic fields are damaged")]
    Basic,
    /// The attributes do not match their checksum or are not encoded map entries.
    #[error("attributes are damaged")]
    Attributes,
    /// The attributes cannot be decompressed.
    #[error("attributes: {0}")]
    Compression(#[from] Unreadable),
}
