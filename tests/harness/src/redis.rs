//! A Redis process in a temporary directory, on a Unix socket and, if a test needs it, on a TCP port.
//!
//! The sessiond servers under test connect as the ACL user from the operating manual, with exactly the permissions of
//! that rule. The commands of the tests use the socket as Redis' default user.

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

/// Beginning of the ACL rules in the manual.
const RULE: &str = "ACL SETUSER sessiond on >change-me ";
/// User and password of those rules, as in a URL.
pub const CREDENTIALS: &str = "sessiond:change-me";

/// Arguments that make Redis send keyspace notifications for deleted, expired and evicted keys.
pub const KEYSPACE_NOTIFICATIONS: [&str; 2] = ["--notify-keyspace-events", "Egxe"];

/// Returns the ACL rule in the operating manual that contains `allowed`, from the user name on.
pub fn acl_rule(allowed: &str) -> &'static str {
    let manual = include_str!("../../../docs/operating/README.md");
    let rule = manual.lines().find(|line| line.starts_with(RULE) && line.contains(allowed));
    rule.expect("an ACL rule in the manual").strip_prefix("ACL SETUSER ").expect("an ACL SETUSER command")
}

/// Returns the arguments that create the manual's ACL user for sessiond, for keys with this prefix.
pub fn user_arguments(prefix: &str) -> Vec<String> {
    let rule = acl_rule("+evalsha").replace("ses:*", &format!("{prefix}*"));
    ["--user"].into_iter().chain(rule.split_whitespace()).map(str::to_owned).collect()
}

/// Returns the URL for that user through this socket.
pub fn socket_url(socket: &Path) -> String {
    format!("redis+unix://{CREDENTIALS}@localhost{}", socket.display())
}

/// A Redis process that ends when the last clone of this value is dropped.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    directory: TempDir,
    child: Mutex<Child>,
    arguments: Vec<String>,
    /// TCP port; 0: none.
    port: u16,
    /// Whether the process is neither paused nor killed.
    runs: AtomicBool,
}

impl Redis {
    /// Returns the Redis that all tests of this binary share. It ends when the last test that uses it ends.
    pub fn shared() -> Self {
        static SHARED: Mutex<Weak<Inner>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let redis = shared.upgrade().map_or_else(Redis::start, Redis);
        *shared = Arc::downgrade(&redis.0);
        redis
    }

    /// Starts a Redis on a socket.
    pub fn start() -> Self {
        Redis::start_with(&[])
    }

    /// Starts a Redis whose sessiond user may use keys with this prefix instead of `ses:`.
    pub fn for_prefix(prefix: &str) -> Self {
        let user = user_arguments(prefix);
        Redis::start_with(&user.iter().map(|word| &word[..]).collect::<Vec<_>>())
    }

    /// Starts a Redis with these additional arguments, on a socket and on no port unless the arguments name one.
    pub fn start_with(extra: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-test-").tempdir().unwrap();
        let redis = Redis::launch(directory, server_arguments(["--port", "0"].iter().chain(extra)), 0);
        redis.expect("the server starts; is redis-server installed?")
    }

    /// Starts a Redis on a TCP port too: the first of the three free ports that `arguments` receives.
    pub fn on_ports(arguments: impl Fn([u16; 3]) -> Vec<String>) -> Self {
        Redis::in_directory(|_, ports| arguments(ports))
    }

    /// Like [`Redis::on_ports`]; `arguments` also receives the directory and may write files into it.
    pub fn in_directory(arguments: impl Fn(&Path, [u16; 3]) -> Vec<String>) -> Self {
        // Another process may take a port before the server binds it.
        let mut attempts = (0..20).filter_map(|_| {
            let directory = tempfile::Builder::new().prefix("sessiond-test-").tempdir().unwrap();
            let ports = servers::free_ports();
            let arguments = arguments(directory.path(), ports);
            Redis::launch(directory, arguments, ports[0])
        });
        attempts.next().expect("the server starts; is redis-server installed?")
    }

    /// Starts the process and waits until it responds. None: it exited during its start.
    fn launch(directory: TempDir, arguments: Vec<String>, port: u16) -> Option<Self> {
        let child = Mutex::new(servers::spawn(directory.path().to_owned(), arguments.clone()));
        let redis = Redis(Arc::new(Inner { directory, child, arguments, port, runs: AtomicBool::new(true) }));
        redis.responds().then_some(redis)
    }

    /// Returns the path of the Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.0.directory.path().join("redis.sock")
    }

    /// Returns the URL for sessiond's ACL user through the socket.
    pub fn url(&self) -> String {
        socket_url(&self.socket())
    }

    /// Returns the URL for Redis' default user through the socket.
    pub fn unrestricted_url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Returns the TCP port; 0: none.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Returns the TCP address `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port)
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.0.child.lock().unwrap().id()
    }

    /// Returns whether the process is neither paused nor killed.
    pub fn runs(&self) -> bool {
        self.0.runs.load(Ordering::Relaxed)
    }

    /// Waits until the server responds to PING; returns false if the process has exited.
    fn responds(&self) -> bool {
        let started = Instant::now();
        while self.try_command(&["PING"]).as_deref() != Some("+PONG\r\n") {
            if self.0.child.lock().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            assert!(started.elapsed() < super::WAIT_LIMIT, "the server does not respond");
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Runs a command and returns the raw RESP2 reply.
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|| panic!("no reply to {words:?}"))
    }

    /// Runs a command and returns the raw RESP2 reply; panics if it is an error.
    #[track_caller]
    pub fn must(&self, words: &[&str]) -> String {
        let reply = self.command(words);
        assert!(!reply.starts_with('-'), "{words:?}: {reply}");
        reply
    }

    /// Runs a command with binary arguments and returns the raw RESP2 reply.
    pub fn command_bytes(&self, words: &[&[u8]]) -> Vec<u8> {
        self.exchange(words).expect("a reply from Redis")
    }

    fn try_command(&self, words: &[&str]) -> Option<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        Some(String::from_utf8_lossy(&self.exchange(&words)?).into_owned())
    }

    fn exchange(&self, words: &[&[u8]]) -> Option<Vec<u8>> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(super::WAIT_LIMIT)).ok()?;
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend_from_slice(word);
            request.extend(b"\r\n");
        }
        stream.write_all(&request).ok()?;
        let mut reply = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        // A long reply is parsed again only when its size has doubled.
        let mut parsed = 0;
        loop {
            let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
            reply.extend_from_slice(&buffer[..count]);
            if count == buffer.len() && reply.len() < parsed * 2 {
                continue;
            }
            parsed = reply.len();
            if servers::reply_length(&reply) == Some(reply.len()) {
                return Some(reply);
            }
        }
    }

    /// Runs a command and returns all bulk strings of its reply.
    pub fn list(&self, words: &[&str]) -> Vec<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        servers::reply_texts(&self.command_bytes(&words))
    }

    /// Runs a command whose reply is an integer, and returns it.
    pub fn number(&self, words: &[&str]) -> i64 {
        let reply = self.command(words);
        reply.strip_prefix(':').unwrap_or_else(|| panic!("no integer: {reply}")).trim().parse().unwrap()
    }

    /// Returns the `id=` fields of the connections that subscribe to channels. A new connection has a new id.
    pub fn subscribers(&self) -> BTreeSet<String> {
        let clients = self.list(&["CLIENT", "LIST", "TYPE", "pubsub"]).concat();
        clients.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    /// Returns the keys that match the pattern (KEYS).
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.list(&["KEYS", pattern])
    }

    /// Returns the value of a field in this section of INFO.
    pub fn info(&self, section: &str, field: &str) -> String {
        let words = ["INFO", section];
        // Sentinels close all connections of a server when they change its role, so one retry is needed.
        let info = self.try_command(&words).unwrap_or_else(|| self.command(&words));
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {field} in {info}")).to_owned()
    }

    /// Returns the value of a setting (CONFIG GET); empty if this server has no such setting.
    pub fn config(&self, name: &str) -> String {
        self.list(&["CONFIG", "GET", name]).pop().unwrap_or_default()
    }

    /// Returns all keys, and the raw replies with the contents of all strings, hashes, streams and sorted sets.
    pub fn contents(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for key in self.keys("*") {
            all.extend_from_slice(key.as_bytes());
            let reads: [&[&str]; 4] =
                [&["GET", &key], &["HGETALL", &key], &["XRANGE", &key, "-", "+"], &["ZRANGE", &key, "0", "-1"]];
            for read in reads {
                let words: Vec<&[u8]> = read.iter().map(|word| word.as_bytes()).collect();
                all.extend(self.command_bytes(&words));
            }
        }
        all
    }

    /// Makes saves fail, as on a full disk, so that Redis replies MISCONF to writes.
    pub async fn refuse_saves(&self) {
        self.must(&["CONFIG", "SET", "save", "3600 1000000"]);
        // A directory in the place of the file.
        let file = self.socket().with_file_name("dump.rdb");
        let _ = std::fs::remove_file(&file);
        std::fs::create_dir(&file).unwrap();
        self.save("err").await;
    }

    /// Makes saves succeed again.
    pub async fn permit_saves(&self) {
        std::fs::remove_dir(self.socket().with_file_name("dump.rdb")).unwrap();
        self.save("ok").await;
    }

    /// Saves the data and waits for the result of the save.
    async fn save(&self, result: &str) {
        super::eventually("the save has ended", async || {
            self.command(&["BGSAVE"]);
            (self.info("persistence", "rdb_last_bgsave_status").trim() == result).then_some(())
        })
        .await;
    }

    /// Waits until the replica has all writes that this server has executed so far.
    ///
    /// WAIT cannot be used, because it covers only the writes of its own connection.
    pub fn wait_for(&self, replica: &Redis) {
        let offset = |redis: &Redis, field| redis.info("replication", field).parse::<u64>().unwrap();
        let written = offset(self, "master_repl_offset");
        let is_up = || replica.info("replication", "master_link_status") == "up";
        servers::wait_until("the replica has all writes", || {
            is_up() && offset(replica, "slave_repl_offset") >= written
        });
    }

    /// Pauses the replica and closes the replication connections. Until [`Redis::resume`] it receives no new writes.
    pub fn isolate_replica(&self, replica: &Redis) {
        // Data that was sent but not read is lost with the connection.
        replica.pause();
        self.must(&["CLIENT", "KILL", "TYPE", "replica"]);
    }

    fn signal(&self, signal: Signal) {
        let child = self.0.child.lock().unwrap();
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Stops the process with SIGSTOP: its sockets stay open, and it sends no reply.
    pub fn pause(&self) {
        self.0.runs.store(false, Ordering::Relaxed);
        self.signal(Signal::STOP);
    }

    /// Continues a paused process.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
        self.0.runs.store(true, Ordering::Relaxed);
    }

    /// Waits until this server is a replica, so that no client can use it as a primary.
    pub fn wait_until_replica(&self) {
        servers::wait_until("the server is a replica", || self.is_replica());
    }

    /// Returns whether this server is a replica.
    pub fn is_replica(&self) -> bool {
        self.info("replication", "role") == "slave"
    }

    /// Kills the process (SIGKILL) and waits until it has ended.
    pub fn kill(&self) {
        self.0.runs.store(false, Ordering::Relaxed);
        let mut child = self.0.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts a killed server again with the same arguments; it loads the files that it has persisted.
    pub fn restart(&self) {
        *self.0.child.lock().unwrap() = servers::spawn(self.0.directory.path().to_owned(), self.0.arguments.clone());
        assert!(self.responds(), "the server restarts");
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

/// Returns the arguments of a Redis without persistence and with sessiond's ACL user.
///
/// `extra` is appended. If it defines a `--user`, the ACL user is left out.
pub fn server_arguments(extra: impl IntoIterator<Item: AsRef<str>>) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"].map(str::to_owned).into();
    arguments.extend(extra.into_iter().map(|argument| argument.as_ref().to_owned()));
    if !arguments.iter().any(|argument| argument == "--user") {
        arguments.extend(user_arguments("ses:"));
    }
    arguments
}
