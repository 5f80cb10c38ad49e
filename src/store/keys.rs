//! The key schema: every key and channel name is spelled here and nowhere else.
//!
//! A session belongs to a virtual partition by a hash of its id. All keys of a partition share a hash tag, so one
//! script can touch them on a Redis Cluster too; the tags are chosen so that the partitions' slots lie evenly.

use fred::types::Key;

use crate::session::{ID_BYTES, Namespace, SessionId, SessionName, Subject};

const SLOTS: usize = 16_384;

/// Number of a partition, below the number of partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl Partition {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names of all keys of a store.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
    partitions: Vec<Names>,
}

/// Names of a partition's keys; copies share their text.
#[derive(Clone, Debug)]
struct Names {
    /// Key prefix and hash tag.
    stem: String,
    namespaces: Key,
    log: Key,
    meta: Key,
    absent: Key,
    channel: String,
    slot: u16,
}

impl Names {
    fn new(stem: String, slot: u16) -> Self {
        Names {
            namespaces: format!("{stem}:ns").into(),
            log: format!("{stem}:log").into(),
            meta: format!("{stem}:meta").into(),
            absent: format!("{stem}:absent").into(),
            channel: format!("{stem}:events"),
            slot,
            stem,
        }
    }
}

impl Keys {
    /// The number of partitions is a power of two of at most 64.
    pub fn new(prefix: &str, partitions: u16) -> Self {
        let names = |index| {
            let tag = tag(index, partitions);
            Names::new(format!("{prefix}{{{tag}}}"), slot(&tag))
        };
        let partitions = (0..partitions).map(names).collect();
        Keys { prefix: prefix.to_owned(), partitions }
    }

    pub fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + use<> {
        (0..self.partitions.len() as u16).map(Partition)
    }

    pub fn partition_of(&self, id: &SessionId) -> Partition {
        const { assert!(ID_BYTES == 16) };
        Partition((crc32fast::hash(id.as_bytes()) as usize & (self.partitions.len() - 1)) as u16)
    }

    /// Hash: one session, or its tombstone.
    pub fn session(&self, name: &SessionName) -> Key {
        format!("{}:s:{}:{}", self.partitions[self.partition_of(&name.id).index()].stem, name.namespace, name.id).into()
    }

    /// The session that a key is of, or was; None = it is no such key.
    pub fn session_of_key(&self, key: &str) -> Option<SessionName> {
        let (_, rest) = key.strip_prefix(&self.prefix)?.strip_prefix("{ses:")?.split_once("}:s:")?;
        let (namespace, id) = rest.split_once(':')?;
        let name = SessionName { namespace: namespace.parse().ok()?, id: id.parse().ok()? };
        (self.session(&name).as_str() == Some(key)).then_some(name)
    }

    pub fn partition_of_subject(&self, subject: &Subject) -> Partition {
        let hash = crc32fast::hash(format!("{}:{}", subject.namespace, subject.name).as_bytes());
        Partition((hash as usize & (self.partitions.len() - 1)) as u16)
    }

    /// Sorted set of a subject's ids by when they were added, in us. In the subject's partition, not the ids'.
    pub fn subject(&self, subject: &Subject) -> Key {
        let stem = &self.partitions[self.partition_of_subject(subject).index()].stem;
        format!("{stem}:u:{}:{}", subject.namespace, subject.name).into()
    }

    /// What matches the keys of all subjects, as a pattern of Redis.
    pub fn subjects_pattern(&self) -> String {
        let mut pattern = String::new();
        for letter in self.prefix.chars() {
            if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(letter);
        }
        pattern + "{ses:*}:u:*"
    }

    /// Whose sessions the key is of; None = it is no such key.
    pub fn subject_of_key(&self, key: &str) -> Option<Subject> {
        let (_, rest) = key.strip_prefix(&self.prefix)?.strip_prefix("{ses:")?.split_once("}:u:")?;
        let (namespace, name) = rest.split_once(':')?;
        Some(Subject { namespace: namespace.parse().ok()?, name: name.to_owned() })
    }

    /// Sorted set of the namespace's ids by deadline in ms: timer and list in one.
    pub fn due(&self, partition: Partition, namespace: &Namespace) -> Key {
        format!("{}:due:{namespace}", self.partitions[partition.index()].stem).into()
    }

    /// Sorted set of namespaces by a lower bound of their earliest deadline in ms.
    pub fn namespaces(&self, partition: Partition) -> Key {
        self.partitions[partition.index()].namespaces.clone()
    }

    /// Stream: one entry per change.
    pub fn log(&self, partition: Partition) -> Key {
        self.partitions[partition.index()].log.clone()
    }

    /// Hash: store id, format, number of partitions, last position, bytes in the log.
    pub fn meta(&self, partition: Partition) -> Key {
        self.partitions[partition.index()].meta.clone()
    }

    /// No key at all, ever. Every script of a session declares it, so that Redis refuses the script before it
    /// begins while the slot is on its way to another server: one that empties a key and fills it again would be stopped
    /// between the two.
    pub fn absent(&self, partition: Partition) -> Key {
        self.partitions[partition.index()].absent.clone()
    }

    /// Slots of a Cluster, of each partition.
    pub fn slots(&self) -> Vec<u16> {
        self.partitions.iter().map(|names| names.slot).collect()
    }

    /// Sharded channel: every log entry as it is written.
    pub fn channel(&self, partition: Partition) -> &str {
        &self.partitions[partition.index()].channel
    }

    pub fn partition_of_channel(&self, channel: &str) -> Option<Partition> {
        self.partitions.iter().position(|names| names.channel == channel).map(|index| Partition(index as u16))
    }
}

/// The hash tag of a partition: the first `ses:<partition>:<n>` whose slot lies in this partition's share of all slots.
fn tag(index: u16, partitions: u16) -> String {
    let share = SLOTS / partitions as usize;
    (0..)
        .map(|n| format!("ses:{index:02}:{n}"))
        .find(|tag| slot(tag) as usize / share == index as usize)
        .expect("some number leads to every share")
}

fn slot(tag: &str) -> u16 {
    fred::util::redis_keyslot(tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tags_of_a_store_never_change() {
        let keys = Keys::new("sessiond:", 16);
        let name = SessionName { namespace: "web".parse().unwrap(), id: SessionId::from_bytes([0; 16]) };
        assert_eq!(keys.session(&name).as_str(), Some("sessiond:{ses:05:40}:s:web:aaaaaaaaaaaaaaaaaaaaaaaaaa"));
    }

    #[test]
    fn the_session_of_a_key_is_read_back() {
        let keys = Keys::new("sessiond:", 16);
        let name = SessionName { namespace: "web".parse().unwrap(), id: SessionId::from_bytes([7; 16]) };
        let key = keys.session(&name);
        assert_eq!(keys.session_of_key(key.as_str().unwrap()), Some(name));
        let of_another_partition = key.as_str().unwrap().replacen("{ses:", "{ses:9", 1);
        for other in [&of_another_partition[..], "sessiond:{ses:05:40}:s:web:short", "other:{ses:05:40}:s:web:", ""] {
            assert_eq!(keys.session_of_key(other), None, "{other}");
        }
    }

    #[test]
    fn every_share_of_the_slots_has_one_partition() {
        for partitions in [1, 2, 4, 8, 16, 32, 64] {
            for index in 0..partitions {
                let share = slot(&tag(index, partitions)) as usize * partitions as usize / SLOTS;
                assert_eq!(share, index as usize);
            }
        }
    }
}
