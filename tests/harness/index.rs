//! A subject's index as Redis holds it, and as it may be altered by hand.

use std::collections::BTreeSet;

use sessiond_client::v1::SessionEvent;

use super::{World, client::NAMESPACE};

impl World {
    /// The key of a subject's index; None = there is none.
    pub fn index_key(&self, subject: &str) -> Option<String> {
        let end = format!("}}:u:{NAMESPACE}:{subject}");
        self.redis.keys(&format!("{}*", self.prefix)).into_iter().find(|key| key.ends_with(&end))
    }

    /// The ids in a subject's index.
    pub fn index(&self, subject: &str) -> BTreeSet<String> {
        let key = self.index_key(subject);
        key.map(|key| self.redis.list(&["ZRANGE", &key, "0", "-1"])).unwrap_or_default().into_iter().collect()
    }

    /// Microseconds by the clock of Redis.
    pub fn now_us(&self) -> u64 {
        let time = self.redis.list(&["TIME"]);
        time[0].parse::<u64>().unwrap() * 1_000_000 + time[1].parse::<u64>().unwrap()
    }

    /// As if everything in the index had been added a minute ago, in the same order.
    pub fn age(&self, subject: &str) {
        let Some(key) = self.index_key(subject) else { return };
        let added = self.now_us() - 60_000_000;
        for (n, id) in self.redis.list(&["ZRANGE", &key, "0", "-1"]).iter().enumerate() {
            self.redis.command(&["ZADD", &key, "XX", &(added + n as u64).to_string(), id]);
        }
    }
}

/// The most sessions that this subject had at once, by events in the order in which they happened.
pub fn most_at_once(events: &[SessionEvent], subject: &str) -> usize {
    let (mut live, mut most) = (BTreeSet::new(), 0);
    for event in events {
        let session = event.session.as_ref().expect("events of sessions");
        if event.cause() == Default::default() && session.subject == subject {
            live.insert(&event.id);
        } else {
            live.remove(&event.id);
        }
        most = most.max(live.len());
    }
    most
}
