//! The URL of Redis, and addresses of single servers.

use std::fmt;

use fred::types::{
    RespVersion,
    config::{Config, Server, ServerConfig},
};

/// What the URL of Redis describes: a server, a Cluster or Sentinels, with credentials, TLS and database.
pub struct Endpoint {
    /// Credentials, TLS and protocol version for every server.
    pub(super) config: Config,
}

impl Endpoint {
    /// Parses a URL. The password, if there is one, overrides the one in the URL. Returns the reason if the URL is malformed.
    pub fn parse(url: &str, password: Option<&str>) -> Result<Self, String> {
        let mut config = Config::from_url(url).map_err(|error| error.details().to_owned())?;
        config.version = RespVersion::RESP3;
        if let Some(password) = password {
            config.password = Some(password.to_owned());
        }
        // Database 0 is already selected: SELECT would need another right.
        config.database = config.database.filter(|database| *database != 0);
        Ok(Endpoint { config })
    }

    /// Returns the number of the database.
    pub fn database(&self) -> u8 {
        self.config.database.unwrap_or(0)
    }

    /// Returns whether the servers form a Cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self.config.server, ServerConfig::Clustered { .. })
    }

    /// Returns the options of fred for a connection to one server.
    pub(super) fn config_for(&self, address: &Address) -> Config {
        Config { server: address.0.clone(), ..self.config.clone() }
    }
}

/// Address of one server: host and port, or the path of a socket.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Address(ServerConfig);

impl Address {
    /// Address of a server of the URL.
    pub(super) fn of(server: ServerConfig) -> Self {
        Address(server)
    }

    /// Address with a host and a port.
    pub(super) fn new(host: &str, port: u16) -> Self {
        Address(ServerConfig::new_centralized(host, port))
    }

    /// Host and port. None: the path of a socket.
    pub(super) fn server(&self) -> Option<Server> {
        match &self.0 {
            ServerConfig::Centralized { server } => Some(server.clone()),
            _ => None,
        }
    }
}

impl From<Server> for Address {
    fn from(server: Server) -> Self {
        Address(ServerConfig::Centralized { server })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ServerConfig::Unix { path } => write!(f, "{}", path.display()),
            server => server.hosts().first().map_or(Ok(()), |server| write!(f, "{server}")),
        }
    }
}
