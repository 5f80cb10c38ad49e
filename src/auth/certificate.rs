//! Client certificates: the identity in their subject alternative names, and their verification, again after a reload.

use std::{
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use rustls::{
    pki_types::{CertificateDer, DnsName, UnixTime},
    server::danger::ClientCertVerifier,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// Scheme of the URI of a workload.
const SPIFFE: &str = "spiffe://";
/// Prefix of a DNS name in `callers.toml`.
const DNS: &str = "dns:";
/// Maximum length of a SPIFFE id in bytes, as its standard defines.
const MAX_URI_BYTES: usize = 2_048;

/// Identity by which `callers.toml` knows a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// SPIFFE id, compared byte by byte.
    Uri(String),
    /// DNS name in lower case.
    Dns(String),
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix(DNS) {
            let is_name = DnsName::try_from(name).is_ok() && name.parse::<IpAddr>().is_err();
            let is_plain = is_name && !name.bytes().any(|byte| byte.is_ascii_uppercase()) && !name.ends_with('.');
            return match is_plain {
                true => Ok(Identity::Dns(name.to_owned())),
                false => Err("dns: needs one name in lower case, without a wildcard".to_owned()),
            };
        }
        match text.strip_prefix(SPIFFE).and_then(|rest| rest.split_once('/')) {
            Some((domain, path)) if is_spiffe(domain, path) && text.len() <= MAX_URI_BYTES => {
                Ok(Identity::Uri(text.to_owned()))
            }
            Some(_) | None => Err("must be spiffe://<trust domain>/<path> without query, or dns:<name>".to_owned()),
        }
    }
}

/// Whether these are the trust domain and the path of a SPIFFE id.
fn is_spiffe(domain: &str, path: &str) -> bool {
    let is_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let is_path = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_segment =
        |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(is_path);
    !domain.is_empty() && domain.bytes().all(is_domain) && path.split('/').all(is_segment)
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Uri(uri) => f.write_str(uri),
            Identity::Dns(name) => write!(f, "{DNS}{name}"),
        }
    }
}

/// Names in a certificate that may be an identity. The common name is never one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateNames {
    /// Its only URI. Its DNS names do not count.
    Uri(Identity),
    /// Its DNS names; it has no URI.
    Dns(Vec<Identity>),
    /// None: it has several URIs, or a name that cannot be decoded.
    Unusable,
}

impl CertificateNames {
    fn read(certificate: &X509Certificate<'_>) -> Self {
        let names = match certificate.subject_alternative_name() {
            Ok(Some(extension)) => &extension.value.general_names[..],
            Ok(None) => &[],
            Err(_) => return CertificateNames::Unusable,
        };
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        for name in names {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::DNSName(name) => dns.push(Identity::Dns(name.to_ascii_lowercase())),
                GeneralName::Invalid(..) => return CertificateNames::Unusable,
                _ => {}
            }
        }
        match uris[..] {
            [] => CertificateNames::Dns(dns),
            [uri] if uri.len() <= MAX_URI_BYTES => CertificateNames::Uri(Identity::Uri(uri.to_owned())),
            _ => CertificateNames::Unusable,
        }
    }
}

/// Returns the time from which on a certificate has expired. None: it is malformed.
pub fn expiry_of(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    X509Certificate::from_der(certificate).ok().map(|(_, certificate)| end_of(&certificate))
}

/// The last second of a certificate is valid.
fn end_of(certificate: &X509Certificate<'_>) -> SystemTime {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds.saturating_add(1))
}

/// Verifier of client certificates with its authorities and revocation lists. Each reload makes a new one.
#[derive(Clone)]
pub struct ClientVerifier {
    /// Number of the reload, which is another one for each verifier.
    pub generation: u64,
    /// Verifier of rustls.
    pub verifier: Arc<dyn ClientCertVerifier>,
}

/// Certificate that the client of a connection has proved to have the key of.
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    names: CertificateNames,
    not_after: SystemTime,
    /// Generation of the last verifier, and whether it accepted the certificate.
    verified: Mutex<(u64, bool)>,
}

impl ClientCertificate {
    /// Reads the chain of a handshake that the verifier of this generation accepted. None: it is no certificate.
    pub fn read(chain: &[CertificateDer<'_>], generation: u64) -> Option<Self> {
        let (_, end_entity) = X509Certificate::from_der(chain.first()?).ok()?;
        Some(ClientCertificate {
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            names: CertificateNames::read(&end_entity),
            not_after: end_of(&end_entity),
            verified: Mutex::new((generation, true)),
        })
    }

    /// Names that may be the identity.
    pub fn names(&self) -> &CertificateNames {
        &self.names
    }

    /// Time from which on the certificate has expired.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the certificate is valid for this verifier at this time. It is verified again if the verifier is another one
    /// than the last time.
    pub(super) fn is_valid(&self, verifier: &ClientVerifier, now: SystemTime) -> bool {
        if now >= self.not_after {
            return false;
        }
        let mut verified = self.verified.lock();
        if verified.0 != verifier.generation {
            *verified = (verifier.generation, self.verify(verifier, now));
        }
        verified.1
    }

    fn verify(&self, verifier: &ClientVerifier, now: SystemTime) -> bool {
        let Some((end_entity, intermediates)) = self.chain.split_first() else { return false };
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since_epoch);
        verifier.verifier.verify_client_cert(end_entity, intermediates, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_a_spiffe_id_or_a_dns_name() {
        let longest = format!("spiffe://a/{}", "b".repeat(MAX_URI_BYTES - 11));
        for text in ["spiffe://example.org/ns/shop/sa/backend", "spiffe://a/b", "dns:shop.internal", &longest] {
            let identity: Identity = text.parse().unwrap();
            assert_eq!(identity.to_string(), text);
        }
        let refused = [
            "",
            "shop.internal",
            "https://example.org/shop",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe:///shop",
            "spiffe://example.org/shop?a=b",
            "spiffe://example.org/shop#a",
            "spiffe://example.org/shop/",
            "spiffe://example.org/a//b",
            "spiffe://example.org/a/../b",
            "spiffe://Example.org/shop",
            "spiffe://example.org:443/shop",
            "spiffe://example.org/%73hop",
            "dns:",
            "dns:*.internal",
            "dns:Shop.internal",
            "dns:shop.internal.",
            "dns:127.0.0.1",
            "cn:shop",
            &format!("{longest}b"),
        ];
        for text in refused {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
