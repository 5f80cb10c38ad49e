//! Encodes one stored value: codec byte, checksum, content; compressed if that makes it smaller.
//!
//! The codec byte never occurs in UTF-8, so no stored value can be mistaken for a word of the Redis protocol. The checksum
//! covers the content, because LZ4 decodes most single-bit flips to wrong bytes without an error. The length before the LZ4
//! block is compared with the limit before memory is allocated.
//!
//! Session values are small and repeat little, so LZ4 starts with a dictionary of text that sessions commonly hold.

use bytes::Bytes;
use lz4_flex::block;

const RAW: u8 = 0xF0;
/// LZ4 without a dictionary. Decoded, but no longer written.
const LZ4: u8 = 0xF1;
/// LZ4 with the first dictionary.
const LZ4_DICTIONARY: u8 = 0xF2;
const HEADER: usize = 5;
const LZ4_HEADER: usize = 9;
/// Words that session libraries, frameworks and JSON of web applications use. Part of the storage format: it never changes,
/// and another dictionary gets another codec byte.
const DICTIONARY: &[u8] = include_bytes!("dictionary.txt");
/// Minimum size in bytes of a value that is compressed.
const COMPRESS_FROM: usize = 32;
/// Maximum size in bytes of a decoded value: the largest payload that a policy allows, plus its protobuf framing.
const MAX_CONTENT: usize = 1024 * 1024 + 1024;

/// Reason why a stored value cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The value is shorter than its header.
    #[error("value is truncated")]
    Short,
    /// The first byte is not a known codec.
    #[error("unknown codec")]
    UnknownCodec,
    /// The length before the LZ4 block exceeds the limit.
    #[error("length of the value exceeds the limit")]
    TooLong,
    /// The LZ4 block cannot be decompressed to its length.
    #[error("LZ4 block is damaged")]
    Lz4,
    /// The content does not match its checksum.
    #[error("checksum does not match")]
    Checksum,
}

/// Encodes a value; compresses it if that makes it smaller.
pub(super) fn encode(content: &[u8]) -> Vec<u8> {
    if content.len() >= COMPRESS_FROM {
        let checksum = crc32fast::hash(content).to_be_bytes();
        let mut stored = vec![0; LZ4_HEADER + block::get_maximum_output_size(content.len())];
        let written = block::compress_into_with_dict(content, &mut stored[LZ4_HEADER..], DICTIONARY);
        let written = written.unwrap_or(usize::MAX);
        if written < content.len() - (LZ4_HEADER - HEADER) {
            stored.truncate(LZ4_HEADER + written);
            stored[0] = LZ4_DICTIONARY;
            stored[1..HEADER].copy_from_slice(&checksum);
            stored[HEADER..LZ4_HEADER].copy_from_slice(&(content.len() as u32).to_be_bytes());
            return stored;
        }
    }
    encode_raw(content)
}

/// Encodes a value without compression, so that equal contents are equal stored values in every version.
pub(super) fn encode_raw(content: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(HEADER + content.len());
    stored.push(RAW);
    stored.extend_from_slice(&crc32fast::hash(content).to_be_bytes());
    stored.extend_from_slice(content);
    stored
}

/// Decodes a stored value and verifies its checksum.
pub(super) fn decode(stored: &Bytes) -> Result<Bytes, Unreadable> {
    let [codec, checksum @ ..] = *stored.first_chunk::<HEADER>().ok_or(Unreadable::Short)?;
    let content = match codec {
        RAW => stored.slice(HEADER..),
        LZ4 | LZ4_DICTIONARY => {
            let header = stored.first_chunk::<LZ4_HEADER>().ok_or(Unreadable::Short)?;
            let length = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) as usize;
            if length > MAX_CONTENT {
                return Err(Unreadable::TooLong);
            }
            let mut content = vec![0; length];
            let dictionary = if codec == LZ4_DICTIONARY { DICTIONARY } else { &[] };
            let written = block::decompress_into_with_dict(&stored[LZ4_HEADER..], &mut content, dictionary);
            let written = written.map_err(|_| Unreadable::Lz4)?;
            // Scripts use this length to compute the payload of a session.
            if written != length {
                return Err(Unreadable::Lz4);
            }
            Bytes::from(content)
        }
        _ => return Err(Unreadable::UnknownCodec),
    };
    if crc32fast::hash(&content).to_be_bytes() == checksum { Ok(content) } else { Err(Unreadable::Checksum) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encode_large_value_compresses_small_value_stays_raw() {
        assert!(encode(&[b'x'; 1024]).len() < 100);
        assert_eq!(encode(b"x").len(), HEADER + 1);
    }

    #[test]
    fn dictionary_never_changes() {
        assert_eq!((DICTIONARY.len(), crc32fast::hash(DICTIONARY)), (6843, 2_211_299_645));
    }

    #[test]
    fn decode_lz4_without_dictionary_is_read() {
        let content = b"what was written ".repeat(20);
        let mut stored = vec![LZ4];
        stored.extend(crc32fast::hash(&content).to_be_bytes());
        stored.extend((content.len() as u32).to_be_bytes());
        stored.extend(block::compress(&content));
        assert_eq!(&decode(&stored.into()).unwrap()[..], &content[..]);
    }

    #[test]
    fn encode_small_session_json_compresses() {
        let content =
            br#"{"user_id":4711,"email":"someone@gmail.com","locale":"en-US","preferences":{"theme":"dark"}}"#;
        assert!(encode(content).len() < content.len() * 3 / 4, "{}", encode(content).len());
    }

    #[test]
    fn decode_huge_length_fails_before_allocation() {
        let mut stored = encode(&[b'x'; 1024]);
        stored[HEADER..LZ4_HEADER].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode(&stored.into()), Err(Unreadable::TooLong));
    }

    proptest! {
        #[test]
        fn decode_encoded_value_returns_content(content: Vec<u8>, times in 1..40usize) {
            let content = content.repeat(times);
            prop_assert_eq!(&decode(&encode(&content).into()).unwrap()[..], &content[..]);
        }

        #[test]
        fn decode_flipped_bit_never_returns_wrong_content(content: Vec<u8>, times in 1..40usize, at: prop::sample::Index, bit in 0..8u8) {
            let content = content.repeat(times);
            let mut stored = encode(&content);
            let at = at.index(stored.len());
            stored[at] ^= 1 << bit;
            match decode(&stored.into()) {
                Err(_) => {}
                Ok(read) => prop_assert_eq!(&read[..], &content[..], "read wrong bytes"),
            }
        }

        #[test]
        fn decode_garbage_never_panics(stored: Vec<u8>) {
            let _ = decode(&stored.into());
        }
    }
}
