//! The configuration: flags, environment variables and a TOML file, checked as a whole.
//!
//! `schema` declares every setting once. `flags` derives the command line from the declarations, `reader` the keys of the
//! file and their checks, `to_toml` the output of `sessiond config`, and `reference` (in tests) the tables of
//! docs/operating/configuration.md. A flag takes precedence over its environment variable, the environment variable over
//! the file: flags are put into the table of the file as texts, then the table is read once.

mod flags;
mod kind;
mod quantity;
mod reader;
mod redis;
#[cfg(test)]
mod reference;
mod schema;
mod setting;

use std::time::Duration;

use crate::session::{Namespace, Policies, Policy};

pub use flags::Flags;
use reader::Reader;
pub use redis::Secret;
pub use schema::{Config, Limits};
use setting::Section;

/// Every problem of the configuration, one per line, with the path of its setting.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct InvalidConfig(pub Vec<String>);

impl Config {
    /// Reads the file, applies flags and environment variables, and checks every setting.
    pub fn load(flags: &Flags) -> Result<Self, InvalidConfig> {
        let mut problems = Vec::new();
        let table = flags.over_file(&mut problems);
        let config = read(Reader::new("", table, &mut problems));
        if problems.is_empty() { Ok(config) } else { Err(InvalidConfig(problems)) }
    }

    /// Returns the policies of all namespaces.
    pub fn policies(&self) -> Policies {
        Policies {
            default: self.default_policy.clone(),
            listed: self.namespaces.clone(),
            only_listed: !self.allow_unlisted_namespaces,
        }
    }

    /// Returns the effective configuration as a file, secrets masked.
    pub fn to_toml(&self) -> String {
        let mut top = self.to_table();
        top.insert("limits".into(), self.limits.to_table().into());
        top.insert("default_policy".into(), self.default_policy.to_table().into());
        if !self.namespaces.is_empty() {
            let listed = self.namespaces.iter().map(|(name, policy)| (name.to_string(), policy.to_table().into()));
            top.insert("namespace".into(), toml::Table::from_iter(listed).into());
        }
        top.to_string()
    }
}

fn read(mut top: Reader<'_>) -> Config {
    let mut config = Config::default();
    top.read(&mut config);
    check_network(&config, &mut top);
    check_redis(&config, &mut top);
    if !config.partitions.is_power_of_two() {
        top.problem("partitions", "must be a power of two");
    }
    let table = top.table("limits");
    let mut limits = top.section("limits", table);
    limits.read(&mut config.limits);
    limits.finish();
    let table = top.table("default_policy");
    config.default_policy = read_policy(top.section("default_policy", table), &Policy::default());
    for (name, table) in top.tables("namespace") {
        let mut section = top.section(&format!("namespace.{name}"), table);
        match name.parse::<Namespace>() {
            Ok(namespace) => {
                let policy = read_policy(section, &config.default_policy);
                config.namespaces.insert(namespace, policy);
            }
            Err(_) => section.problem("", "a namespace must match [a-z0-9]([-a-z0-9]{0,62})"),
        }
    }
    top.finish();
    config
}

/// Adds a problem if an option is given without the other one that it needs.
fn needs(top: &mut Reader<'_>, key: &str, is_given: bool, other: &str, has_other: bool) {
    if is_given && !has_other {
        top.problem(key, &format!("needs {other}"));
    }
}

/// Checks that options which need another one have it, and that a server which others can reach knows its callers.
fn check_network(config: &Config, top: &mut Reader<'_>) {
    let (has_certificate, has_key) = (config.tls_cert.is_some(), config.tls_key.is_some());
    let (has_tls, has_callers) = (has_certificate && has_key, config.callers.is_some());
    needs(top, "tls_cert", has_certificate, "tls_key", has_key);
    needs(top, "tls_key", has_key, "tls_cert", has_certificate);
    needs(top, "client_ca", config.client_ca.is_some(), "tls_cert and tls_key", has_tls);
    needs(top, "client_ca", config.client_ca.is_some(), "callers", has_callers);
    needs(top, "audit_required", config.audit_required, "audit_file", config.audit_file.is_some());
    needs(top, "client_crl", config.client_crl.is_some(), "client_ca", config.client_ca.is_some());
    if !config.listen.ip().is_loopback() && !config.insecure {
        const OTHERWISE: &str = ", because it is not a loopback address (insecure permits it without)";
        needs(top, "listen", true, &format!("tls_cert and tls_key{OTHERWISE}"), has_tls);
        needs(top, "listen", true, &format!("callers{OTHERWISE}"), has_callers);
    }
}

/// Checks that options about the connection to Redis have the ones that they need.
fn check_redis(config: &Config, top: &mut Reader<'_>) {
    let uses_tls = config.redis.as_deref().is_some_and(|url| url.starts_with("rediss"));
    let (certificate, key) = (config.redis_cert.is_some(), config.redis_key.is_some());
    for (setting, is_given) in
        [("redis_ca", config.redis_ca.is_some()), ("redis_cert", certificate), ("redis_key", key)]
    {
        needs(top, setting, is_given, "redis with a URL for TLS (rediss://)", uses_tls);
    }
    needs(top, "redis_cert", certificate, "redis_key", key);
    needs(top, "redis_key", key, "redis_cert", certificate);
    needs(top, "redis_password_file", config.redis_password_file.is_some(), "redis", config.redis.is_some());
    if config.redis_password_file.is_some() && config.redis_password.is_some() {
        top.problem("redis_password_file", "is given together with SESSIOND_REDIS_PASSWORD: set one of them");
    }
}

/// Reads a section over the values of its preset, or over `default` if it names none.
fn read_policy(mut section: Reader<'_>, default: &Policy) -> Policy {
    let mut policy = Policy { preset: None, ..default.clone() };
    section.read_key("preset", &mut policy);
    if let Some(preset) = policy.preset {
        policy = preset.apply_to(default);
    }
    let is_window_given = section.read_key("retry_window", &mut policy);
    let is_touch_given = section.read_key("touch_interval", &mut policy);
    let is_idle_given = section.read_key("idle_timeout", &mut policy) || policy.preset.is_some();
    section.read(&mut policy);
    if !is_window_given {
        policy.retry_window = policy.retry_window.min(policy.tombstone);
    }
    // One of two values that were set in different places is harmless: the interval of a session is at most a twentieth of its
    // idle timeout.
    let longest = policy.idle_timeout.unwrap_or(Duration::MAX);
    if policy.touch_interval.is_some_and(|interval| interval > longest) {
        if is_touch_given && is_idle_given {
            section.problem("touch_interval", "must be at most idle_timeout");
        }
        policy.touch_interval = Some(longest);
    }
    check_policy(&policy, &mut section);
    section.finish();
    policy
}

fn check_policy(policy: &Policy, section: &mut Reader<'_>) {
    let never = Duration::MAX;
    if policy.idle_timeout.unwrap_or(never) > policy.max_idle_timeout.unwrap_or(never) {
        section.problem("idle_timeout", "must be at most max_idle_timeout");
    }
    if policy.absolute_timeout.unwrap_or(never) > policy.max_absolute_timeout.unwrap_or(never) {
        section.problem("absolute_timeout", "must be at most max_absolute_timeout");
    }
    if policy.retry_window > policy.tombstone {
        section.problem("retry_window", "must be at most tombstone");
    }
}

#[cfg(test)]
mod tests;
