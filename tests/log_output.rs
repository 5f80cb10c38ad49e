//! Log lines, errors and output that cannot be written: the server and the commands neither end nor wait.

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, pipe},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use harness::{ConfigFile, World, client::*, eventually, metric, process::*};
use tokio::net::TcpStream;

const DROPPED: &str = "sessiond_log_lines_dropped_total";

/// Opens a file whose writes fail, because its device has no space left.
fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// Returns a pipe whose writes fail, because no process can read it.
fn closed() -> PipeWriter {
    pipe().unwrap().1
}

/// Starts a server that logs every detail to this standard error.
async fn start(world: &World, stderr: impl Into<OwnedFd>) -> Process {
    let redis = format!("--redis={}", world.redis.url());
    Process::start_with_stderr(stderr.into(), &[redis, "--log-level=trace".into()]).await
}

/// Makes calls until lines were dropped, then stops the server; returns its exit code.
async fn calls_and_drain(mut process: Process) -> Option<i32> {
    let client = process.client().await;
    eventually("log lines are dropped", async || {
        client.create(&[]).await;
        (metric(&process.metrics_address, DROPPED).await > 0.0).then_some(())
    })
    .await;
    client.create(&[]).await;
    process.stop().await
}

#[tokio::test]
async fn unwritable_log_does_not_end_the_server() {
    let world = World::dedicated();
    assert_eq!(calls_and_drain(start(&world, full()).await).await, Some(0));
    assert_eq!(calls_and_drain(start(&world, closed()).await).await, Some(0));
}

#[tokio::test]
async fn unread_log_delays_neither_calls_nor_the_drain() {
    let world = World::dedicated();
    let (_unread, stderr): (PipeReader, _) = pipe().unwrap();
    assert_eq!(calls_and_drain(start(&world, stderr).await).await, Some(0));
}

#[tokio::test]
async fn log_lines_of_one_cause_are_limited() {
    let world = World::dedicated();
    let file = ConfigFile::new("limits.connections = 1");
    let arguments = [format!("--redis={}", world.redis.url()), file.flag()];
    let mut process = Process::start(&arguments);
    let client = process.client().await;
    for _ in 0..100 {
        drop(TcpStream::connect(&process.address).await.unwrap());
    }
    client.create(&[]).await;
    assert_eq!(process.stop().await, Some(0));
    let lines = process.log.lock().unwrap().matches("connection limit reached").count();
    assert!((1..=20).contains(&lines), "{lines} lines");
}

/// Runs `sessiond` with this standard output and error; returns its exit code.
fn exit_code(arguments: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Option<i32> {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr).status().unwrap().code()
}

#[test]
fn unwritable_output_does_not_change_the_exit_code() {
    let serve = ["serve", "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"];
    let no_redis = [&serve[..], &["--redis=redis+unix:///no/redis.sock", "--start-timeout=0s"]].concat();
    let no_setting = [&serve[..], &["--drain-timeout=soon"]].concat();
    let no_server = ["get", "aaaaaaaaaaaaaaaaaaaaaaaaaa", "--namespace=web", "--endpoint=http://127.0.0.1:1"];
    let rows: [(&[&str], i32); 5] =
        [(&no_redis, 1), (&no_setting, 2), (&["serve", "--unknown"], 2), (&no_server, 1), (&["get"], 2)];
    for (arguments, code) in rows {
        assert_eq!(exit_code(arguments, closed(), full()), Some(code), "{arguments:?}, full");
        assert_eq!(exit_code(arguments, full(), closed()), Some(code), "{arguments:?}, closed");
    }
    assert_eq!(exit_code(&["config"], full(), closed()), Some(1));
    assert_eq!(exit_code(&["config"], closed(), full()), Some(1));
    assert_eq!(exit_code(&["--help"], closed(), full()), Some(0));
}

#[tokio::test]
async fn command_with_unwritable_streams_does_not_panic() {
    let world = World::dedicated();
    let process = Process::start(&[format!("--redis={}", world.redis.url())]);
    let endpoint = format!("--endpoint=http://{}", process.address);
    let create = ["create", "--namespace", NAMESPACE, &endpoint];
    let run = async |stdout: OwnedFd, stderr: OwnedFd| {
        let create = create.map(str::to_owned);
        let run = move || exit_code(&create.each_ref().map(|word| &word[..]), stdout, stderr);
        harness::servers::run_blocking(run).await
    };
    assert_eq!(run(File::create("/dev/null").unwrap().into(), full().into()).await, Some(0));
    assert_eq!(run(closed().into(), closed().into()).await, Some(1));
    assert_eq!(run(full().into(), closed().into()).await, Some(1));
}
