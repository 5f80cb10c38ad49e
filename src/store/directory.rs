//! Who knows which server has a partition: nobody needs to where there is one server, the Sentinels, or the nodes of a
//! Cluster.
//!
//! Several are asked, and the newest answer counts, by the configuration epoch that stands beside it: one that was cut off
//! from the others tells old news.

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
    error::Error,
    node::{FEW, Node, Opener, custom},
    wire::{Line, Making, UNRESPONSIVE_AFTER},
};

const ANSWER_WITHIN: Duration = Duration::from_millis(800);
/// An epoch that nobody has named for so long counts no more: the Sentinels, or the Cluster, may have been made anew.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Who is asked.
pub enum Directory {
    Fixed(ServerConfig),
    Sentinels { lookouts: Lookouts, service: String },
    Cluster { lookouts: Lookouts },
}

/// Connections to those who are asked, made when they are first needed.
pub struct Lookouts {
    seeds: Vec<Server>,
    /// Of the Sentinels, where they differ from the servers'.
    credentials: Option<(Option<String>, Option<String>)>,
    lines: Mutex<HashMap<Server, Arc<Line>>>,
    /// Of each slot: the newest epoch, and when it was named last.
    newest: Mutex<HashMap<u16, (u64, Instant)>>,
}

/// What each of those who were asked answered to each question.
type Answers = Vec<(Server, Result<Vec<Value>, String>)>;
/// Who has a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    pub place: ServerConfig,
    /// Since when, of all changes.
    epoch: u64,
    /// The server that the slot is on its way to.
    pub next: Option<ServerConfig>,
}

impl Directory {
    /// As the URL says.
    pub fn of(config: &Config) -> Self {
        let lookouts = |seeds: &[Server], credentials| Lookouts {
            seeds: seeds.to_vec(),
            credentials,
            lines: Mutex::default(),
            newest: Mutex::default(),
        };
        match &config.server {
            ServerConfig::Clustered { hosts, .. } => Directory::Cluster { lookouts: lookouts(hosts, None) },
            ServerConfig::Sentinel { hosts, service_name, username, password } => Directory::Sentinels {
                lookouts: lookouts(hosts, Some((username.clone(), password.clone()))),
                service: service_name.clone(),
            },
            place => Directory::Fixed(place.clone()),
        }
    }

    /// Whether there is nothing to find out.
    pub fn is_fixed(&self) -> bool {
        matches!(self, Directory::Fixed(_))
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self, Directory::Cluster { .. })
    }

    /// Which server has each of these slots; None = nobody has it, or only old news is to be had.
    pub async fn look(&self, opener: &Opener, slots: &[u16], known: &[Arc<Node>]) -> Result<Vec<Option<Owner>>, Error> {
        match self {
            Directory::Fixed(place) => Ok(vec![Some(Owner::of(place.clone(), 0)); slots.len()]),
            Directory::Sentinels { lookouts, service } => {
                let questions = ["MASTER", "GET-MASTER-ADDR-BY-NAME"].map(|word| vec![word.into(), service.into()]);
                let answers = lookouts.ask(opener, "SENTINEL", &questions, &[]).await;
                let primary = newest_primary(answers, service)?;
                Ok(lookouts.not_superseded(slots, vec![Some(primary); slots.len()]))
            }
            Directory::Cluster { lookouts } => {
                let known: Vec<Server> = known.iter().flat_map(|node| node.place.hosts()).collect();
                let answers = lookouts.ask(opener, "CLUSTER", &[vec!["NODES".into()]], &known).await;
                let owners = newest_owners(answers, slots, opener.config.tls.is_some())?;
                Ok(lookouts.not_superseded(slots, owners))
            }
        }
    }
}

impl Owner {
    fn of(place: ServerConfig, epoch: u64) -> Self {
        Owner { place, epoch, next: None }
    }
}

impl Lookouts {
    /// Asks all seeds, and these besides.
    async fn ask(&self, opener: &Opener, command: &'static str, questions: &[Vec<Value>], known: &[Server]) -> Answers {
        let others = known.iter().filter(|server| !self.seeds.contains(server));
        let asked = self.seeds.iter().chain(others).map(|server| async move {
            let answer = async {
                let line = self.line(opener, server).await?;
                let asks = questions.iter().map(|question| line.custom(custom(command), question.clone()));
                try_join_all(asks).await
            };
            let answer = match timeout(ANSWER_WITHIN, answer).await {
                Ok(answer) => answer.map_err(|error| error.details().to_owned()),
                Err(_) => Err("no answer".into()),
            };
            if answer.is_err() {
                self.lines.lock().remove(server);
            }
            (server.clone(), answer)
        });
        let answers = join_all(asked).await;
        // Those who have left are not asked again.
        self.lines.lock().retain(|server, _| answers.iter().any(|(asked, _)| asked == server));
        answers
    }

    /// Those of whom nothing newer was told lately: who is cut off from the others tells old news, and may be the only one
    /// who answers.
    fn not_superseded(&self, slots: &[u16], owners: Vec<Option<Owner>>) -> Vec<Option<Owner>> {
        let (mut newest, now) = (self.newest.lock(), Instant::now());
        let mut is_not_superseded = |slot: &u16, owner: &Owner| {
            let (known, named) = newest.entry(*slot).or_insert((owner.epoch, now));
            if owner.epoch < *known && now - *named < REMEMBERED {
                return false;
            }
            (*known, *named) = (owner.epoch, now);
            true
        };
        slots.iter().zip(owners).map(|(slot, owner)| owner.filter(|owner| is_not_superseded(slot, owner))).collect()
    }

    async fn line(&self, opener: &Opener, server: &Server) -> Result<Arc<Line>, FredError> {
        if let Some(line) = self.lines.lock().get(server).filter(|line| !line.is_over()) {
            return Ok(line.clone());
        }
        let place = ServerConfig::Centralized { server: server.clone() };
        let mut config = Config { server: place, database: None, ..opener.config.clone() };
        if let Some((username, password)) = &self.credentials {
            (config.username, config.password) = (username.clone(), password.clone());
        }
        let making = Making { config, messages: FEW, unresponsive_after: UNRESPONSIVE_AFTER };
        let line = Arc::new(Line::open(&making).await?);
        self.lines.lock().insert(server.clone(), line.clone());
        Ok(line)
    }
}

/// Why nobody could say it: what each answered.
fn nobody(answers: &Answers) -> String {
    let said = |(server, answer): &(Server, Result<Vec<Value>, String>)| match answer {
        Ok(_) => format!("{server}: cannot be understood"),
        Err(error) => format!("{server}: {error}"),
    };
    answers.iter().map(said).collect::<Vec<_>>().join("; ")
}

/// The primary that the Sentinels name, the newest one. The address is asked for by itself: amid a failover the Sentinel
/// that leads it has the new epoch already, and the old address still, among what else it tells of the primary.
fn newest_primary(answers: Answers, service: &str) -> Result<Owner, Error> {
    let named = answers.iter().filter_map(|(_, answer)| {
        let [told, address] = &answer.as_ref().ok()?[..] else { return None };
        let fields: HashMap<String, String> = told.clone().convert().ok()?;
        let (host, port): (String, String) = address.clone().convert().ok()?;
        let place = ServerConfig::new_centralized(host, port.parse().ok()?);
        Some(Owner::of(place, fields.get("config-epoch")?.parse().ok()?))
    });
    let newest = named.max_by_key(|owner| owner.epoch);
    newest
        .ok_or_else(|| Error::Unavailable(format!("no Sentinel names a primary of {service:?}: {}", nobody(&answers))))
}

/// The servers that own the slots, as the nodes of a Cluster tell: of different claims the newest one. Where a slot is on
/// its way to its owner alone knows.
fn newest_owners(answers: Answers, slots: &[u16], by_name: bool) -> Result<Vec<Option<Owner>>, Error> {
    let mut owners: Vec<Option<Owner>> = vec![None; slots.len()];
    for (server, answer) in &answers {
        let text = answer.as_ref().ok().and_then(|answer| answer.first()?.as_string()).unwrap_or_default();
        let lines: Vec<NodeLine> = text.lines().filter_map(|line| NodeLine::read(line, server, by_name)).collect();
        let place_of = |id: &str| lines.iter().find(|line| line.id == id).map(|line| line.place.clone());
        for line in lines.iter().filter(|line| line.is_primary) {
            for (slot, owner) in slots.iter().zip(&mut owners) {
                let is_newer = owner.as_ref().is_none_or(|owner| line.epoch > owner.epoch);
                if is_newer && line.ranges.iter().any(|(first, last)| (first..=last).contains(&slot)) {
                    *owner = Some(Owner::of(line.place.clone(), line.epoch));
                }
                let given = line.giving.iter().find(|(given, _)| given == slot);
                if let (Some((_, to)), Some(owner)) = (given, owner.as_mut().filter(|owner| owner.place == line.place))
                {
                    owner.next = place_of(to);
                }
            }
        }
    }
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        return Err(Error::Unavailable(nobody(&answers)));
    }
    Ok(owners)
}

/// What a line of CLUSTER NODES tells of a node.
struct NodeLine<'a> {
    id: &'a str,
    place: ServerConfig,
    is_primary: bool,
    epoch: u64,
    ranges: Vec<(u16, u16)>,
    /// Slots that it gives to the node of this id, and has still.
    giving: Vec<(u16, &'a str)>,
}

impl<'a> NodeLine<'a> {
    /// id, ip:port@cport[,hostname], flags, primary, ping, pong, epoch, link, slots …
    fn read(line: &'a str, told_by: &Server, by_name: bool) -> Option<Self> {
        let mut words = line.split(' ');
        let (id, address, flags) = (words.next()?, words.next()?, words.next()?);
        let epoch = words.nth(3)?.parse().ok()?;
        let (address, name) = address.split_once(',').unwrap_or((address, ""));
        let name = name.split(',').next().unwrap_or("");
        let (ip, port) = address.split_once('@').map_or(address, |(address, _)| address).rsplit_once(':')?;
        // Certificates are made out to names. A node that does not know its own address has the one it was asked at.
        let host = match (by_name && !name.is_empty(), ip) {
            (true, _) => name,
            (false, "") => &told_by.host,
            (false, ip) => ip,
        };
        let is_primary = flags.split(',').any(|flag| flag == "master");
        let place = ServerConfig::new_centralized(host, port.parse().ok()?);
        let (mut ranges, mut giving) = (Vec::new(), Vec::new());
        for word in words.skip(1) {
            // [slot->-id] it gives, [slot-<-id] it is given.
            let gives = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')?.split_once("->-"));
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            match (gives, first.parse(), last.parse()) {
                (Some((slot, to)), ..) => giving.extend(slot.parse().ok().map(|slot| (slot, to))),
                (None, Ok(first), Ok(last)) => ranges.push((first, last)),
                _ => {}
            }
        }
        Some(NodeLine { id, place, is_primary, epoch, ranges, giving })
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

    fn host(place: Option<ServerConfig>) -> String {
        place.map(|place| place.hosts()[0].host.to_string()).unwrap_or_default()
    }

    fn hosts(owners: Vec<Option<Owner>>) -> Vec<String> {
        owners.into_iter().map(|owner| host(owner.map(|owner| owner.place))).collect()
    }

    #[test]
    fn of_different_claims_the_newest_counts() {
        let answers = || vec![answer("10.0.0.1", BEFORE), answer("10.0.0.3", AFTER)];
        let places = newest_owners(answers(), &[7, 5461, 10923], false).unwrap();
        assert_eq!(hosts(places), ["10.0.0.3", "10.0.0.2", "10.0.0.2"]);
        let by_name = newest_owners(answers(), &[5461], true).unwrap();
        assert_eq!(hosts(by_name), ["two.example"]);
    }

    #[test]
    fn a_slot_that_nobody_has_keeps_no_other_from_being_found() {
        let places = newest_owners(vec![answer("10.0.0.1", BEFORE)], &[7, 16000], false).unwrap();
        assert_eq!(hosts(places), ["10.0.0.1", ""]);
    }

    #[test]
    fn where_a_slot_is_on_its_way_to_its_owner_tells() {
        let gives = "\
aa 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5460 [7->-dd] [9-<-bb]\n\
bb 10.0.0.2:6379@16379 master - 0 1 2 connected 5461-10922 9\n\
dd 10.0.0.4:6379@16379,four.example master - 0 1 0 connected\n";
        let answers = || vec![answer("10.0.0.1", gives), answer("10.0.0.2", &gives.replace("[7->-dd] ", ""))];
        let next = |by_name| {
            let owners = newest_owners(answers(), &[7, 8, 9], by_name).unwrap();
            owners.into_iter().map(|owner| host(owner.unwrap().next)).collect::<Vec<_>>()
        };
        assert_eq!(next(false), ["10.0.0.4", "", ""]);
        assert_eq!(next(true), ["four.example", "", ""]);
    }

    #[test]
    fn of_several_sentinels_the_newest_word_counts() {
        // The leader of a failover has the epoch of the new primary, but not its address among the rest.
        let says = |port: &str, epoch: &str, also: &str| {
            let fields = [("ip", "10.0.0.9"), ("port", also), ("config-epoch", epoch)];
            let fields: HashMap<String, String> = fields.map(|(name, value)| (name.into(), value.into())).into();
            let address = Value::Array(vec!["10.0.0.9".into(), port.into()]);
            (Server::new("sentinel", 26379), Ok(vec![Value::try_from(fields).unwrap(), address]))
        };
        let down = (Server::new("down", 1), Err("refused".into()));
        let answers = vec![says("1", "4", "1"), says("2", "5", "2"), says("2", "5", "1"), down];
        let newest = Owner::of(ServerConfig::new_centralized("10.0.0.9", 2), 5);
        assert_eq!(newest_primary(answers, "main").unwrap(), newest);
    }

    #[test]
    fn who_is_cut_off_from_the_others_does_not_bring_back_what_was_superseded() {
        let lookouts =
            Lookouts { seeds: Vec::new(), credentials: None, lines: Mutex::default(), newest: Mutex::default() };
        let told = |epochs: [Option<u64>; 2]| {
            let owners = epochs.map(|epoch| Some(Owner::of(ServerConfig::new_centralized("10.0.0.1", 6379), epoch?)));
            lookouts.not_superseded(&[3, 4], owners.into()).iter().map(Option::is_some).collect::<Vec<_>>()
        };
        assert_eq!(told([Some(1), Some(7)]), [true, true]);
        assert_eq!(told([Some(2), Some(6)]), [true, false]);
        assert_eq!(told([Some(2), None]), [true, false]);
        assert_eq!(told([Some(1), Some(7)]), [false, true]);
    }
}
