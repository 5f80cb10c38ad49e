//! Instances of sessiond with one store: one takes the writes, the measured ones only take in the log.

use std::path::{Path, PathBuf};

use harness::{ConfigFile, Redis, client::id_of, process::Process};
use tokio::runtime::Runtime;

use crate::support::{
    load,
    measure::{Target, start_redis},
    requests::{CONFIGURATION, QUIET, Sessions},
    sessiond,
};

use super::writer;

/// A Redis, and the instance that executes the writes.
pub struct Instances {
    pub writing: Process,
    pub redis: Redis,
    program: PathBuf,
    config: ConfigFile,
}

impl Instances {
    /// Starts Redis and the writing instance. `limits` are added to the section `[limits]` of all instances.
    pub fn start(program: &Path, limits: &str) -> Self {
        let redis = start_redis();
        let config = ConfigFile::new(&format!("{CONFIGURATION}\n[limits]\nwatches = 200_000\n{limits}"));
        let writing = start(program, &redis, &config);
        Instances { writing, redis, program: program.to_owned(), config }
    }

    /// Starts an instance whose memory has nothing of what was written before.
    pub fn start_measured(&self) -> Process {
        start(&self.program, &self.redis, &self.config)
    }

    /// Returns the writing instance as a target of calls.
    pub fn target(&self) -> Target {
        Target::new(self.writing.pid(), self.writing.address.clone(), None)
    }

    /// Creates so many sessions, with ten attributes of 1 KiB together.
    pub fn create(&self, sessions: usize) -> Sessions {
        sessiond::create(&self.target(), QUIET, 1, sessions)
    }

    /// Creates a session of this subject; returns its id.
    pub fn create_for(&self, runtime: &Runtime, subject: &str) -> String {
        runtime.block_on(async {
            let mut client = load::connect(&self.writing.address).await.swap_remove(0);
            let created = client.create_session(writer::create_request(subject)).await.expect("the session is created");
            created.into_inner().session.expect("the response has the session").id
        })
    }
}

fn start(program: &Path, redis: &Redis, config: &ConfigFile) -> Process {
    Process::start_program(program, &[format!("--redis={}", redis.url()), config.flag()])
}

/// Returns the ids of the sessions of these tokens.
pub fn ids(sessions: &Sessions) -> Vec<String> {
    sessions.iter().map(|token| id_of(std::str::from_utf8(token).expect("a token is ASCII"))).collect()
}
