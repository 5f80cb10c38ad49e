//! Memory usage that Redis reports, and a Redis with plain JSON strings.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use harness::{Redis, WAIT_LIMIT};

const COMMANDS_AT_ONCE: usize = 1_000;

/// Returns `used_memory` after it is stable: all clients have disconnected, and no dictionary is being rehashed.
pub fn used(redis: &Redis) -> u64 {
    let read = || {
        let info = redis.command(&["INFO", "memory"]);
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        line.expect("INFO has used_memory").trim().parse::<u64>().unwrap()
    };
    let (started, mut before) = (Instant::now(), read());
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = read();
        if now.abs_diff(before) < 1024 {
            return now;
        }
        assert!(started.elapsed() < WAIT_LIMIT, "used_memory does not become stable");
        before = now;
    }
}

/// Deletes the logs; returns their number of entries.
pub fn delete_logs(redis: &Redis) -> u64 {
    let mut entries = 0;
    for log in redis.keys("*:log") {
        entries += redis.number(&["XLEN", &log]) as u64;
        redis.number(&["DEL", &log]);
    }
    entries
}

/// Returns the bytes of all keys by kind, which is the part of the key after the hash tag. `MEMORY USAGE` counts the
/// key name and its entry in the dictionary of keys, but not the table of that dictionary.
pub fn by_kind(redis: &Redis) -> BTreeMap<String, u64> {
    let keys = redis.keys("*");
    let mut stream = UnixStream::connect(redis.socket()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut kinds = BTreeMap::new();
    for batch in keys.chunks(COMMANDS_AT_ONCE) {
        let commands: Vec<u8> =
            batch.iter().flat_map(|key| command(&["MEMORY", "USAGE", key, "SAMPLES", "0"])).collect();
        stream.write_all(&commands).unwrap();
        for key in batch {
            let mut answer = String::new();
            answers.read_line(&mut answer).unwrap();
            let bytes: u64 = answer[1..].trim().parse().expect("the key exists");
            let kind = key.split_once("}:").map_or(&key[..], |(_, rest)| rest.split(':').next().unwrap_or(rest));
            *kinds.entry(kind.to_owned()).or_default() += bytes;
        }
    }
    kinds
}

/// Sets one string with a TTL for each value, with keys like those of session libraries.
pub fn populate_strings(redis: &Redis, values: impl Iterator<Item = String>) {
    let set = |(n, value): (usize, String)| command(&["SET", &format!("sess:{n:032x}"), &value, "EX", "43200"]);
    send(redis, values.enumerate().map(set));
}

/// Sends these commands in batches. Returns after Redis has executed all of them.
pub fn send(redis: &Redis, commands: impl Iterator<Item = Vec<u8>>) {
    let mut stream = UnixStream::connect(redis.socket()).unwrap();
    stream.write_all(b"CLIENT REPLY OFF\r\n").unwrap();
    let mut commands = commands.peekable();
    while commands.peek().is_some() {
        let batch: Vec<u8> = commands.by_ref().take(COMMANDS_AT_ONCE).flatten().collect();
        stream.write_all(&batch).unwrap();
    }
    stream.write_all(b"CLIENT REPLY ON\r\n").unwrap();
    stream.read_exact(&mut [0; 5]).expect("+OK");
}

/// Encodes a command.
pub fn command(words: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut command = format!("*{}\r\n", words.len()).into_bytes();
    for word in words.iter().map(AsRef::as_ref) {
        command.extend(format!("${}\r\n", word.len()).bytes());
        command.extend_from_slice(word);
        command.extend_from_slice(b"\r\n");
    }
    command
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
