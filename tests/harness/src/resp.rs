//! Parses RESP2 and RESP3 replies from the bytes of a connection.

/// First element of a list.
#[derive(Debug, PartialEq)]
pub enum FirstElement {
    /// A simple string, bulk string or verbatim string.
    Text(Vec<u8>),
    /// Any other type, or no element.
    Other,
}

/// Returns the first element of each complete top-level list, in order.
pub fn first_elements(bytes: &[u8]) -> Vec<FirstElement> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(end) = end_of(bytes, at) {
        if bytes[at] == b'*' {
            let first = end_of_line(bytes, at).filter(|first| *first < end);
            found.push(first.and_then(|first| text(bytes, first)).map_or(FirstElement::Other, FirstElement::Text));
        }
        at = end;
    }
    found
}

/// Returns the offset of the next line. None: this line is incomplete.
fn end_of_line(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.windows(2).position(|pair| pair == b"\r\n").map(|length| at + length + 2)
}

/// Returns the number after the type byte; negative for a null.
fn length(bytes: &[u8], at: usize) -> Option<i64> {
    let line = &bytes[at + 1..end_of_line(bytes, at)? - 2];
    Some(std::str::from_utf8(line).unwrap().parse().unwrap())
}

fn text(bytes: &[u8], at: usize) -> Option<Vec<u8>> {
    let (line, end) = (end_of_line(bytes, at)?, end_of(bytes, at)?);
    match bytes[at] {
        b'+' => Some(bytes[at + 1..end - 2].to_vec()),
        b'$' | b'=' if end > line => Some(bytes[line..end - 2].to_vec()),
        _ => None,
    }
}

/// Returns the offset after the value at `at`. None: the value is incomplete.
fn end_of(bytes: &[u8], at: usize) -> Option<usize> {
    let line = end_of_line(bytes, at)?;
    let values = match bytes[at] {
        b'+' | b'-' | b':' | b',' | b'#' | b'_' | b'(' => 0,
        b'$' | b'=' | b'!' => {
            let end = usize::try_from(length(bytes, at)?).map_or(line, |length| line + length + 2);
            return (end <= bytes.len()).then_some(end);
        }
        b'*' | b'~' | b'>' => length(bytes, at)?,
        b'%' => 2 * length(bytes, at)?,
        // Attributes precede the value that they describe.
        b'|' => 2 * length(bytes, at)? + 1,
        other => panic!("unknown reply type: {other}"),
    };
    (0..values).try_fold(line, |at, _| end_of(bytes, at))
}
