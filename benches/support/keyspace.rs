//! Expiry of Redis itself: plain keys with a TTL, and the `expired` keyspace notifications.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::figures::now_us;
use harness::Redis;

const VALUE: &str = "0123456789abcdef";
const KEYS_AT_ONCE: usize = 1_000;

pub fn start() -> Redis {
    Redis::start_with(&["--notify-keyspace-events", "Ex"])
}

/// Creates one key for each deadline (ms since the epoch).
pub fn populate(redis: &Redis, deadlines: impl Iterator<Item = u64>) {
    let mut stream = UnixStream::connect(redis.socket()).unwrap();
    stream.write_all(b"CLIENT REPLY OFF\r\n").unwrap();
    let mut deadlines = deadlines.enumerate().peekable();
    while deadlines.peek().is_some() {
        let batch = deadlines.by_ref().take(KEYS_AT_ONCE);
        let commands: String = batch.map(|(n, at)| format!("SET k:{at}:{n} {VALUE} PXAT {at}\r\n")).collect();
        stream.write_all(commands.as_bytes()).unwrap();
    }
    stream.write_all(b"CLIENT REPLY ON\r\n").unwrap();
    stream.read_exact(&mut [0; 5]).expect("+OK");
}

/// Receives `expired` events until all have arrived or `until` has passed; records their delays in µs.
pub struct Listener(std::thread::JoinHandle<Histogram<u64>>);

impl Listener {
    /// Returns after the subscription is active.
    pub fn start(redis: &Redis, keys: u64, until: Instant) -> Self {
        let mut stream = UnixStream::connect(redis.socket()).unwrap();
        stream.write_all(b"SUBSCRIBE __keyevent@0__:expired\r\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        // The reply is an array of three: `subscribe`, the channel, the number of channels.
        for _ in 0..6 {
            lines.read_line(&mut String::new()).unwrap();
        }
        Listener(std::thread::spawn(move || {
            let mut delays = Histogram::new(3).unwrap();
            while delays.len() < keys {
                let left = until.saturating_duration_since(Instant::now());
                stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
                let mut line = String::new();
                if lines.read_line(&mut line).is_err() {
                    break;
                }
                let Some((at, _)) = line.strip_prefix("k:").and_then(|key| key.split_once(':')) else { continue };
                delays.record(now_us().saturating_sub(at.parse::<u64>().unwrap() * 1000)).unwrap();
            }
            delays
        }))
    }

    pub fn delays(self) -> Histogram<u64> {
        self.0.join().unwrap()
    }
}
