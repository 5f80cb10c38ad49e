//! Limits the control frames of a client: HTTP/2 lets it send any number of them without a call.
//!
//! Control frames that are read may exceed the content that is written, in bytes, by [`ALLOWANCE`] and a little per second. A
//! client that makes calls or reads a watch never gets there: its acknowledgements, pings and window updates are smaller than
//! what it receives.

use tokio::time::Instant;

/// Bytes by which control frames may exceed the content.
const ALLOWANCE: u64 = 1024 * 1024;
/// Bytes of control frames per second that are always allowed: the keepalives of an idle client.
const ALLOWANCE_PER_SECOND: u64 = 64;
/// Size of the header of a frame.
const HEADER: usize = 9;
/// Frame types that carry calls. All others, CONTINUATION included, are control frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// Frames of one direction of a connection: adds up the bytes of content and of control frames.
#[derive(Default)]
struct FrameMeter {
    header: [u8; HEADER],
    /// Bytes of the header that were seen. [`HEADER`]: all.
    header_bytes: usize,
    /// Bytes of the payload that were not seen.
    payload_bytes: usize,
    content: u64,
    control: u64,
}

impl FrameMeter {
    /// Adds these bytes, which follow those before.
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = match HEADER - self.header_bytes {
                0 => self.payload_bytes.min(bytes.len()),
                missing => missing.min(bytes.len()),
            };
            let (seen, rest) = bytes.split_at(count);
            if self.header_bytes < HEADER {
                self.header[self.header_bytes..][..count].copy_from_slice(seen);
                self.header_bytes += count;
                if self.header_bytes == HEADER {
                    let [high, middle, low, ..] = self.header;
                    self.payload_bytes = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                }
            } else {
                self.payload_bytes -= count;
            }
            if self.header_bytes == HEADER && self.payload_bytes == 0 {
                self.end_frame();
            }
            bytes = rest;
        }
    }

    fn end_frame(&mut self) {
        let [high, middle, low, kind, ..] = self.header;
        let payload = u64::from(high) << 16 | u64::from(middle) << 8 | u64::from(low);
        let frame = HEADER as u64 + payload;
        match kind {
            DATA | HEADERS => self.content += frame,
            _ => self.control += frame,
        }
        self.header_bytes = 0;
    }
}

/// Meter of both directions of a connection.
pub(super) struct ControlFrames {
    read: FrameMeter,
    written: FrameMeter,
    since: Instant,
}

impl ControlFrames {
    /// A meter of a new connection, after the preface of the client.
    pub(super) fn new(now: Instant) -> Self {
        ControlFrames { read: FrameMeter::default(), written: FrameMeter::default(), since: now }
    }

    /// Adds bytes that were written to the client.
    pub(super) fn add_written(&mut self, bytes: &[u8]) {
        self.written.add(bytes);
    }

    /// Adds bytes that were read from the client. Returns whether it has sent too many control frames.
    pub(super) fn add_read(&mut self, bytes: &[u8]) -> bool {
        self.read.add(bytes);
        let exceeding = self.read.control.saturating_sub(self.written.content);
        exceeding > ALLOWANCE && exceeding > ALLOWANCE + ALLOWANCE_PER_SECOND * self.since.elapsed().as_secs()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 0], &vec![7; payload]].concat()
    }

    #[test]
    fn frames_are_added_up_in_pieces_of_any_size() {
        let frames = [frame(DATA, 70_000), frame(PING, 8), frame(HEADERS, 300), frame(4, 0), frame(DATA, 0)].concat();
        for size in [1, 2, 8, 9, 10, 1_000, frames.len()] {
            let mut meter = FrameMeter::default();
            frames.chunks(size).for_each(|piece| meter.add(piece));
            assert_eq!((meter.content, meter.control), (70_009 + 309 + 9, 17 + 9), "{size}");
        }
    }

    #[test]
    fn control_frames_beyond_content_and_time_are_too_many() {
        let ping = frame(PING, 8);
        // The connection is that many seconds old.
        for age in [0, 100] {
            let mut frames = ControlFrames::new(Instant::now() - Duration::from_secs(age));
            let mut sent_until_too_many = || {
                let mut sent = 0;
                while !frames.add_read(&ping) {
                    sent += ping.len() as u64;
                }
                sent
            };
            let (sent, expected) = (sent_until_too_many(), ALLOWANCE + age * ALLOWANCE_PER_SECOND);
            assert!(sent.abs_diff(expected) < 10 * ALLOWANCE_PER_SECOND, "{sent}, not {expected}");
            frames.add_written(&frame(DATA, 10_000));
            assert!(!frames.add_read(&ping));
        }
    }

    #[test]
    fn calls_and_data_are_not_control_frames() {
        let mut frames = ControlFrames::new(Instant::now());
        let call = [frame(HEADERS, 100), frame(DATA, 10_000)].concat();
        assert!(!(0..1_000).any(|_| frames.add_read(&call)));
    }
}
