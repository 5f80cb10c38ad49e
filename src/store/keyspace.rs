//! What Redis says of keys that vanish, and what there is to it.

use fred::types::Value;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    Store,
    error::Error,
    node::{Lane, Node},
};
use crate::session::SessionName;

/// Whether a server tells of keys that vanish; the worse ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notifications {
    Off,
    /// It does not let itself be asked.
    Unknown,
    On,
}

/// The setting, and what has to be in it.
const FLAGS: &str = "notify-keyspace-events";
const NEEDED: &str = "Egxe";

/// What a server tells of, in this run of it.
pub struct Telling {
    pub server: String,
    pub run: String,
    pub notifications: Notifications,
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

    /// Of each server; those that do not answer are left out.
    pub async fn notifications(&self, deadline: Instant) -> Vec<Telling> {
        let asks = self.connection.nodes().into_iter().map(async |node| {
            let found = match node.flags(deadline).await {
                Ok(flags) => Notifications::of_flags(&flags),
                Err(Error::Refused(_)) => Notifications::Unknown,
                Err(_) => return None,
            };
            let run = node.run(deadline).await.ok()?;
            Some(Telling { server: node.name(), run, notifications: found })
        });
        join_all(asks).await.into_iter().flatten().collect()
    }

    /// Has a server tell of keys that vanish, besides what it tells of already; it may refuse.
    pub async fn switch_on_notifications(&self, server: &str, deadline: Instant) -> Result<(), Error> {
        let nodes = self.connection.nodes();
        let Some(node) = nodes.iter().find(|node| node.name() == server) else { return Ok(()) };
        let flags = node.flags(deadline).await? + NEEDED;
        let args = ["SET", FLAGS, &flags].map(Value::from);
        node.command(Lane::Bulk, "CONFIG", &args, deadline).await?;
        Ok(())
    }
}

impl Node {
    async fn flags(&self, deadline: Instant) -> Result<String, Error> {
        let args = ["GET", FLAGS].map(Value::from);
        let reply = self.command(Lane::Bulk, "CONFIG", &args, deadline).await?;
        let flags = reply.into_map().ok().and_then(|map| map.values().next()?.as_string());
        flags.ok_or_else(|| Error::Refused("it has no such setting".into()))
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
