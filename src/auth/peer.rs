//! The client of a connection, as the server sees it before any call.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::certificate::ClientCertificate;

/// The client of a connection.
pub struct Peer {
    /// Address of the client.
    pub address: SocketAddr,
    /// Certificate of the client. None: it has shown none.
    pub certificate: Option<Arc<ClientCertificate>>,
}

impl Peer {
    /// Time until the certificate of the client expires. None: the client has shown none.
    pub fn remaining_validity(&self, now: SystemTime) -> Option<Duration> {
        let certificate = self.certificate.as_ref()?;
        Some(certificate.not_after().duration_since(now).unwrap_or_default())
    }
}
