//! Keyspace notifications: whether each server publishes them, and whether a missing key needs an end.

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Store, error::Error};
use crate::redis::{Node, Priority};
use crate::session::SessionRef;

/// Whether a server publishes keyspace notifications for removed keys. Ordered from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notifications {
    /// At least one required flag is missing.
    Off,
    /// The server does not allow `CONFIG GET`.
    Unknown,
    /// All required flags are set.
    On,
}

/// Redis setting for keyspace notifications.
const SETTING: &str = "notify-keyspace-events";
/// Flags that the setting has to contain.
const REQUIRED_FLAGS: &str = "Egxe";

/// Keyspace notifications of one server.
pub struct NotificationStatus {
    /// Address of the server.
    pub server: String,
    /// Run id of the server; it changes with every restart.
    pub run: String,
    /// Whether the server publishes them.
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
    /// Returns whether the due set contains a session. If it does not, the session was ended by a script.
    pub async fn is_due(&self, name: &SessionRef, deadline: Instant) -> Result<bool, Error> {
        let partition = self.keys.partition_of(&name.id);
        let args = vec![self.keys.due(partition, &name.namespace), name.id.to_string().into()];
        Ok(!self.command(partition, "ZSCORE", args, deadline).await?.is_nil())
    }

    /// Returns the status of each server; omits those that do not answer.
    pub async fn notifications(&self, deadline: Instant) -> Vec<NotificationStatus> {
        let asks = self.router.nodes().into_iter().map(async |node| {
            let found = match flags(&node, deadline).await {
                Ok(flags) => Notifications::of_flags(&flags),
                Err(Error::Refused(_)) => Notifications::Unknown,
                Err(_) => return None,
            };
            let run = node.run_id(deadline).await.ok()?;
            Some(NotificationStatus { server: node.name(), run, notifications: found })
        });
        join_all(asks).await.into_iter().flatten().collect()
    }

    /// Adds the required flags to the setting of a server. Fails if the server does not allow `CONFIG SET`.
    pub async fn switch_on_notifications(&self, server: &str, deadline: Instant) -> Result<(), Error> {
        let nodes = self.router.nodes();
        let Some(node) = nodes.iter().find(|node| node.name() == server) else { return Ok(()) };
        let flags = flags(node, deadline).await? + REQUIRED_FLAGS;
        let args = [Bytes::from("SET"), SETTING.into(), flags.into()];
        node.command(Priority::Background, "CONFIG", &args, deadline).await?;
        Ok(())
    }
}

/// Reads the setting of a server.
async fn flags(node: &Node, deadline: Instant) -> Result<String, Error> {
    let args = ["GET", SETTING].map(Bytes::from);
    let reply = node.command(Priority::Background, "CONFIG", &args, deadline).await?;
    let flags = reply.pairs().next().and_then(|(_, flags)| flags.text().map(str::to_owned));
    flags.ok_or_else(|| Error::Refused("it has no setting notify-keyspace-events".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_need_all_four_flags() {
        for on in ["Egxe", "AKE", "KEA", "xegE", "AE"] {
            assert_eq!(Notifications::of_flags(on), Notifications::On, "{on}");
        }
        for off in ["", "Kgxe", "Ex", "Egx", "A"] {
            assert_eq!(Notifications::of_flags(off), Notifications::Off, "{off}");
        }
    }
}
