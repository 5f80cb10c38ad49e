//! Rolls back the history of a Redis, as a failover to a lagging replica does.

use std::path::PathBuf;

use super::{Redis, World};

const SNAPSHOT: &str = "saved.rdb";

impl World {
    /// Starts a Redis for this test only. It persists only the snapshots that the test takes.
    pub fn with_snapshots() -> Self {
        World::dedicated_with(&["--dbfilename", SNAPSHOT])
    }

    /// Kills Redis and starts it with its last snapshot. Later writes are lost.
    pub fn roll_back(&self) {
        self.redis.kill();
        self.redis.restart();
    }

    /// Takes a snapshot and returns it.
    pub fn save(&self) -> Vec<u8> {
        self.redis.must(&["SAVE"]);
        std::fs::read(self.snapshot_file()).unwrap()
    }

    /// Kills Redis and starts it with this snapshot.
    pub fn restore(&self, snapshot: &[u8]) {
        self.redis.kill();
        std::fs::write(self.snapshot_file(), snapshot).unwrap();
        self.redis.restart();
    }

    fn snapshot_file(&self) -> PathBuf {
        self.redis.socket().with_file_name(SNAPSHOT)
    }
}

impl Redis {
    /// Makes this server a replica of the primary and waits until it has caught up.
    pub fn replicate_from(&self, primary: &Redis) {
        self.must(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
        primary.wait_for(self);
    }

    /// Makes this server a primary.
    pub fn stop_replicating(&self) {
        self.must(&["REPLICAOF", "NO", "ONE"]);
    }
}
