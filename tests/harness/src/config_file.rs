//! A configuration file for one server of a test.

use tempfile::TempDir;

/// A TOML file that is deleted when dropped. A server reads it only at its start.
pub struct ConfigFile(TempDir);

impl ConfigFile {
    /// Writes this configuration.
    pub fn new(toml: &str) -> Self {
        let file = ConfigFile(tempfile::tempdir().unwrap());
        std::fs::write(file.0.path().join("sessiond.toml"), toml).unwrap();
        file
    }

    /// Returns the flag that names the file.
    pub fn flag(&self) -> String {
        format!("--config={}", self.0.path().join("sessiond.toml").display())
    }
}
