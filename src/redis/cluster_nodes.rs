//! Parses the reply of CLUSTER NODES.

use std::ops::RangeInclusive;

use fred::types::config::Server;

use super::{endpoint::Address, slot::Slot};

/// One line of CLUSTER NODES.
pub(super) struct NodeRow<'a> {
    /// Id of the node.
    pub id: &'a str,
    /// Address of the node.
    pub address: Address,
    /// Whether it is a primary.
    pub is_primary: bool,
    /// Its configuration epoch.
    pub epoch: u64,
    ranges: Vec<RangeInclusive<u16>>,
    /// Slots that migrate from this node, with the id of the target node.
    migrating: Vec<(u16, &'a str)>,
}

impl<'a> NodeRow<'a> {
    /// Parses `id ip:port@cport[,hostname] flags primary ping pong epoch link slots…`.
    pub(super) fn read(line: &'a str, reported_by: &Server, by_name: bool) -> Option<Self> {
        let mut words = line.split(' ');
        let (id, address, flags) = (words.next()?, words.next()?, words.next()?);
        let epoch = words.nth(3)?.parse().ok()?;
        let (address, name) = address.split_once(',').unwrap_or((address, ""));
        let name = name.split(',').next().unwrap_or("");
        let (ip, port) = address.split_once('@').map_or(address, |(address, _)| address).rsplit_once(':')?;
        // Certificates hold host names. A node that does not know its own address is at the address that was asked.
        let host = match (by_name && !name.is_empty(), ip) {
            (true, _) => name,
            (false, "") => &reported_by.host,
            (false, ip) => ip,
        };
        let is_primary = flags.split(',').any(|flag| flag == "master");
        let address = Address::new(host, port.parse().ok()?);
        let (mut ranges, mut migrating) = (Vec::new(), Vec::new());
        for word in words.skip(1) {
            // [slot->-id] migrates away, [slot-<-id] is imported.
            let gives = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')?.split_once("->-"));
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            match (gives, first.parse(), last.parse()) {
                (Some((slot, to)), ..) => migrating.extend(slot.parse().ok().map(|slot| (slot, to))),
                (None, Ok(first), Ok(last)) => ranges.push(first..=last),
                _ => {}
            }
        }
        Some(NodeRow { id, address, is_primary, epoch, ranges, migrating })
    }

    /// Whether the node owns a slot.
    pub(super) fn owns(&self, slot: Slot) -> bool {
        self.ranges.iter().any(|range| range.contains(&slot.0))
    }

    /// Returns the id of the node to which a slot migrates. None: it does not migrate from this node.
    pub(super) fn target_of(&self, slot: Slot) -> Option<&'a str> {
        self.migrating.iter().find(|(migrating, _)| *migrating == slot.0).map(|(_, target)| *target)
    }
}
