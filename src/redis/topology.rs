//! Finds the server that owns a slot: one fixed server, or the one that Sentinels or Cluster nodes name.
//!
//! It asks several of them and takes the answer with the newest configuration epoch, because one that is partitioned from
//! the others returns old data.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use fred::{
    error::Error as FredError,
    interfaces::ClientLike,
    types::{
        Value,
        config::{Server, ServerConfig},
    },
};
use futures_util::future::{join_all, try_join_all};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::{
    cluster_nodes::NodeRow,
    connection::{ConnectOptions, Connection, MESSAGES_WITHOUT_SUBSCRIPTION, UNRESPONSIVE_AFTER},
    endpoint::{Address, Endpoint},
    error::Error,
    heartbeat::Heartbeat,
    request::custom,
    slot::Slot,
};

/// Maximum time that one Sentinel or node may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);
/// Time after which an epoch that no server has returned again is forgotten: the Sentinels or the Cluster may be new.
const EPOCH_MEMORY: Duration = Duration::from_secs(10);

/// Source of the topology.
pub(super) enum Topology {
    /// One server owns all slots.
    Fixed(Address),
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
pub(super) struct TopologyProbes {
    seeds: Vec<Server>,
    /// Credentials of the Sentinels or nodes.
    endpoint: Endpoint,
    connections: Mutex<HashMap<Server, Arc<Connection>>>,
    /// Newest epoch of each slot, and the time it was last returned.
    newest: Mutex<HashMap<Slot, (u64, Instant)>>,
}

/// Replies of each server to the questions it was asked, or its error.
type Answers = Vec<(Server, Result<Vec<Value>, String>)>;

/// Owners of slots. A slot without owner is missing.
pub(super) type Owners = BTreeMap<Slot, Owner>;

/// Owner of a slot.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owner {
    /// Address of the owner.
    pub address: Address,
    /// Configuration epoch at which it became the owner.
    epoch: u64,
    /// Server to which the slot migrates. None: it does not migrate.
    pub migrating_to: Option<Address>,
}

impl Owner {
    fn of(address: Address, epoch: u64) -> Self {
        Owner { address, epoch, migrating_to: None }
    }
}

impl Topology {
    /// Creates the topology that the URL describes.
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        match endpoint.servers() {
            ServerConfig::Clustered { hosts, .. } => {
                Topology::Cluster { probes: TopologyProbes::new(hosts, endpoint.clone()) }
            }
            ServerConfig::Sentinel { hosts, service_name, username, password } => {
                let sentinels = endpoint.of_sentinels(username.clone(), password.clone());
                Topology::Sentinels { probes: TopologyProbes::new(hosts, sentinels), service: service_name.clone() }
            }
            server => Topology::Fixed(Address::of(server.clone())),
        }
    }

    /// Whether the topology cannot change.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self, Topology::Fixed(_))
    }

    /// Maximum number of connections that look up the topology of this number of nodes.
    pub(super) fn max_probes(&self, nodes: usize) -> usize {
        match self {
            Topology::Fixed(_) => 0,
            Topology::Sentinels { probes, .. } => probes.seeds.len(),
            Topology::Cluster { probes } => probes.seeds.len() + nodes,
        }
    }

    /// Returns the owners of these slots; leaves out those that no server owns, or for which all answers have an outdated
    /// epoch. Nodes of a Cluster with a `known` address are asked too.
    pub(super) async fn lookup(
        &self,
        slots: &[Slot],
        known: impl IntoIterator<Item = Address>,
    ) -> Result<Owners, Error> {
        match self {
            Topology::Fixed(address) => Ok(all_owned_by(slots, &Owner::of(address.clone(), 0))),
            Topology::Sentinels { probes, service } => {
                let questions = ["MASTER", "GET-MASTER-ADDR-BY-NAME"].map(|word| vec![word.into(), service.into()]);
                let answers = probes.ask("SENTINEL", &questions, &[]).await;
                let primary = newest_primary(answers, service)?;
                Ok(probes.not_superseded(all_owned_by(slots, &primary)))
            }
            Topology::Cluster { probes } => {
                let known: Vec<Server> = known.into_iter().filter_map(|address| address.server()).collect();
                let answers = probes.ask("CLUSTER", &[vec!["NODES".into()]], &known).await;
                Ok(probes.not_superseded(newest_owners(answers, slots, probes.endpoint.uses_tls())?))
            }
        }
    }
}

fn all_owned_by(slots: &[Slot], owner: &Owner) -> Owners {
    slots.iter().map(|slot| (*slot, owner.clone())).collect()
}

impl TopologyProbes {
    fn new(seeds: &[Server], endpoint: Endpoint) -> Self {
        TopologyProbes { seeds: seeds.to_vec(), endpoint, connections: Mutex::default(), newest: Mutex::default() }
    }

    /// Asks all seeds and all known nodes.
    async fn ask(&self, command: &'static str, questions: &[Vec<Value>], known: &[Server]) -> Answers {
        let others = known.iter().filter(|server| !self.seeds.contains(server));
        let asked = self.seeds.iter().chain(others).map(|server| async move {
            let answer = async {
                let connection = self.connection(server).await?;
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
    fn not_superseded(&self, mut owners: Owners) -> Owners {
        let (mut newest, now) = (self.newest.lock(), Instant::now());
        owners.retain(|slot, owner| {
            let (known, named) = newest.entry(*slot).or_insert((owner.epoch, now));
            if owner.epoch < *known && now - *named < EPOCH_MEMORY {
                return false;
            }
            (*known, *named) = (owner.epoch, now);
            true
        });
        owners
    }

    async fn connection(&self, server: &Server) -> Result<Arc<Connection>, FredError> {
        if let Some(connection) = self.connections.lock().get(server).filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let options = ConnectOptions {
            endpoint: self.endpoint.clone(),
            address: Address::from(server.clone()),
            messages: MESSAGES_WITHOUT_SUBSCRIPTION,
            heartbeat: Heartbeat::Role,
            unresponsive_after: UNRESPONSIVE_AFTER,
        };
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
        Some(Owner::of(Address::new(&host, port.parse().ok()?), fields.get("config-epoch")?.parse().ok()?))
    });
    let newest = named.max_by_key(|owner| owner.epoch);
    newest.ok_or_else(|| {
        Error::Unavailable(format!("no Sentinel knows a primary named {service:?}: {}", describe(&answers)))
    })
}

/// Returns the owners of the slots from CLUSTER NODES of all nodes: of different claims the newest one. Only the owner of a
/// slot knows its migration target.
fn newest_owners(answers: Answers, slots: &[Slot], by_name: bool) -> Result<Owners, Error> {
    let mut owners = Owners::new();
    for (server, answer) in &answers {
        let text = answer.as_ref().ok().and_then(|answer| answer.first()?.as_string()).unwrap_or_default();
        let rows: Vec<NodeRow> = text.lines().filter_map(|line| NodeRow::read(line, server, by_name)).collect();
        let address_of = |id: &str| rows.iter().find(|row| row.id == id).map(|row| row.address.clone());
        for row in rows.iter().filter(|row| row.is_primary) {
            for slot in slots {
                let is_newer = owners.get(slot).is_none_or(|owner| row.epoch > owner.epoch);
                if is_newer && row.owns(*slot) {
                    owners.insert(*slot, Owner::of(row.address.clone(), row.epoch));
                }
                if let (Some(target), Some(owner)) = (row.target_of(*slot), owners.get_mut(slot))
                    && owner.address == row.address
                {
                    owner.migrating_to = address_of(target);
                }
            }
        }
    }
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        return Err(Error::Unavailable(describe(&answers)));
    }
    Ok(owners)
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

    fn host(address: Option<&Address>) -> String {
        address.map(|address| address.server().unwrap().host.to_string()).unwrap_or_default()
    }

    fn hosts(owners: &Owners, slots: &[Slot]) -> Vec<String> {
        slots.iter().map(|slot| host(owners.get(slot).map(|owner| &owner.address))).collect()
    }

    #[test]
    fn newest_owners_different_epochs_returns_newest() {
        let answers = || vec![answer("10.0.0.1", BEFORE), answer("10.0.0.3", AFTER)];
        let slots = [Slot(7), Slot(5461), Slot(10923)];
        let owners = newest_owners(answers(), &slots, false).unwrap();
        assert_eq!(hosts(&owners, &slots), ["10.0.0.3", "10.0.0.2", "10.0.0.2"]);
        let by_name = newest_owners(answers(), &slots[1..2], true).unwrap();
        assert_eq!(hosts(&by_name, &slots[1..2]), ["two.example"]);
    }

    #[test]
    fn newest_owners_unowned_slot_others_are_found() {
        let slots = [Slot(7), Slot(16000)];
        let owners = newest_owners(vec![answer("10.0.0.1", BEFORE)], &slots, false).unwrap();
        assert_eq!(hosts(&owners, &slots), ["10.0.0.1", ""]);
    }

    #[test]
    fn newest_owners_migrating_slot_returns_target_from_owner() {
        let gives = "\
aa 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5460 [7->-dd] [9-<-bb]\n\
bb 10.0.0.2:6379@16379 master - 0 1 2 connected 5461-10922 9\n\
dd 10.0.0.4:6379@16379,four.example master - 0 1 0 connected\n";
        let answers = || vec![answer("10.0.0.1", gives), answer("10.0.0.2", &gives.replace("[7->-dd] ", ""))];
        let targets = |by_name| {
            let slots = [Slot(7), Slot(8), Slot(9)];
            let owners = newest_owners(answers(), &slots, by_name).unwrap();
            slots.map(|slot| host(owners[&slot].migrating_to.as_ref()))
        };
        assert_eq!(targets(false), ["10.0.0.4", "", ""]);
        assert_eq!(targets(true), ["four.example", "", ""]);
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
        let newest = Owner::of(Address::new("10.0.0.9", 2), 5);
        assert_eq!(newest_primary(answers, "main").unwrap(), newest);
    }

    #[test]
    fn not_superseded_older_epoch_is_ignored() {
        let endpoint = Endpoint::parse("redis-cluster://localhost", Arc::default()).unwrap();
        let probes = TopologyProbes::new(&[], endpoint);
        let accepted = |epochs: [Option<u64>; 2]| {
            let slots = [Slot(3), Slot(4)];
            let owner =
                |(slot, epoch): (Slot, Option<u64>)| Some((slot, Owner::of(Address::new("10.0.0.1", 6379), epoch?)));
            let owners = probes.not_superseded(slots.into_iter().zip(epochs).filter_map(owner).collect());
            slots.map(|slot| owners.contains_key(&slot))
        };
        assert_eq!(accepted([Some(1), Some(7)]), [true, true]);
        assert_eq!(accepted([Some(2), Some(6)]), [true, false]);
        assert_eq!(accepted([Some(2), None]), [true, false]);
        assert_eq!(accepted([Some(1), Some(7)]), [false, true]);
    }
}
