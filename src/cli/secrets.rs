//! Tokens: read from a file or standard input, and kept out of everything that is printed.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    path::Path,
};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use zeroize::Zeroizing;

use super::failure::Failure;

/// How a token is handed over.
pub const HOW: &str =
    "tokens are read from --token-file PATH, or from standard input with --token-file -, never from the command line";
const STANDARD_INPUT: &str = "-";
const SERVER_FORM: &str = "ses_";
/// Longer than any token, and a line's end.
const MAX_LINE: usize = 1_024;

/// The first line of the file that this flag names, `-` = of standard input.
///
/// Errors name the flag and not the path, which may be a token in the wrong place.
pub fn read(flag: &str, path: &Path) -> Result<Zeroizing<String>, Failure> {
    let line = open(path).and_then(first_line).map_err(|error| Failure::Usage(format!("{flag}: {error}")))?;
    if line.is_empty() {
        return Err(Failure::Usage(format!("{flag}: the first line is empty")));
    }
    let text =
        std::str::from_utf8(&line).map_err(|_| Failure::Usage(format!("{flag}: the first line is not UTF-8")))?;
    Ok(Zeroizing::new(text.to_owned()))
}

pub fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == STANDARD_INPUT
}

fn open(path: &Path) -> io::Result<File> {
    if is_standard_input(path) {
        // The descriptor itself: the standard library's buffer would keep what went through it.
        return Ok(io::stdin().as_fd().try_clone_to_owned()?.into());
    }
    File::open(path)
}

/// Without its end. Read byte by byte into one buffer that never grows, so that no copy of it stays anywhere.
fn first_line(mut file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE));
    let mut byte = Zeroizing::new([0]);
    while file.read(&mut byte[..])? == 1 && byte[0] != b'\n' {
        if line.len() == MAX_LINE {
            return Err(io::Error::other("the first line is too long for a token"));
        }
        line.push(byte[0]);
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

/// Whether the text that clap made for this error may have a token in it.
pub fn would_repeat_one(error: &clap::Error, mut arguments: impl Iterator<Item = OsString>) -> bool {
    let is_stray = error.kind() == ErrorKind::UnknownArgument
        && matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(text)) if !text.starts_with('-'));
    error.use_stderr() && (is_stray || arguments.any(|argument| looks_like_one(&argument.to_string_lossy())))
}

fn looks_like_one(argument: &str) -> bool {
    argument.starts_with(SERVER_FORM) || argument.contains("=ses_")
}
