//! Counts refusals, so that an attacker cannot fill the log: one line per second for a caller or network and a reason.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::Mutex;

use super::line::{Actor, Class, Event, Line, Outcome, Target};

/// Maximum number of lines of one second about callers, and about networks. Further refusals are counted in one line per reason,
/// without caller and network.
const MAX_CALLER_LINES: usize = 1_000;
const MAX_NETWORK_LINES: usize = 100;

/// Source of refusals that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A caller.
    Caller(Arc<str>),
    /// Clients without a valid credential in the same network: the first 24 bits of an IPv4 address, 64 of an IPv6 address.
    Network(IpAddr),
    /// All others.
    Others,
}

impl Source {
    /// Network of this address.
    pub fn network_of(address: IpAddr) -> Self {
        Source::Network(match address.to_canonical() {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

/// A refusal. Equal ones of the same second are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// Caller or network.
    pub source: Source,
    /// What happened.
    pub event: Event,
    /// Reason, as in the ErrorInfo of the status or in the metrics.
    pub reason: String,
    /// What must be counted apart in addition, such as the id of a session. Empty: nothing.
    pub apart: String,
}

/// Refusals of the current second.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    lines: HashMap<Refusal, Line>,
    /// Number of lines about networks.
    networks: usize,
}

impl Refusals {
    /// Counts a refusal. The first one of a second describes who and what, for the line about all of them.
    pub(super) fn add(&self, mut refusal: Refusal, describe: impl FnOnce() -> (Actor, Target)) {
        let mut counted = self.0.lock();
        let Counted { lines, networks } = &mut *counted;
        if !lines.contains_key(&refusal) {
            let is_full = match refusal.source {
                Source::Network(_) => *networks >= MAX_NETWORK_LINES,
                Source::Caller(_) => lines.len() - *networks >= MAX_CALLER_LINES,
                Source::Others => false,
            };
            if is_full {
                (refusal.source, refusal.apart) = (Source::Others, String::new());
            }
        }
        if let Some(line) = lines.get_mut(&refusal) {
            line.count = line.count.map(|count| count + 1);
            return;
        }
        *networks += usize::from(matches!(refusal.source, Source::Network(_)));
        let (actor, target) = if refusal.source == Source::Others { Default::default() } else { describe() };
        let line = Line::new(Class::Refusal, refusal.event, Outcome::Failed, SystemTime::now());
        let line = Line { actor, target, reason: Some(refusal.reason.clone()), count: Some(1), ..line };
        lines.insert(refusal, line);
    }

    /// Removes and returns all lines.
    pub(super) fn take(&self) -> Vec<Line> {
        let counted = std::mem::take(&mut *self.0.lock());
        let mut lines: Vec<_> = counted.lines.into_values().collect();
        lines.sort_by_key(|line| line.time);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(refusals: &Refusals, address: &str, reason: &str) {
        let source = Source::network_of(address.parse().unwrap());
        refuse_from(refusals, source, reason);
    }

    fn refuse_from(refusals: &Refusals, source: Source, reason: &str) {
        let (event, reason, apart) = (Event::AuthnFail, reason.to_owned(), String::new());
        refusals.add(Refusal { source, event, reason, apart }, Default::default);
    }

    #[test]
    fn refusals_of_a_network_and_reason_are_one_line() {
        let refusals = Refusals::default();
        let addresses =
            ["192.0.2.1", "192.0.2.255", "::ffff:192.0.2.7", "192.0.3.1", "2001:db8::1", "2001:db8::ffff:0:0:1"];
        for address in addresses {
            refuse(&refusals, address, "missing");
        }
        refuse(&refusals, "192.0.2.1", "unknown_key");
        let mut counts: Vec<_> = refusals.take().into_iter().map(|line| line.count).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 1, 2, 3].map(Some));
        assert!(refusals.take().is_empty());
    }

    #[test]
    fn refusals_of_many_networks_are_bounded_and_hide_no_caller() {
        let refusals = Refusals::default();
        for network in 0..5_000_u32 {
            refuse(&refusals, &Ipv4Addr::from_bits(network << 8).to_string(), "missing");
        }
        refuse_from(&refusals, Source::Caller("shop".into()), "GRANT_MISSING");
        let lines = refusals.take();
        assert_eq!(lines.len(), MAX_NETWORK_LINES + 2);
        assert_eq!(lines.iter().filter_map(|line| line.count).sum::<u64>(), 5_001);
        assert!(lines.iter().any(|line| line.reason.as_deref() == Some("GRANT_MISSING")));
    }
}
