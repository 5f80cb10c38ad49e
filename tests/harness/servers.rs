//! Redis servers as processes: which program runs, where it may listen, and that none outlives the tests.

use std::{
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, mpsc},
    time::{Duration, Instant},
};

use rustix::process::{Signal, set_parent_process_death_signal};

use super::PATIENCE;

/// The server that the tests run against.
fn program() -> String {
    #[expect(clippy::disallowed_methods, reason = "the tests' own switch, and no setting of the service")]
    let named = std::env::var("SESSIOND_TEST_REDIS");
    named.unwrap_or_else(|_| "redis-server".into())
}

/// Ports that nobody listens on now. They lie below those that the system hands out to whoever connects.
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

/// How long the answer is that begins here, in RESP2; None = it is not there in full.
pub fn length_of_answer(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|window| window == b"\r\n")?;
    let number = || std::str::from_utf8(&bytes[1..line]).unwrap().parse::<i64>().unwrap();
    let mut end = line + 2;
    match bytes[0] {
        b'$' if number() >= 0 => end += number() as usize + 2,
        b'*' => {
            for _ in 0..number() {
                end += length_of_answer(bytes.get(end..)?)?;
            }
        }
        _ => {}
    }
    (end <= bytes.len()).then_some(end)
}

/// The texts in an answer, however they are nested.
pub fn texts(answer: &[u8]) -> Vec<String> {
    let mut rest = answer;
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

/// Spawns from a thread that lives as long as the process: the child is told when that thread ends, so that none is
/// left behind however the tests end.
pub fn spawn(directory: PathBuf, arguments: Vec<String>) -> Child {
    type Job = (PathBuf, Vec<String>, mpsc::Sender<Child>);
    static JOBS: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (directory, arguments, answer) in jobs {
                answer.send(spawn_here(&directory, &arguments)).unwrap();
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = mpsc::channel();
    jobs.lock().unwrap().send((directory, arguments, answer)).unwrap();
    child.recv().unwrap()
}

fn spawn_here(directory: &Path, arguments: &[String]) -> Child {
    let mut command = Command::new(program());
    command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(arguments);
    // SAFETY: between fork and exec this makes one system call, and touches no memory of the process.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn().expect("the server of the tests is installed")
}

/// Waits for what servers settle among themselves. Meanwhile it holds its thread: see [`aside`].
#[track_caller]
pub fn until(what: &str, check: impl Fn() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What takes its time is done on a thread of its own, for the service under test runs on this one.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
