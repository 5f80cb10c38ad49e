//! Parses the command line, runs the server or a client command, and returns the exit code.

#![warn(clippy::print_stderr, clippy::print_stdout)]
#![expect(clippy::disallowed_macros, reason = "each line is logged once per process")]

use std::{process::ExitCode, sync::Arc};

use clap::{Parser, Subcommand};
use sessiond::{
    cli,
    config::{Config, Flags},
    observe, server,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stores login sessions in Redis for services written in any language, and streams every change to watchers.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves sessiond.v1.SessionService.
    Serve(Flags),
    /// Prints the effective configuration, secrets masked.
    Config(Flags),
    #[command(flatten)]
    Client(cli::Command),
}

// `server::run` runs on the main thread: the embedded Redis is stopped when the thread that started it ends.
fn main() -> ExitCode {
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::print_error(&format!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    // The lookup of a name may take long: the end does not wait for it.
    runtime.shutdown_background();
    code
}

async fn run() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => return cli::report_usage(&error, std::env::args_os()),
    };
    match command_line.command {
        Command::Serve(flags) => {
            // Before the first secret is read.
            if let Err(error) = server::forbid_memory_dumps() {
                cli::print_error(&format!("cannot forbid dumps of the memory: {error}"));
                return ExitCode::FAILURE;
            }
            match load(&flags) {
                Ok(config) => serve(config).await,
                Err(code) => code,
            }
        }
        Command::Config(flags) => match load(&flags) {
            Ok(config) => cli::print(config.to_toml().trim_end()),
            Err(code) => code,
        },
        Command::Client(command) => cli::run(command).await,
    }
}

fn load(flags: &Flags) -> Result<Config, ExitCode> {
    Config::load(flags).map_err(|problems| {
        cli::print_error(&format!("invalid configuration:\n{problems}"));
        ExitCode::from(2)
    })
}

async fn serve(config: Config) -> ExitCode {
    let _log = match observe::start_logs(config.log_format, &config.log_level) {
        Ok(log) => log,
        Err(problem) => {
            cli::print_error(&problem);
            return ExitCode::from(2);
        }
    };
    let (shutdown, reload) = (CancellationToken::new(), Arc::new(Notify::new()));
    let mut running = std::pin::pin!(async {
        let listeners = server::Listeners::bind(&config).await?;
        server::run(config, listeners, shutdown.clone(), reload.clone()).await
    });
    let install =
        || Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?));
    let (mut terminate, mut interrupt, mut hangup) = match install() {
        Ok(signals) => signals,
        Err::<_, std::io::Error>(error) => {
            tracing::error!(%error, "cannot install signal handlers");
            return ExitCode::FAILURE;
        }
    };
    loop {
        tokio::select! {
            ended = &mut running => return match ended {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(%error, "server failed");
                    ExitCode::FAILURE
                }
            },
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {
                tracing::info!("SIGHUP received; reloading changed files with credentials; other settings need a restart");
                reload.notify_one();
                continue;
            }
        }
        if shutdown.is_cancelled() {
            // The second signal: exit without waiting for the drain.
            return ExitCode::FAILURE;
        }
        shutdown.cancel();
    }
}
