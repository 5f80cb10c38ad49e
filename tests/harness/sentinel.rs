//! A primary, its replicas, and the sentinels that watch over them.

use std::sync::Arc;

use super::{
    Redis,
    redis::{CREDENTIALS, plain, rule},
    servers::until,
    tls::{Certificates, no_other_port},
};

const SENTINELS: usize = 3;
/// The Sentinels' own user and password, as the URL names them.
const OWN: &str = "sentinelUsername=sessiond&sentinelPassword=change-me";
/// The name of what they watch over.
const NAME: &str = "main";

#[derive(Clone)]
pub struct Sentinels {
    /// The first is the primary at first.
    servers: Arc<Vec<Redis>>,
    sentinels: Arc<Vec<Redis>>,
}

impl Sentinels {
    /// A server that does not answer for a second is given up.
    pub fn start(replicas: usize) -> Self {
        Sentinels::start_with(replicas, &[])
    }

    /// With these arguments for the servers besides.
    pub fn start_with(replicas: usize, extra: &[&str]) -> Self {
        Sentinels::formed(replicas, extra, None)
    }

    /// All of them speak TLS alone, and are known by name.
    pub fn start_over_tls(replicas: usize, certificates: &Certificates) -> Self {
        Sentinels::formed(replicas, &["--replica-announce-ip", "localhost"], Some(certificates))
    }

    fn formed(replicas: usize, extra: &[&str], certificates: Option<&Certificates>) -> Self {
        let mut servers = vec![server(None, extra, certificates)];
        let primary = servers[0].port();
        servers.extend((0..replicas).map(|_| server(Some(primary), extra, certificates)));
        until("the replicas are in sync", || {
            servers[1..].iter().all(|replica| replica.info("replication", "master_link_status") == "up")
        });
        let sentinels = (0..SENTINELS).map(|_| sentinel(primary, certificates)).collect();
        let sentinels = Sentinels { servers: servers.into(), sentinels: Arc::new(sentinels) };
        until("the sentinels know each other and the replicas", || sentinels.know_all());
        sentinels
    }

    /// Where the service finds it.
    pub fn url(&self) -> String {
        let others: Vec<String> = self.sentinels[1..].iter().map(|of| format!("node={}&", of.address())).collect();
        let first = self.sentinels[0].address();
        format!("redis-sentinel://{CREDENTIALS}@{first}?{}sentinelServiceName={NAME}&{OWN}", others.concat())
    }

    /// The same where they speak TLS.
    pub fn url_over_tls(&self) -> String {
        self.url().replace("redis-sentinel:", "rediss-sentinel:").replace("127.0.0.1", "localhost")
    }

    pub fn servers(&self) -> &[Redis] {
        &self.servers
    }

    pub fn sentinels(&self) -> &[Redis] {
        &self.sentinels
    }

    fn know_all(&self) -> bool {
        self.running().all(|sentinel| {
            let told = sentinel.list(&["SENTINEL", "MASTER", NAME]);
            let value = |of: &str| told.iter().skip_while(|word| *word != of).nth(1).and_then(|word| word.parse().ok());
            value("num-slaves") == Some(self.servers.len() - 1)
                && value("num-other-sentinels") == Some(SENTINELS - 1)
                // Replicas without a link to their primary are not promoted.
                && sentinel.list(&["SENTINEL", "REPLICAS", NAME]).iter().filter(|word| *word == "ok").count() == self.servers.len() - 1
        })
    }

    fn running(&self) -> impl Iterator<Item = &Redis> {
        self.sentinels.iter().filter(|sentinel| sentinel.runs())
    }

    fn primary_by(&self, sentinel: &Redis) -> u16 {
        let address = sentinel.list(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
        address[1].parse().unwrap()
    }

    /// The one that the first sentinel names.
    pub fn primary(&self) -> Redis {
        let port = self.primary_by(self.running().next().expect("a sentinel runs"));
        self.servers.iter().find(|server| server.port() == port).expect("one of ours").clone()
    }

    /// Those that the first sentinel does not name.
    pub fn replicas(&self) -> Vec<Redis> {
        let primary = self.primary().port();
        self.servers.iter().filter(|server| server.port() != primary).cloned().collect()
    }

    /// Another becomes primary, with nothing wrong with this one; the new one.
    pub fn fail_over(&self) -> Redis {
        self.fail_over_by(self.running().next().expect("a sentinel runs"))
    }

    /// The same, led by this sentinel.
    pub fn fail_over_by(&self, sentinel: &Redis) -> Redis {
        let old = self.primary();
        // Refused while the one before is not over yet.
        until("the failover begins", || sentinel.command(&["SENTINEL", "FAILOVER", NAME]) == "+OK\r\n");
        self.wait_for_another_than(&old)
    }

    /// A failover stays under way for a while: this replica is never promoted, and does not answer. Whoever leads the
    /// failover has the epoch of the new primary, and waits for the replica to follow it.
    pub fn hold_up_failovers(&self, replica: &Redis) {
        replica.must(&["CONFIG", "SET", "replica-priority", "0"]);
        for sentinel in self.running() {
            sentinel.must(&["SENTINEL", "SET", NAME, "down-after-milliseconds", "10000"]);
            until("it is known not to be promoted", || {
                let told = sentinel.list(&["SENTINEL", "REPLICAS", NAME]);
                told.windows(2).any(|pair| pair[0] == "slave-priority" && pair[1] == "0")
            });
        }
        replica.pause();
    }

    /// Returns when all sentinels name one and the same other primary, and it takes itself for one.
    pub fn wait_for_another_than(&self, old: &Redis) -> Redis {
        until("another is primary", || {
            let named: Vec<u16> = self.running().map(|sentinel| self.primary_by(sentinel)).collect();
            let is_one = named[0] != old.port() && named.iter().all(|port| *port == named[0]);
            is_one && self.primary().runs() && self.primary().info("replication", "role") == "master"
        });
        self.primary()
    }

    /// Returns when every server that runs follows the primary and has caught up.
    pub fn wait_until_followed(&self) {
        let follows = |server: &Redis, primary: u16| {
            server.info("replication", "role") == "slave"
                && server.info("replication", "master_port") == primary.to_string()
                && server.info("replication", "master_link_status") == "up"
        };
        until("the others follow", || {
            // It may be another one by now.
            let primary = self.primary().port();
            let mut others = self.servers.iter().filter(|server| server.runs() && server.port() != primary);
            others.all(|server| follows(server, primary))
        });
    }
}

/// The arguments for a port: with certificates it takes TLS alone.
fn listening(port: u16, certificates: Option<&Certificates>) -> Vec<String> {
    match certificates {
        Some(certificates) => [certificates.arguments(port), no_other_port()].concat(),
        None => vec!["--port".into(), port.to_string()],
    }
}

fn server(primary: Option<u16>, extra: &[&str], certificates: Option<&Certificates>) -> Redis {
    Redis::on_ports(|[port, ..]| {
        let (own, primary) = (listening(port, certificates), primary.map(|port| port.to_string()));
        let mut words = vec!["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        if let Some(primary) = &primary {
            words.extend(["--replicaof", "127.0.0.1", primary]);
        }
        words.extend(extra);
        plain(own.iter().map(|word| &word[..]).chain(words))
    })
}

fn sentinel(primary: u16, certificates: Option<&Certificates>) -> Redis {
    let sentinel = Redis::in_directory(|directory, [port, ..]| {
        let own = listening(port, certificates);
        let own: Vec<String> = own.chunks(2).map(|setting| setting.join(" ").replacen("--", "", 1)).collect();
        let (host, by_name) = if certificates.is_some() { ("localhost", "yes") } else { ("127.0.0.1", "no") };
        // The Sentinels have a user of the same name and password as the servers, who may do nothing but ask.
        let configuration = format!(
            "{}\nbind 127.0.0.1\nunixsocket redis.sock\n\
             sentinel resolve-hostnames {by_name}\nsentinel announce-hostnames {by_name}\n\
             user {}\n\
             sentinel monitor {NAME} {host} {primary} 2\n\
             sentinel down-after-milliseconds {NAME} 1000\n\
             sentinel failover-timeout {NAME} 3000\n",
            own.join("\n"),
            rule("+sentinel|master"),
        );
        std::fs::write(directory.join("sentinel.conf"), configuration).unwrap();
        vec!["sentinel.conf".into(), "--sentinel".into()]
    });
    // Else they look at replicas every ten seconds.
    sentinel.must(&["SENTINEL", "DEBUG", "INFO-PERIOD", "500", "PUBLISH-PERIOD", "500"]);
    sentinel
}
