//! Head and tokens of a record: the bytes that scripts write and Rust verifies.

use bytes::{Bytes, BytesMut};
use sha1::{Digest, Sha1};

use super::{
    Corrupt, FORMAT,
    format::number_of,
    tokens::{NEW_TOKEN_BYTES, Tokens},
};
use crate::{
    session::{Credential, Revision},
    store::position::Position,
};

/// Bytes of the head of the content.
const CONTENT_HEAD_BYTES: usize = 67;
/// End of the life, where the seal begins.
pub(in crate::store) const LIFE_END: usize = 109;
/// Bytes of the head: content, life, seal.
pub(in crate::store) const HEAD_BYTES: usize = 117;
/// Bytes of the seal.
pub(in crate::store) const SEAL_BYTES: usize = HEAD_BYTES - LIFE_END;
/// Place of the content position in the head.
const CONTENT_POSITION: std::ops::Range<usize> = 16..30;
/// Place of the number of bytes of the tokens.
const TOKEN_BYTES_AT: usize = 43;
/// Modulus of the check: the largest prime below 2^32.
const MODULUS: u64 = 4_294_967_291;

/// Kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    /// A live session.
    Live,
    /// The tombstone of an ended one.
    Tombstone,
}

/// Revision and nonce of the last change of the content. It never repeats, whatever is rolled back or restored.
pub(in crate::store) type ContentPosition = [u8; 14];

/// Head and tokens of a record. Times and timeouts are in ms, Redis clock; 0 = none.
#[derive(Clone, Debug)]
pub(in crate::store) struct Front {
    pub(super) text: Bytes,
    /// Kind of the record.
    pub kind: Kind,
    /// Position of the last logged change.
    pub position: Position,
    /// Bytes of `basic`.
    pub basic_bytes: usize,
    /// Bytes of the stored attributes.
    pub attribute_bytes: usize,
    /// Bytes of the request ids.
    pub request_bytes: usize,
    /// Checksum of `basic`.
    pub basic_crc: u32,
    /// Checksum of the stored attributes.
    pub attribute_crc: u32,
    /// Time of creation.
    pub created: u64,
    /// Time of the last stored touch.
    pub accessed: u64,
    /// Idle timeout.
    pub idle: u64,
    /// Idle deadline.
    pub idle_until: u64,
    /// Absolute deadline.
    pub absolute: u64,
    /// Number of the current token.
    pub generation: u32,
}

impl Front {
    /// Parses head and tokens at the beginning of a record, and verifies them.
    pub(in crate::store) fn parse(name: &[u8], text: &Bytes) -> Result<Self, Corrupt> {
        let head = text.first_chunk::<HEAD_BYTES>().ok_or(Corrupt::Length)?;
        let mut front = parse_head(&head[..])?;
        let end = HEAD_BYTES + usize::from(u16::from_be_bytes([head[TOKEN_BYTES_AT], head[TOKEN_BYTES_AT + 1]]));
        front.text = text.get(..end).map(|whole| text.slice_ref(whole)).ok_or(Corrupt::Length)?;
        let seal = seal(name, &front.text[CONTENT_HEAD_BYTES..LIFE_END], &front.text[HEAD_BYTES..]);
        let is_whole = front.kind == Kind::Tombstone && end == HEAD_BYTES || end >= HEAD_BYTES + NEW_TOKEN_BYTES;
        if is_whole && front.seal() == seal { Ok(front) } else { Err(Corrupt::Head) }
    }

    /// Parses the reply of a script to a caller that has this record: head and tokens, or only the head of the content.
    pub(in crate::store) fn after(&self, name: &[u8], reply: &Bytes) -> Result<Self, Corrupt> {
        if reply.len() != CONTENT_HEAD_BYTES {
            return Front::parse(name, reply);
        }
        let mut text = BytesMut::with_capacity(self.text.len());
        text.extend_from_slice(reply);
        text.extend_from_slice(&self.text[CONTENT_HEAD_BYTES..]);
        Front::parse(name, &text.freeze())
    }

    /// Number of bytes of head and tokens.
    pub(in crate::store) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Number of bytes that follow in the whole record.
    pub(in crate::store) fn rest_bytes(&self) -> usize {
        self.basic_bytes + self.attribute_bytes + self.request_bytes
    }

    /// The tokens. A tombstone may have none.
    pub(in crate::store) fn tokens(&self) -> Tokens<'_> {
        Tokens(&self.text[HEAD_BYTES..])
    }

    /// Number of bytes of head and tokens after a change of the content by this credential. `keeps_salt` is whether the call
    /// rotates the token, and whether the record keeps the salt of the new one. None: the call does not rotate the token. A
    /// rotation with a superseded token adds no token.
    pub(in crate::store) fn bytes_after(&self, credential: Credential, keeps_salt: Option<bool>) -> usize {
        let tokens = self.tokens();
        let is_current = match credential {
            Credential::Id => true,
            Credential::Secret(verifier) => tokens.current().is_some_and(|token| token.has(verifier)),
        };
        HEAD_BYTES + tokens.bytes_after(keeps_salt.filter(|_| is_current))
    }

    /// Whether the credential is an id, or a token that the session has or had.
    pub(in crate::store) fn knows(&self, credential: Credential) -> bool {
        match credential {
            Credential::Id => true,
            Credential::Secret(verifier) => self.tokens().knows(verifier),
        }
    }

    /// Checksum of life and tokens.
    pub(in crate::store) fn seal(&self) -> [u8; SEAL_BYTES] {
        std::array::from_fn(|at| self.text[LIFE_END + at])
    }

    /// Position of the last change of the content.
    pub(in crate::store) fn content_position(&self) -> ContentPosition {
        std::array::from_fn(|at| self.text[CONTENT_POSITION.start + at])
    }

    /// Deadline in ms. None: never.
    pub(in crate::store) fn expires(&self) -> Option<u64> {
        [self.idle_until, self.absolute].into_iter().filter(|deadline| *deadline > 0).min()
    }
}

/// Parses a head, without its seal and without tokens.
pub(in crate::store) fn parse_head(head: &[u8]) -> Result<Front, Corrupt> {
    let mut reader = Reader(head);
    let (format, kind) = (reader.take()?, reader.take()?);
    let [revision, nonce, content_revision, content_nonce, turn] = reader.numbers::<5, 7>()?;
    let [turn_until] = reader.numbers::<1, 6>()?;
    let token_bytes = u16::from_be_bytes(reader.chunk()?);
    let (basic_bytes, attribute_bytes) = (reader.u32()?, reader.u32()?);
    let request_bytes = u16::from_be_bytes(reader.chunk()?);
    let (basic_crc, attribute_crc, stored_check) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let [created, accessed, idle, idle_until, absolute] = reader.numbers::<5, 6>()?;
    let generation = reader.u32()?;
    let numbers = [revision, nonce, content_revision, content_nonce, turn, turn_until];
    let lengths = [token_bytes.into(), basic_bytes.into(), attribute_bytes.into(), request_bytes.into()];
    let kind_of = |number| match number {
        1 => Ok(Kind::Live),
        2 => Ok(Kind::Tombstone),
        _ => Err(Corrupt::Head),
    };
    if format != FORMAT || check(kind, numbers, lengths) != u64::from(stored_check) {
        return Err(Corrupt::Head);
    }
    Ok(Front {
        text: Bytes::new(),
        kind: kind_of(kind)?,
        position: Position { revision: Revision(revision), nonce },
        basic_bytes: basic_bytes as usize,
        attribute_bytes: attribute_bytes as usize,
        request_bytes: request_bytes.into(),
        basic_crc,
        attribute_crc,
        created,
        accessed,
        idle,
        idle_until,
        absolute,
        generation,
    })
}

/// The check of check.lua.
fn check(kind: u8, numbers: [u64; 6], lengths: [u64; 4]) -> u64 {
    let numbers = numbers.into_iter().map(|number| number % MODULUS);
    let weights = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31];
    let weighted: u64 = numbers.chain(lengths).zip(weights).map(|(number, weight)| number * weight).sum();
    (u64::from(kind) + weighted) % MODULUS
}

/// The seal of pack_life.lua.
fn seal(name: &[u8], life: &[u8], tokens: &[u8]) -> [u8; SEAL_BYTES] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = Sha1::new().chain_update(name).chain_update(life).chain_update(tokens).finalize();
    std::array::from_fn(|at| DIGITS[usize::from(digest[at / 2] >> (4 * (1 - at % 2)) & 0xf)])
}

/// Reads big-endian numbers.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (chunk, rest) = self.0.split_first_chunk().ok_or(Corrupt::Length)?;
        self.0 = rest;
        Ok(*chunk)
    }

    fn take(&mut self) -> Result<u8, Corrupt> {
        Ok(self.chunk::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Corrupt> {
        Ok(u32::from_be_bytes(self.chunk()?))
    }

    /// Takes `N` numbers of `B` bytes each.
    fn numbers<const N: usize, const B: usize>(&mut self) -> Result<[u64; N], Corrupt> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = number_of(&self.chunk::<B>()?);
        }
        Ok(numbers)
    }
}
