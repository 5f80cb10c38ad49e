//! A primary with replicas and three Sentinels, with failovers on demand.

use std::sync::Arc;

use super::{
    Redis,
    redis::{CREDENTIALS, acl_rule, server_arguments},
    servers::wait_until,
    tls::{Certificates, no_plain_port},
};

const SENTINELS: usize = 3;
/// URL parameters with the user and password for the Sentinels themselves.
const SENTINEL_CREDENTIALS: &str = "sentinelUsername=sessiond&sentinelPassword=change-me";
/// Service name that the Sentinels monitor.
const NAME: &str = "main";

/// Servers and Sentinels that end when the last clone of this value is dropped.
#[derive(Clone)]
pub struct Sentinels {
    /// Redis servers; the first one is the initial primary.
    servers: Arc<Vec<Redis>>,
    sentinels: Arc<Vec<Redis>>,
}

impl Sentinels {
    /// Starts a primary with replicas. The Sentinels fail over a primary that does not respond for a second.
    pub fn start(replicas: usize) -> Self {
        Sentinels::start_with(replicas, &[])
    }

    /// Like [`Sentinels::start`], with additional arguments for the servers.
    pub fn start_with(replicas: usize, extra: &[&str]) -> Self {
        Sentinels::create(replicas, extra, None)
    }

    /// Like [`Sentinels::start`]; all processes accept TLS only and are addressed by host name.
    pub fn start_over_tls(replicas: usize, certificates: &Certificates) -> Self {
        Sentinels::create(replicas, &["--replica-announce-ip", "localhost"], Some(certificates))
    }

    fn create(replicas: usize, extra: &[&str], certificates: Option<&Certificates>) -> Self {
        let mut servers = vec![server(None, extra, certificates)];
        let primary = servers[0].port();
        servers.extend((0..replicas).map(|_| server(Some(primary), extra, certificates)));
        wait_until("the replicas are in sync", || {
            servers[1..].iter().all(|replica| replica.info("replication", "master_link_status") == "up")
        });
        let sentinels = (0..SENTINELS).map(|_| sentinel(primary, certificates)).collect();
        let sentinels = Sentinels { servers: servers.into(), sentinels: Arc::new(sentinels) };
        wait_until("the Sentinels have discovered each other and the replicas", || sentinels.is_connected());
        sentinels
    }

    /// Returns a URL that names all Sentinels.
    pub fn url(&self) -> String {
        let others: Vec<String> = self.sentinels[1..].iter().map(|of| format!("node={}&", of.address())).collect();
        let first = self.sentinels[0].address();
        format!(
            "redis-sentinel://{CREDENTIALS}@{first}?{}sentinelServiceName={NAME}&{SENTINEL_CREDENTIALS}",
            others.concat()
        )
    }

    /// Returns a URL that names all Sentinels by host name, for TLS.
    pub fn url_over_tls(&self) -> String {
        self.url().replace("redis-sentinel:", "rediss-sentinel:").replace("127.0.0.1", "localhost")
    }

    /// Returns all servers, stopped ones included.
    pub fn servers(&self) -> &[Redis] {
        &self.servers
    }

    /// Returns all Sentinels, stopped ones included.
    pub fn sentinels(&self) -> &[Redis] {
        &self.sentinels
    }

    fn is_connected(&self) -> bool {
        self.running().all(|sentinel| {
            let fields = sentinel.list(&["SENTINEL", "MASTER", NAME]);
            let value = |name: &str| {
                let value = fields.iter().skip_while(|word| *word != name).nth(1);
                value.and_then(|word| word.parse().ok())
            };
            let replicas = self.servers.len() - 1;
            // Sentinels do not promote replicas without a link to their primary.
            let linked = || {
                let fields = sentinel.list(&["SENTINEL", "REPLICAS", NAME]);
                fields.iter().filter(|word| *word == "ok").count()
            };
            value("num-slaves") == Some(replicas)
                && value("num-other-sentinels") == Some(SENTINELS - 1)
                && linked() == replicas
        })
    }

    fn running(&self) -> impl Iterator<Item = &Redis> {
        self.sentinels.iter().filter(|sentinel| sentinel.runs())
    }

    fn primary_by(&self, sentinel: &Redis) -> u16 {
        let address = sentinel.list(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
        address[1].parse().unwrap()
    }

    /// Returns the primary, according to the first running Sentinel.
    pub fn primary(&self) -> Redis {
        let port = self.primary_by(self.running().next().expect("a running Sentinel"));
        self.servers.iter().find(|server| server.port() == port).expect("a server with this port").clone()
    }

    /// Returns all servers except the primary.
    pub fn replicas(&self) -> Vec<Redis> {
        let primary = self.primary().port();
        self.servers.iter().filter(|server| server.port() != primary).cloned().collect()
    }

    /// Fails over from a healthy primary and returns the new one.
    pub fn fail_over(&self) -> Redis {
        self.fail_over_by(self.running().next().expect("a running Sentinel"))
    }

    /// Fails over on request of this Sentinel and returns the new primary.
    pub fn fail_over_by(&self, sentinel: &Redis) -> Redis {
        let old = self.primary();
        // Sentinel refuses this while the previous failover is in progress.
        wait_until("the failover begins", || sentinel.command(&["SENTINEL", "FAILOVER", NAME]) == "+OK\r\n");
        self.wait_for_new_primary(&old)
    }

    /// Makes the next failover take long: pauses this replica and prevents its promotion.
    ///
    /// The Sentinel that leads the failover has the epoch of the new primary and waits until the replica follows it.
    pub fn stall_failovers(&self, replica: &Redis) {
        replica.must(&["CONFIG", "SET", "replica-priority", "0"]);
        for sentinel in self.running() {
            sentinel.must(&["SENTINEL", "SET", NAME, "down-after-milliseconds", "10000"]);
            wait_until("the Sentinel has read the replica's priority", || {
                let fields = sentinel.list(&["SENTINEL", "REPLICAS", NAME]);
                fields.windows(2).any(|pair| pair[0] == "slave-priority" && pair[1] == "0")
            });
        }
        replica.pause();
    }

    /// Waits until all running Sentinels name the same new primary and that server reports the role; returns it.
    pub fn wait_for_new_primary(&self, old: &Redis) -> Redis {
        wait_until("another server is primary", || {
            let named: Vec<u16> = self.running().map(|sentinel| self.primary_by(sentinel)).collect();
            let agree = named[0] != old.port() && named.iter().all(|port| *port == named[0]);
            agree && self.primary().runs() && self.primary().info("replication", "role") == "master"
        });
        self.primary()
    }

    /// Waits until every running server replicates from the primary and has caught up.
    pub fn wait_until_replicated(&self) {
        let follows = |server: &Redis, primary: u16| {
            server.is_replica()
                && server.info("replication", "master_port") == primary.to_string()
                && server.info("replication", "master_link_status") == "up"
        };
        wait_until("the others replicate", || {
            // The primary may change between two rounds.
            let primary = self.primary().port();
            let mut others = self.servers.iter().filter(|server| server.runs() && server.port() != primary);
            others.all(|server| follows(server, primary))
        });
    }
}

/// Returns the arguments for a port, which accepts TLS only if there are certificates.
fn listening(port: u16, certificates: Option<&Certificates>) -> Vec<String> {
    match certificates {
        Some(certificates) => [certificates.arguments(port), no_plain_port()].concat(),
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
        server_arguments(own.iter().map(|word| &word[..]).chain(words))
    })
}

fn sentinel(primary: u16, certificates: Option<&Certificates>) -> Redis {
    let sentinel = Redis::in_directory(|directory, [port, ..]| {
        let own = listening(port, certificates);
        let own: Vec<String> = own.chunks(2).map(|setting| setting.join(" ").replacen("--", "", 1)).collect();
        let (host, by_name) = if certificates.is_some() { ("localhost", "yes") } else { ("127.0.0.1", "no") };
        // The Sentinels have a user with the name and password of the servers' user, with read-only permissions.
        let configuration = format!(
            "{}\nbind 127.0.0.1\nunixsocket redis.sock\n\
             sentinel resolve-hostnames {by_name}\nsentinel announce-hostnames {by_name}\n\
             user {}\n\
             sentinel monitor {NAME} {host} {primary} 2\n\
             sentinel down-after-milliseconds {NAME} 1000\n\
             sentinel failover-timeout {NAME} 3000\n",
            own.join("\n"),
            acl_rule("+sentinel|master"),
        );
        std::fs::write(directory.join("sentinel.conf"), configuration).unwrap();
        vec!["sentinel.conf".into(), "--sentinel".into()]
    });
    // By default, Sentinels poll replicas every ten seconds.
    sentinel.must(&["SENTINEL", "DEBUG", "INFO-PERIOD", "500", "PUBLISH-PERIOD", "500"]);
    sentinel
}
