//! A server as a process of its own, which may be killed.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Client, PATIENCE, eventually};

pub struct Process {
    child: Child,
    pub address: String,
    pub metrics_address: String,
    /// Everything it has logged.
    pub log: Arc<Mutex<String>>,
}

impl Process {
    /// `sessiond serve` with these arguments, on a port of its own; returns when it listens.
    pub fn start(arguments: &[String]) -> Self {
        Process::start_in(&[], arguments)
    }

    /// The same in an environment that has these variables besides.
    pub fn start_in(environment: &[(&str, String)], arguments: &[String]) -> Self {
        let mut process = Process::spawn(environment, arguments);
        (process.address, process.metrics_address) = process.wait_for_address().expect("the server listens");
        process
    }

    /// The whole log of one that does not start.
    pub fn start_in_vain(arguments: &[String]) -> (String, Option<i32>) {
        Process::start_in_vain_in(&[], arguments)
    }

    /// The same in an environment that has these variables besides.
    pub fn start_in_vain_in(environment: &[(&str, String)], arguments: &[String]) -> (String, Option<i32>) {
        let mut process = Process::spawn(environment, arguments);
        let code = process.child.wait().unwrap().code();
        assert!(process.wait_for_address().is_none(), "the server listens");
        (process.log.lock().unwrap().clone(), code)
    }

    fn spawn(environment: &[(&str, String)], arguments: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessiond"));
        command.args(["serve", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--log-format=json"]);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let child = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
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
                    let address = |of: &str| entry[of].as_str().unwrap().to_owned();
                    let _ = sender.send((address("address"), address("metrics")));
                }
            }
        });
        address.recv_timeout(PATIENCE).ok()
    }

    pub async fn metrics(&self) -> String {
        super::http(&self.metrics_address, "/metrics").await.expect("metrics are served")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.address).await
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit code, once it has ended.
    pub async fn wait(&mut self) -> Option<i32> {
        eventually("the process ends", async || self.child.try_wait().unwrap()).await.code()
    }

    /// Its exit code, after it was asked to stop.
    pub async fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
