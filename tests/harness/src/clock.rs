//! A Redis process whose clock steps: a small library, preloaded into it, shifts the time that it reads.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    Client, Redis, World,
    client::{by_id, id_of, new_token},
    eventually,
    redis::server_arguments,
    servers::wait_until,
};

/// Name of the preloaded library in the directory of a Redis process.
pub const LIBRARY: &str = "clock.so";
/// Name of the file with the shift in the directory of a Redis process.
pub const SHIFT: &str = "clock-shift";

/// Clock of one Redis process.
pub struct Clock {
    redis: Redis,
    shift: fs::File,
}

impl Clock {
    /// Returns a store in a Redis of its own whose clock the test shifts.
    pub fn world() -> (World, Self) {
        let (redis, clock) = Clock::start();
        (World { redis, prefix: "ses:".into() }, clock)
    }

    /// Starts a Redis with a clock that the test can shift. Needs a C compiler.
    pub fn start() -> (Redis, Self) {
        Clock::start_with(&[])
    }

    /// Like [`Clock::start`], with these additional arguments for Redis.
    pub fn start_with(extra: &[&str]) -> (Redis, Self) {
        let redis = Redis::in_directory(|directory, _| {
            compile(&directory.join(LIBRARY));
            fs::write(directory.join(SHIFT), [0; 8]).unwrap();
            server_arguments(["--port", "0"].iter().chain(extra))
        });
        let path = redis.socket().with_file_name(SHIFT);
        let clock = Clock { redis: redis.clone(), shift: fs::File::options().write(true).open(path).unwrap() };
        clock.shift_to(-3_600);
        clock.shift_to(0);
        (redis, clock)
    }

    /// Sets the clock to this many seconds after the real time; a negative number is before it. Waits until Redis reads the
    /// clock again: Valkey adds the time that has passed to an earlier reading.
    pub fn shift_to(&self, seconds: i64) {
        self.shift.write_all_at(&(seconds * 1_000_000).to_ne_bytes(), 0).unwrap();
        wait_until("the clock of Redis is shifted", || {
            let real = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
            self.now().abs_diff(real.cast_signed() + seconds) <= 1
        });
    }

    /// Sets the clock, and waits until the servers of these clients have read it: after a step ahead, the first write of a
    /// server reaches Redis after its deadline by the new time.
    pub async fn step_to(&self, seconds: i64, clients: impl IntoIterator<Item = &Client>) {
        self.shift_to(seconds);
        for client in clients {
            // A delete of an id that no session has makes no event.
            let unknown = by_id(&id_of(&new_token()));
            eventually("the server has read the clock", async || client.delete(unknown.clone()).await.ok()).await;
        }
    }

    /// Clock of Redis in seconds.
    fn now(&self) -> i64 {
        self.redis.list(&["TIME"])[0].parse().unwrap()
    }
}

fn compile(library: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source).status();
    assert!(compiled.expect("a C compiler").success());
}
