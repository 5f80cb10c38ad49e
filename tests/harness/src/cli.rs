//! The command-line client as a child process.

use std::process::{ExitStatus, Stdio};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};

use super::{WAIT_LIMIT, client::NAMESPACE, process::program};

/// Exit code and output of a command that has ended.
pub struct Finished {
    /// Exit code. None: a signal ended the command.
    pub code: Option<i32>,
    /// Complete standard output.
    pub output: String,
    /// Complete standard error.
    pub errors: String,
}

impl Finished {
    /// Returns the standard output; panics unless the exit code is 0.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.errors);
        self.output
    }

    /// Returns the standard output, one JSON document; panics unless the exit code is 0.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.succeeded()).unwrap()
    }

    /// Returns the standard error; panics unless the command failed with this code and without output.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!((self.code, &self.output[..]), (Some(code), ""), "{}", self.errors);
        self.errors
    }
}

/// Returns `sessiond` with these arguments and piped input and output.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command to its end with this standard input. Panics if it has not ended after [`WAIT_LIMIT`].
pub async fn run(mut command: Command, input: &str) -> Finished {
    let mut child = command.spawn().unwrap();
    // The write fails if the command ends without reading its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let ended = timeout(WAIT_LIMIT, child.wait_with_output()).await.expect("the command ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished { code: ended.status.code(), output: text(ended.stdout), errors: text(ended.stderr) }
}

/// Command-line client of one server, in the namespace of the tests.
#[derive(Clone)]
pub struct Cli {
    address: String,
}

impl Cli {
    /// Returns the client of the server at this address.
    pub fn new(address: &str) -> Self {
        Cli { address: address.to_owned() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.args(["--endpoint", &format!("http://{}", self.address), "--namespace", NAMESPACE]);
        command
    }

    /// Runs a command to its end with empty standard input.
    pub async fn run(&self, arguments: &[&str]) -> Finished {
        self.run_with(arguments, "").await
    }

    /// Runs a command to its end with this standard input.
    pub async fn run_with(&self, arguments: &[&str], input: &str) -> Finished {
        run(self.command(arguments), input).await
    }

    /// Starts a command with this standard input; dropping the returned value kills it.
    pub fn start(&self, arguments: &[&str], input: &str) -> Running {
        let mut command = self.command(arguments);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, input.as_bytes()).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0)).unwrap();
        let mut child = command.stdin(file).spawn().unwrap();
        let output = Some(BufReader::new(child.stdout.take().unwrap()).lines());
        let errors = BufReader::new(child.stderr.take().unwrap()).lines();
        Running { child, output, errors }
    }
}

/// Running command, which is killed when this value is dropped.
pub struct Running {
    child: Child,
    /// Lines of the standard output. None: [`Running::close_output`] was called.
    output: Option<Lines<BufReader<ChildStdout>>>,
    errors: Lines<BufReader<ChildStderr>>,
}

impl Running {
    /// Returns the next line of the standard output. None: end of output.
    pub async fn line(&mut self) -> Option<String> {
        let output = self.output.as_mut().expect("the output is open");
        timeout(WAIT_LIMIT, output.next_line()).await.expect("the command prints a line").unwrap()
    }

    /// Returns the next line of the standard output that contains this text; skips other lines.
    pub async fn line_with(&mut self, text: &str) -> String {
        loop {
            let line = self.line().await.unwrap_or_else(|| panic!("no output line contains {text}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Returns the next line of the standard error that contains this text; skips other lines.
    pub async fn error_with(&mut self, text: &str) -> String {
        loop {
            let line = timeout(WAIT_LIMIT, self.errors.next_line()).await.expect("the command prints a line").unwrap();
            let line = line.unwrap_or_else(|| panic!("no error line contains {text}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Closes the reading end of the standard output: the next write of the command fails with a broken pipe.
    pub fn close_output(&mut self) {
        self.output = None;
    }

    /// Process id of the command.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Waits for the command to end; returns its exit status and the rest of its standard error.
    pub async fn end(&mut self) -> (ExitStatus, String) {
        let mut errors = String::new();
        while let Some(line) = timeout(WAIT_LIMIT, self.errors.next_line()).await.expect("the command ends").unwrap() {
            errors += &format!("{line}\n");
        }
        (timeout(WAIT_LIMIT, self.child.wait()).await.expect("the command ends").unwrap(), errors)
    }
}
