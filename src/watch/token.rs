//! A resume token: the position in every partition of one store.
//!
//! Version, store id, number of partitions, then revision and nonce of each, big-endian, and a checksum over all that.
//! It depends on no filter and holds no right: a watcher may go on with it elsewhere, as anything it is allowed to be.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    session::Revision,
    store::{Position, StoreId},
};

const VERSION: u8 = 1;
const HEADER: usize = 1 + 16 + 1;
const POSITION: usize = 16;
const CHECKSUM: usize = 4;

/// How far a watcher has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    pub store: StoreId,
    /// One of each partition.
    pub positions: Vec<Position>,
}

/// These bytes are not, or no longer, what a server once sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a resume token")]
pub struct Garbage;

impl ResumeToken {
    pub fn encode(&self) -> Bytes {
        let mut text = BytesMut::with_capacity(HEADER + self.positions.len() * POSITION + CHECKSUM);
        text.put_u8(VERSION);
        text.put_slice(&self.store.0);
        text.put_u8(self.positions.len() as u8);
        for position in &self.positions {
            text.put_u64(position.revision.0);
            text.put_u64(position.nonce);
        }
        let checksum = crc32fast::hash(&text);
        text.put_u32(checksum);
        text.freeze()
    }

    pub fn decode(text: &[u8]) -> Result<Self, Garbage> {
        let (text, checksum) = text.split_last_chunk::<CHECKSUM>().ok_or(Garbage)?;
        if crc32fast::hash(text) != u32::from_be_bytes(*checksum) {
            return Err(Garbage);
        }
        let (header, rest) = text.split_first_chunk::<HEADER>().ok_or(Garbage)?;
        let (positions, left) = rest.as_chunks::<POSITION>();
        if header[0] != VERSION || usize::from(header[HEADER - 1]) != positions.len() || !left.is_empty() {
            return Err(Garbage);
        }
        let number = |half: &[u8]| u64::from_be_bytes(half.try_into().expect("half a position"));
        let read = |position: &[u8; POSITION]| Position {
            revision: Revision(number(&position[..8])),
            nonce: number(&position[8..]),
        };
        let positions: Vec<Position> = positions.iter().map(read).collect();
        if positions.iter().any(|position| position.revision.0 >= Position::BEYOND) {
            return Err(Garbage);
        }
        Ok(ResumeToken { store: StoreId(header[1..17].try_into().expect("sixteen bytes")), positions })
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
    fn a_token_is_read_back_as_it_was_written() {
        assert_eq!(ResumeToken::decode(&token().encode()), Ok(token()));
    }

    #[test]
    fn a_cut_or_altered_token_is_garbage() {
        let text = token().encode();
        for length in 0..text.len() {
            assert_eq!(ResumeToken::decode(&text[..length]), Err(Garbage));
            let mut altered = text.to_vec();
            altered[length] ^= 1;
            assert_eq!(ResumeToken::decode(&altered), Err(Garbage));
        }
    }
}
