//! The client of a connection, as the server sees it before any call.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use super::{certificate::ClientCertificate, unauthenticated::UnauthenticatedPlace};

/// The client of a connection.
pub struct Peer {
    /// Address of the client.
    pub address: SocketAddr,
    /// Certificate of the client. None: it has shown none.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// Place among the connections without a valid credential. None: the client has presented one, or needs none.
    place: Mutex<Option<UnauthenticatedPlace>>,
}

impl Peer {
    /// A client that has presented no credential to the gate yet.
    pub fn new(
        address: SocketAddr,
        certificate: Option<Arc<ClientCertificate>>,
        place: Option<UnauthenticatedPlace>,
    ) -> Self {
        Peer { address, certificate, place: Mutex::new(place) }
    }

    /// Notes that the client has presented a valid credential.
    pub fn note_authentication(&self) {
        self.place.lock().take();
    }

    /// Time until the certificate of the client expires. None: the client has shown none.
    pub fn remaining_validity(&self, now: SystemTime) -> Option<Duration> {
        let certificate = self.certificate.as_ref()?;
        Some(certificate.not_after().duration_since(now).unwrap_or_default())
    }
}
