//! Generates certificates and starts a Redis that accepts TLS only.

use std::path::PathBuf;

use rcgen::CertificateParams;
use tempfile::TempDir;

use super::{
    Redis,
    pki::{Authority, dns},
    redis::{CREDENTIALS, server_arguments},
};

/// Key and certificate of a server named `localhost`, two certificate authorities, and a client of each, in a temporary directory.
pub struct Certificates(TempDir);

impl Certificates {
    /// Generates the keys and certificates.
    pub fn generate() -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-tls-").tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        // With the subject of the server certificate, Redis would treat that certificate as self-signed.
        let [authority, other] = [(); 2].map(|()| Authority::generate("authority of the tests"));
        let server = authority.issue(CertificateParams::new(["localhost".to_owned()]).unwrap());
        write("server.pem", &server.certificate);
        write("server.key", &server.key);
        write("ca.pem", &authority.pem());
        write("other-ca.pem", &other.pem());
        for (name, authority) in [("client", &authority), ("other-client", &other)] {
            authority.client(&[dns("sessiond.internal")]).write(directory.path(), name);
        }
        Certificates(directory)
    }

    /// Returns the path of a file: `server.pem`, `ca.pem`, `other-ca.pem`, `client.pem`, `other-client.pem`, or a key.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns the arguments of a Redis that uses these certificates on this TLS port and for replication.
    pub fn arguments(&self, port: u16) -> Vec<String> {
        let file = |name: &str| self.path(name).display().to_string();
        let [certificate, key, authority] = ["server.pem", "server.key", "ca.pem"].map(file);
        let files = [("--tls-cert-file", certificate), ("--tls-key-file", key), ("--tls-ca-cert-file", authority)];
        let own = [("--tls-port", port.to_string())];
        let common = ["--tls-auth-clients", "no", "--tls-replication", "yes"].map(str::to_owned);
        let own = own.into_iter().chain(files).flat_map(|(name, value)| [name.to_owned(), value]);
        own.chain(common).collect()
    }

    /// Returns the environment of a process that trusts the authority of these certificates.
    pub fn trusted_env(&self) -> [(&'static str, String); 1] {
        self.env_with_authority("ca.pem")
    }

    /// Returns the environment of a process that trusts another authority only.
    pub fn untrusted_env(&self) -> [(&'static str, String); 1] {
        self.env_with_authority("other-ca.pem")
    }

    fn env_with_authority(&self, file: &str) -> [(&'static str, String); 1] {
        [("SSL_CERT_FILE", self.path(file).display().to_string())]
    }
}

/// A Redis that accepts TLS only.
pub struct Tls {
    /// Redis whose only TCP port requires TLS.
    pub redis: Redis,
    /// Certificate of Redis, and the authorities that sessiond can trust.
    pub certificates: Certificates,
}

impl Tls {
    /// Starts a Redis with new certificates.
    pub fn start() -> Self {
        Tls::start_with(&[])
    }

    /// Starts a Redis that accepts clients with a certificate of its authority only.
    pub fn start_mutual() -> Self {
        Tls::start_with(&["--tls-auth-clients", "yes"])
    }

    fn start_with(extra: &[&str]) -> Self {
        let certificates = Certificates::generate();
        let redis = Redis::on_ports(|[port, ..]| {
            let extra = extra.iter().map(|&word| word.to_owned()).collect();
            server_arguments([certificates.arguments(port), no_plain_port(), extra].concat())
        });
        Tls { redis, certificates }
    }

    /// Returns the URL for sessiond's ACL user at `localhost`.
    pub fn url(&self) -> String {
        self.url_at("localhost")
    }

    /// Returns the URL for sessiond's ACL user at this host name.
    pub fn url_at(&self, host: &str) -> String {
        format!("rediss://{CREDENTIALS}@{host}:{}", self.redis.port())
    }
}

/// Returns the arguments that disable the port without TLS.
pub fn no_plain_port() -> Vec<String> {
    ["--port", "0"].map(str::to_owned).into()
}
