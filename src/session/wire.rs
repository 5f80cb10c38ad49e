//! Reads and writes fields of encoded protobuf messages, for content that is stored and returned without decoding its values.

use bytes::BufMut;

/// The input is not an encoded protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid encoding")]
pub struct Malformed;

/// Wire type of strings, bytes and messages.
const LENGTH_DELIMITED: u64 = 2;

/// Appends a length-delimited field.
pub fn put_field(buffer: &mut Vec<u8>, number: u64, value: &[u8]) {
    put_varint(buffer, number << 3 | LENGTH_DELIMITED);
    put_varint(buffer, value.len() as u64);
    buffer.put_slice(value);
}

/// Appends an entry of a map field whose keys are strings and whose values are strings, bytes or messages.
pub fn put_entry(buffer: &mut Vec<u8>, number: u64, key: &[u8], value: &[u8]) {
    let size = field_size(1, key.len()) + field_size(2, value.len());
    put_varint(buffer, number << 3 | LENGTH_DELIMITED);
    put_varint(buffer, size as u64);
    put_field(buffer, 1, key);
    put_field(buffer, 2, value);
}

/// Number of bytes of a length-delimited field.
fn field_size(number: u64, length: usize) -> usize {
    varint_size(number << 3) + varint_size(length as u64) + length
}

fn put_varint(buffer: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return buffer.push(low & 0x7f);
        }
        buffer.push(low | 0x80);
    }
}

fn varint_size(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Field number.
    pub number: u64,
    /// Content of a length-delimited field; the encoded number of any other.
    pub value: &'a [u8],
    /// The field with its number, type and length.
    pub whole: &'a [u8],
}

/// Iterates over the fields of a message, in their order. Ends after an error.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, Malformed>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = read_field(&mut rest);
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

/// Key and value of a map entry.
pub fn entry(value: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut key, mut content) = (&[][..], &[][..]);
    for field in fields(value) {
        match field? {
            Field { number: 1, value, .. } => key = value,
            Field { number: 2, value, .. } => content = value,
            _ => {}
        }
    }
    Ok((key, content))
}

fn read_field<'a>(rest: &mut &'a [u8]) -> Result<Field<'a>, Malformed> {
    let from = *rest;
    let tag = read_varint(rest)?;
    let length = match tag & 7 {
        0 => rest.iter().position(|byte| byte & 0x80 == 0).ok_or(Malformed)? + 1,
        1 => 8,
        LENGTH_DELIMITED => usize::try_from(read_varint(rest)?).map_err(|_| Malformed)?,
        5 => 4,
        _ => return Err(Malformed),
    };
    let (value, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(Field { number: tag >> 3, value, whole: &from[..from.len() - after.len()] })
}

fn read_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or(Malformed)?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_of_written_entries_are_read(entries: Vec<(String, Vec<u8>)>) {
            let mut message = Vec::new();
            for (key, value) in &entries {
                put_entry(&mut message, 5, key.as_bytes(), value);
            }
            let read: Vec<(String, Vec<u8>)> = fields(&message)
                .map(|field| entry(field.unwrap().value).unwrap())
                .map(|(key, value)| (String::from_utf8(key.into()).unwrap(), value.to_vec()))
                .collect();
            prop_assert_eq!(read, entries);
        }

        #[test]
        fn garbage_is_an_error_or_ends(message: Vec<u8>) {
            let total: usize = fields(&message).filter_map(Result::ok).map(|field| field.whole.len()).sum();
            prop_assert!(total <= message.len());
        }
    }

    #[test]
    fn varint_size_is_the_number_of_written_bytes() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut buffer = Vec::new();
            put_varint(&mut buffer, number);
            assert_eq!(varint_size(number), buffer.len(), "{number}");
        }
    }
}
