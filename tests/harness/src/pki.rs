//! Certificates of the gRPC server and of its clients, valid and invalid ones, in a temporary directory.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd, string::Ia5String,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Certificate and key in PEM.
#[derive(Clone)]
pub struct Pair {
    /// Certificate, with the certificates of its issuers after it.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

impl Pair {
    /// Writes both files; each replaces the one before as a whole. Returns their paths.
    pub fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let paths = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        replace(&paths.0, &self.certificate);
        replace(&paths.1, &self.key);
        paths
    }
}

/// Replaces a file as a whole.
pub fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Generates an authority with this name.
    pub fn generate(name: &str) -> Self {
        Authority {
            issuer: CertifiedIssuer::self_signed(authority_parameters(name), KeyPair::generate().unwrap()).unwrap(),
        }
    }

    /// Certificate of the authority in PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues an authority below this one.
    pub fn intermediate(&self, name: &str) -> Self {
        let issuer = CertifiedIssuer::signed_by(authority_parameters(name), KeyPair::generate().unwrap(), &self.issuer);
        Authority { issuer: issuer.unwrap() }
    }

    /// Issues a certificate with these parameters.
    pub fn issue(&self, parameters: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Issues a certificate for the server at `localhost` and 127.0.0.1.
    pub fn server(&self) -> Pair {
        self.issue(CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap())
    }

    /// Issues a client certificate with these names.
    pub fn client(&self, names: &[SanType]) -> Pair {
        self.issue(client_parameters(names))
    }

    /// Issues a revocation list with these serial numbers.
    pub fn revocation_list(&self, serial_numbers: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let parameters = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2126, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serial_numbers.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        parameters.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn authority_parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new([]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

/// Returns the parameters of a client certificate with these names.
pub fn client_parameters(names: &[SanType]) -> CertificateParams {
    let mut parameters = CertificateParams::new([]).unwrap();
    parameters.subject_alt_names = names.to_vec();
    parameters.distinguished_name.push(DnType::CommonName, "shop.internal");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    parameters
}

/// A URI among the names of a certificate.
pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text.to_owned()).unwrap())
}

/// A DNS name among the names of a certificate.
pub fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name.to_owned()).unwrap())
}

/// The authorities and the server certificate of a test, in files.
pub struct Pki {
    directory: TempDir,
    /// Authority of the server.
    pub server_authority: Authority,
    /// Authority of the clients.
    pub client_authority: Authority,
}

impl Pki {
    /// Generates everything.
    pub fn generate() -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-pki-").tempdir().unwrap();
        let pki = Pki {
            directory,
            server_authority: Authority::generate("authority of the server"),
            client_authority: Authority::generate("authority of the clients"),
        };
        pki.server_authority.server().write(pki.path(), "server");
        replace(&pki.client_ca(), &pki.client_authority.pem());
        pki
    }

    /// Directory of the files: `server.pem`, `server.key`, `client-ca.pem`, `client.crl`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Path of the authorities of the clients.
    pub fn client_ca(&self) -> PathBuf {
        self.path().join("client-ca.pem")
    }

    /// Path of the revocation lists. The test writes them.
    pub fn client_crl(&self) -> PathBuf {
        self.path().join("client.crl")
    }

    /// Returns the configuration of a server with TLS.
    pub fn toml(&self) -> String {
        let file = |name: &str| self.path().join(name).to_str().unwrap().to_owned();
        format!("tls_cert = {:?}\ntls_key = {:?}\n", file("server.pem"), file("server.key"))
    }

    /// Returns the configuration of a server with TLS that requests client certificates.
    pub fn mutual_toml(&self) -> String {
        format!("{}client_ca = {:?}\n", self.toml(), self.client_ca().to_str().unwrap())
    }

    /// Returns the options of a client that trusts the server.
    pub fn client_options(&self) -> ClientTlsConfig {
        let authority = Certificate::from_pem(self.server_authority.pem());
        ClientTlsConfig::new().ca_certificate(authority).domain_name("localhost")
    }

    /// Opens a TLS connection of its own to the server at this address, with these protocols (ALPN).
    pub async fn connect(&self, address: &str, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_with(address, self.rustls_config(None, protocols)).await
    }

    /// Opens a TLS connection with this configuration.
    pub async fn connect_with(&self, address: &str, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
    }

    /// Returns a configuration of rustls that trusts the server, shows this certificate, and offers these protocols.
    pub fn rustls_config(&self, pair: Option<&Pair>, protocols: &[&str]) -> ClientConfig {
        self.rustls_config_of(pair, protocols, rustls::DEFAULT_VERSIONS)
    }

    /// Like [`Pki::rustls_config`], with these versions of TLS.
    pub fn rustls_config_of(
        &self,
        pair: Option<&Pair>,
        protocols: &[&str],
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.server_authority.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }

    /// Returns the options of a client that trusts the server and shows this certificate.
    pub fn client_options_with(&self, pair: &Pair) -> ClientTlsConfig {
        self.client_options().identity(Identity::from_pem(&pair.certificate, &pair.key))
    }
}
