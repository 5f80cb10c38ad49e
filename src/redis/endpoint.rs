//! The URL of Redis, and addresses of single servers.

use std::{fmt, sync::Arc};

use fred::{
    error::{Error as FredError, ErrorKind},
    types::{
        RespVersion,
        config::{Config, Server, ServerConfig, TlsConnector},
    },
};

use super::credentials::CurrentCredentials;

/// Beginning of the schemes with TLS.
const TLS_SCHEME: &str = "rediss";

/// Returns whether the URL asks for TLS.
pub fn uses_tls(url: &str) -> bool {
    url.starts_with(TLS_SCHEME)
}

/// What the URL of Redis describes: a server, a Cluster or Sentinels, with credentials, TLS and database.
#[derive(Clone)]
pub struct Endpoint {
    /// User, database and protocol version for every server. It has no TLS, and the password of the URL.
    config: Config,
    uses_tls: bool,
    login: Login,
    credentials: Arc<CurrentCredentials>,
}

/// Source of the password.
#[derive(Clone, Copy, PartialEq)]
enum Login {
    /// The credentials; the URL if they have none.
    Credentials,
    /// The URL.
    Url,
}

impl Endpoint {
    /// Parses a URL. Each connection takes the credentials in force. Returns the reason if the URL is malformed.
    pub fn parse(url: &str, credentials: Arc<CurrentCredentials>) -> Result<Self, String> {
        let uses_tls = uses_tls(url);
        // fred would read the authorities of the system here, and for each connection the same ones.
        let plain = if uses_tls { url.replacen(TLS_SCHEME, "redis", 1) } else { url.to_owned() };
        let mut config = Config::from_url(&plain).map_err(|error| error.details().to_owned())?;
        config.version = RespVersion::RESP3;
        // Database 0 is already selected: SELECT would need another right.
        config.database = config.database.filter(|database| *database != 0);
        Ok(Endpoint { config, uses_tls, login: Login::Credentials, credentials })
    }

    /// Returns the servers of the URL, or those that name them.
    pub(super) fn servers(&self) -> &ServerConfig {
        &self.config.server
    }

    /// Returns the number of the database.
    pub fn database(&self) -> u8 {
        self.config.database.unwrap_or(0)
    }

    /// Returns whether the servers form a Cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self.config.server, ServerConfig::Clustered { .. })
    }

    /// Returns whether connections use TLS.
    pub(super) fn uses_tls(&self) -> bool {
        self.uses_tls
    }

    /// Returns the endpoint of the Sentinels, which have a user of their own and no database.
    pub(super) fn of_sentinels(&self, username: Option<String>, password: Option<String>) -> Self {
        let config = Config { username, password, database: None, ..self.config.clone() };
        Endpoint { config, login: Login::Url, ..self.clone() }
    }

    /// Returns the options of fred for the next connection to one server. Fails if TLS is not configured.
    pub(super) fn config_for(&self, address: &Address) -> Result<Config, FredError> {
        let mut config = Config { server: address.0.clone(), ..self.config.clone() };
        let credentials = self.credentials.current();
        if self.uses_tls {
            let tls = credentials.tls.ok_or_else(|| FredError::new(ErrorKind::Tls, "TLS is not configured"))?;
            config.tls = Some(TlsConnector::Rustls(tls.into()).into());
        }
        if let (Login::Credentials, Some(password)) = (self.login, credentials.password) {
            config.password = Some(password.to_string());
        }
        config.username = config.username.map(inline_word);
        config.password = config.password.map(inline_word);
        Ok(config)
    }
}

/// Quotes a word for an inline command of Redis: fred sends user and password in one (`HELLO 3 AUTH <user> <password>`).
fn inline_word(word: String) -> String {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word;
    }
    let mut quoted = String::from("\"");
    for byte in word.bytes() {
        match is_plain(byte) {
            true => quoted.push(byte.into()),
            false => quoted.extend([format!("\\x{byte:02x}")]),
        }
    }
    quoted.push('"');
    quoted
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
