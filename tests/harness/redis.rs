//! A `redis-server` of the tests' own, on a Unix socket in a directory of its own.

use std::{
    io::{Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak, mpsc},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;

#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    directory: TempDir,
    child: Mutex<Child>,
    extra: Vec<String>,
}

impl Redis {
    /// The one that the tests of this binary share; it ends with the last of those that run.
    pub fn shared() -> Self {
        static SHARED: Mutex<Weak<Inner>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let redis = shared.upgrade().map_or_else(Redis::start, Redis);
        *shared = Arc::downgrade(&redis.0);
        redis
    }

    pub fn start() -> Self {
        Redis::start_with(&[])
    }

    /// With these arguments besides.
    pub fn start_with(extra: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-test-").tempdir().unwrap();
        let extra: Vec<String> = extra.iter().map(|&argument| argument.to_owned()).collect();
        let child = Mutex::new(spawn(directory.path().to_owned(), extra.clone()));
        let redis = Redis(Arc::new(Inner { directory, child, extra }));
        redis.wait_until_it_answers();
        redis
    }

    pub fn socket(&self) -> PathBuf {
        self.0.directory.path().join("redis.sock")
    }

    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    pub fn pid(&self) -> u32 {
        self.0.child.lock().unwrap().id()
    }

    fn wait_until_it_answers(&self) {
        let started = Instant::now();
        while self.try_command(&["PING"]).as_deref() != Some("+PONG\r\n") {
            assert!(started.elapsed() < super::PATIENCE, "redis-server does not answer; is it installed?");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The raw RESP2 answer to one command.
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).expect("Redis answers")
    }

    /// The raw answer to a command with arguments that are no text.
    pub fn command_bytes(&self, words: &[&[u8]]) -> Vec<u8> {
        self.exchange(words).expect("Redis answers")
    }

    fn try_command(&self, words: &[&str]) -> Option<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        Some(String::from_utf8_lossy(&self.exchange(&words)?).into_owned())
    }

    fn exchange(&self, words: &[&[u8]]) -> Option<Vec<u8>> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(super::PATIENCE)).ok()?;
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend_from_slice(word);
            request.extend(b"\r\n");
        }
        // QUIT closes the connection after the answer.
        request.extend(b"*1\r\n$4\r\nQUIT\r\n");
        stream.write_all(&request).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        answer.ends_with(b"+OK\r\n").then(|| answer[..answer.len() - 5].to_vec())
    }

    /// The texts in an answer that is a list.
    pub fn list(&self, words: &[&str]) -> Vec<String> {
        let answer = self.command(words);
        let mut lines = answer.split("\r\n");
        let mut texts = Vec::new();
        while let Some(line) = lines.next() {
            if line.starts_with('$') && line != "$-1" {
                texts.extend(lines.next().map(str::to_owned));
            }
        }
        texts
    }

    /// The number in an answer that is an integer.
    pub fn number(&self, words: &[&str]) -> i64 {
        let answer = self.command(words);
        answer.strip_prefix(':').unwrap_or_else(|| panic!("no number: {answer}")).trim().parse().unwrap()
    }

    /// The keys that match the pattern.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.list(&["KEYS", pattern])
    }

    /// Everything that Redis holds: each key with its dump, and what is in hashes and streams as text.
    pub fn contents(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for key in self.keys("*") {
            all.extend_from_slice(key.as_bytes());
            for read in [&["HGETALL", &key[..]][..], &["XRANGE", &key, "-", "+"], &["ZRANGE", &key, "0", "-1"]] {
                let words: Vec<&[u8]> = read.iter().map(|word| word.as_bytes()).collect();
                all.extend(self.command_bytes(&words));
            }
        }
        all
    }

    fn signal(&self, signal: Signal) {
        let child = self.0.child.lock().unwrap();
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
    }

    /// It hangs: its sockets stay open and nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub fn kill(&self) {
        let mut child = self.0.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts again what was killed, with what its files hold.
    pub fn restart(&self) {
        *self.0.child.lock().unwrap() = spawn(self.0.directory.path().to_owned(), self.0.extra.clone());
        self.wait_until_it_answers();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Spawns from a thread that lives as long as the process: the child is told when that thread ends, so that none is
/// left behind however the tests end.
fn spawn(directory: PathBuf, extra: Vec<String>) -> Child {
    type Job = (PathBuf, Vec<String>, mpsc::Sender<Child>);
    static JOBS: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (directory, extra, answer) in jobs {
                answer.send(spawn_here(&directory, &extra)).unwrap();
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = mpsc::channel();
    jobs.lock().unwrap().send((directory, extra, answer)).unwrap();
    child.recv().unwrap()
}

fn spawn_here(directory: &std::path::Path, extra: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"]);
    command.args(extra);
    // SAFETY: between fork and exec this makes one system call, and touches no memory of the process.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn().expect("redis-server is installed")
}
