//! Reads the files with credentials: size and kind are checked before their content.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Maximum size of a file in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A file with credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct UnusableFile {
    /// Path of the file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl UnusableFile {
    pub(super) fn new(path: &Path, problem: impl ToString) -> Self {
        UnusableFile { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// Reads a regular file of at most [`MAX_FILE_BYTES`].
pub(super) fn read(path: &Path) -> Result<Vec<u8>, UnusableFile> {
    let read = || {
        // Not opened before it is known to be a regular file: the opening of a pipe waits for its writer.
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        // Large enough from the start: a growing one would leave copies of a secret in memory.
        let capacity = usize::try_from(metadata.len().min(MAX_FILE_BYTES)).unwrap_or(0) + 1;
        let mut content = Vec::with_capacity(capacity);
        File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other(format!("is larger than {} MiB", MAX_FILE_BYTES >> 20)));
        }
        Ok(content)
    };
    read().map_err(|error| UnusableFile::new(path, error))
}
