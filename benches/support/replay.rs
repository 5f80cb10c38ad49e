//! Replay: sends recorded commands to a Redis that nothing else uses, and measures the CPU of its main thread.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use harness::{Redis, redis::CREDENTIALS, servers::reply_length};

use super::{cpu, memory, recorder::RedisCommand};

/// Number of commands that are sent at once. The next ones follow after all replies.
const COMMANDS_AT_ONCE: usize = 64;
/// Time in which Redis finishes what it does after its last reply.
const PAUSE: Duration = Duration::from_millis(5);

/// Commands to replay, encoded.
pub struct Replay {
    batches: Vec<Batch>,
    /// Number of commands.
    pub commands: usize,
    /// Size of all commands.
    pub bytes: usize,
}

struct Batch {
    encoded: Vec<u8>,
    commands: usize,
}

impl Replay {
    pub fn new(commands: &[RedisCommand]) -> Self {
        let batch = |commands: &[RedisCommand]| Batch {
            encoded: commands.iter().flat_map(|command| memory::command(command)).collect(),
            commands: commands.len(),
        };
        let batches: Vec<_> = commands.chunks(COMMANDS_AT_ONCE).map(batch).collect();
        Replay { commands: commands.len(), bytes: batches.iter().map(|batch| batch.encoded.len()).sum(), batches }
    }

    /// Sends the commands as the user of the service; returns the CPU time of the main thread of Redis.
    ///
    /// # Panics
    ///
    /// Panics if a reply is not that of a call that succeeded.
    pub fn run(&self, redis: &Redis) -> Duration {
        let mut stream = UnixStream::connect(redis.socket()).unwrap();
        let (user, password) = CREDENTIALS.split_once(':').expect("user and password");
        stream.write_all(&memory::command(&["AUTH", user, password])).unwrap();
        read_replies(&mut stream, 1, |reply| assert_eq!(reply, b"+OK\r\n"));
        thread::sleep(PAUSE);
        let before = cpu::of_main_thread(redis.pid());
        for batch in &self.batches {
            stream.write_all(&batch.encoded).unwrap();
            read_replies(&mut stream, batch.commands, assert_success);
        }
        thread::sleep(PAUSE);
        cpu::of_main_thread(redis.pid()) - before
    }
}

/// Saves the state of Redis for [`restore`].
pub fn save(redis: &Redis) {
    redis.must(&["SAVE"]);
}

/// Restores the saved state. Redis keeps the scripts that it has.
pub fn restore(redis: &Redis) {
    redis.must(&["DEBUG", "RELOAD", "NOSAVE"]);
}

/// Reads this number of RESP2 replies and checks each.
fn read_replies(stream: &mut UnixStream, replies: usize, check: impl Fn(&[u8])) {
    let (mut received, mut chunk, mut missing) = (Vec::new(), vec![0; 64 * 1024], replies);
    while missing > 0 {
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "Redis closed the connection");
        received.extend_from_slice(&chunk[..count]);
        let mut start = 0;
        while let Some(length) = reply_length(&received[start..]) {
            check(&received[start..start + length]);
            start += length;
            missing -= 1;
        }
        received.drain(..start);
    }
    assert!(received.is_empty(), "Redis sends one reply for each command");
}

/// Panics unless the reply is a value, or the list of a script that begins with DONE.
fn assert_success(reply: &[u8]) {
    let is_value = reply.starts_with(b"$") && !reply.starts_with(b"$-");
    let first = reply.iter().position(|byte| *byte == b'\n').map_or(&reply[..0], |end| &reply[end + 1..]);
    let is_done = reply.starts_with(b"*") && first.starts_with(b":1\r\n");
    assert!(
        is_value || is_done,
        "a replayed command fails: {}",
        String::from_utf8_lossy(&reply[..reply.len().min(200)])
    );
}
