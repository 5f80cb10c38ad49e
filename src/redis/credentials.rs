//! What proves sessiond to the servers, and the servers to sessiond: it can be replaced while connections are open.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ClientConfig;
use zeroize::Zeroizing;

/// Password and TLS for connections to Redis.
#[derive(Clone, Default)]
pub struct Credentials {
    /// Password of the user; overrides the one in the URL. Sentinels have that of the URL. None: that of the URL.
    pub password: Option<Arc<Zeroizing<String>>>,
    /// Authorities of the servers, and the client certificate. None: the URL must not need TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Credentials of the next connection. Open connections keep theirs.
#[derive(Default)]
pub struct CurrentCredentials(RwLock<Credentials>);

impl CurrentCredentials {
    /// Starts with these.
    pub fn new(credentials: Credentials) -> Self {
        CurrentCredentials(RwLock::new(credentials))
    }

    /// Returns the ones in force.
    pub(super) fn current(&self) -> Credentials {
        self.0.read().clone()
    }

    /// Replaces them.
    pub fn replace(&self, credentials: Credentials) {
        *self.0.write() = credentials;
    }
}
