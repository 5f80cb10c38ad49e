//! The headers of a request: their size and the encoding of the message.

use http::HeaderMap;
use tonic::Status;

use crate::grpc::status;

/// Maximum size of the headers of a call, in bytes as HTTP/2 counts them.
const MAX_METADATA_BYTES: usize = 16 * 1024;
/// Bytes that HTTP/2 adds to the size of each header.
const HEADER_OVERHEAD: usize = 32;

/// Checks the size of the headers, and that the message is not compressed.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Status> {
    let sizes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD);
    if sizes.sum::<usize>() > MAX_METADATA_BYTES {
        return Err(status::metadata_too_large(MAX_METADATA_BYTES));
    }
    match headers.get("grpc-encoding") {
        Some(encoding) if encoding != "identity" => Err(status::compression_unsupported()),
        Some(_) | None => Ok(()),
    }
}
