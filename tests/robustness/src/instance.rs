//! An instance of sessiond: a process on fixed ports that a fault can stop, kill and restart.

use std::{
    collections::VecDeque,
    fs::OpenOptions,
    io::{BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
};

use harness::{
    eventually, http, metric,
    process::program,
    servers::{free_ports, run_blocking},
};
use rustix::{
    fs::OFlags,
    process::{Pid, Signal, kill_process},
};

/// Number of log lines that are kept.
const LOG_LINES: usize = 200;

/// A `sessiond serve` process, killed when dropped.
pub struct Instance {
    /// Address of the gRPC port.
    pub address: String,
    /// Address of the HTTP port with metrics and health checks.
    pub metrics_address: String,
    /// Number of times the process was started. Samples of different starts cannot be compared.
    pub starts: usize,
    arguments: Vec<String>,
    child: Child,
    /// Whether a fault has ended the process.
    is_ended: bool,
    log: Arc<Log>,
}

/// The last log lines of an instance.
#[derive(Default)]
struct Log {
    lines: Mutex<VecDeque<String>>,
    /// Whether nothing reads the pipe at present.
    is_unread: Mutex<bool>,
    /// Notified when `is_unread` changes.
    changed: Condvar,
}

impl Instance {
    /// Starts an instance with these arguments and returns when it is ready.
    pub async fn start(arguments: Vec<String>) -> Self {
        let [port, metrics_port, _] = free_ports();
        let address = format!("127.0.0.1:{port}");
        let metrics_address = format!("127.0.0.1:{metrics_port}");
        let own = ["serve", &format!("--listen={address}"), &format!("--metrics-listen={metrics_address}")];
        let arguments = own.into_iter().map(str::to_owned).chain(arguments).collect::<Vec<_>>();
        let log = Arc::new(Log::default());
        let child = spawn(&arguments, &log);
        let mut instance = Instance { address, metrics_address, starts: 1, arguments, child, is_ended: false, log };
        instance.wait_until_ready().await;
        instance
    }

    /// Starts the process again, on the same ports, and returns when it is ready.
    pub async fn restart(&mut self) {
        let (arguments, log) = (self.arguments.clone(), self.log.clone());
        self.child = run_blocking(move || spawn(&arguments, &log)).await;
        (self.starts, self.is_ended) = (self.starts + 1, false);
        self.wait_until_ready().await;
    }

    async fn wait_until_ready(&mut self) {
        let address = self.metrics_address.clone();
        eventually("the instance is ready", async || {
            assert!(self.exit_status().is_none(), "the instance does not start:\n{}", self.log());
            let response = http(&address, "/readyz").await?;
            response.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
    }

    /// Returns the exit status. None: the process runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the status of a child can be read")
    }

    /// Returns a text with the last log lines if the process has ended and no fault ended it.
    pub fn unexpected_end(&mut self) -> Option<String> {
        let status = self.exit_status().filter(|_| !self.is_ended)?;
        Some(format!("the instance at {} ended with {status}:\n{}", self.address, self.log()))
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("an id of a process");
        kill_process(pid, signal).expect("the process exists");
    }

    /// Kills the process (SIGKILL) and waits until it has ended.
    pub fn kill(&mut self) {
        self.is_ended = true;
        self.child.kill().expect("the process can be killed");
        self.child.wait().expect("the process ends");
    }

    /// Sends SIGTERM, waits until the process has ended, and returns its exit code. None: a signal ended it.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.is_ended = true;
        self.signal(Signal::TERM);
        eventually("the instance ends", async || self.exit_status()).await.code()
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the last log lines.
    pub fn log(&self) -> String {
        self.log.lines.lock().unwrap().iter().fold(String::new(), |text, line| text + line + "\n")
    }

    /// Stops reading standard error, and fills its pipe.
    pub fn leave_log_unread(&self) {
        *self.log.is_unread.lock().unwrap() = true;
        let mut pipe = OpenOptions::new();
        pipe.write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        let pipe = pipe.open(format!("/proc/{}/fd/2", self.child.id()));
        let mut pipe = pipe.expect("standard error is a pipe");
        while pipe.write_all(b"unread\n").is_ok() {}
    }

    /// Reads standard error again.
    pub fn read_log(&self) {
        *self.log.is_unread.lock().unwrap() = false;
        self.log.changed.notify_all();
    }

    /// Returns the value of a metric, given its full name with labels; 0 if it is absent.
    pub async fn metric(&self, name: &str) -> f64 {
        metric(&self.metrics_address, name).await
    }

    /// Returns the response of `/readyz`. None: the connection failed.
    pub async fn readiness(&self) -> Option<String> {
        http(&self.metrics_address, "/readyz").await
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the process and the thread that reads its log.
fn spawn(arguments: &[String], log: &Arc<Log>) -> Child {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
    // The allocator returns free pages at once, so that the samples of memory contain less of its reserves.
    let spawned = command.env("MIMALLOC_PURGE_DELAY", "0").spawn();
    let mut child = spawned.expect("the program can be started");
    let (stderr, log) = (child.stderr.take().expect("standard error is a pipe"), log.clone());
    std::thread::spawn(move || log.read(stderr));
    child
}

impl Log {
    fn read(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut lines = self.lines.lock().unwrap();
            lines.push_back(line);
            let excess = lines.len().saturating_sub(LOG_LINES);
            lines.drain(..excess);
            drop(lines);
            drop(self.changed.wait_while(self.is_unread.lock().unwrap(), |is_unread| *is_unread));
        }
    }
}
