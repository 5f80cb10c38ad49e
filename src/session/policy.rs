//! Policies: the limits and defaults of a namespace, and the check of the timeouts that a call requests.

mod preset;

use std::{collections::BTreeMap, time::Duration};

use super::{Namespace, duration_text, millis};

/// Named set of timeouts and token rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The built-in defaults.
    WebDefault,
    /// OWASP: high-value applications.
    OwaspHighValue,
    /// NIST: authentication assurance level 1.
    NistAal1,
    /// NIST: authentication assurance level 2.
    NistAal2,
    /// NIST: authentication assurance level 3.
    NistAal3,
}

impl Preset {
    /// All presets with their names in the configuration.
    pub const NAMED: [(&str, Preset); 5] = [
        (Preset::WebDefault.name(), Preset::WebDefault),
        (Preset::OwaspHighValue.name(), Preset::OwaspHighValue),
        (Preset::NistAal1.name(), Preset::NistAal1),
        (Preset::NistAal2.name(), Preset::NistAal2),
        (Preset::NistAal3.name(), Preset::NistAal3),
    ];

    /// Returns the name of the preset in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Preset::WebDefault => "web-default",
            Preset::OwaspHighValue => "owasp-high-value",
            Preset::NistAal1 => "nist-aal1",
            Preset::NistAal2 => "nist-aal2",
            Preset::NistAal3 => "nist-aal3",
        }
    }
}

/// Rules of one namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Preset that the values started from, for display only. None: no preset.
    pub preset: Option<Preset>,
    /// Idle timeout of a session whose create call sets none. None: no idle timeout.
    pub idle_timeout: Option<Duration>,
    /// Maximum idle timeout that a call may set. None: no maximum, and a call may turn the idle timeout off.
    pub max_idle_timeout: Option<Duration>,
    /// Absolute timeout of a session whose create call sets none. None: no absolute timeout.
    pub absolute_timeout: Option<Duration>,
    /// Maximum absolute timeout that a call may set. None: no maximum, and a call may turn the absolute timeout off.
    pub max_absolute_timeout: Option<Duration>,
    /// Minimum time between two stored touches of a session. At most a twentieth of its idle timeout. None: 60 s.
    pub touch_interval: Option<Duration>,
    /// Time that the tombstone of an ended session is kept.
    pub tombstone: Duration,
    /// Time during which a retry with the same request id gets the first outcome.
    pub retry_window: Duration,
    /// Age of a token at which a read returns that a rotation is due. None: never.
    pub renewal_timeout: Option<Duration>,
    /// Maximum and default grace period of a superseded token.
    pub rotation_grace: Duration,
    /// Reaction to token reuse.
    pub token_reuse: TokenReuse,
    /// Whether callers may create sessions with client tokens.
    pub client_tokens: bool,
    /// Maximum number of sessions per subject. 0: no limit.
    pub session_limit: u32,
    /// Reaction to a create or a login beyond the session limit.
    pub session_limit_policy: SessionLimitPolicy,
    /// Condition for a response to a write.
    pub durability: Durability,
    /// Number of replicas that must have a write if the durability is replicated.
    pub replicas: u32,
    /// Maximum size of all attribute names and values of a session together, in bytes before compression.
    pub max_payload_bytes: usize,
    /// Maximum number of attributes of a session.
    pub max_attributes: usize,
}

/// Reaction to a superseded token that is presented after its grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenReuse {
    /// The session ends.
    End,
    /// Watchers receive an event. The session lives on.
    Report,
}

/// Reaction to a create or a login beyond the session limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLimitPolicy {
    /// The oldest sessions of the subject end.
    ReplaceOldest,
    /// The call fails.
    Reject,
}

/// Condition for a response to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The primary has applied the write.
    Local,
    /// The primary and [`Policy::replicas`] replicas have the write.
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

/// Timeouts that a call requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeouts {
    /// Idle timeout; zero: no idle timeout. None: the policy's in a create, unchanged in an update.
    pub idle: Option<Duration>,
    /// Absolute timeout; zero: no absolute timeout. None: the policy's in a create, unchanged in an update.
    pub absolute: Option<Duration>,
}

/// Timeouts in milliseconds. 0: no timeout.
#[derive(Clone, Copy, Debug)]
pub struct TimeoutsMs<T> {
    /// Idle timeout.
    pub idle: T,
    /// Absolute timeout.
    pub absolute: T,
}

/// Timeout that the policy does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutViolation {
    /// Field of the request.
    pub field: &'static str,
    /// Text with the allowed range.
    pub reason: String,
}

impl Policy {
    /// Returns the timeouts of a new session: the requested ones, or the policy's if none is requested.
    pub fn resolve(&self, requested: Timeouts) -> Result<TimeoutsMs<u64>, Vec<TimeoutViolation>> {
        let checked = self.check(requested)?;
        let or_default = |checked: Option<u64>, default: Option<Duration>| checked.unwrap_or(default.map_or(0, millis));
        Ok(TimeoutsMs {
            idle: or_default(checked.idle, self.idle_timeout),
            absolute: or_default(checked.absolute, self.absolute_timeout),
        })
    }

    /// Returns the requested timeouts in milliseconds. None: not requested.
    pub fn check(&self, requested: Timeouts) -> Result<TimeoutsMs<Option<u64>>, Vec<TimeoutViolation>> {
        let mut violations = Vec::new();
        let mut check = |field, timeout: Option<Duration>, maximum: Option<Duration>| {
            let timeout = timeout?;
            let reason = match maximum {
                Some(maximum) if timeout.is_zero() => {
                    let maximum = duration_text(maximum);
                    Some(format!("0 s (no timeout) is not allowed by the policy; at most {maximum}"))
                }
                Some(maximum) if timeout > maximum => {
                    Some(format!("at most {} is allowed by the policy", duration_text(maximum)))
                }
                _ => None,
            };
            match reason {
                Some(reason) => {
                    violations.push(TimeoutViolation { field, reason });
                    None
                }
                None => Some(millis(timeout)),
            }
        };
        let idle = check("idle_timeout", requested.idle, self.max_idle_timeout);
        let absolute = check("absolute_timeout", requested.absolute, self.max_absolute_timeout);
        if violations.is_empty() { Ok(TimeoutsMs { idle, absolute }) } else { Err(violations) }
    }
}

/// Policies of all namespaces.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// Policy of every namespace that is not listed.
    pub default: Policy,
    /// Policies of the namespaces that the configuration lists.
    pub listed: BTreeMap<Namespace, Policy>,
    /// Whether calls in a namespace that is not listed are rejected.
    pub only_listed: bool,
}

impl Policies {
    /// Returns every policy: the default one, then the listed ones.
    pub fn all(&self) -> impl Iterator<Item = &Policy> {
        [&self.default].into_iter().chain(self.listed.values())
    }

    /// Returns the policy of a namespace. None: the namespace is not listed, and only listed ones are allowed.
    pub fn of(&self, namespace: &Namespace) -> Option<&Policy> {
        match self.listed.get(namespace) {
            Some(policy) => Some(policy),
            None => (!self.only_listed).then_some(&self.default),
        }
    }

    /// Returns the policy for sessions that are stored already: the default one for a namespace that is no longer allowed.
    pub fn of_stored(&self, namespace: &Namespace) -> &Policy {
        self.listed.get(namespace).unwrap_or(&self.default)
    }
}
