//! Encodes the attributes of a session: codec byte, content; compressed if that makes it smaller.
//!
//! The codec byte never occurs in UTF-8. The head of the record holds the checksum. The length before the LZ4 block is compared
//! with the limit before memory is allocated.
//!
//! Sessions are small and repeat little, so LZ4 starts with a dictionary of text that sessions commonly hold.

use bytes::Bytes;
use lz4_flex::block;

const RAW: u8 = 0xF0;
/// LZ4 with the first dictionary.
const LZ4_DICTIONARY: u8 = 0xF2;
const RAW_HEADER: usize = 1;
const LZ4_HEADER: usize = 5;
/// Words that session libraries, frameworks and JSON of web applications use. Part of the storage format: it never changes,
/// and another dictionary gets another codec byte.
const DICTIONARY: &[u8] = include_bytes!("dictionary.txt");
/// Minimum size in bytes of a content that is compressed.
const COMPRESS_FROM: usize = 32;
/// Maximum size in bytes of a decoded content: the largest payload that a policy allows, and the framing of the largest number of
/// attributes.
const MAX_CONTENT: usize = 1024 * 1024 + 1024 * 32;

/// Reason why stored attributes cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The content is shorter than its header.
    #[error("truncated")]
    Short,
    /// The first byte is not a known codec.
    #[error("unknown codec")]
    UnknownCodec,
    /// The length before the LZ4 block exceeds the limit.
    #[error("length exceeds the limit")]
    TooLong,
    /// The LZ4 block cannot be decompressed to its length.
    #[error("LZ4 block is damaged")]
    Lz4,
}

/// Encodes a content; compresses it if that makes it smaller. An empty content has no bytes.
pub(super) fn encode(content: &[u8]) -> Vec<u8> {
    if content.is_empty() {
        return Vec::new();
    }
    if content.len() >= COMPRESS_FROM {
        let mut stored = vec![0; LZ4_HEADER + block::get_maximum_output_size(content.len())];
        let written = block::compress_into_with_dict(content, &mut stored[LZ4_HEADER..], DICTIONARY);
        let written = written.unwrap_or(usize::MAX);
        if written < content.len() - (LZ4_HEADER - RAW_HEADER) {
            stored.truncate(LZ4_HEADER + written);
            stored[0] = LZ4_DICTIONARY;
            stored[1..LZ4_HEADER].copy_from_slice(&(content.len() as u32).to_be_bytes());
            return stored;
        }
    }
    let mut stored = Vec::with_capacity(RAW_HEADER + content.len());
    stored.push(RAW);
    stored.extend_from_slice(content);
    stored
}

/// Number of bytes of the content. Does not decompress it.
pub(super) fn plain_bytes(stored: &[u8]) -> Result<usize, Unreadable> {
    match stored {
        [] => Ok(0),
        [RAW, content @ ..] => Ok(content.len()),
        [LZ4_DICTIONARY, rest @ ..] => {
            let length = u32::from_be_bytes(*rest.first_chunk().ok_or(Unreadable::Short)?) as usize;
            if length > MAX_CONTENT { Err(Unreadable::TooLong) } else { Ok(length) }
        }
        _ => Err(Unreadable::UnknownCodec),
    }
}

/// Decodes stored attributes.
pub(super) fn decode(stored: &Bytes) -> Result<Bytes, Unreadable> {
    let length = plain_bytes(stored)?;
    if stored.first() != Some(&LZ4_DICTIONARY) {
        return Ok(stored.slice(stored.len() - length..));
    }
    let mut content = vec![0; length];
    let written = block::decompress_into_with_dict(&stored[LZ4_HEADER..], &mut content, DICTIONARY);
    if written.map_err(|_| Unreadable::Lz4)? == length { Ok(content.into()) } else { Err(Unreadable::Lz4) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encode_large_content_compresses_small_content_stays_raw() {
        assert!(encode(&[b'x'; 1024]).len() < 100);
        assert_eq!(encode(b"x"), [RAW, b'x']);
        assert!(encode(b"").is_empty());
    }

    #[test]
    fn dictionary_never_changes() {
        assert_eq!((DICTIONARY.len(), crc32fast::hash(DICTIONARY)), (6843, 2_211_299_645));
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
        stored[1..LZ4_HEADER].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode(&stored.into()), Err(Unreadable::TooLong));
    }

    proptest! {
        #[test]
        fn decode_encoded_content_returns_content(content: Vec<u8>, times in 1..40usize) {
            let content = content.repeat(times);
            let stored = Bytes::from(encode(&content));
            prop_assert_eq!(plain_bytes(&stored), Ok(content.len()));
            prop_assert_eq!(&decode(&stored).unwrap()[..], &content[..]);
        }

        #[test]
        fn decode_garbage_never_panics(stored: Vec<u8>) {
            let _ = decode(&stored.into());
        }
    }
}
