//! Values of the presets, which published guidance recommends.
//!
//! docs/operating/policies.md lists the sources, the sentence behind each value, and the values that are our own choice.
//! The sources are the OWASP Session Management Cheat Sheet and NIST SP 800-63B-4 (July 2025), sections 2.1.3, 2.2.3,
//! 2.3.3 and 5.1.

use std::time::Duration;

use super::{Policy, Preset};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Preset {
    /// Returns a policy with the preset's timeouts and token rules, and all other values of `base`.
    pub fn apply_to(self, base: &Policy) -> Policy {
        Policy {
            tombstone: base.tombstone,
            retry_window: base.retry_window,
            session_limit: base.session_limit,
            session_limit_policy: base.session_limit_policy,
            durability: base.durability,
            replicas: base.replicas,
            max_payload_bytes: base.max_payload_bytes,
            max_attributes: base.max_attributes,
            preset: Some(self),
            ..self.values()
        }
    }

    /// Returns the preset's own values.
    ///
    /// The maximum timeouts are the limits of the documents. A call cannot exceed them, and a configuration file that
    /// sets a longer timeout has to raise the maximum too.
    fn values(self) -> Policy {
        let limited_to = |idle: Option<Duration>, absolute: Duration| Policy {
            idle_timeout: idle,
            max_idle_timeout: idle,
            absolute_timeout: Some(absolute),
            max_absolute_timeout: Some(absolute),
            client_tokens: false,
            ..Policy::default()
        };
        match self {
            Preset::WebDefault => Policy::default(),
            Preset::OwaspHighValue => Policy {
                max_absolute_timeout: Some(8 * HOUR),
                renewal_timeout: Some(15 * MINUTE),
                ..limited_to(Some(5 * MINUTE), 4 * HOUR)
            },
            Preset::NistAal1 => limited_to(None, 30 * DAY),
            Preset::NistAal2 => limited_to(Some(HOUR), 24 * HOUR),
            Preset::NistAal3 => limited_to(Some(15 * MINUTE), 12 * HOUR),
        }
    }
}
