//! New content of a session, encoded for a script.

use bytes::{BufMut, Bytes, BytesMut};

use super::{REQUEST_BYTES, checksum};
use crate::{
    session::{Attributes, Basic},
    store::codec,
};

/// Maximum size in bytes of a content that scripts copy. The same number is in constants.lua.
pub(in crate::store) const MAX_SMALL: usize = 2_048;

/// Content of a session with its layout and checksums.
pub(in crate::store) struct EncodedContent {
    /// Subject, labels, client and authentication.
    pub basic: Basic,
    /// Attributes.
    pub attributes: Attributes,
    stored_attributes: Vec<u8>,
    basic_crc: u32,
    attribute_crc: u32,
}

/// The content as a script takes it.
pub(in crate::store) enum ContentArgument {
    /// Only the content.
    Small(Bytes),
    /// A record in which everything except the content is zero. Its first bytes receive the nonce.
    InRecord(Bytes),
}

impl EncodedContent {
    /// Compresses the attributes and computes the checksums. `name` is `<namespace>:<id>`.
    pub(in crate::store) fn new(name: &[u8], basic: Basic, attributes: Attributes) -> Self {
        let stored_attributes = codec::encode(attributes.bytes());
        let basic_crc = checksum(name, basic.bytes());
        let attribute_crc = checksum(name, &stored_attributes);
        EncodedContent { basic, attributes, stored_attributes, basic_crc, attribute_crc }
    }

    /// Number of bytes of the stored attributes.
    pub(in crate::store) fn stored_attribute_bytes(&self) -> usize {
        self.stored_attributes.len()
    }

    /// The layout for a record with this number of request ids, as LAYOUT in constants.lua.
    pub(in crate::store) fn layout(&self, requests: usize) -> [u8; 18] {
        let mut layout = [0; 18];
        let mut buffer = &mut layout[..];
        buffer.put_u32(self.basic.bytes().len() as u32);
        buffer.put_u32(self.stored_attributes.len() as u32);
        buffer.put_u16((requests * REQUEST_BYTES) as u16);
        buffer.put_u32(self.basic_crc);
        buffer.put_u32(self.attribute_crc);
        layout
    }

    /// The content for a record with this number of bytes of head and tokens, and this number of request ids.
    pub(in crate::store) fn argument(&self, front_bytes: usize, requests: usize) -> ContentArgument {
        let (basic, attributes) = (self.basic.bytes(), &self.stored_attributes);
        let bytes = basic.len() + attributes.len();
        let is_small = bytes <= MAX_SMALL;
        let (before, after) = if is_small { (0, 0) } else { (front_bytes, requests * REQUEST_BYTES) };
        let mut argument = BytesMut::with_capacity(before + bytes + after);
        argument.put_bytes(0, before);
        argument.extend_from_slice(basic);
        argument.extend_from_slice(attributes);
        argument.put_bytes(0, after);
        if is_small { ContentArgument::Small(argument.freeze()) } else { ContentArgument::InRecord(argument.freeze()) }
    }
}
