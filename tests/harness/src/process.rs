//! `sessiond serve` as a child process that tests can signal and kill.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Client, WAIT_LIMIT, eventually, servers};

/// Returns the path of the `sessiond` program in the target directory of the running test, benchmark or program.
pub fn program() -> PathBuf {
    let own = std::env::current_exe().expect("the path of the running program is known");
    // target/<profile>/<program>, or target/<profile>/deps/<test> for tests and benchmarks.
    let directory = own.parent().expect("the program is in a directory");
    let profile =
        if directory.ends_with("deps") { directory.parent().expect("deps is in a directory") } else { directory };
    profile.join("sessiond")
}

/// A `sessiond serve` process that is killed when dropped.
pub struct Process {
    child: Child,
    /// Address of the gRPC port.
    pub address: String,
    /// Address of the HTTP port with metrics and health checks.
    pub metrics_address: String,
    /// All log lines so far; empty if the test provided the standard error.
    pub log: Arc<Mutex<String>>,
}

impl Process {
    /// Starts `sessiond serve` with these arguments, on free ports unless they name some, and returns when it listens.
    pub fn start(arguments: &[String]) -> Self {
        Process::start_with_env(&[], arguments)
    }

    /// Like [`Process::start`], with this program instead of that in the target directory.
    pub fn start_program(program: &Path, arguments: &[String]) -> Self {
        let mut command = Command::new(program);
        command.args(serve(arguments));
        let mut process = Process::launch(command, Stdio::piped());
        (process.address, process.metrics_address) = process.wait_for_address().expect("the server listens");
        process
    }

    /// Like [`Process::start`], with these environment variables added.
    pub fn start_with_env(environment: &[(&str, String)], arguments: &[String]) -> Self {
        let mut process = Process::spawn(environment, arguments);
        (process.address, process.metrics_address) = process.wait_for_address().expect("the server listens");
        process
    }

    /// Starts the process after this `ulimit` of the shell, such as `-n 128`, and returns when it listens.
    pub fn start_with_ulimit(ulimit: &str, arguments: &[String]) -> Self {
        let mut process = Process::launch(limited(ulimit, arguments), Stdio::piped());
        (process.address, process.metrics_address) = process.wait_for_address().expect("the server listens");
        process
    }

    /// Starts the process with this standard error, which the harness does not read, and returns when it is ready.
    pub async fn start_with_stderr(stderr: impl Into<Stdio>, arguments: &[String]) -> Self {
        let [address, metrics_address, _] = servers::free_ports().map(|port| format!("127.0.0.1:{port}"));
        let mut command = Command::new(program());
        let addresses = [format!("--listen={address}"), format!("--metrics-listen={metrics_address}")];
        command.args(serve(&[&addresses, arguments].concat()));
        let mut process = Process::launch(command, stderr.into());
        (process.address, process.metrics_address) = (address, metrics_address);
        eventually("the server is ready", async || {
            let exit = process.child.try_wait().unwrap();
            assert!(exit.is_none(), "the server ended: {exit:?}");
            process.is_ready().await.then_some(())
        })
        .await;
        process
    }

    /// Starts a process that must exit before it listens; returns its log and its exit code.
    pub fn expect_start_failure(arguments: &[String]) -> (String, Option<i32>) {
        Process::expect_start_failure_with_env(&[], arguments)
    }

    /// Like [`Process::expect_start_failure`], with these environment variables added.
    pub fn expect_start_failure_with_env(
        environment: &[(&str, String)],
        arguments: &[String],
    ) -> (String, Option<i32>) {
        Process::spawn(environment, arguments).start_failure()
    }

    /// Like [`Process::expect_start_failure`], after this `ulimit` of the shell.
    pub fn expect_start_failure_with_ulimit(ulimit: &str, arguments: &[String]) -> (String, Option<i32>) {
        Process::launch(limited(ulimit, arguments), Stdio::piped()).start_failure()
    }

    fn start_failure(mut self) -> (String, Option<i32>) {
        let code = self.child.wait().unwrap().code();
        assert!(self.wait_for_address().is_none(), "the server listens");
        (self.log.lock().unwrap().clone(), code)
    }

    fn spawn(environment: &[(&str, String)], arguments: &[String]) -> Self {
        let mut command = Command::new(program());
        command.args(serve(arguments));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Process::launch(command, Stdio::piped())
    }

    fn launch(mut command: Command, stderr: Stdio) -> Self {
        let child = command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
        Process { child, address: String::new(), metrics_address: String::new(), log: Arc::default() }
    }

    fn wait_for_address(&mut self) -> Option<(String, String)> {
        let (sender, address) = mpsc::channel();
        let (log, stderr) = (self.log.clone(), self.child.stderr.take()?);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.lock().unwrap().push_str(&format!("{line}\n"));
                let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if entry["message"] == "listening" {
                    let address = |field: &str| entry[field].as_str().unwrap().to_owned();
                    let _ = sender.send((address("address"), address("metrics")));
                }
            }
        });
        address.recv_timeout(WAIT_LIMIT).ok()
    }

    /// Returns the whole response of `/metrics`.
    pub async fn metrics(&self) -> String {
        super::http(&self.metrics_address, "/metrics").await.expect("metrics are served")
    }

    /// Returns whether `/readyz` succeeds.
    pub async fn is_ready(&self) -> bool {
        let response = super::http(&self.metrics_address, "/readyz").await;
        response.is_some_and(|response| response.starts_with("HTTP/1.1 200"))
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects a client to this process.
    pub async fn client(&self) -> Client {
        Client::connect(&self.address).await
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Stops the process with SIGSTOP and waits until none of its threads runs: its sockets stay open, and it reads nothing.
    pub async fn suspend(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.pid());
        eventually("every thread is stopped", async || {
            let mut states = std::fs::read_dir(&threads).unwrap().map(|thread| {
                let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
                // The name of the thread, in parentheses, may contain spaces.
                stat.rsplit(") ").next().unwrap().starts_with('T')
            });
            states.all(|is_stopped| is_stopped).then_some(())
        })
        .await;
    }

    /// Continues a suspended process.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process (SIGKILL) and waits until it has ended.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until the process ends and returns its exit code. None: a signal ended it.
    pub async fn wait(&mut self) -> Option<i32> {
        eventually("the process ends", async || self.child.try_wait().unwrap()).await.code()
    }

    /// Sends SIGTERM, waits until the process ends and returns its exit code. None: a signal ended it.
    pub async fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait().await
    }
}

/// Returns the arguments of `sessiond` that start a server, on free ports unless `arguments` name some.
fn serve(arguments: &[String]) -> Vec<String> {
    let mut all = vec!["serve".to_owned(), "--log-format=json".to_owned()];
    for flag in ["--listen=", "--metrics-listen="] {
        if !arguments.iter().any(|argument| argument.starts_with(flag)) {
            all.push(format!("{flag}127.0.0.1:0"));
        }
    }
    all.extend_from_slice(arguments);
    all
}

/// Returns the command that starts a server on free ports after this `ulimit` of the shell.
fn limited(ulimit: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit {ulimit}; exec \"$0\" \"$@\"")).arg(program());
    command.args(serve(arguments));
    command
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
