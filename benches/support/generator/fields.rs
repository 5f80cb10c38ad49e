//! Reads the gRPC status in HPACK header blocks.

use std::collections::VecDeque;

/// `grpc-status` as a Huffman-coded string.
const GRPC_STATUS: &[u8] = &[0x88, 0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f];
/// The string `0`, Huffman-coded and plain.
const ZERO: [&[u8]; 2] = [&[0x81, 0x07], &[0x01, b'0']];
/// Number of entries of the static table.
const STATIC_ENTRIES: usize = 61;

/// The dynamic table of a connection: of each entry, newest first, whether it is `grpc-status: 0`. Entries that were
/// evicted stay at the end; no header block refers to them.
#[derive(Default)]
pub struct Fields(VecDeque<bool>);

impl Fields {
    /// Returns whether the header block contains `grpc-status: 0`.
    pub fn have_status_ok(&mut self, block: &[u8]) -> bool {
        let (mut rest, mut is_ok) = (block, false);
        while let Some(first) = rest.first() {
            match first.leading_zeros() {
                // Indexed field.
                0 => {
                    let index = number(&mut rest, 7);
                    is_ok |= index > STATIC_ENTRIES && self.0[index - STATIC_ENTRIES - 1];
                }
                // Literal field that becomes an entry.
                1 => {
                    let is_status_ok = literal(&mut rest, 6);
                    self.0.push_front(is_status_ok);
                    is_ok |= is_status_ok;
                }
                // New size of the table.
                2 => drop(number(&mut rest, 5)),
                // Literal field that becomes no entry.
                _ => is_ok |= literal(&mut rest, 4),
            }
        }
        is_ok
    }
}

/// Reads a literal field whose first byte has the index of the name in its last `bits`. Returns whether it is
/// `grpc-status: 0`.
fn literal(rest: &mut &[u8], bits: u32) -> bool {
    let has_name = number(rest, bits) == 0;
    let is_status = has_name && string(rest) == GRPC_STATUS;
    let value = string(rest);
    is_status && ZERO.contains(&value)
}

/// Reads a string; returns it as it is encoded.
fn string<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let whole = *rest;
    let length = number(rest, 7);
    let header = whole.len() - rest.len();
    *rest = &rest[length..];
    &whole[..header + length]
}

/// Reads a number that begins in the last `bits` of the first byte.
fn number(rest: &mut &[u8], bits: u32) -> usize {
    let mut next = || {
        let (first, others) = rest.split_first().expect("a whole header block");
        *rest = others;
        usize::from(*first)
    };
    let max = (1 << bits) - 1;
    let mut number = next() & max;
    if number == max {
        for shift in (0..).step_by(7) {
            let byte = next();
            number += (byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
    }
    number
}
