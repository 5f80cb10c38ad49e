//! Reads the command line, runs the server or a client's call, turns its end into an exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sessiond::{
    cli,
    config::{Config, Flags},
    observe, server,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps login sessions in Redis for services written in any language, and tells every change to whoever watches.
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

// The main thread runs the server: what it starts is told when that thread ends.
#[tokio::main]
async fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return cli::refuse(&error, std::env::args_os()),
    };
    match line.command {
        Command::Serve(flags) => match load(&flags) {
            Ok(config) => serve(config).await,
            Err(code) => code,
        },
        Command::Config(flags) => match load(&flags) {
            Ok(config) => {
                print!("{}", config.to_toml());
                ExitCode::SUCCESS
            }
            Err(code) => code,
        },
        Command::Client(command) => cli::run(command).await,
    }
}

fn load(flags: &Flags) -> Result<Config, ExitCode> {
    Config::load(flags).map_err(|problems| {
        eprintln!("the configuration has problems:\n{problems}");
        ExitCode::from(2)
    })
}

async fn serve(config: Config) -> ExitCode {
    if let Err(problem) = observe::start_logs(config.log_format, &config.log_level) {
        eprintln!("{problem}");
        return ExitCode::from(2);
    }
    let shutdown = CancellationToken::new();
    let mut running = std::pin::pin!(async {
        let listeners = server::Listeners::bind(&config).await?;
        server::run(config, listeners, shutdown.clone()).await
    });
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("signals cannot be received: {error}");
            return ExitCode::FAILURE;
        }
    };
    loop {
        tokio::select! {
            ended = &mut running => return match ended {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(%error, "stopped");
                    ExitCode::FAILURE
                }
            },
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            // A second signal does not wait for the drain.
            return ExitCode::FAILURE;
        }
        shutdown.cancel();
    }
}
