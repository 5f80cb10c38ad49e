//! A private `redis-server` as a child: where no Redis is configured.
//!
//! Same code path as any other Redis. It listens on a Unix socket in the data directory and nowhere else; a lock file
//! keeps a second sessiond out of that directory; a Redis left behind by one that was killed is shut down and replaced.

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

/// Names under which a server may be installed.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];
/// Longest path of a Unix socket.
const MAX_SOCKET_PATH: usize = 107;
/// Until it answers, which takes reading its append-only file.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no redis-server (7.0 or newer) found. Install it (Debian: apt-get install redis-server), or name a running \
         Redis with --redis"
    )]
    Missing,
    #[error("data directory {path}: {cause}")]
    Directory { path: PathBuf, cause: io::Error },
    #[error("data directory {0} is in use by another sessiond")]
    InUse(PathBuf),
    #[error("redis-server could not be started: {0}; see {1}")]
    Start(String, PathBuf),
    #[error("the Redis left behind in {0} does not stop")]
    Orphan(PathBuf),
}

/// The running child.
pub struct Embedded {
    child: Child,
    socket: PathBuf,
    _lock: File,
}

impl Embedded {
    /// Starts it, and returns when it answers. Has to be called on a thread that lives as long as the process: the
    /// child is told when that thread ends.
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
        while !answers(&socket).await {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Error::Start(status.to_string(), log));
            }
            if started.elapsed() > START_TIMEOUT {
                return Err(Error::Start("no answer".into(), log));
            }
            sleep(POLL).await;
        }
        tracing::info!(directory = %directory.display(), "embedded Redis started");
        Ok(Embedded { child, socket, _lock: lock })
    }

    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket.display())
    }

    /// Returns when it has ended by itself.
    pub async fn ended(&mut self) {
        let _ = self.child.wait().await;
    }

    /// Has it write everything down and end.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            let _ = kill_process(pid, Signal::TERM);
            if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
                tracing::warn!("embedded Redis does not stop; it is killed");
                let _ = self.child.kill().await;
            }
        }
        // A directory made for the socket alone is empty now; one with data is not, and stays.
        let _ = self.socket.parent().map(std::fs::remove_dir);
    }
}

fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// In the data directory, or, where that path is too long for a socket, in one of our own for temporary files.
fn socket_path(directory: &Path) -> io::Result<PathBuf> {
    let socket = directory.join("redis.sock");
    if socket.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(socket);
    }
    let name = format!("sessiond-{:08x}", crc32fast::hash(directory.as_os_str().as_bytes()));
    let directory = std::env::temp_dir().join(name);
    create(&directory)?;
    // The directory for temporary files is everybody's: another user may have been first.
    let found = directory.symlink_metadata()?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("{} is not ours alone", directory.display())));
    }
    Ok(directory.join("redis.sock"))
}

fn spawn(directory: &Path, socket: &Path) -> Result<Child, Error> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Of its own group: an interrupt from the terminal is for us, and it is stopped after the drain.
        command.process_group(0);
        command.arg("--unixsocket").arg(socket).arg("--dir").arg(directory);
        command.args(["--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--logfile", "redis.log"]);
        command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]);
        command.args(["--notify-keyspace-events", "Egxe"]);
        command.args(["--maxmemory-policy", "noeviction", "--hash-max-listpack-value", "1024"]);
        // SAFETY: between fork and exec this makes one system call, and touches no memory of the process.
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

/// Shuts down the Redis that a killed sessiond left behind; what it acknowledged is in its append-only file.
async fn replace_orphan(socket: &Path, directory: &Path) -> Result<(), Error> {
    let started = Instant::now();
    while UnixStream::connect(socket).await.is_ok() {
        if started.elapsed() > STOP_TIMEOUT {
            return Err(Error::Orphan(directory.to_owned()));
        }
        let _ = timeout(Duration::from_secs(1), say(socket, "SHUTDOWN\r\n")).await;
        sleep(POLL).await;
    }
    Ok(())
}

async fn answers(socket: &Path) -> bool {
    matches!(timeout(Duration::from_secs(1), say(socket, "PING\r\n")).await, Ok(Ok(answer)) if answer.starts_with("+PONG"))
}

async fn say(socket: &Path, line: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(line.as_bytes()).await?;
    let mut answer = [0; 64];
    let count = stream.read(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
}
