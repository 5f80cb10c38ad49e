//! Recorder: the commands for sessions that the server sends to Redis, from MONITOR.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
};

use harness::Redis;

/// Name and arguments of a command.
pub type RedisCommand = Vec<Vec<u8>>;

/// Argument of the command after which a recording ends.
const END: &str = "end of the recording";
/// Part of the keys of all sessions.
const SESSION: &[u8] = b"}:s:";
/// Place of the deadline in the first argument of a script: GATE in constants.lua.
const DEADLINE: std::ops::Range<usize> = 32..40;
/// What precedes the deadline in the first argument of a script of earlier versions, which is a MessagePack map.
const DEADLINE_NAME: &[u8] = b"\xa9not_after\xcf";
/// Time in ms that does not come, below 2^53 for Lua.
const NEVER: u64 = 1 << 52;

/// A recording in progress.
pub struct Recorder(JoinHandle<Vec<RedisCommand>>);

impl Recorder {
    /// Returns after the recording has begun.
    pub fn start(redis: &Redis) -> Self {
        let mut stream = UnixStream::connect(redis.socket()).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(stream).split(b'\n').map(|line| line.expect("Redis sends lines until the end"));
        assert_eq!(lines.next().as_deref(), Some(&b"+OK\r"[..]));
        let commands = lines.filter_map(|line| command_of(&line));
        let until_end = commands.take_while(|command| command.last().is_none_or(|last| last != END.as_bytes()));
        let of_calls = until_end.filter(is_of_call);
        Recorder(thread::spawn(move || of_calls.map(without_deadline).collect()))
    }

    /// Returns the commands for sessions that Redis has received, in its order. They have no deadline.
    pub fn finish(self, redis: &Redis) -> Vec<RedisCommand> {
        redis.must(&["ECHO", END]);
        self.0.join().expect("the recording ends")
    }
}

/// Whether a call sends the command to its session. A server that finds Redis slow also sends GET; that is left out.
fn is_of_call(command: &RedisCommand) -> bool {
    let key = match &command[0][..] {
        b"GETEX" => &command[1],
        b"EVALSHA" => &command[3],
        _ => return false,
    };
    key.windows(SESSION.len()).any(|window| window == SESSION)
}

/// Returns the command of a line `<time> [<database> <client>] "<name>" "<argument>" …`. None: a script sent it.
fn command_of(line: &[u8]) -> Option<RedisCommand> {
    let client = line.split(|byte| *byte == b'"').next()?;
    if !String::from_utf8_lossy(client).contains(" unix:") {
        return None;
    }
    let (mut command, mut argument, mut bytes) = (Vec::new(), None, line.iter().copied());
    while let Some(byte) = bytes.next() {
        match (byte, &mut argument) {
            (b'"', None) => argument = Some(Vec::new()),
            (b'"', Some(_)) => command.extend(argument.take()),
            (_, None) => {}
            (b'\\', Some(argument)) => argument.push(unescape(&mut bytes)),
            (_, Some(argument)) => argument.push(byte),
        }
    }
    Some(command)
}

/// Returns the byte after a backslash.
fn unescape(bytes: &mut impl Iterator<Item = u8>) -> u8 {
    let mut next = || bytes.next().expect("a whole escape sequence");
    match next() {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'a' => 7,
        b'b' => 8,
        b'x' => {
            let digits = [next(), next()].map(char::from);
            let [high, low] = digits.map(|digit| digit.to_digit(16).expect("a hexadecimal digit") as u8);
            high << 4 | low
        }
        byte => byte,
    }
}

/// Removes the time after which a script writes nothing.
fn without_deadline(mut command: RedisCommand) -> RedisCommand {
    if command[0] == b"EVALSHA" {
        let keys: usize = std::str::from_utf8(&command[2]).ok().and_then(|keys| keys.parse().ok()).expect("a number");
        let argument = &mut command[3 + keys];
        if argument[0].is_ascii() {
            argument[DEADLINE].fill(0);
        } else if let Some(name) = argument.windows(DEADLINE_NAME.len()).position(|window| window == DEADLINE_NAME) {
            let deadline = name + DEADLINE_NAME.len();
            argument[deadline..deadline + 8].copy_from_slice(&NEVER.to_be_bytes());
        }
    }
    command
}
