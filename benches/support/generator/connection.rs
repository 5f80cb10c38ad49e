//! An HTTP/2 client connection for calls of one gRPC method, which costs little CPU per call.
//!
//! Requests are written as prepared frames, many with one system call. Of a response it decodes the lengths and the
//! gRPC status.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use harness::WAIT_LIMIT;
use rustls::{ClientConnection, StreamOwned};

use super::{Access, fields::Fields};
use crate::support::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, INITIAL_WINDOW, Input, MESSAGE_PREFIX, Output, PING, SETTINGS,
    WINDOW_UPDATE, number,
};

/// Maximum time that the server may read nothing.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

pub struct Connection {
    socket: Socket,
    input: Input,
    streams: Streams,
}

/// The calls of a connection, and what it sends.
struct Streams {
    output: Output,
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
    fields: Fields,
    /// Whether calls may fail.
    may_fail: bool,
}

/// Stream of bytes to a server.
enum Socket {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Socket {
    fn open(address: &str, access: &Access) -> Self {
        let socket = TcpStream::connect(address).expect("the server listens");
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
        socket.set_write_timeout(Some(WRITE_LIMIT)).unwrap();
        match &access.tls {
            None => Socket::Plain(socket),
            Some(config) => {
                let session = ClientConnection::new(config.clone(), "localhost".try_into().unwrap());
                Socket::Tls(Box::new(StreamOwned::new(session.expect("a TLS client"), socket)))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Plain(socket) => socket.read(buffer),
            Socket::Tls(socket) => {
                // One read returns one record of TLS: read until the socket is empty.
                let mut count = socket.read(buffer)?;
                socket.sock.set_nonblocking(true)?;
                while count > 0 && count < buffer.len() {
                    match socket.read(&mut buffer[count..]) {
                        Ok(0) => break,
                        Ok(more) => count += more,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
                socket.sock.set_nonblocking(false)?;
                Ok(count)
            }
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Socket::Plain(socket) => socket.write_all(bytes),
            Socket::Tls(socket) => socket.write_all(bytes),
        }
    }
}

impl Connection {
    /// Opens a connection for calls of this method of the session service; returns after the settings of the server
    /// have arrived.
    pub fn open(address: &str, access: &Access, method: &str) -> Self {
        let socket = Socket::open(address, access);
        let streams = Streams {
            output: Output::new(method, access.key.as_deref()),
            next_stream: 1,
            calls: VecDeque::new(),
            open_calls: 0,
            spare: Vec::new(),
            is_ready: false,
            window: INITIAL_WINDOW,
            waiting: VecDeque::new(),
            fields: Fields::default(),
            may_fail: false,
        };
        let mut connection = Connection { socket, input: Input::new(), streams };
        while !connection.streams.is_ready {
            connection.send();
            connection.receive(&mut |_| unreachable!("no call has started"));
        }
        connection
    }

    /// Returns the number of calls without a response.
    pub fn open_calls(&self) -> usize {
        self.streams.open_calls
    }

    /// Accepts calls that fail.
    pub fn drop_responses(&mut self) {
        self.streams.may_fail = true;
    }

    /// Sends 100,000 of these frames, or as many as the server reads before it closes the connection.
    pub fn flood(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        for _ in 0..100 {
            (0..1_000).for_each(|_| self.streams.output.frame(kind, flags, 0, payload));
            let is_closed = self.socket.write_all(&self.streams.output.bytes).is_err();
            self.streams.output.bytes.clear();
            if is_closed {
                return;
            }
        }
    }

    /// Starts a call. [`Connection::send`] sends it.
    pub fn start(&mut self, message: &[u8]) {
        self.streams.start(message);
    }

    /// Sends the calls that were started, and everything else.
    pub fn send(&mut self) {
        let output = &mut self.streams.output.bytes;
        self.socket.write_all(output).expect("the server reads");
        output.clear();
    }

    /// Waits for bytes of the server, and passes the message of each complete response to `on_response`. Returns the
    /// number of complete responses. Panics if a call fails.
    pub fn receive(&mut self, on_response: &mut impl FnMut(&[u8])) -> usize {
        let Connection { socket, input, streams } = self;
        let count = socket.read(input.room()).expect("the server responds");
        assert!(count > 0, "the server closed the connection");
        let mut completed = 0;
        input.advance(count, |frame| completed += usize::from(streams.process(frame, on_response)));
        completed
    }
}

impl Streams {
    fn start(&mut self, message: &[u8]) {
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
        self.output.request(stream, message);
    }

    /// Processes a frame. Returns whether it completed a call.
    fn process(&mut self, frame: &Frame<'_>, on_response: &mut impl FnMut(&[u8])) -> bool {
        let &Frame { kind, flags, stream, payload } = frame;
        match kind {
            DATA => {
                assert_eq!(flags, 0, "data without a status after it");
                self.body(stream).as_mut().expect("the call is open").extend_from_slice(payload);
                self.output.note_received(payload.len());
            }
            HEADERS => {
                assert_eq!(flags & !END_STREAM, END_HEADERS, "a header block is one frame");
                let is_ok = self.fields.have_status_ok(payload);
                if flags & END_STREAM != 0 {
                    assert!(is_ok || self.may_fail, "a call failed; header block {payload:02x?}");
                    self.complete(stream, on_response);
                    return true;
                }
            }
            SETTINGS if flags & ACK == 0 => {
                self.output.frame(SETTINGS, ACK, 0, &[]);
                self.is_ready = true;
            }
            SETTINGS => {}
            PING if flags & ACK == 0 => self.output.frame(PING, ACK, 0, payload),
            WINDOW_UPDATE if stream == 0 => {
                self.window += number(payload);
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
        if !(body.is_empty() && self.may_fail) {
            let (prefix, message) = body.split_at(MESSAGE_PREFIX);
            let length = (message.len() as u32).to_be_bytes();
            assert_eq!(prefix, [&[0][..], &length].concat(), "the response is one message");
            on_response(message);
        }
        self.spare.push(body);
        self.open_calls -= 1;
        while self.calls.front().is_some_and(Option::is_none) {
            self.calls.pop_front();
        }
    }
}
