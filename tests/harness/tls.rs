//! A Redis behind TLS, with certificates of the tests' own.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::{
    Redis,
    redis::{CREDENTIALS, plain},
};

/// Keys and certificates, for `localhost` and nothing else.
pub struct Certificates(TempDir);

impl Certificates {
    pub fn make() -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-tls-").tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let authority = authority();
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        write("server.pem", &parameters.signed_by(&key, &authority).unwrap().pem());
        write("server.key", &key.serialize_pem());
        write("ca.pem", &authority.pem());
        write("other-ca.pem", &self::authority().pem());
        Certificates(directory)
    }

    /// The arguments of a server that shows them on this port, and to the servers that belong to it.
    pub fn arguments(&self, port: u16) -> Vec<String> {
        let file = |name: &str| self.0.path().join(name).display().to_string();
        let [certificate, key, authority] = ["server.pem", "server.key", "ca.pem"].map(file);
        let files = [("--tls-cert-file", certificate), ("--tls-key-file", key), ("--tls-ca-cert-file", authority)];
        let own = [("--tls-port", port.to_string())];
        let alike = ["--tls-auth-clients", "no", "--tls-replication", "yes"].map(str::to_owned);
        let own = own.into_iter().chain(files).flat_map(|(name, value)| [name.to_owned(), value]);
        own.chain(alike).collect()
    }

    /// The environment of a process that trusts who signed them.
    pub fn trust(&self) -> [(&'static str, String); 1] {
        self.trust_in("ca.pem")
    }

    /// The environment of a process that trusts somebody else.
    pub fn trust_in_another(&self) -> [(&'static str, String); 1] {
        self.trust_in("other-ca.pem")
    }

    fn trust_in(&self, file: &str) -> [(&'static str, String); 1] {
        [("SSL_CERT_FILE", self.0.path().join(file).display().to_string())]
    }
}

pub struct Tls {
    pub redis: Redis,
    pub certificates: Certificates,
}

impl Tls {
    pub fn start() -> Self {
        let certificates = Certificates::make();
        let redis = Redis::on_ports(|[port, ..]| plain([certificates.arguments(port), no_other_port()].concat()));
        Tls { redis, certificates }
    }

    pub fn url(&self) -> String {
        self.url_at("localhost")
    }

    /// The same under another name.
    pub fn url_at(&self, host: &str) -> String {
        format!("rediss://{CREDENTIALS}@{host}:{}", self.redis.port())
    }
}

pub fn no_other_port() -> Vec<String> {
    ["--port", "0"].map(str::to_owned).into()
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut parameters = CertificateParams::new([]).unwrap();
    // Redis takes one that was signed by its own name for self-signed.
    parameters.distinguished_name.push(DnType::CommonName, "authority of the tests");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}
