//! Presets: named policies with the values that published guidance recommends.
//!
//! docs/operating/policies.md lists the sources, the sentence behind each value, and the values that are our own choice.
//! The sources are the OWASP Session Management Cheat Sheet and NIST SP 800-63B-4 (July 2025), sections 2.1.3, 2.2.3,
//! 2.3.3 and 5.1.

use std::time::Duration;

use super::Policy;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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
