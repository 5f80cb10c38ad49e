//! The generated messages and service of `sessiond.v1`.

#![allow(clippy::all, clippy::pedantic, missing_docs)]

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType, skip_field},
};
use prost_types::{Duration, Timestamp};
use tonic::codec::BufferSettings;
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

tonic::include_proto!("sessiond.v1");

/// Server side of the service: the trait that module `grpc` implements, and its tonic adapter.
pub mod service {
    include!(concat!(env!("OUT_DIR"), "/service/sessiond.v1.rs"));
}

impl Cause {
    /// Returns the name without its prefix, as in errors and in the audit log.
    pub fn short_name(self) -> &'static str {
        self.as_str_name().trim_start_matches("CAUSE_")
    }
}

/// Encoded descriptors of all proto files, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Codec of all messages: the one of tonic, whose buffer of 8 KiB per call each open Watch would keep.
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(buffers())
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstCodec::<T, U>::raw_decoder(buffers())
    }
}

/// Buffers that hold a session of 1 KiB, and grow with larger messages. Up to 32 KiB of messages that are ready are sent as one.
fn buffers() -> BufferSettings {
    BufferSettings::new(2 * 1024, 32 * 1024)
}

/// Implements [`Message`] for a type that is only sent, never received, from its methods `put` and `len`.
macro_rules! sent_message {
    ($type:ident) => {
        impl Message for $type {
            fn encode_raw(&self, buffer: &mut impl BufMut) {
                self.put(buffer);
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
                self.len()
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    };
}

/// A [`WatchResponse`] whose events are already encoded, so that watchers share their bytes.
#[derive(Clone, Default)]
pub struct EncodedWatchResponse {
    /// The encoded field `events` of each event.
    pub events: Vec<Bytes>,
    /// Field `resume_token`. Empty: not set.
    pub resume_token: Bytes,
    /// Field `control`.
    pub control: Option<watch_response::Control>,
}

impl EncodedWatchResponse {
    /// Number of the field `resume_token`.
    const RESUME_TOKEN: u32 = 2;

    fn put(&self, buffer: &mut impl BufMut) {
        self.events.iter().for_each(|event| buffer.put_slice(event));
        if !self.resume_token.is_empty() {
            encoding::bytes::encode(Self::RESUME_TOKEN, &self.resume_token, buffer);
        }
        self.control.iter().for_each(|control| control.encode(buffer));
    }

    fn len(&self) -> usize {
        let events: usize = self.events.iter().map(Bytes::len).sum();
        let control = self.control.as_ref().map_or(0, watch_response::Control::encoded_len);
        let token = match self.resume_token.len() {
            0 => 0,
            _ => encoding::bytes::encoded_len(Self::RESUME_TOKEN, &self.resume_token),
        };
        events + token + control
    }
}

sent_message!(EncodedWatchResponse);

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

impl Session {
    fn put(&self, buffer: &mut impl BufMut) {
        [&self.head, &self.basic[..], &self.attributes].into_iter().for_each(|part| buffer.put_slice(part));
    }

    fn len(&self) -> usize {
        self.head.len() + self.basic.len() + self.attributes.len()
    }
}

sent_message!(Session);

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
