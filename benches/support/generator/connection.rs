//! An HTTP/2 client connection for calls of one gRPC method, which costs little CPU per call.
//!
//! Requests are written as prepared frames, many with one system call. Of a response it decodes the lengths and the
//! gRPC status.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::TcpStream,
};

use harness::WAIT_LIMIT;

use super::fields::Fields;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// Maximum length of the payload of a frame, unless an endpoint changes it.
const MAX_PAYLOAD: usize = 16_384;
/// Flow-control window of a connection at its start, in each direction.
const INITIAL_WINDOW: usize = 65_535;
/// Maximum flow-control window.
const MAX_WINDOW: usize = (1 << 31) - 1;
/// Bytes received after which the server gets a new window.
const WINDOW_UPDATE_AFTER: usize = 1 << 29;
/// Length of the prefix of a gRPC message: the compressed flag and the length.
const MESSAGE_PREFIX: usize = 5;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const INITIAL_WINDOW_SETTING: u16 = 4;

pub struct Connection {
    socket: TcpStream,
    input: Vec<u8>,
    /// Number of bytes of `input` that are filled: the beginning of a frame.
    filled: usize,
    output: Vec<u8>,
    /// Header block of the next request.
    header_block: Vec<u8>,
    /// Id of the next stream.
    next_stream: usize,
    /// Calls in the order of their streams, up to the last one: the response body so far. None: the call has completed.
    calls: VecDeque<Option<Vec<u8>>>,
    open_calls: usize,
    /// Buffers of completed calls.
    spare: Vec<Vec<u8>>,
    /// Whether the settings of the server have arrived.
    is_ready: bool,
    /// Bytes that the server can receive. The window of a stream is assumed to have room for a whole request.
    window: usize,
    /// Requests for which the window is too small.
    waiting: VecDeque<Vec<u8>>,
    /// Bytes received since the server got its last window.
    received: usize,
    fields: Fields,
}

impl Connection {
    /// Opens a connection for calls of this method of the session service; returns after the settings of the server
    /// have arrived.
    pub fn open(address: &str, method: &str) -> Self {
        let socket = TcpStream::connect(address).expect("the server listens");
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
        let mut connection = Connection {
            socket,
            input: vec![0; 256 * 1024],
            filled: 0,
            output: PREFACE.to_vec(),
            header_block: first_header_block(method),
            next_stream: 1,
            calls: VecDeque::new(),
            open_calls: 0,
            spare: Vec::new(),
            is_ready: false,
            window: INITIAL_WINDOW,
            waiting: VecDeque::new(),
            received: 0,
            fields: Fields::default(),
        };
        let setting = [&INITIAL_WINDOW_SETTING.to_be_bytes()[..], &(MAX_WINDOW as u32).to_be_bytes()].concat();
        connection.write_frame(SETTINGS, 0, 0, &setting);
        connection.write_window(MAX_WINDOW - INITIAL_WINDOW);
        while !connection.is_ready {
            connection.send();
            connection.receive(&mut |_| unreachable!("no call has started"));
        }
        connection
    }

    /// Returns the number of calls without a response.
    pub fn open_calls(&self) -> usize {
        self.open_calls
    }

    /// Starts a call. [`Connection::send`] sends it.
    pub fn start(&mut self, message: &[u8]) {
        self.open_calls += 1;
        if self.waiting.is_empty() && MESSAGE_PREFIX + message.len() <= self.window {
            self.write_request(message);
        } else {
            self.waiting.push_back(message.to_vec());
        }
    }

    fn write_request(&mut self, message: &[u8]) {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.window -= MESSAGE_PREFIX + message.len();
        let mut body = self.spare.pop().unwrap_or_default();
        body.clear();
        self.calls.push_back(Some(body));

        let block = std::mem::replace(&mut self.header_block, NEXT_HEADER_BLOCK.to_vec());
        self.write_frame(HEADERS, END_HEADERS, stream, &block);
        let (first, mut rest) = message.split_at(message.len().min(MAX_PAYLOAD - MESSAGE_PREFIX));
        let end_stream = |rest: &[u8]| if rest.is_empty() { END_STREAM } else { 0 };
        self.write_frame_header(DATA, end_stream(rest), stream, MESSAGE_PREFIX + first.len());
        self.output.push(0);
        self.output.extend_from_slice(&(message.len() as u32).to_be_bytes());
        self.output.extend_from_slice(first);
        while !rest.is_empty() {
            let part;
            (part, rest) = rest.split_at(rest.len().min(MAX_PAYLOAD));
            self.write_frame(DATA, end_stream(rest), stream, part);
        }
    }

    fn write_frame_header(&mut self, kind: u8, flags: u8, stream: usize, length: usize) {
        self.output.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
        self.output.extend_from_slice(&[kind, flags]);
        self.output.extend_from_slice(&(stream as u32).to_be_bytes());
    }

    fn write_frame(&mut self, kind: u8, flags: u8, stream: usize, payload: &[u8]) {
        self.write_frame_header(kind, flags, stream, payload.len());
        self.output.extend_from_slice(payload);
    }

    fn write_window(&mut self, bytes: usize) {
        self.write_frame(WINDOW_UPDATE, 0, 0, &(bytes as u32).to_be_bytes());
    }

    /// Sends the calls that were started, and everything else.
    pub fn send(&mut self) {
        self.socket.write_all(&self.output).expect("the server reads");
        self.output.clear();
    }

    /// Waits for bytes of the server, and passes the message of each complete response to `on_response`. Returns the
    /// number of complete responses. Panics if a call fails.
    pub fn receive(&mut self, on_response: &mut impl FnMut(&[u8])) -> usize {
        let count = self.socket.read(&mut self.input[self.filled..]).expect("the server responds");
        assert!(count > 0, "the server closed the connection");
        self.filled += count;

        let mut input = std::mem::take(&mut self.input);
        let (mut at, mut completed) = (0, 0);
        while let Some(header) = input[at..self.filled].first_chunk::<FRAME_HEADER>() {
            let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
            let (length, stream) = (number(&header[..3]), number(&header[5..]));
            let end = at + FRAME_HEADER + length;
            if end > self.filled {
                break;
            }
            completed +=
                usize::from(self.process(header[3], header[4], stream, &input[at + FRAME_HEADER..end], on_response));
            at = end;
        }
        input.copy_within(at..self.filled, 0);
        self.filled -= at;
        self.input = input;
        completed
    }

    /// Processes a frame. Returns whether it completed a call.
    fn process(
        &mut self,
        kind: u8,
        flags: u8,
        stream: usize,
        payload: &[u8],
        on_response: &mut impl FnMut(&[u8]),
    ) -> bool {
        match kind {
            DATA => {
                assert_eq!(flags, 0, "data without a status after it");
                self.body(stream).as_mut().expect("the call is open").extend_from_slice(payload);
                self.received += payload.len();
                if self.received > WINDOW_UPDATE_AFTER {
                    self.write_window(self.received);
                    self.received = 0;
                }
            }
            HEADERS => {
                assert_eq!(flags & !END_STREAM, END_HEADERS, "a header block is one frame");
                let is_ok = self.fields.have_status_ok(payload);
                if flags & END_STREAM != 0 {
                    assert!(is_ok, "a call failed; header block {payload:02x?}");
                    self.complete(stream, on_response);
                    return true;
                }
            }
            SETTINGS if flags & ACK == 0 => {
                self.write_frame(SETTINGS, ACK, 0, &[]);
                self.is_ready = true;
            }
            SETTINGS => {}
            PING if flags & ACK == 0 => self.write_frame(PING, ACK, 0, payload),
            WINDOW_UPDATE if stream == 0 => {
                self.window += payload.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
                while self.waiting.front().is_some_and(|message| MESSAGE_PREFIX + message.len() <= self.window) {
                    let message = self.waiting.pop_front().expect("a request waits");
                    self.write_request(&message);
                }
            }
            WINDOW_UPDATE => {}
            _ => panic!("frame {kind} of stream {stream}: {payload:02x?}"),
        }
        false
    }

    fn body(&mut self, stream: usize) -> &mut Option<Vec<u8>> {
        let from_the_end = (self.next_stream - stream) / 2;
        let index = self.calls.len() - from_the_end;
        &mut self.calls[index]
    }

    fn complete(&mut self, stream: usize, on_response: &mut impl FnMut(&[u8])) {
        let body = self.body(stream).take().expect("the call is open");
        let (prefix, message) = body.split_at(MESSAGE_PREFIX);
        let length = (message.len() as u32).to_be_bytes();
        assert_eq!(prefix, [&[0][..], &length].concat(), "the response is one message");
        on_response(message);
        self.spare.push(body);
        self.open_calls -= 1;
        while self.calls.front().is_some_and(Option::is_none) {
            self.calls.pop_front();
        }
    }
}

/// Header block of every request after the first one: `:method POST`, `:scheme http`, and the five entries that the
/// first one added to the dynamic table, the oldest first.
const NEXT_HEADER_BLOCK: [u8; 7] = [0x83, 0x86, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe];

/// Returns the header block of the first request. Its fields with text become entries of the dynamic table.
fn first_header_block(method: &str) -> Vec<u8> {
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
    block
}
