//! Counts refusals, so that an attacker cannot fill the log: one line per second for a caller or network and a reason.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

use super::line::Line;

/// Maximum number of lines of one second. Further refusals are counted in one line per reason, without caller and network.
const MAX_LINES: usize = 1_000;

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

/// Refusals of the current second.
#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<(Source, String), Line>>);

impl Refusals {
    /// Counts a refusal. The line of the first one is written, with the count.
    pub(super) fn add(&self, source: Source, mut line: Line) {
        let reason = line.reason.clone().unwrap_or_default();
        let mut counted = self.0.lock();
        let is_full = counted.len() >= MAX_LINES && !counted.contains_key(&(source.clone(), reason.clone()));
        let source = if is_full { Source::Others } else { source };
        if source == Source::Others {
            (line.actor, line.target) = Default::default();
        }
        let count = &mut counted.entry((source, reason)).or_insert(line).count;
        *count = Some(count.unwrap_or(0) + 1);
    }

    /// Removes and returns all lines.
    pub(super) fn take(&self) -> Vec<Line> {
        let mut lines: Vec<_> = std::mem::take(&mut *self.0.lock()).into_values().collect();
        lines.sort_by_key(|line| line.time);
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::{
        super::line::{Class, Event, Outcome},
        *,
    };

    fn refusal(reason: &str) -> Line {
        let line = Line::new(Class::Refusal, Event::AuthnFail, Outcome::Failed, SystemTime::now());
        Line { reason: Some(reason.to_owned()), ..line }
    }

    #[test]
    fn refusals_of_a_network_and_reason_are_one_line() {
        let refusals = Refusals::default();
        for address in
            ["192.0.2.1", "192.0.2.255", "::ffff:192.0.2.7", "192.0.3.1", "2001:db8::1", "2001:db8::ffff:0:0:1"]
        {
            refusals.add(Source::network_of(address.parse().unwrap()), refusal("missing"));
        }
        refusals.add(Source::network_of("192.0.2.1".parse().unwrap()), refusal("unknown_key"));
        let mut counts: Vec<_> = refusals.take().into_iter().map(|line| line.count).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 1, 2, 3].map(Some));
        assert!(refusals.take().is_empty());
    }

    #[test]
    fn refusals_of_many_networks_are_bounded() {
        let refusals = Refusals::default();
        for network in 0..5_000_u32 {
            refusals.add(Source::network_of(Ipv4Addr::from_bits(network << 8).into()), refusal("missing"));
        }
        let lines = refusals.take();
        assert_eq!(lines.len(), MAX_LINES + 1);
        assert_eq!(lines.iter().filter_map(|line| line.count).sum::<u64>(), 5_000);
    }
}
