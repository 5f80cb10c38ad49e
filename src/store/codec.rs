//! One stored value: codec byte, checksum, content, compressed where that makes it smaller.
//!
//! The codec byte never occurs in UTF-8, so no stored value can be taken for a word of the Redis protocol. The checksum
//! is over the content: LZ4 decodes most single-bit flips to wrong bytes without an error. The length that stands before
//! LZ4 is held against the limit before anything is allocated.

//!
//! Sessions are small, and LZ4 finds little to repeat in a small text: it begins with a dictionary of what sessions hold.

use bytes::Bytes;
use lz4_flex::block;

const RAW: u8 = 0xF0;
/// Without a dictionary. Read, and not written any more.
const LZ4: u8 = 0xF1;
/// With the first dictionary.
const LZ4_DICTIONARY: u8 = 0xF2;
const HEADER: usize = 5;
const LZ4_HEADER: usize = 9;
/// Words that session libraries, frameworks and JSON of web applications use. Part of the storage format: it never changes;
/// another dictionary would have another codec byte.
const DICTIONARY: &[u8] = include_bytes!("dictionary.txt");
/// Smaller values are stored as they are.
const COMPRESS_FROM: usize = 32;
/// No value is larger than a session's payload may ever be, and a little for its protobuf frame.
const MAX_CONTENT: usize = 1024 * 1024 + 1024;

/// The value cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("value is cut short")]
    Short,
    #[error("unknown codec")]
    UnknownCodec,
    #[error("value claims more than a session may hold")]
    TooLong,
    #[error("LZ4 block is damaged")]
    Lz4,
    #[error("checksum does not match")]
    Checksum,
}

pub fn encode(content: &[u8]) -> Vec<u8> {
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

/// Never compressed, so that equal contents are equal values, whatever compressed them.
pub fn encode_raw(content: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(HEADER + content.len());
    stored.push(RAW);
    stored.extend_from_slice(&crc32fast::hash(content).to_be_bytes());
    stored.extend_from_slice(content);
    stored
}

pub fn decode(stored: &Bytes) -> Result<Bytes, Unreadable> {
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
            // Scripts count what a session holds by this length.
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
    fn a_large_even_value_gets_smaller_and_a_small_one_stays_raw() {
        assert!(encode(&[b'x'; 1024]).len() < 100);
        assert_eq!(encode(b"x").len(), HEADER + 1);
    }

    #[test]
    fn the_dictionary_never_changes() {
        assert_eq!((DICTIONARY.len(), crc32fast::hash(DICTIONARY)), (6843, 2_211_299_645));
    }

    #[test]
    fn what_was_written_without_a_dictionary_is_read() {
        let content = b"what was written ".repeat(20);
        let mut stored = vec![LZ4];
        stored.extend(crc32fast::hash(&content).to_be_bytes());
        stored.extend((content.len() as u32).to_be_bytes());
        stored.extend(block::compress(&content));
        assert_eq!(&decode(&stored.into()).unwrap()[..], &content[..]);
    }

    #[test]
    fn a_small_text_of_a_session_gets_smaller() {
        let content =
            br#"{"user_id":4711,"email":"someone@gmail.com","locale":"en-US","preferences":{"theme":"dark"}}"#;
        assert!(encode(content).len() < content.len() * 3 / 4, "{}", encode(content).len());
    }

    #[test]
    fn a_bomb_is_refused_before_memory_is_taken() {
        let mut stored = encode(&[b'x'; 1024]);
        stored[HEADER..LZ4_HEADER].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode(&stored.into()), Err(Unreadable::TooLong));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(content: Vec<u8>, times in 1..40usize) {
            let content = content.repeat(times);
            prop_assert_eq!(&decode(&encode(&content).into()).unwrap()[..], &content[..]);
        }

        #[test]
        fn no_flipped_bit_goes_unnoticed(content: Vec<u8>, times in 1..40usize, at: prop::sample::Index, bit in 0..8u8) {
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
        fn garbage_never_aborts(stored: Vec<u8>) {
            let _ = decode(&stored.into());
        }
    }
}
