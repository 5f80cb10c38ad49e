//! Reads and changes a subject index directly in Redis.

use std::collections::BTreeSet;

use sessiond_client::v1::SessionEvent;

use super::{World, client::NAMESPACE};

impl World {
    /// Returns the key of a subject's index. None: the subject has no index.
    pub fn index_key(&self, subject: &str) -> Option<String> {
        let end = format!("}}:u:{NAMESPACE}:{subject}");
        self.redis.keys(&format!("{}*", self.prefix)).into_iter().find(|key| key.ends_with(&end))
    }

    /// Returns the session ids in a subject's index.
    pub fn index(&self, subject: &str) -> BTreeSet<String> {
        let key = self.index_key(subject);
        key.map(|key| self.redis.list(&["ZRANGE", &key, "0", "-1"])).unwrap_or_default().into_iter().collect()
    }

    /// Returns the time in µs since the epoch, Redis clock.
    pub fn now_us(&self) -> u64 {
        let time = self.redis.list(&["TIME"]);
        time[0].parse::<u64>().unwrap() * 1_000_000 + time[1].parse::<u64>().unwrap()
    }

    /// Sets the times of all entries in a subject's index to one minute ago, in their present order.
    pub fn age_index(&self, subject: &str) {
        let Some(key) = self.index_key(subject) else { return };
        let added = self.now_us() - 60_000_000;
        for (n, id) in self.redis.list(&["ZRANGE", &key, "0", "-1"]).iter().enumerate() {
            self.redis.command(&["ZADD", &key, "XX", &(added + n as u64).to_string(), id]);
        }
    }
}

/// Returns the maximum number of sessions that the subject had at one time, according to these events in log order.
pub fn max_concurrent(events: &[SessionEvent], subject: &str) -> usize {
    let (mut live, mut most) = (BTreeSet::new(), 0);
    for event in events {
        let session = event.session.as_ref().expect("every event has a session");
        if event.cause() == Default::default() && session.subject == subject {
            live.insert(&event.id);
        } else {
            live.remove(&event.id);
        }
        most = most.max(live.len());
    }
    most
}
