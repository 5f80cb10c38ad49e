//! Tokens: read from a file or standard input, and never printed in an error.

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

/// How to pass a token, as a part of error texts.
pub(super) const USAGE: &str = "pass tokens with --token-file PATH, or on standard input with --token-file -, \
    never on the command line";
const STANDARD_INPUT: &str = "-";
/// Prefix of tokens in the server's form.
const TOKEN_PREFIX: &str = "ses_";
/// Maximum length of the first line, in bytes: more than a token and a line ending need.
const MAX_LINE: usize = 1_024;

/// Returns the first line of the file; `-` is standard input.
///
/// Errors contain the flag but not the path, because the path may be a token in the wrong place.
pub(super) fn read(flag: &str, path: &Path) -> Result<Zeroizing<String>, Failure> {
    let line = open(path).and_then(first_line).map_err(|error| Failure::Usage(format!("{flag}: {error}")))?;
    if line.is_empty() {
        return Err(Failure::Usage(format!("{flag}: the first line is empty")));
    }
    let text =
        std::str::from_utf8(&line).map_err(|_| Failure::Usage(format!("{flag}: the first line is not UTF-8")))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Returns whether the path is `-`.
pub(super) fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == STANDARD_INPUT
}

fn open(path: &Path) -> io::Result<File> {
    if is_standard_input(path) {
        // Not `io::stdin()` itself: its buffer would keep a copy of the token.
        return Ok(io::stdin().as_fd().try_clone_to_owned()?.into());
    }
    File::open(path)
}

/// Returns the first line without its ending. The buffer has its final size from the start, because growing it would leave
/// copies of the token in freed memory.
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

/// Returns whether clap's text of this error may contain a token.
pub(super) fn may_contain_token(error: &clap::Error, mut arguments: impl Iterator<Item = OsString>) -> bool {
    let is_stray = error.kind() == ErrorKind::UnknownArgument
        && matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(text)) if !text.starts_with('-'));
    error.use_stderr() && (is_stray || arguments.any(|argument| looks_like_token(&argument.to_string_lossy())))
}

fn looks_like_token(argument: &str) -> bool {
    argument.starts_with(TOKEN_PREFIX) || argument.contains("=ses_")
}
