//! MessagePack, as Lua's `cmsgpack` reads and writes it: it knows no `bin` type, so bytes travel as `str`.

use bytes::Bytes;
use rmp::{decode, encode};

/// The text ends early, or holds something else than was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// Reads one value after the other; byte strings share the memory of the whole.
pub struct Reader {
    whole: Bytes,
    at: usize,
}

impl Reader {
    pub fn new(whole: Bytes) -> Self {
        Reader { whole, at: 0 }
    }

    /// Number of elements of the array that begins here.
    pub fn array(&mut self) -> Result<u32, Truncated> {
        self.read(|rest| decode::read_array_len(rest).map_err(|_| Truncated))
    }

    pub fn integer(&mut self) -> Result<i64, Truncated> {
        self.read(|rest| decode::read_int(rest).map_err(|_| Truncated))
    }

    pub fn bytes(&mut self) -> Result<Bytes, Truncated> {
        let length = self.read(|rest| decode::read_str_len(rest).map_err(|_| Truncated))? as usize;
        let end = self.at.checked_add(length).filter(|end| *end <= self.whole.len()).ok_or(Truncated)?;
        let bytes = self.whole.slice(self.at..end);
        self.at = end;
        Ok(bytes)
    }

    pub fn text(&mut self) -> Result<String, Truncated> {
        String::from_utf8(self.bytes()?.into()).map_err(|_| Truncated)
    }

    fn read<T>(&mut self, read: impl FnOnce(&mut &[u8]) -> Result<T, Truncated>) -> Result<T, Truncated> {
        let mut rest = &self.whole[self.at..];
        let value = read(&mut rest)?;
        self.at = self.whole.len() - rest.len();
        Ok(value)
    }
}

/// A map of named arguments for a script.
#[derive(Default)]
pub struct Arguments {
    count: u32,
    body: Vec<u8>,
}

const INFALLIBLE: &str = "writing to memory does not fail";

impl Arguments {
    fn name(&mut self, name: &str) -> &mut Vec<u8> {
        self.count += 1;
        encode::write_str(&mut self.body, name).expect(INFALLIBLE);
        &mut self.body
    }

    pub fn bytes(&mut self, name: &str, value: &[u8]) -> &mut Self {
        write_bytes(self.name(name), value);
        self
    }

    pub fn text(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.bytes(name, value.to_string().as_bytes())
    }

    /// Numbers are exact below 2^53.
    pub fn number(&mut self, name: &str, value: u64) -> &mut Self {
        encode::write_uint(self.name(name), value).expect(INFALLIBLE);
        self
    }

    pub fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        encode::write_bool(self.name(name), value).expect(INFALLIBLE);
        self
    }

    pub fn list<'a>(&mut self, name: &str, values: impl ExactSizeIterator<Item = &'a [u8]>) -> &mut Self {
        let body = self.name(name);
        encode::write_array_len(body, values.len() as u32).expect(INFALLIBLE);
        values.for_each(|value| write_bytes(body, value));
        self
    }

    /// The maps as one text; they share no name.
    pub fn join<const N: usize>(maps: [&Arguments; N]) -> Bytes {
        let mut whole = Vec::with_capacity(maps.iter().map(|map| map.body.len()).sum::<usize>() + 5);
        encode::write_map_len(&mut whole, maps.iter().map(|map| map.count).sum()).expect(INFALLIBLE);
        maps.iter().for_each(|map| whole.extend_from_slice(&map.body));
        whole.into()
    }
}

fn write_bytes(body: &mut Vec<u8>, value: &[u8]) {
    encode::write_str_len(body, value.len() as u32).expect(INFALLIBLE);
    body.extend_from_slice(value);
}
