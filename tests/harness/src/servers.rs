//! Redis processes: starts the program under test, finds free ports, parses raw replies, and leaves no process behind.

use std::{
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, mpsc},
    time::{Duration, Instant},
};

use rustix::process::{Signal, set_parent_process_death_signal};

use super::{WAIT_LIMIT, clock};

/// Returns the Redis program that the tests start: `redis-server`, or `SESSIOND_TEST_REDIS`.
fn program() -> String {
    #[expect(clippy::disallowed_methods, reason = "a switch of the tests, not a setting of the service")]
    let configured = std::env::var("SESSIOND_TEST_REDIS");
    configured.unwrap_or_else(|_| "redis-server".into())
}

/// Returns three different free ports, all below the ephemeral ports that the kernel assigns to outgoing connections.
pub fn free_ports() -> [u16; 3] {
    let free = || {
        let candidates = std::iter::repeat_with(|| 10_000 + (getrandom::u32().unwrap() % 22_000) as u16);
        candidates.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("some port is free")
    };
    let mut ports = [0; 3];
    for index in 0..ports.len() {
        ports[index] = std::iter::repeat_with(free).find(|port| !ports.contains(port)).unwrap();
    }
    ports
}

/// Returns the length in bytes of the RESP2 reply at the start of `bytes`. None: the reply is incomplete.
pub fn reply_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|window| window == b"\r\n")?;
    let number = || std::str::from_utf8(&bytes[1..line]).unwrap().parse::<i64>().unwrap();
    let mut end = line + 2;
    match bytes[0] {
        b'$' if number() >= 0 => end += number() as usize + 2,
        b'*' => {
            for _ in 0..number() {
                end += reply_length(bytes.get(end..)?)?;
            }
        }
        _ => {}
    }
    (end <= bytes.len()).then_some(end)
}

/// Returns all bulk strings of a RESP2 reply, nested ones included, in order.
pub fn reply_texts(reply: &[u8]) -> Vec<String> {
    let mut rest = reply;
    let mut texts = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let (line, after) = (&rest[..end], &rest[end + 2..]);
        rest = after;
        let length = line.strip_prefix(b"$").and_then(|length| std::str::from_utf8(length).ok()?.parse::<usize>().ok());
        if let Some(length) = length {
            texts.push(String::from_utf8_lossy(&after[..length]).into_owned());
            rest = &after[length + 2..];
        }
    }
    texts
}

/// Spawns a Redis process from a thread that lives as long as the test process.
///
/// The kernel kills the child when the thread that spawned it ends. So no Redis process is left behind, however the
/// tests end.
pub fn spawn(directory: PathBuf, arguments: Vec<String>) -> Child {
    type Job = (PathBuf, Vec<String>, mpsc::Sender<Child>);
    static JOBS: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (directory, arguments, child) in jobs {
                child.send(spawn_here(&directory, &arguments)).unwrap();
            }
        });
        Mutex::new(sender)
    });
    let (sender, child) = mpsc::channel();
    jobs.lock().unwrap().send((directory, arguments, sender)).unwrap();
    child.recv().unwrap()
}

fn spawn_here(directory: &Path, arguments: &[String]) -> Child {
    let mut command = Command::new(program());
    command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(arguments);
    let library = directory.join(clock::LIBRARY);
    if library.exists() {
        command.env("LD_PRELOAD", library).env("SESSIOND_TEST_CLOCK", directory.join(clock::SHIFT));
    }
    // SAFETY: between fork and exec this makes one system call and touches no memory of the process.
    #[expect(unsafe_code, reason = "pre_exec has no safe form")]
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn().expect("the Redis server that the tests start is installed")
}

/// Polls the check every 20 ms until it holds. Panics after [`WAIT_LIMIT`]. Blocks its thread: see [`run_blocking`].
#[track_caller]
pub fn wait_until(what: &str, check: impl Fn() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < WAIT_LIMIT, "{what}: not within {WAIT_LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs blocking work on another thread, because the server under test runs on this one.
pub async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
