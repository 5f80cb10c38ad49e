//! The key schema: the only place that builds or parses key and channel names.
//!
//! A hash of its id assigns a session to a virtual partition. All keys of a partition share a hash tag, so that one script can
//! access them on a Redis Cluster; the tags are chosen so that the slots of the partitions are spread evenly.

use bytes::Bytes;

use crate::{
    redis::Slot,
    session::{ID_BYTES, Namespace, SessionId, SessionRef, Subject},
};

/// Maximum number of partitions.
const MAX_PARTITIONS: u16 = 64;

/// Number of a partition, below the number of partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl Partition {
    /// The number as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Names of all keys of a store.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    partitions: Vec<Names>,
}

/// Names of a partition's keys; clones share their text.
#[derive(Clone, Debug)]
struct Names {
    /// Key prefix and hash tag.
    stem: String,
    namespaces: Bytes,
    log: Bytes,
    meta: Bytes,
    absent: Bytes,
    channel: Bytes,
    slot: Slot,
}

impl Names {
    fn new(stem: String, slot: Slot, database: u8) -> Self {
        Names {
            namespaces: format!("{stem}:ns").into(),
            log: format!("{stem}:log").into(),
            meta: format!("{stem}:meta").into(),
            absent: format!("{stem}:absent").into(),
            // Channels are shared by all databases of a server.
            channel: if database == 0 {
                format!("{stem}:events").into()
            } else {
                format!("{stem}:events:{database}").into()
            },
            slot,
            stem,
        }
    }
}

/// Key and name of a session.
#[derive(Clone, Debug)]
pub(super) struct SessionKeys {
    /// Partition of the session.
    pub partition: Partition,
    /// Key of the string that holds the session or its tombstone.
    pub session: Bytes,
    /// `<namespace>:<id>`, the end of the key.
    pub name: Bytes,
}

/// Kind of a key other than a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    /// Meta of a partition.
    Meta,
    /// Log of a partition.
    Log,
    /// Namespaces of a partition.
    Namespaces,
    /// Due set of a namespace.
    Due,
    /// Index of a subject.
    Subject,
}

impl KeyKind {
    /// Name in repair.lua.
    pub(super) fn name(self) -> &'static str {
        match self {
            KeyKind::Meta => "meta",
            KeyKind::Log => "log",
            KeyKind::Namespaces => "namespaces",
            KeyKind::Due => "due",
            KeyKind::Subject => "subject",
        }
    }
}

impl Keys {
    /// Creates the names for a key prefix, a Redis database and a number of partitions, which is a power of two of at most
    /// [`MAX_PARTITIONS`].
    pub(super) fn new(prefix: &str, database: u8, partitions: u16) -> Self {
        let names = |index| {
            let tag = tag(index, partitions);
            Names::new(format!("{prefix}{{{tag}}}"), Slot::of(&tag), database)
        };
        let partitions = (0..partitions).map(names).collect();
        Keys { prefix: prefix.to_owned(), partitions }
    }

    /// Iterates over all partitions.
    pub(super) fn partitions(&self) -> impl ExactSizeIterator<Item = Partition> + use<> {
        (0..self.partitions.len() as u16).map(Partition)
    }

    /// Partition of a session.
    pub(super) fn partition_of(&self, id: &SessionId) -> Partition {
        const { assert!(ID_BYTES == 16) };
        Partition((crc32fast::hash(id.as_bytes()) as usize & (self.partitions.len() - 1)) as u16)
    }

    /// Key of the string that holds a session or its tombstone.
    pub(super) fn session(&self, name: &SessionRef) -> Bytes {
        self.session_keys(name).session
    }

    /// Key and name of a session.
    pub(super) fn session_keys(&self, name: &SessionRef) -> SessionKeys {
        let partition = self.partition_of(&name.id);
        let stem = &self.partitions[partition.index()].stem;
        let session = Bytes::from(format!("{stem}:s:{}:{}", name.namespace, name.id));
        SessionKeys { partition, name: session.slice(stem.len() + 3..), session }
    }

    /// KEYS of the scripts of one session.
    pub(super) fn of_session_script(&self, keys: &SessionKeys, namespace: &Namespace) -> Vec<Bytes> {
        let partition = keys.partition;
        let (due, namespaces) = (self.due(partition, namespace), self.namespaces(partition));
        vec![keys.session.clone(), due, namespaces, self.log(partition), self.absent(partition), self.meta(partition)]
    }

    /// Session of a session key. None: another kind of key.
    pub(super) fn session_of_key(&self, key: &str) -> Option<SessionRef> {
        let (_, rest) = key.strip_prefix(&self.prefix)?.strip_prefix('{')?.split_once("}:s:")?;
        let (namespace, id) = rest.split_once(':')?;
        let name = SessionRef { namespace: namespace.parse().ok()?, id: id.parse().ok()? };
        (self.session(&name) == key).then_some(name)
    }

    /// Partition of the index of a subject.
    pub(super) fn partition_of_subject(&self, subject: &Subject) -> Partition {
        let hash = crc32fast::hash(format!("{}:{}", subject.namespace, subject.name).as_bytes());
        Partition((hash as usize & (self.partitions.len() - 1)) as u16)
    }

    /// Key of the sorted set with a subject's session ids by time added in us. In the subject's partition, not those of the ids.
    pub(super) fn subject(&self, subject: &Subject) -> Bytes {
        let stem = &self.partitions[self.partition_of_subject(subject).index()].stem;
        format!("{stem}:u:{}:{}", subject.namespace, subject.name).into()
    }

    /// Redis pattern that matches the keys of all sessions and subject indexes; with a partition, its session keys only.
    pub(super) fn scan_pattern(&self, partition: Option<Partition>) -> String {
        let (stem, kind) = match partition {
            Some(partition) => (&self.partitions[partition.index()].stem[self.prefix.len()..], ":s:*"),
            None => ("{*}", ":[su]:*"),
        };
        let mut pattern = String::new();
        for letter in self.prefix.chars() {
            if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(letter);
        }
        pattern + stem + kind
    }

    /// Subject of an index key. None: another kind of key.
    pub(super) fn subject_of_key(&self, key: &str) -> Option<Subject> {
        let (_, rest) = key.strip_prefix(&self.prefix)?.strip_prefix('{')?.split_once("}:u:")?;
        let (namespace, name) = rest.split_once(':')?;
        Some(Subject { namespace: namespace.parse().ok()?, name: name.to_owned() })
    }

    /// Partition and kind of a key. None: a session, or no key of the store.
    pub(super) fn kind_of_key(&self, key: &str) -> Option<(Partition, KeyKind)> {
        let rest = |names: &Names| key.strip_prefix(&names.stem)?.strip_prefix(':');
        let (partition, rest) =
            self.partitions().zip(&self.partitions).find_map(|(p, names)| Some((p, rest(names)?)))?;
        let kind = match rest {
            "meta" => KeyKind::Meta,
            "log" => KeyKind::Log,
            "ns" => KeyKind::Namespaces,
            _ if rest.starts_with("due:") => KeyKind::Due,
            _ if rest.starts_with("u:") => KeyKind::Subject,
            _ => return None,
        };
        Some((partition, kind))
    }

    /// Key of the due set: the namespace's session ids by deadline in ms. It serves expiry and listing.
    pub(super) fn due(&self, partition: Partition, namespace: &Namespace) -> Bytes {
        format!("{}:due:{namespace}", self.partitions[partition.index()].stem).into()
    }

    /// Key of the sorted set with namespaces by a lower bound of their earliest deadline in ms.
    pub(super) fn namespaces(&self, partition: Partition) -> Bytes {
        self.partitions[partition.index()].namespaces.clone()
    }

    /// Key of the log: a stream with one entry per change.
    pub(super) fn log(&self, partition: Partition) -> Bytes {
        self.partitions[partition.index()].log.clone()
    }

    /// Key of the hash with store id, format, number of partitions, last position and size of the log.
    pub(super) fn meta(&self, partition: Partition) -> Bytes {
        self.partitions[partition.index()].meta.clone()
    }

    /// Key that never exists. Every session script declares it, so that Redis refuses the script before it begins while the
    /// slot migrates. Without it Redis would stop a script between emptying a key and filling it again.
    pub(super) fn absent(&self, partition: Partition) -> Bytes {
        self.partitions[partition.index()].absent.clone()
    }

    /// Cluster slot of a partition.
    pub(super) fn slot(&self, partition: Partition) -> Slot {
        self.partitions[partition.index()].slot
    }

    /// Cluster slot of each partition.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.partitions.iter().map(|names| names.slot).collect()
    }

    /// Name of the sharded channel on which every log entry is published.
    pub(super) fn channel(&self, partition: Partition) -> Bytes {
        self.partitions[partition.index()].channel.clone()
    }

    /// Name of the channel as text.
    pub(super) fn channel_name(&self, partition: Partition) -> String {
        String::from_utf8_lossy(&self.channel(partition)).into_owned()
    }

    /// Partition of a channel. None: another channel.
    pub(super) fn partition_of_channel(&self, channel: &[u8]) -> Option<Partition> {
        self.partitions.iter().position(|names| names.channel == channel).map(|index| Partition(index as u16))
    }
}

/// Hash tag of a partition: the first `<partition>:<n>` whose slot is in this partition's share of all slots.
///
/// Partition 0 has one tag for all numbers of partitions, with a slot in the smallest share. Its meta records the number, so
/// servers with different numbers read the same key.
#[expect(clippy::expect_used, reason = "a test finds a tag for every partition of every valid number of partitions")]
fn tag(index: u16, partitions: u16) -> String {
    let share = usize::from(Slot::COUNT) / usize::from(if index == 0 { MAX_PARTITIONS } else { partitions });
    (0..)
        .map(|n| format!("{index:02}:{n}"))
        .find(|tag| usize::from(Slot::of(tag).0) / share == usize::from(index))
        .expect("every share of the slots has a tag")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_never_change() {
        for partitions in [1, 2, 4, 8, 16, 32, 64] {
            let meta = Keys::new("ses:", 0, partitions).meta(Partition(0));
            assert_eq!(meta, "ses:{00:120}:meta");
        }
        let keys = Keys::new("ses:", 0, 16);
        let name = SessionRef { namespace: "web".parse().unwrap(), id: SessionId::from_bytes([0; 16]) };
        assert_eq!(keys.session(&name), "ses:{05:61}:s:web:aaaaaaaaaaaaaaaaaaaaaaaaaa");
    }

    #[test]
    fn channels_of_two_databases_differ() {
        let channel = |database| Keys::new("ses:", database, 16).channel(Partition(5));
        assert_eq!(channel(0), "ses:{05:61}:events");
        assert_eq!(channel(3), "ses:{05:61}:events:3");
    }

    #[test]
    fn session_of_key_inverts_session() {
        let keys = Keys::new("ses:", 0, 16);
        let name = SessionRef { namespace: "web".parse().unwrap(), id: SessionId::from_bytes([7; 16]) };
        let key = String::from_utf8(keys.session(&name).into()).unwrap();
        assert_eq!(keys.session_of_key(&key), Some(name));
        let of_another_partition = key.replacen("{", "{9", 1);
        for other in [&of_another_partition[..], "ses:{05:61}:s:web:short", "other:{05:61}:s:web:", ""] {
            assert_eq!(keys.session_of_key(other), None, "{other}");
        }
    }

    #[test]
    fn tags_every_slot_share_has_one_partition() {
        for partitions in [1, 2, 4, 8, 16, 32, 64] {
            for index in 0..partitions {
                let share = usize::from(Slot::of(&tag(index, partitions)).0) * usize::from(partitions)
                    / usize::from(Slot::COUNT);
                assert_eq!(share, index as usize);
            }
        }
    }
}
