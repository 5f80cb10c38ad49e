//! Packs a record as docs/storage-format.md describes it, without the code under test.

use bytes::{BufMut, Bytes};
use sha1::{Digest, Sha1};

/// Bytes of the head.
pub(super) const HEAD: usize = 117;
/// Bytes of the head that only the checksums of the content cover.
pub(super) const CONTENT_CHECKSUMS: std::ops::Range<usize> = 55..63;
/// Place of the check of the content head.
pub(super) const CHECK: std::ops::Range<usize> = 63..67;
/// Kind of a live session.
pub(super) const LIVE: u8 = 1;
/// Kind of a tombstone.
pub(super) const TOMBSTONE: u8 = 2;

/// Fields of a record, in their order. Times and timeouts are in ms; 0 = none.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    pub kind: u8,
    pub revision: u64,
    pub nonce: u64,
    /// Revision and nonce of the last change of the content.
    pub content_position: [u64; 2],
    /// Random number and end of the turn.
    pub turn: [u64; 2],
    pub created: u64,
    pub accessed: u64,
    pub idle: u64,
    pub idle_until: u64,
    pub absolute: u64,
    pub generation: u32,
    pub cause: u8,
    pub left: u64,
    /// Current token. None: the record has no tokens.
    pub current: Option<Token>,
    /// Superseded tokens, oldest first.
    pub superseded: Vec<Superseded>,
    pub basic: Bytes,
    /// Attributes as stored.
    pub attributes: Bytes,
    pub requests: Bytes,
}

/// The current token of a session.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub verifier: [u8; 16],
    pub since: u64,
    pub used: u8,
    /// Salt; zero bytes = it was removed. None: there is no place for one.
    pub salt: Option<[u8; 32]>,
}

/// A superseded token.
#[derive(Clone, Debug)]
pub(super) struct Superseded {
    pub verifier: [u8; 16],
    pub superseded_at: u64,
    pub valid_until: u64,
    pub flags: u8,
}

impl Fields {
    /// Packs the record. `name` is `<namespace>:<id>`.
    pub(super) fn pack(&self, name: &[u8]) -> Vec<u8> {
        let (life, tokens) = (self.pack_life(), self.pack_tokens());
        let mut text = self.pack_content_head(name, tokens.len());
        text.extend(&life);
        text.extend(seal(&[name, &life, &tokens].concat()).as_bytes());
        text.extend(&tokens);
        text.extend([&self.basic[..], &self.attributes, &self.requests].concat());
        text
    }

    /// Number of bytes of head and tokens.
    pub(super) fn front_bytes(&self) -> usize {
        HEAD + self.pack_tokens().len()
    }

    /// Deadline. None: never.
    pub(super) fn deadline(&self) -> Option<u64> {
        [self.idle_until, self.absolute].into_iter().filter(|deadline| *deadline != 0).min()
    }

    fn pack_content_head(&self, name: &[u8], token_bytes: usize) -> Vec<u8> {
        let numbers = [[self.revision, self.nonce], self.content_position, self.turn].concat();
        let lengths = [token_bytes, self.basic.len(), self.attributes.len(), self.requests.len()];
        let mut text = vec![0xFA, self.kind];
        let (turn_until, numbers_of_7_bytes) = numbers.split_last().unwrap();
        numbers_of_7_bytes.iter().for_each(|number| text.put_uint(*number, 7));
        text.put_uint(*turn_until, 6);
        text.put_u16(token_bytes.try_into().unwrap());
        text.put_u32(self.basic.len().try_into().unwrap());
        text.put_u32(self.attributes.len().try_into().unwrap());
        text.put_u16(self.requests.len().try_into().unwrap());
        for part in [&self.basic, &self.attributes] {
            text.put_u32(if self.kind == LIVE { crc32fast::hash(&[name, part].concat()) } else { 0 });
        }
        let checked = numbers.into_iter().chain(lengths.map(|length| length as u64));
        text.put_u32(check(self.kind, checked));
        text
    }

    fn pack_life(&self) -> Vec<u8> {
        let mut life = Vec::new();
        for number in [self.created, self.accessed, self.idle, self.idle_until, self.absolute] {
            life.put_uint(number, 6);
        }
        life.put_u32(self.generation);
        life.put_u8(self.cause);
        life.put_uint(self.left, 7);
        life
    }

    fn pack_tokens(&self) -> Vec<u8> {
        let mut tokens = Vec::new();
        if let Some(token) = &self.current {
            tokens.extend(token.verifier);
            tokens.put_uint(token.since, 6);
            tokens.put_u8(token.used + if token.salt.is_some() { 2 } else { 0 });
        }
        for token in &self.superseded {
            tokens.extend(token.verifier);
            tokens.put_uint(token.superseded_at, 6);
            tokens.put_uint(token.valid_until, 6);
            tokens.put_u8(token.flags);
        }
        tokens.extend(self.current.iter().filter_map(|token| token.salt).flatten());
        tokens
    }
}

fn check(kind: u8, numbers: impl Iterator<Item = u64>) -> u32 {
    const MODULUS: u128 = 4_294_967_291;
    let weights = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31];
    let sum: u128 = numbers.zip(weights).map(|(number, weight)| u128::from(number) * weight).sum();
    u32::try_from((u128::from(kind) + sum) % MODULUS).unwrap()
}

fn seal(sealed: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha1::digest(sealed)[..4])
}

#[test]
fn packed_example_has_the_bytes_of_the_manual() {
    let (created, position) = (1_795_986_748_364, [1_795_986_748_364_459, 3_165_639_090_724_516]);
    let verifier = *b"\x34\xf2\x32\x2b\x19\xa0\x0e\x6a\xd5\xb6\x52\xe1\x4e\xe4\x2d\xf7";
    let example = Fields {
        kind: LIVE,
        revision: position[0],
        nonce: position[1],
        content_position: position,
        created,
        accessed: created,
        idle: 1_800_000,
        idle_until: 1_795_988_548_364,
        absolute: 1_796_029_948_364,
        generation: 1,
        current: Some(Token { verifier, since: created, used: 1, salt: None }),
        basic: Bytes::from_static(b"\x22\x011\x32\x0b\x0a\x03app\x12\x04shop"),
        attributes: Bytes::from_static(b"\xf0\x2a\x0d\x0a\x04name\x12\x05\x0a\x03Bob"),
        requests: vec![0; 31].into(),
        ..Fields::default()
    };
    let text = example.pack(b"web:aaaaaaaaaaaaaaaaaaaaaaaaaa");
    assert_eq!(text.len(), 203);
    assert_eq!(text[43..55], *b"\x00\x17\x00\x00\x00\x10\x00\x00\x00\x10\x00\x1f");
    assert_eq!(text[CONTENT_CHECKSUMS], [0x4e33_7cb8_u32.to_be_bytes(), 0x522d_ae41_u32.to_be_bytes()].concat());
    assert_eq!(text[CHECK], 506_206_265_u32.to_be_bytes());
    assert_eq!(text[97..102], *b"\x00\x00\x00\x01\x00");
    assert_eq!(text[109..117], *b"9c55f494");
    assert_eq!(text[133..140], *b"\x01\xa2\x29\x26\xf3\xcc\x01");
}
