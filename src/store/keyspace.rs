//! What Redis says of keys that vanish, and what there is to it.

use fred::types::Value;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Store, error::Error, node::Lane};
use crate::session::SessionName;

/// Whether a server tells of keys that vanish; the worse ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notifications {
    Off,
    /// It does not let itself be asked.
    Unknown,
    On,
}

impl Notifications {
    fn of_flags(flags: &str) -> Self {
        let all = flags.contains('A');
        let has = |flag| flags.contains(flag) || all;
        if flags.contains('E') && has('g') && has('x') && has('e') { Notifications::On } else { Notifications::Off }
    }
}

impl Store {
    /// Whether a session is due at some time; if not, it ended in the way it should.
    pub async fn is_due(&self, name: &SessionName, deadline: Instant) -> Result<bool, Error> {
        let partition = self.keys.partition_of(&name.id);
        let args = vec![self.keys.due(partition, &name.namespace).into(), name.id.to_string().into()];
        Ok(!self.connection.command(partition, "ZSCORE", args, deadline).await?.is_null())
    }

    /// Of each server by its name; those that do not answer are left out.
    pub async fn notifications(&self, deadline: Instant) -> Vec<(String, Notifications)> {
        let asks = self.connection.nodes().into_iter().map(async |node| {
            let args = [Value::from("GET"), "notify-keyspace-events".into()];
            let found = match node.command(Lane::Bulk, "CONFIG", &args, deadline).await.map_err(Error::from) {
                Ok(reply) => {
                    let flags = reply.into_map().ok().and_then(|map| map.values().next()?.as_string());
                    flags.map_or(Notifications::Unknown, |flags| Notifications::of_flags(&flags))
                }
                Err(Error::Refused(_)) => Notifications::Unknown,
                Err(_) => return None,
            };
            Some((node.name(), found))
        });
        join_all(asks).await.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_flags_are_needed() {
        for on in ["Egxe", "AKE", "KEA", "xegE", "AE"] {
            assert_eq!(Notifications::of_flags(on), Notifications::On, "{on}");
        }
        for off in ["", "Kgxe", "Ex", "Egx", "A"] {
            assert_eq!(Notifications::of_flags(off), Notifications::Off, "{off}");
        }
    }
}
