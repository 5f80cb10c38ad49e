//! Reads and writes MessagePack as Lua's `cmsgpack` does: it has no `bin` type, so bytes are encoded as `str`.

use bytes::Bytes;
use rmp::{decode, encode};

/// The input ends early or has an unexpected type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// Reader of consecutive values. Byte strings share the memory of the input.
pub(super) struct Reader {
    whole: Bytes,
    at: usize,
}

impl Reader {
    /// Creates a reader at the start of the input.
    pub(super) fn new(whole: Bytes) -> Self {
        Reader { whole, at: 0 }
    }

    /// Reads the header of an array and returns its number of elements.
    pub(super) fn array(&mut self) -> Result<u32, Truncated> {
        self.read(|rest| decode::read_array_len(rest).map_err(|_| Truncated))
    }

    /// Reads an integer.
    pub(super) fn integer(&mut self) -> Result<i64, Truncated> {
        self.read(|rest| decode::read_int(rest).map_err(|_| Truncated))
    }

    /// Reads a byte string.
    pub(super) fn bytes(&mut self) -> Result<Bytes, Truncated> {
        let length = self.read(|rest| decode::read_str_len(rest).map_err(|_| Truncated))? as usize;
        let end = self.at.checked_add(length).filter(|end| *end <= self.whole.len()).ok_or(Truncated)?;
        let bytes = self.whole.slice(self.at..end);
        self.at = end;
        Ok(bytes)
    }

    /// Reads a byte string that is UTF-8.
    pub(super) fn text(&mut self) -> Result<String, Truncated> {
        String::from_utf8(self.bytes()?.into()).map_err(|_| Truncated)
    }

    fn read<T>(&mut self, read: impl FnOnce(&mut &[u8]) -> Result<T, Truncated>) -> Result<T, Truncated> {
        let mut rest = &self.whole[self.at..];
        let value = read(&mut rest)?;
        self.at = self.whole.len() - rest.len();
        Ok(value)
    }
}

/// Map of named arguments for a script.
#[derive(Default)]
pub(super) struct Arguments {
    count: u32,
    body: Vec<u8>,
}

const INFALLIBLE: &str = "writing to a Vec does not fail";

#[expect(clippy::expect_used, reason = "writing to a Vec does not fail")]
impl Arguments {
    fn name(&mut self, name: &str) -> &mut Vec<u8> {
        self.count += 1;
        encode::write_str(&mut self.body, name).expect(INFALLIBLE);
        &mut self.body
    }

    /// Adds a byte string.
    pub(super) fn bytes(&mut self, name: &str, value: &[u8]) -> &mut Self {
        write_bytes(self.name(name), value);
        self
    }

    /// Adds the display form of a value.
    pub(super) fn text(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.bytes(name, value.to_string().as_bytes())
    }

    /// Adds a number; Lua numbers are exact below 2^53.
    pub(super) fn number(&mut self, name: &str, value: u64) -> &mut Self {
        encode::write_uint(self.name(name), value).expect(INFALLIBLE);
        self
    }

    /// Adds a boolean.
    pub(super) fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        encode::write_bool(self.name(name), value).expect(INFALLIBLE);
        self
    }

    /// Adds an array of byte strings.
    pub(super) fn list<'a>(&mut self, name: &str, values: impl ExactSizeIterator<Item = &'a [u8]>) -> &mut Self {
        let body = self.name(name);
        encode::write_array_len(body, values.len() as u32).expect(INFALLIBLE);
        values.for_each(|value| write_bytes(body, value));
        self
    }

    /// Encodes several maps as one; their names must differ.
    pub(super) fn join<const N: usize>(maps: [&Arguments; N]) -> Bytes {
        let mut whole = Vec::with_capacity(maps.iter().map(|map| map.body.len()).sum::<usize>() + 5);
        encode::write_map_len(&mut whole, maps.iter().map(|map| map.count).sum()).expect(INFALLIBLE);
        maps.iter().for_each(|map| whole.extend_from_slice(&map.body));
        whole.into()
    }
}

#[expect(clippy::expect_used, reason = "writing to a Vec does not fail")]
fn write_bytes(body: &mut Vec<u8>, value: &[u8]) {
    encode::write_str_len(body, value.len() as u32).expect(INFALLIBLE);
    body.extend_from_slice(value);
}
