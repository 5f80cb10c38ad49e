//! An HTTP/2 connection of many watchers, which costs little CPU per event: of a response it decodes the lengths of its
//! fields, and nothing of its events.

use std::sync::Arc;

use bytes::Buf;
use prost::{
    Message,
    encoding::{decode_key, decode_varint},
};
use sessiond_client::v1::WatchRequest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::watchers::{Received, Reception};
use crate::support::frames::{
    ACK, DATA, END_HEADERS, Frame, HEADERS, Input, MESSAGE_PREFIX, Output, PING, SETTINGS, WINDOW_UPDATE, number,
};

/// Fields of a response.
const EVENTS: u32 = 1;
const RESYNC: u32 = 5;

/// A connection with one stream per watcher.
pub struct Connection {
    socket: TcpStream,
    input: Input,
    streams: Streams,
}

/// The streams of a connection, and what it sends.
struct Streams {
    output: Output,
    /// Number of the watcher of the first stream.
    first: usize,
    /// Beginning of the next message of each stream. Almost always empty: the server sends whole messages.
    incomplete: Vec<Vec<u8>>,
    reception: Arc<Reception>,
}

impl Connection {
    /// Opens a connection and one watch per request. The first watch is that of the watcher with number `first`.
    pub async fn open(address: &str, requests: &[WatchRequest], first: usize, reception: Arc<Reception>) -> Self {
        let mut output = Output::new("Watch", None);
        for (index, request) in requests.iter().enumerate() {
            output.request(1 + 2 * index, &request.encode_to_vec());
        }
        let socket = TcpStream::connect(address).await.expect("the server listens");
        socket.set_nodelay(true).unwrap();
        let streams = Streams { output, first, incomplete: vec![Vec::new(); requests.len()], reception };
        Connection { socket, input: Input::new(), streams }
    }

    /// Receives responses. Never returns; panics if a watch ends.
    pub async fn run(self) {
        let Connection { mut socket, mut input, mut streams } = self;
        loop {
            let output = &mut streams.output.bytes;
            if !output.is_empty() {
                socket.write_all(output).await.expect("the server reads");
                output.clear();
            }
            let count = socket.read(input.room()).await.expect("the server responds");
            assert!(count > 0, "the server closed the connection");
            input.advance(count, |frame| streams.process(frame));
        }
    }
}

impl Streams {
    fn process(&mut self, frame: &Frame<'_>) {
        let &Frame { kind, flags, stream, payload } = frame;
        match kind {
            DATA => {
                assert_eq!(flags, 0, "data of an open stream");
                self.receive(stream / 2, payload);
                self.output.note_received(payload.len());
            }
            HEADERS => assert_eq!(flags, END_HEADERS, "the watch ended; header block {payload:02x?}"),
            SETTINGS if flags & ACK == 0 => self.output.frame(SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => self.output.frame(PING, ACK, 0, payload),
            SETTINGS | WINDOW_UPDATE => {}
            _ => panic!("frame {kind} of stream {stream}: {payload:02x?}"),
        }
    }

    /// Receives data of the stream with this index.
    fn receive(&mut self, index: usize, data: &[u8]) {
        let incomplete = &mut self.incomplete[index];
        let mut joined = std::mem::take(incomplete);
        let mut rest = if joined.is_empty() {
            data
        } else {
            joined.extend_from_slice(data);
            &joined
        };
        while let Some((message, after)) = first_message(rest) {
            let events = events_in(message);
            self.reception.note(Received { watcher: self.first + index, message, events });
            rest = after;
        }
        *incomplete = rest.to_vec();
    }
}

/// Splits off the first message. None: it is incomplete.
fn first_message(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (prefix, rest) = data.split_first_chunk::<MESSAGE_PREFIX>()?;
    assert_eq!(prefix[0], 0, "the message is not compressed");
    rest.split_at_checked(number(&prefix[1..]))
}

/// Returns the number of events in a response. Panics if it has `resync`.
fn events_in(mut response: &[u8]) -> u64 {
    let mut events = 0;
    while response.has_remaining() {
        let (field, _) = decode_key(&mut response).expect("a field");
        let length = decode_varint(&mut response).expect("the length of a field") as usize;
        response = &response[length..];
        match field {
            EVENTS => events += 1,
            RESYNC => panic!("the watch received a resync"),
            _ => {}
        }
    }
    events
}
