//! Flags, environment and TOML as one tree. A flag beats the environment, the environment beats the file.
//!
//! Flags and environment are laid over the file's table as texts; then everything is read once, by one reader, and all
//! problems are told together.

mod flags;
mod show;
mod table;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    observe::LogFormat,
    session::{Durability, Namespace, Policies, Policy, Preset, SessionLimitPolicy, TokenReuse},
};

pub use flags::Flags;
use table::Section;

/// Ceiling of `max_payload_bytes`.
const MAX_PAYLOAD: u64 = 1024 * 1024;
const KEEPALIVES: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60 * 60);
const TOMBSTONES: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 24 * 60 * 60);

/// The effective configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Port 0 picks one; the log line `listening` names it.
    pub listen: SocketAddr,
    pub metrics_listen: SocketAddr,
    /// None = the embedded one.
    pub redis: Option<String>,
    pub redis_password: Option<Secret>,
    pub key_prefix: String,
    /// Of the embedded Redis.
    pub data_dir: PathBuf,
    pub log_format: LogFormat,
    pub log_level: String,
    pub drain_timeout: Duration,
    /// Whether other addresses than loopback are served without TLS.
    pub insecure: bool,
    /// Whether a Redis that may evict keys is taken.
    pub allow_eviction: bool,
    pub policies: Policies,
    pub log_max_age: Duration,
    /// Of each partition.
    pub log_max_bytes: u64,
    /// Between two audits of the subjects' indexes.
    pub audit_interval: Duration,
    pub partitions: u16,
    pub limits: Limits,
}

/// What the process takes on at most.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub connections: usize,
    pub streams_per_connection: u32,
    pub watches: usize,
    /// Of a unary call without a deadline, or with a longer one.
    pub call_timeout: Duration,
    /// How long a watcher may read nothing.
    pub slow_consumer_timeout: Duration,
    /// Changes kept for watchers that are a little behind; beyond it they read the log.
    pub ring_slots: usize,
    /// Messages of a server's channels that may wait; what is lost beyond is read from the log.
    pub feed_buffer: usize,
    /// How often each connection's peer is asked whether it is still there.
    pub keepalive_interval: Duration,
    /// A peer that has not answered by then is dropped.
    pub keepalive_timeout: Duration,
}

/// A text that is not shown.
#[derive(Clone)]
pub struct Secret(String);

impl std::ops::Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("****")
    }
}

/// Everything that is wrong with the configuration, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(pub Vec<String>);

impl Config {
    /// Reads the file, lays flags and environment over it, and checks the whole.
    pub fn load(flags: &Flags) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let table = flags.table().unwrap_or_else(|problem| {
            problems.push(problem);
            toml::Table::new()
        });
        let config = read(table, flags.redis_password(), &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }
}

fn read(table: toml::Table, password: Option<String>, problems: &mut Vec<String>) -> Config {
    let mut top = Section::new("", table, problems);
    let insecure = top.boolean("insecure").unwrap_or(false);
    let listen = top.address("listen").unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 50051)));
    if !listen.ip().is_loopback() && !insecure {
        top.problem("listen", "is not a loopback address; without TLS that needs --insecure");
    }
    let redis = top.text("redis");
    if let Some(redis) = &redis {
        check_redis(redis, &mut top);
    }
    if top.text("grpc_web_origins").is_some_and(|origins| !origins.is_empty()) {
        top.problem("grpc_web_origins", "gRPC-Web is not available in this version");
    }
    let log_format = top.choice("log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let partitions = top.integer("partitions", 1..=64).unwrap_or(16) as u16;
    if !partitions.is_power_of_two() {
        top.problem("partitions", "must be a power of two");
    }
    let default = policy(top.section("default_policy"), &Policy::default());
    let mut policies = Policies { default, ..Policies::default() };
    for (name, table) in top.sections("namespace") {
        let mut section = top.within(&format!("namespace.{name}"), table);
        match name.parse::<Namespace>() {
            Ok(namespace) => {
                let policy = policy(section, &policies.default);
                policies.listed.insert(namespace, policy);
            }
            Err(_) => section.problem("", "a namespace must match [a-z0-9]([-a-z0-9]{0,62})"),
        }
    }
    policies.only_listed = !top.boolean("allow_unlisted_namespaces").unwrap_or(true);
    let config = Config {
        listen,
        metrics_listen: top.address("metrics_listen").unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9464))),
        redis,
        redis_password: password.map(Secret),
        key_prefix: top.text("key_prefix").unwrap_or_else(|| "sessiond:".into()),
        data_dir: top.text("data_dir").map_or_else(|| "sessiond-data".into(), PathBuf::from),
        log_format: log_format.unwrap_or(LogFormat::Text),
        log_level: top.text("log_level").unwrap_or_else(|| "info".into()),
        drain_timeout: top.duration("drain_timeout").unwrap_or(Duration::from_secs(10)),
        insecure,
        allow_eviction: top.boolean("allow_eviction").unwrap_or(false),
        policies,
        log_max_age: top.duration("log_max_age").unwrap_or(Duration::from_secs(15 * 60)),
        log_max_bytes: top.bytes("log_max_bytes", 64 * 1024..=u64::MAX >> 11).unwrap_or(64 * 1024 * 1024),
        audit_interval: top.duration("audit_interval").unwrap_or(Duration::from_secs(10 * 60)),
        partitions,
        limits: limits(top.section("limits")),
    };
    if config.key_prefix.contains(['{', '}']) || config.key_prefix.len() > 64 {
        top.problem("key_prefix", "must be at most 64 bytes without braces");
    }
    if config.audit_interval < Duration::from_secs(1) {
        top.problem("audit_interval", "must be at least 1s");
    }
    top.finish();
    config
}

fn check_redis(redis: &str, top: &mut Section<'_>) {
    const SCHEMES: [&str; 7] =
        ["redis", "rediss", "redis+unix", "redis-cluster", "rediss-cluster", "redis-sentinel", "rediss-sentinel"];
    if !redis.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme)) {
        top.problem(
            "redis",
            "must begin with redis://, rediss://, redis+unix://, redis-cluster:// or redis-sentinel://",
        );
    }
}

fn limits(mut section: Section<'_>) -> Limits {
    let limits = Limits {
        connections: section.integer("connections", 1..=1_000_000).unwrap_or(10_000) as usize,
        streams_per_connection: section.integer("streams_per_connection", 1..=100_000).unwrap_or(1_000) as u32,
        watches: section.integer("watches", 1..=1_000_000).unwrap_or(10_000) as usize,
        call_timeout: section.duration("call_timeout").unwrap_or(Duration::from_secs(10)),
        slow_consumer_timeout: section.duration("slow_consumer_timeout").unwrap_or(Duration::from_secs(60)),
        ring_slots: section.integer("ring_slots", 1..=1_000_000).unwrap_or(65_536) as usize,
        feed_buffer: section.integer("feed_buffer", 1..=1_000_000).unwrap_or(8_192) as usize,
        keepalive_interval: section.duration("keepalive_interval").unwrap_or(Duration::from_secs(15)),
        keepalive_timeout: section.duration("keepalive_timeout").unwrap_or(Duration::from_secs(10)),
    };
    if limits.slow_consumer_timeout < Duration::from_secs(1) {
        section.problem("slow_consumer_timeout", "must be at least 1s");
    }
    if limits.call_timeout > Duration::from_secs(10) {
        section.problem("call_timeout", "must be at most 10s");
    }
    for (key, time) in
        [("keepalive_interval", limits.keepalive_interval), ("keepalive_timeout", limits.keepalive_timeout)]
    {
        if !KEEPALIVES.contains(&time) {
            section.problem(key, "must be 100ms to 1h");
        }
    }
    section.finish();
    limits
}

/// A section begins with its preset's values, else with those of the default policy.
fn policy(mut section: Section<'_>, default: &Policy) -> Policy {
    const REUSES: [(&str, TokenReuse); 2] = [("end", TokenReuse::End), ("report", TokenReuse::Report)];
    const LIMITS: [(&str, SessionLimitPolicy); 2] =
        [("replace-oldest", SessionLimitPolicy::ReplaceOldest), ("reject", SessionLimitPolicy::Reject)];
    const DURABILITIES: [(&str, Durability); 2] =
        [("local", Durability::Local), ("replicated", Durability::Replicated)];
    let s = &mut section;
    let preset = s.choice("preset", &Preset::NAMED);
    let default = &preset.map_or_else(|| default.clone(), |preset| preset.over(default));
    let tombstone = s.duration("tombstone").unwrap_or(default.tombstone);
    let policy = Policy {
        preset,
        idle_timeout: s.timeout("idle_timeout").unwrap_or(default.idle_timeout),
        max_idle_timeout: s.timeout("max_idle_timeout").unwrap_or(default.max_idle_timeout),
        absolute_timeout: s.timeout("absolute_timeout").unwrap_or(default.absolute_timeout),
        max_absolute_timeout: s.timeout("max_absolute_timeout").unwrap_or(default.max_absolute_timeout),
        renewal_timeout: s.timeout("renewal_timeout").unwrap_or(default.renewal_timeout),
        touch_interval: s.duration("touch_interval").or(default.touch_interval),
        tombstone,
        retry_window: s.duration("retry_window").unwrap_or(default.retry_window.min(tombstone)),
        rotation_grace: s.duration("rotation_grace").unwrap_or(default.rotation_grace),
        token_reuse: s.choice("token_reuse", &REUSES).unwrap_or(default.token_reuse),
        client_tokens: s.boolean("client_tokens").unwrap_or(default.client_tokens),
        session_limit: s.integer("session_limit", 0..=1_000).map_or(default.session_limit, |limit| limit as u32),
        session_limit_policy: s.choice("session_limit_policy", &LIMITS).unwrap_or(default.session_limit_policy),
        durability: s.choice("durability", &DURABILITIES).unwrap_or(default.durability),
        replicas: s.integer("replicas", 1..=16).map_or(default.replicas, |replicas| replicas as u32),
        max_payload_bytes: s
            .bytes("max_payload_bytes", 1..=MAX_PAYLOAD)
            .map_or(default.max_payload_bytes, |b| b as usize),
        max_attributes: s.integer("max_attributes", 1..=1_024).map_or(default.max_attributes, |count| count as usize),
    };
    check_policy(&policy, s);
    section.finish();
    policy
}

fn check_policy(policy: &Policy, section: &mut Section<'_>) {
    let never = Duration::MAX;
    if policy.idle_timeout.unwrap_or(never) > policy.max_idle_timeout.unwrap_or(never) {
        section.problem("idle_timeout", "must be at most max_idle_timeout");
    }
    if policy.absolute_timeout.unwrap_or(never) > policy.max_absolute_timeout.unwrap_or(never) {
        section.problem("absolute_timeout", "must be at most max_absolute_timeout");
    }
    if !TOMBSTONES.contains(&policy.tombstone) {
        section.problem("tombstone", "must be 60s to 30d");
    }
    if policy.retry_window > policy.tombstone {
        section.problem("retry_window", "must be at most tombstone");
    }
}

#[cfg(test)]
mod tests;
