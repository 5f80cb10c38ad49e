//! Cost of calls in a slice of time: CPU of the processes, calls per second, and the work of Redis.

use std::time::Duration;

use harness::{
    Redis,
    redis::{CREDENTIALS, user_arguments},
};

use super::{
    SETTINGS, cpu,
    generator::{Access, Calls, Generator, IN_FLIGHT},
};

/// A server process and its Redis.
#[derive(Clone)]
pub struct Target {
    pub pid: u32,
    pub address: String,
    pub redis: Option<Redis>,
    pub access: Access,
}

impl Target {
    /// A server without TLS and callers.
    pub fn new(pid: u32, address: String, redis: Option<Redis>) -> Self {
        Target { pid, address, redis, access: Access::default() }
    }
}

/// Starts a Redis for a target, whose append-only file is not rewritten during a slice, and which allows DEBUG for
/// [`restore`](super::replay::restore).
///
/// The user has the restrictions of the manual to keys and channels, and can use every command that reads or writes, so
/// that it serves other versions of the server and a plain GET.
pub fn start_redis() -> Redis {
    assert!(CREDENTIALS.starts_with("sessiond:"));
    let mut arguments: Vec<String> = SETTINGS.map(str::to_owned).into();
    arguments.extend(["--auto-aof-rewrite-percentage", "0", "--enable-debug-command", "local"].map(str::to_owned));
    arguments.extend(user_arguments("ses:"));
    arguments.extend(["+@read", "+@write"].map(str::to_owned));
    Redis::start_with(&arguments.iter().map(|argument| &argument[..]).collect::<Vec<_>>())
}

/// Figures of one slice. All except the rate are per call.
#[derive(Clone, Copy)]
pub struct Slice {
    /// Calls per second.
    pub rate: f64,
    /// CPU of the server, in µs.
    pub server: f64,
    /// CPU of Redis, in µs.
    pub redis: f64,
    /// CPU of the main thread of Redis, in µs.
    pub redis_main_thread: f64,
    /// CPU of the load generator, in µs.
    pub generator: f64,
    /// Commands that Redis executed, including those of scripts.
    pub commands: f64,
    /// Bytes that Redis received.
    pub received: f64,
    /// Bytes that Redis sent.
    pub sent: f64,
}

impl Slice {
    /// Makes calls for this time, or until there are no more requests.
    pub fn run(target: &Target, connections: usize, calls: &Calls, length: Duration) -> Self {
        let generator = Generator::open_with(&target.address, &target.access, connections, calls.method);
        let (work_before, cpu_before) = (work(target), cpu(target));
        let run = generator.run(calls, IN_FLIGHT, length);
        let (cpu_after, work_after) = (cpu(target), work(target));
        let per_call = |amount: f64| amount / run.calls as f64;
        let [server, redis, redis_main_thread] = std::array::from_fn(|index| cpu_after[index] - cpu_before[index]);
        let [commands, received, sent] = std::array::from_fn(|index| per_call(work_after[index] - work_before[index]));
        let micros = |used: Duration| per_call(used.as_secs_f64() * 1e6);
        Slice {
            rate: run.calls as f64 / run.elapsed.as_secs_f64(),
            server: micros(server),
            redis: micros(redis),
            redis_main_thread: micros(redis_main_thread),
            generator: micros(run.cpu),
            commands,
            received,
            sent,
        }
    }

    /// Returns the number of cores that server, Redis and load generator use together. The others of the machine were
    /// idle, or used by other programs.
    pub fn cores(&self) -> f64 {
        self.rate * (self.server + self.redis + self.generator) / 1e6
    }
}

/// Runs each row in each round, and starts a round with another row than the one before. The additional first round is a warm-up,
/// whose slices are dropped.
pub fn in_rounds<R, S>(rows: &mut [R], rounds: usize, run: impl Fn(&R) -> S, slices: impl Fn(&mut R) -> &mut Vec<S>) {
    for round in 0..=rounds {
        let first = round % rows.len();
        for index in (first..rows.len()).chain(0..first) {
            let slice = run(&rows[index]);
            if round > 0 {
                slices(&mut rows[index]).push(slice);
            }
        }
    }
}

/// Returns the CPU time of the server, of Redis, and of the main thread of Redis.
fn cpu(target: &Target) -> [Duration; 3] {
    let of_redis = |used: fn(u32) -> Duration| target.redis.as_ref().map_or(Duration::ZERO, |redis| used(redis.pid()));
    [cpu::used_by(target.pid), of_redis(cpu::used_by), of_redis(cpu::of_main_thread)]
}

/// Returns the numbers of commands, of received and of sent bytes since the start of Redis.
fn work(target: &Target) -> [f64; 3] {
    let Some(redis) = &target.redis else { return [0.0; 3] };
    let info = redis.command(&["INFO", "stats"]);
    ["total_commands_processed:", "total_net_input_bytes:", "total_net_output_bytes:"].map(|field| {
        let value = info.lines().find_map(|line| line.strip_prefix(field)).expect("INFO has the field");
        value.trim().parse().expect("a number")
    })
}
