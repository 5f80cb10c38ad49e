//! The service's client on the command line: `sessiond create`, `get`, `watch` and so on.
//!
//! It speaks to a server over gRPC, by the stubs that every Rust program uses. Tokens come from files or standard input,
//! never from the command line, where every process of the machine may read them.

mod arguments;
mod connection;
mod detail;
mod endings;
mod failure;
mod json;
mod listing;
mod output;
mod rotation;
mod secrets;
mod sessions;
mod table;
mod watching;

use std::{ffi::OsString, process::ExitCode};

use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// Makes a session, and prints it with its token.
    Create(sessions::Create),
    /// Prints a session.
    Get(sessions::Get),
    /// Prints the live sessions of a namespace or of a subject.
    List(listing::List),
    /// Prints every change as it happens, across reconnects, until it is interrupted.
    Watch(watching::Watch),
    /// Changes parts of a session, and prints it.
    Update(sessions::Update),
    /// Counts as a use of a session, and prints its new deadline.
    Touch(sessions::Touch),
    /// Gives a session a new token, and prints both.
    Rotate(rotation::Rotate),
    /// Ends sessions, and prints how many there were.
    Delete(endings::Delete),
}

/// Runs the command. Exit codes: 0 = done, 1 = the call failed, 2 = bad usage, and nothing was sent.
pub async fn run(command: Command) -> ExitCode {
    let ended = match command {
        Command::Create(create) => create.run().await,
        Command::Get(get) => get.run().await,
        Command::List(list) => list.run().await,
        Command::Watch(watch) => watch.run().await,
        Command::Update(update) => update.run().await,
        Command::Touch(touch) => touch.run().await,
        Command::Rotate(rotate) => rotate.run().await,
        Command::Delete(delete) => delete.run().await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                eprintln!("{text}");
            }
            failure.exit_code()
        }
    }
}

/// Says why the command line cannot be read (or prints the help that it asks for), and answers the exit code.
pub fn refuse(error: &clap::Error, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if secrets::would_repeat_one(error, arguments) {
        eprintln!("an argument is not expected here, and is not repeated: it may be a token; {}", secrets::HOW);
        return ExitCode::from(2);
    }
    // Nobody is left to be told that nobody reads.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}
