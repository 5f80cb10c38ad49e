//! Shared code of the benchmarks: servers, load, measurements and tables.

#![allow(dead_code, reason = "each benchmark uses only a part")]

pub mod baseline;
pub mod content;
pub mod cpu;
pub mod figures;
pub mod keyspace;
pub mod load;
pub mod memory;

use harness::Redis;

/// Starts a Redis with the settings of the embedded one.
pub fn start_redis() -> Redis {
    Redis::start_with(&["--appendonly", "yes", "--appendfsync", "everysec", "--hash-max-listpack-value", "1024"])
}
