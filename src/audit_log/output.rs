//! Where the lines go: a file that is opened again when it was moved or deleted, or standard error.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

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
        Ok(Output::File { path: path.to_owned(), file, identity: (metadata.dev(), metadata.ino()) })
    }

    /// Opens the file again if its path names another one, or none. Returns whether it did.
    pub(super) fn reopen_if_moved(&mut self) -> io::Result<bool> {
        let Output::File { path, identity, .. } = self else { return Ok(false) };
        if std::fs::metadata(&*path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == *identity) {
            return Ok(false);
        }
        *self = Output::open(&path.clone())?;
        Ok(true)
    }

    /// Writes some of the bytes; returns how many.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stderr => io::stderr().write(bytes),
            Output::File { file, .. } => file.write(bytes),
        }
    }
}
