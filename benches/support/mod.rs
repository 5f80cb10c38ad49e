//! Shared code of the benchmarks: servers, load, measurements and tables.

#![allow(dead_code, reason = "each benchmark uses only a part")]

pub mod attack;
pub mod baseline;
pub mod content;
pub mod cpu;
pub mod figures;
pub mod frames;
pub mod generator;
pub mod keyspace;
pub mod load;
pub mod measure;
pub mod memory;
pub mod recorder;
pub mod replay;
pub mod report;
pub mod requests;
pub mod sessiond;
pub mod watch;

use harness::Redis;

/// Settings of the embedded Redis.
pub const SETTINGS: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "everysec", "--notify-keyspace-events", "Egxe"];

/// Starts a Redis with the settings of the embedded one.
pub fn start_redis() -> Redis {
    Redis::start_with(&SETTINGS)
}
