//! The generated messages and service of `sessiond.v1`.

#![allow(clippy::all, clippy::pedantic, missing_docs)]

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, skip_field},
};

tonic::include_proto!("sessiond.v1");

/// Server side of the service: the trait that module `grpc` implements, and its tonic adapter.
pub mod service {
    include!(concat!(env!("OUT_DIR"), "/service/sessiond.v1.rs"));
}

/// Encoded descriptors of all proto files, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// A [`WatchResponse`] that is already encoded, so that watchers share its bytes.
#[derive(Clone, Default)]
pub struct EncodedWatchResponse(
    /// The encoded message.
    pub Bytes,
);

impl Message for EncodedWatchResponse {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buffer, context)
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
