//! The embedded Redis: a `redis-server` child process, started if no Redis is configured.
//!
//! It listens only on a Unix socket in the data directory, and the store connects to it as to any other Redis. A lock file
//! excludes a second sessiond from the directory. If an earlier sessiond was killed and its Redis still runs, that Redis
//! is shut down and replaced.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process, set_parent_process_death_signal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// Names of the program, in the order in which they are tried.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];
/// Maximum length of the path of a Unix socket on Linux, in bytes.
const MAX_SOCKET_PATH: usize = 107;
/// Time limit for the start, in which Redis reads its append-only file.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Time limit for a clean shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two attempts to reach Redis.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Failure to start the embedded Redis.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No `redis-server` or `valkey-server` is installed.
    #[error(
        "no redis-server (7.0 or newer) found. Install it (Debian: apt-get install redis-server), or name a running \
         Redis with --redis"
    )]
    Missing,
    /// The data directory cannot be created or used.
    #[error("data directory {path}: {cause}")]
    Directory {
        /// Path of the data directory.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
    /// The lock file of the data directory is locked.
    #[error("data directory {0} is in use by another sessiond")]
    InUse(PathBuf),
    /// Redis did not start; with the reason and the path of its log.
    #[error("cannot start redis-server: {0}; see {1}")]
    Start(String, PathBuf),
    /// The Redis of an earlier sessiond still runs in the data directory.
    #[error("the Redis of an earlier sessiond in {0} did not stop; stop it")]
    Orphan(PathBuf),
}

/// The running child process.
pub struct Embedded {
    child: Child,
    socket: PathBuf,
    _lock: File,
}

impl Embedded {
    /// Starts Redis with its data in `directory`, and returns when it answers.
    ///
    /// Must be called on a thread that lives as long as the process: the child receives SIGTERM when that thread ends.
    pub async fn start(directory: &Path) -> Result<Self, Error> {
        let failed = |cause| Error::Directory { path: directory.to_owned(), cause };
        create(directory).map_err(failed)?;
        let directory = directory.canonicalize().map_err(failed)?;
        let lock = OpenOptions::new().create(true).append(true).open(directory.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse(directory)),
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        let socket = socket_path(&directory).map_err(failed)?;
        replace_orphan(&socket, &directory).await?;
        let mut child = spawn(&directory, &socket)?;
        let log = directory.join("redis.log");
        let started = Instant::now();
        while !is_ready(&socket).await {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Error::Start(status.to_string(), log));
            }
            if started.elapsed() > START_TIMEOUT {
                return Err(Error::Start("it does not answer".into(), log));
            }
            sleep(POLL_INTERVAL).await;
        }
        tracing::info!(directory = %directory.display(), "embedded Redis started");
        Ok(Embedded { child, socket, _lock: lock })
    }

    /// Returns the URL of the socket.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket.display())
    }

    /// Waits until the process has ended without a call of [`Embedded::stop`].
    pub async fn ended(&mut self) {
        let _ = self.child.wait().await;
    }

    /// Sends SIGTERM, so that Redis writes its data to disk and ends. Kills it if it does not end in time.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) {
            let _ = kill_process(pid, Signal::TERM);
            if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
                crate::observe::warning!("embedded Redis did not stop in time; killing it");
                let _ = self.child.kill().await;
            }
        }
        // Removes the directory if it was created only for the socket: a directory with data is not empty.
        let _ = self.socket.parent().map(std::fs::remove_dir);
    }
}

fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Returns the path of the socket: in the data directory, or in a private temporary directory if that path is too long.
fn socket_path(directory: &Path) -> io::Result<PathBuf> {
    let socket = directory.join("redis.sock");
    if socket.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(socket);
    }
    let name = format!("sessiond-{:08x}", crc32fast::hash(directory.as_os_str().as_bytes()));
    let directory = std::env::temp_dir().join(name);
    create(&directory)?;
    // Every user can write to the parent directory, so that another user may have created this path first.
    let found = directory.symlink_metadata()?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{} is not owned by this user alone", directory.display())));
    }
    Ok(directory.join("redis.sock"))
}

#[expect(unsafe_code, reason = "the standard library has no safe way to set the death signal of a child")]
fn spawn(directory: &Path, socket: &Path) -> Result<Child, Error> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A separate process group: an interrupt from the terminal must not stop Redis before the drain.
        command.process_group(0);
        command.arg("--unixsocket").arg(socket).arg("--dir").arg(directory);
        command.args(["--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--logfile", "redis.log"]);
        command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]);
        command.args(["--notify-keyspace-events", "Egxe"]);
        command.args(["--maxmemory-policy", "noeviction"]);
        // SAFETY: the closure runs between fork and exec; it makes one system call and accesses no memory of the process.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::Start(error.to_string(), directory.to_owned())),
        }
    }
    Err(Error::Missing)
}

/// Shuts down the Redis of an earlier sessiond that was killed. Its acknowledged writes are in the append-only file.
async fn replace_orphan(socket: &Path, directory: &Path) -> Result<(), Error> {
    let started = Instant::now();
    while UnixStream::connect(socket).await.is_ok() {
        if started.elapsed() > STOP_TIMEOUT {
            return Err(Error::Orphan(directory.to_owned()));
        }
        let _ = timeout(COMMAND_TIMEOUT, send_command(socket, "SHUTDOWN\r\n")).await;
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

async fn is_ready(socket: &Path) -> bool {
    let reply = timeout(COMMAND_TIMEOUT, send_command(socket, "PING\r\n")).await;
    matches!(reply, Ok(Ok(reply)) if reply.starts_with("+PONG"))
}

async fn send_command(socket: &Path, line: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(line.as_bytes()).await?;
    let mut reply = [0; 64];
    let count = stream.read(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply[..count]).into_owned())
}
