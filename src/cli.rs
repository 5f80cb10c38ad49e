//! Command-line client: `sessiond create`, `get`, `list`, `watch`, `update`, `touch`, `rotate`, `delete`; and `api-key`.
//!
//! It calls any server over gRPC, with the generated stubs that every Rust client uses. Tokens are read from a file or from
//! standard input, never from the command line, because every process of the machine can read command lines.

mod api_key;
mod arguments;
mod connection;
mod create;
mod delete;
mod failure;
mod fields;
mod get;
mod json;
mod list;
mod output;
mod rotate;
mod table;
mod token_file;
mod touch;
mod update;
mod watch;

use std::{ffi::OsString, process::ExitCode};

use clap::Subcommand;

use failure::Failure;
pub use output::print_error;

/// One command of the client, with its arguments.
#[derive(Subcommand)]
pub enum Command {
    /// Creates a session and prints it with its token.
    Create(create::Create),
    /// Prints a session.
    Get(get::Get),
    /// Prints the live sessions of a namespace or of a subject.
    List(list::List),
    /// Prints every change as it happens, reconnecting as needed, until interrupted.
    Watch(watch::Watch),
    /// Changes parts of a session and prints it.
    Update(update::Update),
    /// Extends the idle deadline of a session and prints the new deadline.
    Touch(touch::Touch),
    /// Replaces the token of a session and prints the session with the new token.
    Rotate(rotate::Rotate),
    /// Ends sessions and prints their number.
    Delete(delete::Delete),
    /// Generates keys for the callers of a server.
    #[command(subcommand)]
    ApiKey(api_key::Command),
}

/// Runs the command. Exit codes: 0 = success, 1 = the call failed, 2 = wrong usage and nothing was sent.
pub async fn run(command: Command) -> ExitCode {
    let result = match command {
        Command::Create(create) => create.run().await,
        Command::Get(get) => get.run().await,
        Command::List(list) => list.run().await,
        Command::Watch(watch) => watch.run().await,
        Command::Update(update) => update.run().await,
        Command::Touch(touch) => touch.run().await,
        Command::Rotate(rotate) => rotate.run().await,
        Command::Delete(delete) => delete.run().await,
        Command::ApiKey(command) => command.run(),
    };
    report(result)
}

/// Prints the text to standard output and returns the exit code.
pub fn print(text: &str) -> ExitCode {
    report(output::print(&[text.to_owned()]))
}

/// Prints the failure, if any, and returns the exit code.
fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                print_error(&text);
            }
            failure.exit_code()
        }
    }
}

/// Prints why the command line is wrong, or the help that it requests, and returns the exit code.
pub fn report_usage(error: &clap::Error, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if token_file::may_contain_token(error, arguments) {
        let usage = token_file::USAGE;
        print_error(&format!("unexpected argument (not shown, because it may be a token); {usage}"));
        return ExitCode::from(2);
    }
    // A failed write means that the reader closed the output: an error message would not be read either.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}
