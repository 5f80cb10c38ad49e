//! TLS of the gRPC port: the configuration for new connections from its files, and the handshake.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::RwLock;
use rustls::{
    CertificateError, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    file::UnusableFile,
    pem::{authorities, certificates, earliest_end, pair_problem, private_key, revocation_lists},
    reload::NamedFile,
};
use crate::auth::{ClientCertificate, ClientVerifier};

/// The only protocol above TLS.
const HTTP2: &[u8] = b"h2";

/// Paths of the files of TLS, in PEM.
#[derive(Clone, Debug)]
pub(super) struct TlsFiles {
    /// Certificate of the server with its chain.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
    /// Authorities of client certificates. None: client certificates are not requested.
    pub client_authorities: Option<PathBuf>,
    /// Revocation lists for the issuers of client certificates. None: revocation is not checked.
    pub client_revocations: Option<PathBuf>,
}

/// TLS for new connections. Each reload makes a new one.
pub(super) struct Tls {
    config: Arc<ServerConfig>,
    /// Verifier of client certificates. None: they are not requested.
    pub verifier: Option<ClientVerifier>,
    /// Times from which on the certificates have expired, by their names in the metrics.
    pub not_after: Vec<(&'static str, SystemTime)>,
}

impl TlsFiles {
    /// Returns all files with the names of their settings.
    pub(super) fn named(&self) -> Vec<NamedFile> {
        let files = [
            ("tls_cert", Some(&self.certificate)),
            ("tls_key", Some(&self.key)),
            ("client_ca", self.client_authorities.as_ref()),
            ("client_crl", self.client_revocations.as_ref()),
        ];
        files.into_iter().filter_map(|(name, path)| Some((name, path?.clone()))).collect()
    }

    /// Reads and checks all files. `generation` is another number for each reload.
    pub(super) fn load(&self, generation: u64) -> Result<Tls, UnusableFile> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&self.certificate)?;
        let key = private_key(&self.key)?;
        let mut not_after = vec![("server", earliest_end(&self.certificate, &chain[..1])?)];
        let verifier = match &self.client_authorities {
            None => None,
            Some(path) => {
                let found = certificates(path)?;
                not_after.push(("client_ca", earliest_end(path, &found)?));
                Some(self.client_verifier(path, authorities(path, &found)?, &provider)?)
            }
        };
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| UnusableFile::new(&self.certificate, error))?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let config = builder.with_single_cert(chain, key);
        let mut config = config.map_err(|error| pair_problem(&error, &self.certificate, &self.key))?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        if verifier.is_some() {
            // A resumed session would carry the identity of its first handshake past a change of the authorities.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        let verifier = verifier.map(|verifier| ClientVerifier { generation, verifier });
        Ok(Tls { config: Arc::new(config), verifier, not_after })
    }

    fn client_verifier(
        &self,
        path: &Path,
        roots: RootCertStore,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, UnusableFile> {
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        // Requested, not required: an API key is accepted instead.
        let mut builder = builder.allow_unauthenticated();
        if let Some(path) = &self.client_revocations {
            builder = builder.with_crls(revocation_lists(path)?).only_check_end_entity_revocation();
        }
        builder.build().map_err(|error| match (&error, &self.client_revocations) {
            (VerifierBuilderError::InvalidCrl(_), Some(path)) => UnusableFile::new(path, error),
            _ => UnusableFile::new(path, error),
        })
    }
}

/// Why a handshake failed, by its name in the metrics.
pub(super) struct HandshakeFailure(pub &'static str);

impl Tls {
    /// Performs the handshake. Returns the stream, and the certificate of the client if it has shown one.
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Arc<ClientCertificate>>), HandshakeFailure> {
        let stream = TlsAcceptor::from(self.config.clone()).accept(socket).await;
        let stream = stream.map_err(|error| HandshakeFailure(failure_name(&error)))?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(HTTP2) {
            return Err(HandshakeFailure("no_alpn"));
        }
        let certificate = match (session.peer_certificates(), &self.verifier) {
            (Some(chain), Some(verifier)) => {
                let certificate = ClientCertificate::read(chain, verifier.generation);
                Some(Arc::new(certificate.ok_or(HandshakeFailure("certificate_malformed"))?))
            }
            _ => None,
        };
        Ok((stream, certificate))
    }
}

fn failure_name(error: &std::io::Error) -> &'static str {
    let error = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match error {
        None => "closed",
        Some(rustls::Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate_expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "certificate_early",
            CertificateError::Revoked => "certificate_revoked",
            CertificateError::UnknownRevocationStatus => "crl_unknown",
            CertificateError::UnknownIssuer => "certificate_unknown_ca",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => "certificate_purpose",
            CertificateError::BadEncoding => "certificate_malformed",
            _ => "certificate_invalid",
        },
        Some(rustls::Error::NoApplicationProtocol) => "no_alpn",
        Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
        Some(rustls::Error::InvalidMessage(_)) => "no_tls",
        Some(rustls::Error::AlertReceived(_)) => "alert",
        Some(_) => "failed",
    }
}

/// TLS of the last successful reload.
pub(super) struct CurrentTls(RwLock<Arc<Tls>>);

impl CurrentTls {
    /// Starts with this one.
    pub(super) fn new(tls: Tls) -> Self {
        CurrentTls(RwLock::new(Arc::new(tls)))
    }

    /// Returns the last one, for a new connection.
    pub(super) fn current(&self) -> Arc<Tls> {
        self.0.read().clone()
    }

    /// Replaces it. Open connections keep theirs.
    pub(super) fn replace(&self, tls: Tls) {
        *self.0.write() = Arc::new(tls);
    }
}
