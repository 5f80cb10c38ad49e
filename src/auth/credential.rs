//! What a call presents to show who its caller is.

use std::sync::Arc;

use http::{HeaderMap, header::AUTHORIZATION};

use super::{
    api_key::{self, KeyHash, KeyId},
    certificate::ClientCertificate,
};

/// Scheme of the header `authorization`.
const SCHEME: &str = "Bearer ";

/// Credential of a call. If it has a key, the key decides, also on a connection with a client certificate.
#[derive(Clone)]
pub enum Credential {
    /// API key, by id and hash.
    Key(KeyId, KeyHash),
    /// Client certificate of the connection.
    Certificate(Arc<ClientCertificate>),
}

impl Credential {
    /// Reads the credential of a call from its headers and the client certificate of its connection.
    pub fn read(headers: &HeaderMap, certificate: Option<&Arc<ClientCertificate>>) -> Result<Self, Refusal> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            return certificate.cloned().map(Credential::Certificate).ok_or(Refusal::Missing);
        };
        if values.next().is_some() {
            return Err(Refusal::Ambiguous);
        }
        let key = value.to_str().ok().and_then(|text| api_key::read(text.strip_prefix(SCHEME)?));
        key.map(|(id, hash)| Credential::Key(id, hash)).ok_or(Refusal::Malformed)
    }

    /// Returns the id of the key. None: the credential is a certificate.
    pub fn key_id(&self) -> Option<KeyId> {
        match self {
            Credential::Key(id, _) => Some(*id),
            Credential::Certificate(_) => None,
        }
    }
}

/// Why a credential has no caller. Callers get the same answer for all; metrics and the audit log have the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Neither a key nor a certificate.
    Missing,
    /// More than one `authorization` header.
    Ambiguous,
    /// The header is not `Bearer` and a key.
    Malformed,
    /// No caller has the key, or its secret is another one.
    UnknownKey,
    /// The key with this id has expired.
    ExpiredKey(KeyId),
    /// The key with this id is not valid yet.
    EarlyKey(KeyId),
    /// No caller has the identity of the certificate, or it has none or several.
    UnknownCertificate,
    /// The certificate has expired, was revoked, or its issuer is no longer trusted.
    InvalidCertificate,
}

impl Refusal {
    /// Returns the id of a key whose secret was right. None: there is none; an id that was guessed is not recorded.
    pub fn key(self) -> Option<KeyId> {
        match self {
            Refusal::ExpiredKey(id) | Refusal::EarlyKey(id) => Some(id),
            _ => None,
        }
    }

    /// Returns the name in metrics and in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Missing => "missing",
            Refusal::Ambiguous => "ambiguous",
            Refusal::Malformed => "malformed",
            Refusal::UnknownKey => "unknown_key",
            Refusal::ExpiredKey(_) => "expired_key",
            Refusal::EarlyKey(_) => "early_key",
            Refusal::UnknownCertificate => "unknown_certificate",
            Refusal::InvalidCertificate => "invalid_certificate",
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::auth::ApiKey;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn header_is_read_only_in_its_one_form() {
        let key = ApiKey::generate(getrandom::fill).unwrap();
        let key = key.reveal();
        let read = |values: &[&[u8]]| Credential::read(&headers(values), None).err();
        assert_eq!(read(&[format!("Bearer {key}").as_bytes()]), None);
        assert_eq!(read(&[]), Some(Refusal::Missing));
        let twice = format!("Bearer {key}");
        assert_eq!(read(&[twice.as_bytes(), twice.as_bytes()]), Some(Refusal::Ambiguous));
        let session_token = format!("ses_{}_{}", "a".repeat(26), "a".repeat(52));
        let malformed = [
            String::new(),
            "Bearer".into(),
            "Bearer ".into(),
            format!("bearer {key}"),
            format!("Basic {key}"),
            format!("Bearer  {key}"),
            format!("Bearer\t{key}"),
            format!("Bearer {key} "),
            format!("Bearer {key},{key}"),
            format!("Bearer {session_token}"),
            key.to_owned(),
            format!("Bearer {key}\u{e9}"),
        ];
        for text in malformed {
            assert_eq!(read(&[text.as_bytes()]), Some(Refusal::Malformed), "{text:?}");
        }
    }
}
