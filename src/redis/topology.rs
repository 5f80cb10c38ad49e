//! Finds the server that owns a slot: one fixed server, or the answer of Sentinels or Cluster nodes.
//!
//! It asks several of them and takes the answer with the newest configuration epoch, because one that is partitioned from
//! the others returns old data.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fred::{
    error::Error as FredError,
    interfaces::ClientLike,
    types::{
        Value,
        config::{Config, Server, ServerConfig},
    },
};
use futures_util::future::{join_all, try_join_all};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::{
    heartbeat::Heartbeat,
    node::{Node, custom},
    node_connector::{FEW, NodeConnector},
    reconnecting_connection::{ConnectOptions, Connection, UNRESPONSIVE_AFTER},
};
use crate::store::Error;

/// Maximum time that one Sentinel or node may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);
/// Time after which an epoch that no server has returned again is forgotten: the Sentinels or the Cluster may be new.
const EPOCH_MEMORY: Duration = Duration::from_secs(10);

/// Source of the topology.
pub(crate) enum Topology {
    /// One server owns all slots.
    Fixed(ServerConfig),
    /// Sentinels name the primary, which owns all slots.
    Sentinels {
        /// Connections to the Sentinels.
        probes: TopologyProbes,
        /// Name of the primary in the configuration of the Sentinels.
        service: String,
    },
    /// The nodes of a Cluster name the owner of each slot.
    Cluster {
        /// Connections to the nodes.
        probes: TopologyProbes,
    },
}

/// Connections to the Sentinels or nodes that are asked, opened on first use.
pub(crate) struct TopologyProbes {
    seeds: Vec<Server>,
    /// User and password for Sentinels. None: those of the servers.
    credentials: Option<(Option<String>, Option<String>)>,
    connections: Mutex<HashMap<Server, Arc<Connection>>>,
    /// Newest epoch of each slot, and the time it was last returned.
    newest: Mutex<HashMap<u16, (u64, Instant)>>,
}

/// Replies of each server to the questions it was asked, or its error.
type Answers = Vec<(Server, Result<Vec<Value>, String>)>;

/// Owner of a slot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Owner {
    /// Address of the owner.
    pub address: ServerConfig,
    /// Configuration epoch at which it became the owner.
    epoch: u64,
    /// Server to which the slot migrates. None: it does not migrate.
    pub migrating_to: Option<ServerConfig>,
}

impl Topology {
    /// Creates the topology that the Redis URL describes.
    pub(crate) fn of(config: &Config) -> Self {
        let probes = |seeds: &[Server], credentials| TopologyProbes {
            seeds: seeds.to_vec(),
            credentials,
            connections: Mutex::default(),
            newest: Mutex::default(),
        };
        match &config.server {
            ServerConfig::Clustered { hosts, .. } => Topology::Cluster { probes: probes(hosts, None) },
            ServerConfig::Sentinel { hosts, service_name, username, password } => Topology::Sentinels {
                probes: probes(hosts, Some((username.clone(), password.clone()))),
                service: service_name.clone(),
            },
            address => Topology::Fixed(address.clone()),
        }
    }

    /// Whether the topology cannot change.
    pub(crate) fn is_fixed(&self) -> bool {
        matches!(self, Topology::Fixed(_))
    }

    /// Maximum number of connections that look up the topology of this number of nodes.
    pub(crate) fn max_probes(&self, nodes: usize) -> usize {
        match self {
            Topology::Fixed(_) => 0,
            Topology::Sentinels { probes, .. } => probes.seeds.len(),
            Topology::Cluster { probes } => probes.seeds.len() + nodes,
        }
    }

    /// Whether the servers form a Cluster.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Topology::Cluster { .. })
    }

    /// Returns the owner of each slot; None = no server owns it, or all answers have an outdated epoch.
    pub(crate) async fn lookup(
        &self,
        connector: &NodeConnector,
        slots: &[u16],
        known: &[Arc<Node>],
    ) -> Result<Vec<Option<Owner>>, Error> {
        match self {
            Topology::Fixed(address) => Ok(vec![Some(Owner::of(address.clone(), 0)); slots.len()]),
            Topology::Sentinels { probes, service } => {
                let questions = ["MASTER", "GET-MASTER-ADDR-BY-NAME"].map(|word| vec![word.into(), service.into()]);
                let answers = probes.ask(connector, "SENTINEL", &questions, &[]).await;
                let primary = newest_primary(answers, service)?;
                Ok(probes.not_superseded(slots, vec![Some(primary); slots.len()]))
            }
            Topology::Cluster { probes } => {
                let known: Vec<Server> = known.iter().flat_map(|node| node.address.hosts()).collect();
                let answers = probes.ask(connector, "CLUSTER", &[vec!["NODES".into()]], &known).await;
                let owners = newest_owners(answers, slots, connector.config.tls.is_some())?;
                Ok(probes.not_superseded(slots, owners))
            }
        }
    }
}

impl Owner {
    fn of(address: ServerConfig, epoch: u64) -> Self {
        Owner { address, epoch, migrating_to: None }
    }
}

impl TopologyProbes {
    /// Asks all seeds and all known nodes.
    async fn ask(
        &self,
        connector: &NodeConnector,
        command: &'static str,
        questions: &[Vec<Value>],
        known: &[Server],
    ) -> Answers {
        let others = known.iter().filter(|server| !self.seeds.contains(server));
        let asked = self.seeds.iter().chain(others).map(|server| async move {
            let answer = async {
                let connection = self.connection(connector, server).await?;
                let asks = questions.iter().map(|question| connection.custom(custom(command), question.clone()));
                try_join_all(asks).await
            };
            let answer = match timeout(PROBE_TIMEOUT, answer).await {
                Ok(answer) => answer.map_err(|error| error.details().to_owned()),
                Err(_) => Err("no reply".into()),
            };
            if answer.is_err() {
                self.connections.lock().remove(server);
            }
            (server.clone(), answer)
        });
        let answers = join_all(asked).await;
        // Drop the connections to servers that are no longer known.
        self.connections.lock().retain(|server, _| answers.iter().any(|(asked, _)| asked == server));
        answers
    }

    /// Drops owners with an older epoch than one seen lately. A server that is partitioned from the others returns old data,
    /// and may be the only one that answers.
    fn not_superseded(&self, slots: &[u16], owners: Vec<Option<Owner>>) -> Vec<Option<Owner>> {
        let (mut newest, now) = (self.newest.lock(), Instant::now());
        let mut is_not_superseded = |slot: &u16, owner: &Owner| {
            let (known, named) = newest.entry(*slot).or_insert((owner.epoch, now));
            if owner.epoch < *known && now - *named < EPOCH_MEMORY {
                return false;
            }
            (*known, *named) = (owner.epoch, now);
            true
        };
        slots.iter().zip(owners).map(|(slot, owner)| owner.filter(|owner| is_not_superseded(slot, owner))).collect()
    }

    async fn connection(&self, connector: &NodeConnector, server: &Server) -> Result<Arc<Connection>, FredError> {
        if let Some(connection) = self.connections.lock().get(server).filter(|connection| !connection.is_over()) {
            return Ok(connection.clone());
        }
        let address = ServerConfig::Centralized { server: server.clone() };
        let mut config = Config { server: address, database: None, ..connector.config.clone() };
        if let Some((username, password)) = &self.credentials {
            (config.username, config.password) = (username.clone(), password.clone());
        }
        let (heartbeat, unresponsive_after) = (Heartbeat::Role, UNRESPONSIVE_AFTER);
        let options = ConnectOptions { config, messages: FEW, heartbeat, unresponsive_after };
        let connection = Arc::new(Connection::open(&options).await?);
        self.connections.lock().insert(server.clone(), connection.clone());
        Ok(connection)
    }
}

/// Describes the answer of each server, for an error text.
fn describe(answers: &Answers) -> String {
    let describe = |(server, answer): &(Server, Result<Vec<Value>, String>)| match answer {
        Ok(_) => format!("{server}: unreadable reply"),
        Err(error) => format!("{server}: {error}"),
    };
    answers.iter().map(describe).collect::<Vec<_>>().join("; ")
}

/// Returns the primary with the newest epoch that a Sentinel names. The address comes from a separate command: during a
/// failover, SENTINEL MASTER of the leading Sentinel returns the new epoch with the old address.
fn newest_primary(answers: Answers, service: &str) -> Result<Owner, Error> {
    let named = answers.iter().filter_map(|(_, answer)| {
        let [primary, address] = &answer.as_ref().ok()?[..] else { return None };
        let fields: HashMap<String, String> = primary.clone().convert().ok()?;
        let (host, port): (String, String) = address.clone().convert().ok()?;
        let address = ServerConfig::new_centralized(host, port.parse().ok()?);
        Some(Owner::of(address, fields.get("config-epoch")?.parse().ok()?))
    });
    let newest = named.max_by_key(|owner| owner.epoch);
    newest.ok_or_else(|| {
        Error::Unavailable(format!("no Sentinel knows a primary named {service:?}: {}", describe(&answers)))
    })
}

/// Returns the owners of the slots from CLUSTER NODES of all nodes: of different claims the newest one. Only the owner of a
/// slot knows its migration target.
fn newest_owners(answers: Answers, slots: &[u16], by_name: bool) -> Result<Vec<Option<Owner>>, Error> {
    let mut owners: Vec<Option<Owner>> = vec![None; slots.len()];
    for (server, answer) in &answers {
        let text = answer.as_ref().ok().and_then(|answer| answer.first()?.as_string()).unwrap_or_default();
        let rows: Vec<NodeRow> = text.lines().filter_map(|line| NodeRow::read(line, server, by_name)).collect();
        let address_of = |id: &str| rows.iter().find(|row| row.id == id).map(|row| row.address.clone());
        for row in rows.iter().filter(|row| row.is_primary) {
            for (slot, owner) in slots.iter().zip(&mut owners) {
                let is_newer = owner.as_ref().is_none_or(|owner| row.epoch > owner.epoch);
                if is_newer && row.ranges.iter().any(|(first, last)| (first..=last).contains(&slot)) {
                    *owner = Some(Owner::of(row.address.clone(), row.epoch));
                }
                let given = row.migrating.iter().find(|(given, _)| given == slot);
                if let (Some((_, to)), Some(owner)) =
                    (given, owner.as_mut().filter(|owner| owner.address == row.address))
                {
                    owner.migrating_to = address_of(to);
                }
            }
        }
    }
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        return Err(Error::Unavailable(describe(&answers)));
    }
    Ok(owners)
}

/// One line of CLUSTER NODES.
struct NodeRow<'a> {
    id: &'a str,
    address: ServerConfig,
    is_primary: bool,
    epoch: u64,
    ranges: Vec<(u16, u16)>,
    /// Slots that migrate from this node, with the id of the target node.
    migrating: Vec<(u16, &'a str)>,
}

impl<'a> NodeRow<'a> {
    /// Parses `id ip:port@cport[,hostname] flags primary ping pong epoch link slots…`.
    fn read(line: &'a str, reported_by: &Server, by_name: bool) -> Option<Self> {
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
        let address = ServerConfig::new_centralized(host, port.parse().ok()?);
        let (mut ranges, mut migrating) = (Vec::new(), Vec::new());
        for word in words.skip(1) {
            // [slot->-id] migrates away, [slot-<-id] is imported.
            let gives = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')?.split_once("->-"));
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            match (gives, first.parse(), last.parse()) {
                (Some((slot, to)), ..) => migrating.extend(slot.parse().ok().map(|slot| (slot, to))),
                (None, Ok(first), Ok(last)) => ranges.push((first, last)),
                _ => {}
            }
        }
        Some(NodeRow { id, address, is_primary, epoch, ranges, migrating })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
aa 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5460\n\
bb 10.0.0.2:6379@16379,two.example master - 0 1 2 connected 5461-10922 10923 [99-<-aa]\n\
cc 10.0.0.3:6379@16379 slave aa 0 1 1 connected\n";
    const AFTER: &str = "\
aa 10.0.0.1:6379@16379 master,fail - 0 0 1 connected\n\
cc :6379@16379 myself,master - 0 1 3 connected 0-5460\n";

    fn answer(host: &str, text: &str) -> (Server, Result<Vec<Value>, String>) {
        (Server::new(host, 6379), Ok(vec![Value::from(text)]))
    }

    fn host(address: Option<ServerConfig>) -> String {
        address.map(|address| address.hosts()[0].host.to_string()).unwrap_or_default()
    }

    fn hosts(owners: Vec<Option<Owner>>) -> Vec<String> {
        owners.into_iter().map(|owner| host(owner.map(|owner| owner.address))).collect()
    }

    #[test]
    fn newest_owners_different_epochs_returns_newest() {
        let answers = || vec![answer("10.0.0.1", BEFORE), answer("10.0.0.3", AFTER)];
        let addresses = newest_owners(answers(), &[7, 5461, 10923], false).unwrap();
        assert_eq!(hosts(addresses), ["10.0.0.3", "10.0.0.2", "10.0.0.2"]);
        let by_name = newest_owners(answers(), &[5461], true).unwrap();
        assert_eq!(hosts(by_name), ["two.example"]);
    }

    #[test]
    fn newest_owners_unowned_slot_others_are_found() {
        let addresses = newest_owners(vec![answer("10.0.0.1", BEFORE)], &[7, 16000], false).unwrap();
        assert_eq!(hosts(addresses), ["10.0.0.1", ""]);
    }

    #[test]
    fn newest_owners_migrating_slot_returns_target_from_owner() {
        let gives = "\
aa 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5460 [7->-dd] [9-<-bb]\n\
bb 10.0.0.2:6379@16379 master - 0 1 2 connected 5461-10922 9\n\
dd 10.0.0.4:6379@16379,four.example master - 0 1 0 connected\n";
        let answers = || vec![answer("10.0.0.1", gives), answer("10.0.0.2", &gives.replace("[7->-dd] ", ""))];
        let next = |by_name| {
            let owners = newest_owners(answers(), &[7, 8, 9], by_name).unwrap();
            owners.into_iter().map(|owner| host(owner.unwrap().migrating_to)).collect::<Vec<_>>()
        };
        assert_eq!(next(false), ["10.0.0.4", "", ""]);
        assert_eq!(next(true), ["four.example", "", ""]);
    }

    #[test]
    fn newest_primary_several_sentinels_returns_newest_epoch() {
        // During a failover the leading Sentinel returns the new epoch with the old address in SENTINEL MASTER.
        let reply = |port: &str, epoch: &str, also: &str| {
            let fields = [("ip", "10.0.0.9"), ("port", also), ("config-epoch", epoch)];
            let fields: HashMap<String, String> = fields.map(|(name, value)| (name.into(), value.into())).into();
            let address = Value::Array(vec!["10.0.0.9".into(), port.into()]);
            (Server::new("sentinel", 26379), Ok(vec![Value::try_from(fields).unwrap(), address]))
        };
        let down = (Server::new("down", 1), Err("refused".into()));
        let answers = vec![reply("1", "4", "1"), reply("2", "5", "2"), reply("2", "5", "1"), down];
        let newest = Owner::of(ServerConfig::new_centralized("10.0.0.9", 2), 5);
        assert_eq!(newest_primary(answers, "main").unwrap(), newest);
    }

    #[test]
    fn not_superseded_older_epoch_is_ignored() {
        let probes = TopologyProbes {
            seeds: Vec::new(),
            credentials: None,
            connections: Mutex::default(),
            newest: Mutex::default(),
        };
        let accepted = |epochs: [Option<u64>; 2]| {
            let owners = epochs.map(|epoch| Some(Owner::of(ServerConfig::new_centralized("10.0.0.1", 6379), epoch?)));
            probes.not_superseded(&[3, 4], owners.into()).iter().map(Option::is_some).collect::<Vec<_>>()
        };
        assert_eq!(accepted([Some(1), Some(7)]), [true, true]);
        assert_eq!(accepted([Some(2), Some(6)]), [true, false]);
        assert_eq!(accepted([Some(2), None]), [true, false]);
        assert_eq!(accepted([Some(1), Some(7)]), [false, true]);
    }
}
