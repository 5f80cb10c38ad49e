//! Output formats, and writing to standard output and standard error.

use std::io::{self, Write};

use clap::ValueEnum;
use prost::Message;

use super::{failure::Failure, json};

/// Output format of a command.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people.
    Table,
    /// Canonical proto3 JSON, one response per line.
    Json,
}

impl Format {
    /// Prints a response: as JSON of the message with this name, or the lines that `lines` makes of it.
    pub(super) fn print<M: Message>(
        self,
        name: &str,
        response: &M,
        lines: impl FnOnce(&M) -> Vec<String>,
    ) -> Result<(), Failure> {
        match self {
            Format::Table => print(&lines(response)),
            Format::Json => print(&[json::line(name, response)?]),
        }
    }
}

/// Writes the lines to standard output and flushes it.
pub(super) fn print(lines: &[String]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    for line in lines {
        writeln!(output, "{line}")?;
    }
    Ok(output.flush()?)
}

/// Writes the text and a line break to standard error. Ignores a failure, because no other place could report it.
pub fn print_error(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
