//! The effective configuration as TOML, secrets masked.

use std::time::Duration;

use toml::{Table, Value};

use super::Config;
use crate::{
    observe::LogFormat,
    session::{Durability, Policy, SessionLimitPolicy, TokenReuse},
};

const MASK: &str = "****";

fn duration(duration: Duration) -> Value {
    humantime::format_duration(duration).to_string().replace(' ', "").into()
}

fn timeout(timeout: Option<Duration>) -> Value {
    timeout.map_or_else(|| "never".into(), duration)
}

/// A URL without the passwords in it: the servers' before the host, the Sentinels' among the parameters.
pub fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return MASK.into() };
    let parameters = rest.split('&').map(|parameter| match parameter.split_once("sentinelPassword=") {
        Some((before, _)) => format!("{before}sentinelPassword={MASK}"),
        None => parameter.to_owned(),
    });
    let rest = parameters.collect::<Vec<_>>().join("&");
    match rest.rsplit_once('@') {
        None => format!("{scheme}://{rest}"),
        Some((credentials, host)) => {
            let user = credentials.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:{MASK}@{host}")
        }
    }
}

impl Config {
    pub fn to_toml(&self) -> String {
        let mut top = Table::new();
        let mut set = |key: &str, value: Value| drop(top.insert(key.to_owned(), value));
        set("listen", self.listen.to_string().into());
        set("metrics_listen", self.metrics_listen.to_string().into());
        if let Some(redis) = &self.redis {
            set("redis", masked(redis).into());
        }
        set("key_prefix", self.key_prefix.clone().into());
        set("data_dir", self.data_dir.display().to_string().into());
        set("log_format", (if self.log_format == LogFormat::Json { "json" } else { "text" }).into());
        set("log_level", self.log_level.clone().into());
        set("grpc_web_origins", "".into());
        set("drain_timeout", duration(self.drain_timeout));
        set("insecure", self.insecure.into());
        set("allow_eviction", self.allow_eviction.into());
        set("allow_unlisted_namespaces", (!self.policies.only_listed).into());
        set("log_max_age", duration(self.log_max_age));
        set("log_max_bytes", (self.log_max_bytes as i64).into());
        set("audit_interval", duration(self.audit_interval));
        set("partitions", i64::from(self.partitions).into());
        let limits = &self.limits;
        let limits = [
            ("connections", (limits.connections as i64).into()),
            ("streams_per_connection", i64::from(limits.streams_per_connection).into()),
            ("watches", (limits.watches as i64).into()),
            ("call_timeout", duration(limits.call_timeout)),
            ("slow_consumer_timeout", duration(limits.slow_consumer_timeout)),
            ("ring_slots", (limits.ring_slots as i64).into()),
            ("feed_buffer", (limits.feed_buffer as i64).into()),
            ("keepalive_interval", duration(limits.keepalive_interval)),
            ("keepalive_timeout", duration(limits.keepalive_timeout)),
        ];
        set("limits", table(limits).into());
        set("default_policy", policy(&self.policies.default).into());
        let listed = self.policies.listed.iter().map(|(name, of)| (name.to_string(), policy(of).into()));
        let listed: Table = listed.collect();
        if !listed.is_empty() {
            set("namespace", listed.into());
        }
        top.to_string()
    }
}

fn table<const N: usize>(values: [(&str, Value); N]) -> Table {
    values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn policy(policy: &Policy) -> Table {
    let reuse = match policy.token_reuse {
        TokenReuse::End => "end",
        TokenReuse::Report => "report",
    };
    let limit = match policy.session_limit_policy {
        SessionLimitPolicy::ReplaceOldest => "replace-oldest",
        SessionLimitPolicy::Reject => "reject",
    };
    let durability = match policy.durability {
        Durability::Local => "local",
        Durability::Replicated => "replicated",
    };
    let mut values = table([
        ("idle_timeout", timeout(policy.idle_timeout)),
        ("max_idle_timeout", timeout(policy.max_idle_timeout)),
        ("absolute_timeout", timeout(policy.absolute_timeout)),
        ("max_absolute_timeout", timeout(policy.max_absolute_timeout)),
        ("renewal_timeout", timeout(policy.renewal_timeout)),
        ("tombstone", duration(policy.tombstone)),
        ("retry_window", duration(policy.retry_window)),
        ("rotation_grace", duration(policy.rotation_grace)),
        ("token_reuse", reuse.into()),
        ("client_tokens", policy.client_tokens.into()),
        ("session_limit", i64::from(policy.session_limit).into()),
        ("session_limit_policy", limit.into()),
        ("durability", durability.into()),
        ("replicas", i64::from(policy.replicas).into()),
        ("max_payload_bytes", (policy.max_payload_bytes as i64).into()),
        ("max_attributes", (policy.max_attributes as i64).into()),
    ]);
    if let Some(preset) = policy.preset {
        values.insert("preset".to_owned(), preset.name().into());
    }
    if let Some(interval) = policy.touch_interval {
        values.insert("touch_interval".to_owned(), duration(interval));
    }
    values
}
