//! What the benchmarks share: servers and clients of the tests' harness, readings of CPU time, figures.

#![allow(dead_code, reason = "every benchmark uses a part of it")]

pub mod baseline;
pub mod content;
pub mod cpu;
pub mod figures;
#[path = "../../tests/harness/mod.rs"]
pub mod harness;
pub mod keyspace;
pub mod load;
pub mod memory;

use harness::Redis;

/// A Redis set up as the embedded one.
pub fn start_redis() -> Redis {
    Redis::start_with(&["--appendonly", "yes", "--appendfsync", "everysec", "--hash-max-listpack-value", "1024"])
}
