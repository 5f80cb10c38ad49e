//! A Redis behind TLS, with certificates of the tests' own.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::{
    Redis,
    redis::{CREDENTIALS, plain},
};

pub struct Tls {
    pub redis: Redis,
    /// Of who signed what it shows.
    certificates: TempDir,
}

impl Tls {
    /// Its certificate is for `localhost`, and for nothing else.
    pub fn start() -> Self {
        let certificates = tempfile::Builder::new().prefix("sessiond-tls-").tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = certificates.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let authority = authority();
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = write("server.pem", &parameters.signed_by(&key, &authority).unwrap().pem());
        let key = write("server.key", &key.serialize_pem());
        let ca = write("ca.pem", &authority.pem());
        write("other-ca.pem", &self::authority().pem());
        let redis = Redis::on_ports(|[port, _]| {
            let port = port.to_string();
            let tls = ["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"];
            let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
            plain([&tls[..], &files].concat().iter())
        });
        Tls { redis, certificates }
    }

    pub fn url(&self) -> String {
        self.url_at("localhost")
    }

    /// The same under another name.
    pub fn url_at(&self, host: &str) -> String {
        format!("rediss://{CREDENTIALS}@{host}:{}", self.redis.port())
    }

    /// The environment of a process that trusts its authority.
    pub fn trust(&self) -> [(&'static str, String); 1] {
        self.trust_in("ca.pem")
    }

    /// The environment of a process that trusts another authority.
    pub fn trust_in_another(&self) -> [(&'static str, String); 1] {
        self.trust_in("other-ca.pem")
    }

    fn trust_in(&self, file: &str) -> [(&'static str, String); 1] {
        [("SSL_CERT_FILE", self.certificates.path().join(file).display().to_string())]
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut parameters = CertificateParams::new([]).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}
