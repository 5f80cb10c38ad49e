//! Replies of Redis, as their bytes stand on a connection.

/// How a reply that is a list begins.
#[derive(Debug, PartialEq)]
pub enum Beginning {
    Text(Vec<u8>),
    /// A number, a list, nothing, or whatever else is no text.
    Other,
}

/// How each list begins that is a reply, or a part of none.
pub fn beginnings(bytes: &[u8]) -> Vec<Beginning> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(end) = end_of(bytes, at) {
        if bytes[at] == b'*' {
            let first = end_of_line(bytes, at).filter(|first| *first < end);
            found.push(first.and_then(|first| text(bytes, first)).map_or(Beginning::Other, Beginning::Text));
        }
        at = end;
    }
    found
}

/// Where the next line begins.
fn end_of_line(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.windows(2).position(|pair| pair == b"\r\n").map(|length| at + length + 2)
}

/// The number behind the type; less than 0 = nothing.
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

/// Where the value that begins here ends; None = it has not come in whole.
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
        // The value that it is about follows.
        b'|' => 2 * length(bytes, at)? + 1,
        other => panic!("no type of a reply: {other}"),
    };
    (0..values).try_fold(line, |at, _| end_of(bytes, at))
}
