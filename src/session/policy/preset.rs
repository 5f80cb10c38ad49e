//! Policies that have a name: the values that published guidance gives.
//!
//! Sources, a sentence for each value, and what is our own choice: docs/operating/policies.md. They are the OWASP Session
//! Management Cheat Sheet, and NIST SP 800-63B-4 (July 2025), sections 2.1.3, 2.2.3, 2.3.3 and 5.1.

use std::time::Duration;

use super::Policy;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    WebDefault,
    OwaspHighValue,
    NistAal1,
    NistAal2,
    NistAal3,
}

impl Preset {
    pub const NAMED: [(&str, Preset); 5] = [
        ("web-default", Preset::WebDefault),
        ("owasp-high-value", Preset::OwaspHighValue),
        ("nist-aal1", Preset::NistAal1),
        ("nist-aal2", Preset::NistAal2),
        ("nist-aal3", Preset::NistAal3),
    ];

    pub fn name(self) -> &'static str {
        let named = Self::NAMED.iter().find(|(_, preset)| *preset == self);
        named.map(|(name, _)| *name).expect("every preset has a name")
    }

    /// What it says of timeouts and tokens, and the rest of another policy.
    pub fn over(self, rest: &Policy) -> Policy {
        Policy {
            tombstone: rest.tombstone,
            retry_window: rest.retry_window,
            session_limit: rest.session_limit,
            session_limit_policy: rest.session_limit_policy,
            durability: rest.durability,
            replicas: rest.replicas,
            max_payload_bytes: rest.max_payload_bytes,
            max_attributes: rest.max_attributes,
            preset: Some(self),
            ..self.values()
        }
    }

    /// Ceilings are the documents' limits: no call can ask for more, and a file has to raise the ceiling as well.
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
