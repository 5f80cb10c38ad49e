//! Reads the configuration, runs the server, turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser;
use sessiond::{
    config::{Command, CommandLine, Config},
    observe, server,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// The main thread runs the server: what it starts is told when that thread ends.
#[tokio::main]
async fn main() -> ExitCode {
    let line = CommandLine::parse();
    let config = match Config::load(&line) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("the configuration has problems:\n{problems}");
            return ExitCode::from(2);
        }
    };
    match line.command {
        Command::Config(_) => {
            print!("{}", config.to_toml());
            ExitCode::SUCCESS
        }
        Command::Serve(_) => serve(config).await,
    }
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
