//! HTTP/2 frames of a client whose responses are never held back: it opens with the largest flow-control windows.

/// First bytes of a connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// Maximum length of the payload of a frame, unless an endpoint changes it.
const MAX_PAYLOAD: usize = 16_384;
/// Flow-control window of a connection at its start, in each direction.
pub const INITIAL_WINDOW: usize = 65_535;
/// Maximum flow-control window.
const MAX_WINDOW: usize = (1 << 31) - 1;
/// Bytes received after which the server gets a new window.
const WINDOW_UPDATE_AFTER: usize = 1 << 29;
/// Length of the prefix of a gRPC message: the compressed flag and the length.
pub const MESSAGE_PREFIX: usize = 5;
/// Size of the buffer that receives bytes.
const INPUT: usize = 256 * 1024;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

const INITIAL_WINDOW_SETTING: u16 = 4;

/// Header block of every request after the first one: `:method POST`, `:scheme http`, and the entries that the first one
/// added to the dynamic table, the oldest first: six with a key.
const NEXT_HEADER_BLOCK: [u8; 8] = [0x83, 0x86, 0xc3, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe];

/// A received frame.
pub struct Frame<'a> {
    pub kind: u8,
    pub flags: u8,
    pub stream: usize,
    pub payload: &'a [u8],
}

/// Returns the number that these bytes encode, the most significant one first.
pub fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Received bytes: the beginning of a frame.
pub struct Input {
    bytes: Vec<u8>,
    /// Number of bytes that are filled.
    filled: usize,
}

impl Input {
    pub fn new() -> Self {
        Input { bytes: vec![0; INPUT], filled: 0 }
    }

    /// Returns the room for the next read.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    /// Passes each whole frame to `process`, after `count` bytes were read into the room.
    pub fn advance(&mut self, count: usize, mut process: impl FnMut(&Frame<'_>)) {
        self.filled += count;
        let mut at = 0;
        while let Some(header) = self.bytes[at..self.filled].first_chunk::<FRAME_HEADER>() {
            let end = at + FRAME_HEADER + number(&header[..3]);
            if end > self.filled {
                break;
            }
            let payload = &self.bytes[at + FRAME_HEADER..end];
            process(&Frame { kind: header[3], flags: header[4], stream: number(&header[5..]), payload });
            at = end;
        }
        self.bytes.copy_within(at..self.filled, 0);
        self.filled -= at;
    }
}

/// Bytes of a connection that were not sent yet.
pub struct Output {
    pub bytes: Vec<u8>,
    /// Header block of the next request.
    header_block: Vec<u8>,
    /// Bytes received since the server got its last window.
    received: usize,
    /// Header block of the requests after it.
    next_header_block: Vec<u8>,
}

impl Output {
    /// The beginning of a connection for calls of this method of the session service, with this API key.
    pub fn new(method: &str, key: Option<&str>) -> Self {
        let header_block = first_header_block(method, key);
        let mut next_header_block = NEXT_HEADER_BLOCK.to_vec();
        if key.is_none() {
            next_header_block.remove(2);
        }
        let mut output = Output { bytes: PREFACE.to_vec(), header_block, received: 0, next_header_block };
        let setting = [&INITIAL_WINDOW_SETTING.to_be_bytes()[..], &(MAX_WINDOW as u32).to_be_bytes()].concat();
        output.frame(SETTINGS, 0, 0, &setting);
        output.window(MAX_WINDOW - INITIAL_WINDOW);
        output
    }

    fn frame_header(&mut self, kind: u8, flags: u8, stream: usize, length: usize) {
        self.bytes.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
        self.bytes.extend_from_slice(&[kind, flags]);
        self.bytes.extend_from_slice(&(stream as u32).to_be_bytes());
    }

    pub fn frame(&mut self, kind: u8, flags: u8, stream: usize, payload: &[u8]) {
        self.frame_header(kind, flags, stream, payload.len());
        self.bytes.extend_from_slice(payload);
    }

    fn window(&mut self, bytes: usize) {
        self.frame(WINDOW_UPDATE, 0, 0, &(bytes as u32).to_be_bytes());
    }

    /// Notes received data, and gives the server a new window when much of the old one is used.
    pub fn note_received(&mut self, bytes: usize) {
        self.received += bytes;
        if self.received > WINDOW_UPDATE_AFTER {
            self.window(self.received);
            self.received = 0;
        }
    }

    /// Adds a request with this message, on a new stream.
    pub fn request(&mut self, stream: usize, message: &[u8]) {
        let block = std::mem::replace(&mut self.header_block, self.next_header_block.clone());
        self.frame(HEADERS, END_HEADERS, stream, &block);
        let (first, mut rest) = message.split_at(message.len().min(MAX_PAYLOAD - MESSAGE_PREFIX));
        let end_stream = |rest: &[u8]| if rest.is_empty() { END_STREAM } else { 0 };
        self.frame_header(DATA, end_stream(rest), stream, MESSAGE_PREFIX + first.len());
        self.bytes.push(0);
        self.bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(first);
        while !rest.is_empty() {
            let part;
            (part, rest) = rest.split_at(rest.len().min(MAX_PAYLOAD));
            self.frame(DATA, end_stream(rest), stream, part);
        }
    }
}

/// Returns the header block of the first request. Its fields with text become entries of the dynamic table.
fn first_header_block(method: &str, key: Option<&str>) -> Vec<u8> {
    let path = format!("/sessiond.v1.SessionService/{method}");
    let mut block = vec![0x83, 0x86];
    let mut add = |name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    };
    // Literal fields with indexing; the names except `te` are entries of the static table.
    add(&[0x40 | 4], &path);
    add(&[0x40 | 1], "localhost");
    add(b"\x40\x02te", "trailers");
    add(&[0x40 | 31], "application/grpc");
    add(&[0x40 | 58], "benchmark");
    if let Some(key) = key {
        add(&[0x40 | 23], &format!("Bearer {key}"));
    }
    block
}
