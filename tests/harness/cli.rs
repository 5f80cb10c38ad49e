//! The command line's client as a process, and what it prints.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

use super::{PATIENCE, client::NAMESPACE};

/// What a command has printed, and its exit code.
pub struct Told {
    pub code: Option<i32>,
    pub output: String,
    pub errors: String,
}

impl Told {
    /// Its output, if it went well.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.errors);
        self.output
    }

    /// Its one JSON document.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.good()).unwrap()
    }

    /// What it says where it fails with this code.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!((self.code, &self.output[..]), (Some(code), ""), "{}", self.errors);
        self.errors
    }
}

/// `sessiond` with these arguments, its input and output piped.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessiond"));
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command to its end with this on its standard input.
pub async fn run(mut command: Command, input: &str) -> Told {
    let mut child = command.spawn().unwrap();
    // One that reads nothing may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let ended = timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Told { code: ended.status.code(), output: text(ended.stdout), errors: text(ended.stderr) }
}

/// The client of the server at this address, in the tests' namespace.
#[derive(Clone)]
pub struct Cli {
    address: String,
}

impl Cli {
    pub fn of(address: &str) -> Self {
        Cli { address: address.to_owned() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.args(["--endpoint", &format!("http://{}", self.address), "--namespace", NAMESPACE]);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Told {
        self.run_with(arguments, "").await
    }

    /// With this on its standard input.
    pub async fn run_with(&self, arguments: &[&str], input: &str) -> Told {
        run(self.command(arguments), input).await
    }

    /// Runs on, until it is dropped or ends by itself.
    pub fn start(&self, arguments: &[&str], input: &str) -> Running {
        let mut command = self.command(arguments);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, input.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut child = command.stdin(file).spawn().unwrap();
        let output = Some(BufReader::new(child.stdout.take().unwrap()).lines());
        let errors = BufReader::new(child.stderr.take().unwrap()).lines();
        Running { child, output, errors }
    }
}

/// A command that runs on.
pub struct Running {
    child: Child,
    output: Option<Lines<BufReader<ChildStdout>>>,
    errors: Lines<BufReader<ChildStderr>>,
}

impl Running {
    /// The next line of its output; None = there are no more.
    pub async fn line(&mut self) -> Option<String> {
        let output = self.output.as_mut().expect("its output is read");
        timeout(PATIENCE, output.next_line()).await.expect("a line comes").unwrap()
    }

    /// The next line of its output that has this in it; others are passed over.
    pub async fn line_with(&mut self, text: &str) -> String {
        loop {
            let line = self.line().await.unwrap_or_else(|| panic!("no line with {text}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The next line of what it says besides that has this in it; others are passed over.
    pub async fn error_with(&mut self, text: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.errors.next_line()).await.expect("a line comes").unwrap();
            let line = line.unwrap_or_else(|| panic!("it says nothing with {text}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Nobody reads its output any more.
    pub fn stop_reading(&mut self) {
        self.output = None;
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// How it ends, and what it says besides until then.
    pub async fn end(&mut self) -> (std::process::ExitStatus, String) {
        let mut errors = String::new();
        while let Some(line) = timeout(PATIENCE, self.errors.next_line()).await.expect("it ends").unwrap() {
            errors += &format!("{line}\n");
        }
        (timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap(), errors)
    }
}
