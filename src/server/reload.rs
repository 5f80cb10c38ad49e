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
use crate::{
    audit_log::{AuditLog, Event, Outcome, Target},
    observe::Metrics,
    tasks::run_blocking,
};

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

/// A set of files that was read once.
pub(super) struct Loaded<L> {
    files: Vec<NamedFile>,
    load: L,
    state: Vec<FileState>,
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

/// State of all files. It is taken before they are read: a change during the reading is found by the next check.
fn states(files: &[NamedFile]) -> Vec<FileState> {
    files.iter().map(FileState::of).collect()
}

impl<L> Loaded<L> {
    /// Reads the files for the first time.
    pub(super) fn read<T>(files: Vec<NamedFile>, mut load: L) -> Result<(T, Self), UnusableFile>
    where
        L: FnMut() -> Result<T, UnusableFile>,
    {
        let state = states(&files);
        Ok((load()?, Loaded { files, load, state }))
    }

    /// Returns the set, which passes what it reads later to `apply`.
    pub(super) fn on_change<T>(self, mut apply: impl FnMut(T) + Send + 'static) -> FileSet
    where
        L: FnMut() -> Result<T, UnusableFile> + Send + 'static,
    {
        let Loaded { files, mut load, state } = self;
        FileSet { files, apply: Box::new(move || load().map(&mut apply)), state, problem: None }
    }
}

impl FileSet {
    /// Reads the files again if one has changed, or if the last reading failed.
    fn check(&mut self, metrics: &Metrics, audit_log: &AuditLog) {
        let state = states(&self.files);
        if self.problem.is_none() && state == self.state {
            return;
        }
        self.state = state;
        let files = self.files.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        match (self.apply)() {
            Ok(()) => {
                self.problem = None;
                tracing::info!(files, "credentials reloaded");
                note(audit_log, files, Outcome::Ok, None);
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
                    note(audit_log, files, Outcome::Failed, Some(problem.clone()));
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

/// Writes a line about a reload of these files into the audit log.
fn note(audit_log: &AuditLog, files: String, outcome: Outcome, reason: Option<String>) {
    let target = Target { method: Some("reload"), files: Some(files), ..Target::default() };
    audit_log.note(Event::PrivilegePermissionsChanged, target, outcome, reason);
}

/// Checks all files every [`POLL_INTERVAL`], and at once when `now` is notified. Never returns.
pub(super) async fn run(mut sets: Vec<FileSet>, now: Arc<Notify>, metrics: Arc<Metrics>, audit_log: Arc<AuditLog>) {
    sets.iter().for_each(|set| set.note_success(&metrics));
    loop {
        tokio::select! {
            () = sleep(POLL_INTERVAL) => {}
            () = now.notified() => {}
        }
        let (metrics, audit_log) = (metrics.clone(), audit_log.clone());
        sets = run_blocking(move || {
            sets.iter_mut().for_each(|set| set.check(&metrics, &audit_log));
            sets
        })
        .await;
    }
}
