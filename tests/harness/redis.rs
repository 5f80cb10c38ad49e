//! A Redis of the tests' own, in a directory of its own: on a Unix socket, and on a port where somebody needs one.
//!
//! The servers under test reach it as the user whose rule the manual gives, and may do what that rule says and no more.
//! The tests' own commands go through the socket, as Redis' default user.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Child,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::servers;

/// What the rule in the manual begins with.
const RULE: &str = "ACL SETUSER sessiond on >change-me ";
/// User and password in it, as they stand in a URL.
pub const CREDENTIALS: &str = "sessiond:change-me";

/// The arguments with which a Redis tells of keys that vanish.
pub const TELLS_OF_VANISHING: [&str; 2] = ["--notify-keyspace-events", "Egxe"];

/// The manual's rule for a user who may do this, from the user's name on.
pub fn rule(allowed: &str) -> &'static str {
    let manual = include_str!("../../docs/operating/README.md");
    let rule = manual.lines().find(|line| line.starts_with(RULE) && line.contains(allowed));
    rule.expect("the manual gives a rule").strip_prefix("ACL SETUSER ").expect("it begins so")
}

/// The arguments that give a Redis the user whose rule the manual gives, for keys with this prefix.
pub fn user(prefix: &str) -> Vec<String> {
    let rule = rule("+evalsha").replace("sessiond:*", &format!("{prefix}*"));
    ["--user"].into_iter().chain(rule.split_whitespace()).map(str::to_owned).collect()
}

/// As that user, through this socket.
pub fn url_of(socket: &Path) -> String {
    format!("redis+unix://{CREDENTIALS}@localhost{}", socket.display())
}

#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    directory: TempDir,
    child: Mutex<Child>,
    arguments: Vec<String>,
    /// 0 = none.
    port: u16,
    /// Neither paused nor killed.
    runs: AtomicBool,
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

    /// For keys with this prefix instead of the usual one.
    pub fn for_prefix(prefix: &str) -> Self {
        let user = user(prefix);
        Redis::start_with(&user.iter().map(|word| &word[..]).collect::<Vec<_>>())
    }

    /// With these arguments besides; on the socket alone, unless they name a port.
    pub fn start_with(extra: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-test-").tempdir().unwrap();
        let redis = Redis::launch(directory, plain(["--port", "0"].iter().chain(extra)), 0);
        redis.expect("the server starts; is redis-server installed?")
    }

    /// On a port of its own too, the first of those that the arguments are made for; they are all free.
    pub fn on_ports(arguments: impl Fn([u16; 3]) -> Vec<String>) -> Self {
        Redis::in_directory(|_, ports| arguments(ports))
    }

    /// The same; the directory may be filled first.
    pub fn in_directory(arguments: impl Fn(&Path, [u16; 3]) -> Vec<String>) -> Self {
        // Somebody else may take a port before the server has it.
        let mut attempts = (0..20).filter_map(|_| {
            let directory = tempfile::Builder::new().prefix("sessiond-test-").tempdir().unwrap();
            let ports = servers::free_ports();
            let arguments = arguments(directory.path(), ports);
            Redis::launch(directory, arguments, ports[0])
        });
        attempts.next().expect("the server starts; is redis-server installed?")
    }

    /// None = it ended at once.
    fn launch(directory: TempDir, arguments: Vec<String>, port: u16) -> Option<Self> {
        let child = Mutex::new(servers::spawn(directory.path().to_owned(), arguments.clone()));
        let redis = Redis(Arc::new(Inner { directory, child, arguments, port, runs: AtomicBool::new(true) }));
        redis.answers().then_some(redis)
    }

    pub fn socket(&self) -> PathBuf {
        self.0.directory.path().join("redis.sock")
    }

    pub fn url(&self) -> String {
        url_of(&self.socket())
    }

    /// As the default user.
    pub fn unrestricted_url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// `127.0.0.1:` and its port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    pub fn pid(&self) -> u32 {
        self.0.child.lock().unwrap().id()
    }

    /// Whether it is neither paused nor killed.
    pub fn runs(&self) -> bool {
        self.0.runs.load(Ordering::Relaxed)
    }

    /// Returns when it answers; false = it has ended.
    fn answers(&self) -> bool {
        let started = Instant::now();
        while self.try_command(&["PING"]).as_deref() != Some("+PONG\r\n") {
            if self.0.child.lock().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            assert!(started.elapsed() < super::PATIENCE, "the server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// The raw RESP2 answer to one command.
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|| panic!("Redis answers {words:?}"))
    }

    /// The same; whatever it does, it has to go well.
    #[track_caller]
    pub fn must(&self, words: &[&str]) -> String {
        let answer = self.command(words);
        assert!(!answer.starts_with('-'), "{words:?}: {answer}");
        answer
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
        stream.write_all(&request).ok()?;
        let mut answer = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        // A long answer is looked at again only once it has doubled.
        let mut looked_at = 0;
        loop {
            let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
            answer.extend_from_slice(&buffer[..count]);
            if count == buffer.len() && answer.len() < looked_at * 2 {
                continue;
            }
            looked_at = answer.len();
            if servers::length_of_answer(&answer) == Some(answer.len()) {
                return Some(answer);
            }
        }
    }

    /// The texts in an answer that is a list.
    pub fn list(&self, words: &[&str]) -> Vec<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        servers::texts(&self.command_bytes(&words))
    }

    /// The number in an answer that is an integer.
    pub fn number(&self, words: &[&str]) -> i64 {
        let answer = self.command(words);
        answer.strip_prefix(':').unwrap_or_else(|| panic!("no number: {answer}")).trim().parse().unwrap()
    }

    /// The connections that listen to channels: another one has another id.
    pub fn subscribers(&self) -> BTreeSet<String> {
        let clients = self.list(&["CLIENT", "LIST", "TYPE", "pubsub"]).concat();
        clients.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    /// The keys that match the pattern.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.list(&["KEYS", pattern])
    }

    /// The value of a field that INFO tells in this section.
    pub fn info(&self, section: &str, field: &str) -> String {
        let words = ["INFO", section];
        // Sentinels cut the connections of a server that they give another part.
        let told = self.try_command(&words).unwrap_or_else(|| self.command(&words));
        let value = told.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {field} in {told}")).to_owned()
    }

    /// A setting; empty = it has none of this name.
    pub fn config(&self, name: &str) -> String {
        self.list(&["CONFIG", "GET", name]).pop().unwrap_or_default()
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

    /// Returns when the replica has everything that was written here up to now. (WAIT tells that of what its own connection
    /// wrote.)
    pub fn wait_for(&self, replica: &Redis) {
        let offset = |redis: &Redis, field| redis.info("replication", field).parse::<u64>().unwrap();
        let written = offset(self, "master_repl_offset");
        let is_up = || replica.info("replication", "master_link_status") == "up";
        servers::until("the replica has it", || is_up() && offset(replica, "slave_repl_offset") >= written);
    }

    /// The replica hears nothing more of this primary, until [`Redis::resume`]: what is written from now on it has not.
    pub fn lose_touch_with(&self, replica: &Redis) {
        // What was sent before, and not read yet, goes with the connection.
        replica.pause();
        self.must(&["CLIENT", "KILL", "TYPE", "replica"]);
    }

    fn signal(&self, signal: Signal) {
        let child = self.0.child.lock().unwrap();
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
    }

    /// It hangs: its sockets stay open and nothing is answered.
    pub fn pause(&self) {
        self.0.runs.store(false, Ordering::Relaxed);
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
        self.0.runs.store(true, Ordering::Relaxed);
    }

    pub fn kill(&self) {
        self.0.runs.store(false, Ordering::Relaxed);
        let mut child = self.0.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts again what was killed, with what its files hold.
    pub fn restart(&self) {
        *self.0.child.lock().unwrap() = servers::spawn(self.0.directory.path().to_owned(), self.0.arguments.clone());
        assert!(self.answers(), "the server starts again");
        self.0.runs.store(true, Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Arguments of a Redis that keeps nothing on disk, with the user of the manual, unless they bring users of their own.
pub fn plain(extra: impl IntoIterator<Item: AsRef<str>>) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"].map(str::to_owned).into();
    arguments.extend(extra.into_iter().map(|argument| argument.as_ref().to_owned()));
    if !arguments.iter().any(|argument| argument == "--user") {
        arguments.extend(user("sessiond:"));
    }
    arguments
}
