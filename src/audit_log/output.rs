//! Where the lines go: a file that is opened again when it was moved or deleted, or standard error.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::observe::write_to_stderr;

/// Name of standard error in the configuration.
const STDERR: &str = "stderr";
/// Permissions of a new file: its owner reads and writes it.
const MODE: u32 = 0o600;

/// Output of the log.
pub(super) enum Output {
    /// Standard error of the process.
    Stderr,
    /// A regular file.
    File {
        /// Path in the configuration.
        path: PathBuf,
        /// File that is open.
        file: File,
        /// Device and inode of the open file.
        identity: (u64, u64),
        /// Size of the file after the last write.
        size: u64,
    },
}

impl Output {
    /// Opens the output that the configuration names.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == STDERR {
            return Ok(Output::Stderr);
        }
        // Without waiting: a pipe without a reader would stop the server.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(MODE).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("is not a regular file; stderr is standard error"));
        }
        let identity = (metadata.dev(), metadata.ino());
        Ok(Output::File { path: path.to_owned(), file, identity, size: metadata.len() })
    }

    /// Opens the file again if its path names another one, or none. Returns whether the end of the file is no longer what was
    /// written last: it was opened again, or truncated.
    pub(super) fn is_new(&mut self) -> io::Result<bool> {
        let Output::File { path, identity, size, .. } = self else { return Ok(false) };
        match std::fs::metadata(&*path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == *identity => {
                let is_truncated = metadata.len() < *size;
                *size = metadata.len();
                Ok(is_truncated)
            }
            Ok(_) | Err(_) => {
                *self = Output::open(&path.clone())?;
                Ok(true)
            }
        }
    }

    /// Writes some of the bytes, to standard error all of them; returns how many.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stderr => {
                // Locked, so that the lines of the log are not between them.
                write_to_stderr(&mut io::stderr().lock(), bytes)?;
                Ok(bytes.len())
            }
            Output::File { file, size, .. } => {
                let written = file.write(bytes)?;
                *size += written as u64;
                Ok(written)
            }
        }
    }
}
