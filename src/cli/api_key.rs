//! `sessiond api-key new`: generates an API key for a caller. It contacts no server and writes no file.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};

use super::{arguments::duration, failure::Failure, output};
use crate::auth::ApiKey;

/// Command for API keys.
#[derive(Subcommand)]
pub enum Command {
    /// Generates a key: prints the key, which is secret and shown only here, to standard output, and its block for callers.toml
    /// to standard error.
    New(New),
}

/// Arguments of `new`.
#[derive(Args)]
pub struct New {
    /// Name of the caller in callers.toml.
    #[arg(long, value_parser = caller)]
    caller: String,
    /// Time after which the key expires [default: it does not expire].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires: Option<Duration>,
}

impl Command {
    /// Runs the command.
    pub(super) fn run(self) -> Result<(), Failure> {
        let Command::New(New { caller, expires }) = self;
        let key = ApiKey::generate(getrandom::fill).map_err(|error| Failure::Output(io::Error::other(error)))?;
        let (id, hash) = key.id_and_hash();
        let expires = match expires {
            None => String::new(),
            Some(after) => {
                let at = SystemTime::now().checked_add(after);
                let at = at.ok_or_else(|| Failure::Usage("--expires: the duration is too long".to_owned()))?;
                format!("expires = {}\n", humantime::format_rfc3339_seconds(at))
            }
        };
        let block = format!("[[caller.{caller}.key]]\nid = \"{id}\"\nhash = \"{hash}\"\n{expires}");
        io::stderr().write_all(block.as_bytes())?;
        output::print(&[key.reveal().to_owned()])
    }
}

/// Parses the name of a caller.
fn caller(text: &str) -> Result<String, String> {
    let is_name = crate::session::is_label_name(text);
    if is_name { Ok(text.to_owned()) } else { Err("must match [a-z0-9]([-a-z0-9]{0,62})".to_owned()) }
}
