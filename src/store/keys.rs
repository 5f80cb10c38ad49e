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
    channel: String,
}

impl Names {
    fn new(stem: String) -> Self {
        Names {
            namespaces: format!("{stem}:ns").into(),
            log: format!("{stem}:log").into(),
            meta: format!("{stem}:meta").into(),
            channel: format!("{stem}:events"),
            stem,
        }
    }
}

impl Keys {
    /// The number of partitions is a power of two of at most 64.
    pub fn new(prefix: &str, partitions: u16) -> Self {
        let stem = |index| format!("{prefix}{{{}}}", tag(index, partitions));
        let partitions = (0..partitions).map(|index| Names::new(stem(index))).collect();
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
        .find(|tag| slot(tag) / share == index as usize)
        .expect("some number leads to every share")
}

fn slot(tag: &str) -> usize {
    fred::util::redis_keyslot(tag.as_bytes()) as usize
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
    fn every_share_of_the_slots_has_one_partition() {
        for partitions in [1, 2, 4, 8, 16, 32, 64] {
            for index in 0..partitions {
                let share = slot(&tag(index, partitions)) * partitions as usize / SLOTS;
                assert_eq!(share, index as usize);
            }
        }
    }
}
