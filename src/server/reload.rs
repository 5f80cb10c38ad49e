//! Reloads the files with credentials while the server runs: polls them, because notifications of the file system miss the
//! exchange of a symbolic link, and reads all files of a set when one has changed.

use std::{
    fs::Metadata,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time::sleep};

use super::file::UnusableFile;
use crate::{observe::Metrics, tasks::run_blocking};

/// Time between two checks of all files.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// A file, and its name in log lines and metrics: that of its setting.
pub(super) type NamedFile = (&'static str, PathBuf);

/// Files that are read together. Their content replaces the one before as a whole, or not at all.
pub(super) struct FileSet {
    files: Vec<NamedFile>,
    /// Reads the files, and puts their content into force if all of it can be used.
    apply: Box<dyn FnMut() -> Result<(), UnusableFile> + Send>,
    /// State of the files before they were last read.
    state: Vec<FileState>,
    /// Last problem that was logged. None: the files in force are the last ones.
    problem: Option<String>,
}

/// What identifies the content of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FileState {
    Present { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
    Absent(ErrorKind),
}

impl FileState {
    /// State of the file at the end of all symbolic links.
    fn of(file: &NamedFile) -> Self {
        let state = |metadata: Metadata| FileState::Present {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        std::fs::metadata(&file.1).map_or_else(|error| FileState::Absent(error.kind()), state)
    }
}

impl FileSet {
    /// Reads the files and puts their content into force.
    pub(super) fn load(
        files: Vec<NamedFile>,
        apply: impl FnMut() -> Result<(), UnusableFile> + Send + 'static,
    ) -> Result<Self, UnusableFile> {
        let mut set = FileSet { files, apply: Box::new(apply), state: Vec::new(), problem: None };
        set.read()?;
        Ok(set)
    }

    /// Reads the files again.
    fn read(&mut self) -> Result<(), UnusableFile> {
        // The state from before: a change during the reading is found by the next check.
        self.state = self.files.iter().map(FileState::of).collect();
        (self.apply)()
    }

    /// Reads the files again if one has changed, or if the last reading failed.
    fn check(&mut self, metrics: &Metrics) {
        let state = self.files.iter().map(FileState::of);
        if self.problem.is_none() && state.eq(self.state.iter().cloned()) {
            return;
        }
        let files = self.files.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        match self.read() {
            Ok(()) => {
                self.problem = None;
                tracing::info!(files, "credentials reloaded");
                self.note_success(metrics);
            }
            Err(error) => {
                let failed = self.files.iter().find(|(_, path)| *path == error.path);
                metrics.network.note_failed_reload(failed.map_or("unknown", |(name, _)| name));
                let problem = error.to_string();
                if self.problem.as_ref() != Some(&problem) {
                    crate::observe::error!(
                        files,
                        problem,
                        "cannot reload credentials; the ones from before stay in force"
                    );
                    self.problem = Some(problem);
                }
            }
        }
    }

    /// Notes in the metrics that the content of all files is in force.
    fn note_success(&self, metrics: &Metrics) {
        let now = SystemTime::now();
        self.files.iter().for_each(|(name, _)| metrics.network.note_reload(name, now));
    }
}

/// Checks all files every [`POLL_INTERVAL`], and at once when `now` is notified. Never returns.
pub(super) async fn run(mut sets: Vec<FileSet>, now: Arc<Notify>, metrics: Arc<Metrics>) {
    sets.iter().for_each(|set| set.note_success(&metrics));
    loop {
        tokio::select! {
            () = sleep(POLL_INTERVAL) => {}
            () = now.notified() => {}
        }
        let metrics = metrics.clone();
        sets = run_blocking(move || {
            sets.iter_mut().for_each(|set| set.check(&metrics));
            sets
        })
        .await;
    }
}
