//! Where answers go: standard output, as a table or as JSON.

use std::io::{self, Write};

use clap::ValueEnum;
use prost::Message;

use super::{failure::Failure, json};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// Canonical proto3 JSON, one response a line.
    Json,
}

impl Format {
    /// Prints the response: its JSON by its message's name, or the lines that are made of it.
    pub fn print<M: Message>(
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

pub fn print(lines: &[String]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    for line in lines {
        writeln!(output, "{line}")?;
    }
    Ok(output.flush()?)
}
