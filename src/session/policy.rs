//! What a namespace allows, and how it makes the timeouts of a request absolute.

mod preset;

use std::{collections::BTreeMap, time::Duration};

use super::Namespace;

pub use preset::Preset;

/// The rules of one namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// What its values began with; nothing decides by it.
    pub preset: Option<Preset>,
    pub idle_timeout: Option<Duration>,
    /// None = never: no ceiling, and no idle timeout at all may be asked for.
    pub max_idle_timeout: Option<Duration>,
    pub absolute_timeout: Option<Duration>,
    /// None = never.
    pub max_absolute_timeout: Option<Duration>,
    /// None = min(60 s, idle timeout / 20).
    pub touch_interval: Option<Duration>,
    pub tombstone: Duration,
    pub retry_window: Duration,
    /// None = never.
    pub renewal_timeout: Option<Duration>,
    pub rotation_grace: Duration,
    pub token_reuse: TokenReuse,
    /// Whether foreign tokens are taken.
    pub client_tokens: bool,
    /// Sessions per subject; 0 = no limit.
    pub session_limit: u32,
    pub session_limit_policy: SessionLimitPolicy,
    pub durability: Durability,
    /// How many replicas must have a write where durability is replicated.
    pub replicas: u32,
    /// Of all attribute names and values of a session, before compression.
    pub max_payload_bytes: usize,
    pub max_attributes: usize,
}

/// What a superseded token that comes back after its grace period leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenReuse {
    End,
    Report,
}

/// What a create beyond the session limit leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLimitPolicy {
    ReplaceOldest,
    Reject,
}

/// What an answer to a write promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The primary has it.
    Local,
    /// So many replicas have it, too.
    Replicated,
}

impl Default for Policy {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(60 * 60);
        Policy {
            preset: None,
            idle_timeout: Some(30 * MINUTE),
            max_idle_timeout: Some(400 * 24 * HOUR),
            absolute_timeout: Some(12 * HOUR),
            max_absolute_timeout: None,
            touch_interval: None,
            tombstone: 10 * MINUTE,
            retry_window: 10 * MINUTE,
            renewal_timeout: None,
            rotation_grace: Duration::from_secs(30),
            token_reuse: TokenReuse::End,
            client_tokens: true,
            session_limit: 0,
            session_limit_policy: SessionLimitPolicy::ReplaceOldest,
            durability: Durability::Local,
            replicas: 1,
            max_payload_bytes: 64 * 1024,
            max_attributes: 256,
        }
    }
}

/// The timeouts a call asks for: None = the policy's (or, in an update, as they are), `Some(ZERO)` = none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeouts {
    pub idle: Option<Duration>,
    pub absolute: Option<Duration>,
}

/// Timeouts in ms, 0 = none.
#[derive(Clone, Copy, Debug)]
pub struct TimeoutsMs<T> {
    pub idle: T,
    pub absolute: T,
}

/// The policy does not allow this timeout; names the field and says what would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutRefused {
    pub field: &'static str,
    pub reason: String,
}

impl Policy {
    /// Timeouts of a new session.
    pub fn resolve(&self, asked: Timeouts) -> Result<TimeoutsMs<u64>, Vec<TimeoutRefused>> {
        let checked = self.check(asked)?;
        let or_own = |asked: Option<u64>, own: Option<Duration>| asked.unwrap_or(own.map_or(0, millis));
        Ok(TimeoutsMs {
            idle: or_own(checked.idle, self.idle_timeout),
            absolute: or_own(checked.absolute, self.absolute_timeout),
        })
    }

    /// Timeouts that a call asks for, None = not asked for.
    pub fn check(&self, asked: Timeouts) -> Result<TimeoutsMs<Option<u64>>, Vec<TimeoutRefused>> {
        let mut refused = Vec::new();
        let mut check = |field, timeout: Option<Duration>, ceiling: Option<Duration>| {
            let timeout = timeout?;
            let reason = match ceiling {
                Some(ceiling) if timeout.is_zero() => {
                    Some(format!("none (0 s) is not allowed here: at most {}", humantime::format_duration(ceiling)))
                }
                Some(ceiling) if timeout > ceiling => {
                    Some(format!("at most {} is allowed here", humantime::format_duration(ceiling)))
                }
                _ => None,
            };
            match reason {
                Some(reason) => {
                    refused.push(TimeoutRefused { field, reason });
                    None
                }
                None => Some(millis(timeout)),
            }
        };
        let idle = check("idle_timeout", asked.idle, self.max_idle_timeout);
        let absolute = check("absolute_timeout", asked.absolute, self.max_absolute_timeout);
        if refused.is_empty() { Ok(TimeoutsMs { idle, absolute }) } else { Err(refused) }
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// The policies of all namespaces.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub default: Policy,
    pub listed: BTreeMap<Namespace, Policy>,
    /// Whether a namespace that is not listed is refused.
    pub only_listed: bool,
}

impl Policies {
    /// Every one of them.
    pub fn all(&self) -> impl Iterator<Item = &Policy> {
        [&self.default].into_iter().chain(self.listed.values())
    }

    /// None: the namespace is not listed, and only listed ones are allowed.
    pub fn of(&self, namespace: &Namespace) -> Option<&Policy> {
        match self.listed.get(namespace) {
            Some(policy) => Some(policy),
            None => (!self.only_listed).then_some(&self.default),
        }
    }
}
