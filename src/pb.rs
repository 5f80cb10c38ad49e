//! The generated messages and service of `sessiond.v1`.

#![allow(clippy::all, clippy::pedantic, missing_docs)]

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, skip_field},
};
use prost_types::{Duration, Timestamp};

tonic::include_proto!("sessiond.v1");

/// Server side of the service: the trait that module `grpc` implements, and its tonic adapter.
pub mod service {
    include!(concat!(env!("OUT_DIR"), "/service/sessiond.v1.rs"));
}

/// Encoded descriptors of all proto files, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Implements [`Message`] for a type that holds encoded fields. Such a message is only sent, never received.
macro_rules! encoded_message {
    ($type:ident: $($part:ident)*) => {
        impl Message for $type {
            fn encode_raw(&self, buffer: &mut impl BufMut) {
                $(buffer.put_slice(&self.$part);)*
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
                0 $(+ self.$part.len())*
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    };
}

/// A [`WatchResponse`] that is already encoded, so that watchers share its bytes.
#[derive(Clone, Default)]
pub struct EncodedWatchResponse {
    /// The encoded message.
    pub message: Bytes,
}

encoded_message!(EncodedWatchResponse: message);

/// A `Session` whose content is already encoded: the store keeps it in this form.
#[derive(Clone, Default, PartialEq)]
pub struct Session {
    /// Fields that the service determines.
    pub head: Vec<u8>,
    /// Subject, labels, client and authentication.
    pub basic: Bytes,
    /// Attributes.
    pub attributes: Bytes,
}

encoded_message!(Session: head basic attributes);

/// The fields of `Session` that the service determines.
#[derive(Clone, PartialEq, Message)]
pub struct SessionHead {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(int64, tag = "3")]
    pub revision: i64,
    #[prost(message, optional, tag = "7")]
    pub create_time: Option<Timestamp>,
    #[prost(message, optional, tag = "8")]
    pub update_time: Option<Timestamp>,
    #[prost(message, optional, tag = "9")]
    pub access_time: Option<Timestamp>,
    #[prost(message, optional, tag = "10")]
    pub expire_time: Option<Timestamp>,
    #[prost(message, optional, tag = "11")]
    pub absolute_expire_time: Option<Timestamp>,
    #[prost(message, optional, tag = "12")]
    pub idle_timeout: Option<Duration>,
    #[prost(int32, tag = "15")]
    pub token_generation: i32,
}
