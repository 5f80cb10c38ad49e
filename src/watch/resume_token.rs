//! Resume token: the position in every partition of one store.
//!
//! Encoding: version, store id, number of partitions, then revision and nonce of each partition, big-endian, and a
//! CRC-32 of all that. A token depends on no filter and grants no right: any watch of the same store can resume with
//! it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    session::Revision,
    store::{Position, StoreId},
};

const VERSION: u8 = 1;
const STORE_ID: usize = 16;
/// Bytes of version, store id and number of partitions.
const HEADER: usize = 1 + STORE_ID + 1;
/// Bytes of one position.
const POSITION: usize = 16;
/// Bytes of the checksum.
const CHECKSUM: usize = 4;

/// Position in every partition of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    /// Identity of the store.
    pub store: StoreId,
    /// Position of each partition, by index.
    pub positions: Vec<Position>,
}

/// The bytes are not a resume token of this version, or were altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed resume token")]
pub struct MalformedResumeToken;

impl ResumeToken {
    /// Encodes the token for a client.
    pub fn encode(&self) -> Bytes {
        let mut text = BytesMut::with_capacity(HEADER + self.positions.len() * POSITION + CHECKSUM);
        text.put_u8(VERSION);
        text.put_slice(&self.store.0);
        // The configuration allows at most 64 partitions.
        text.put_u8(u8::try_from(self.positions.len()).unwrap_or(u8::MAX));
        for position in &self.positions {
            text.put_u64(position.revision.0);
            text.put_u64(position.nonce);
        }
        let checksum = crc32fast::hash(&text);
        text.put_u32(checksum);
        text.freeze()
    }

    /// Decodes a token from a client.
    pub fn decode(text: &[u8]) -> Result<Self, MalformedResumeToken> {
        let (text, checksum) = text.split_last_chunk::<CHECKSUM>().ok_or(MalformedResumeToken)?;
        if crc32fast::hash(text) != u32::from_be_bytes(*checksum) {
            return Err(MalformedResumeToken);
        }
        let (header, rest) = text.split_first_chunk::<HEADER>().ok_or(MalformedResumeToken)?;
        let (positions, left) = rest.as_chunks::<POSITION>();
        let (mut header, mut store) = (&header[..], [0; STORE_ID]);
        let version = header.get_u8();
        header.copy_to_slice(&mut store);
        if version != VERSION || usize::from(header.get_u8()) != positions.len() || !left.is_empty() {
            return Err(MalformedResumeToken);
        }
        let position = |mut text: &[u8]| Position { revision: Revision(text.get_u64()), nonce: text.get_u64() };
        let positions: Vec<Position> = positions.iter().map(|text| position(text)).collect();
        if positions.iter().any(|position| position.revision.0 >= Position::BEYOND) {
            return Err(MalformedResumeToken);
        }
        Ok(ResumeToken { store: StoreId(store), positions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> ResumeToken {
        let positions = (0..16).map(|n| Position { revision: Revision(1 << 50 | n), nonce: u64::MAX - n }).collect();
        ResumeToken { store: StoreId([7; 16]), positions }
    }

    #[test]
    fn resume_token_encoded_decodes_to_same_value() {
        assert_eq!(ResumeToken::decode(&token().encode()), Ok(token()));
    }

    #[test]
    fn resume_token_cut_or_altered_is_malformed() {
        let text = token().encode();
        for length in 0..text.len() {
            assert_eq!(ResumeToken::decode(&text[..length]), Err(MalformedResumeToken));
            let mut altered = text.to_vec();
            altered[length] ^= 1;
            assert_eq!(ResumeToken::decode(&altered), Err(MalformedResumeToken));
        }
    }
}
