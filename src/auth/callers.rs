//! The callers of a server and their credentials.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::SystemTime,
};

use super::{
    api_key::{KeyHash, KeyId},
    certificate::{CertificateNames, ClientCertificate, Identity},
    credential::Refusal,
    grant::Grants,
    load::{Load, Loads},
};

/// A caller: one application or operator.
#[derive(Debug)]
pub struct Caller {
    /// Name in `callers.toml`, audit lines and metrics.
    pub name: Arc<str>,
    /// What the caller may do.
    pub(super) grants: Grants,
    /// What the caller uses of the server.
    pub load: Arc<Load>,
}

impl Caller {
    /// The caller of a server without `callers.toml`: it may do everything.
    pub fn anyone() -> Self {
        Caller { name: "anyone".into(), grants: Grants::full(), load: Arc::default() }
    }
}

/// A caller that was found by its credential.
#[derive(Clone, Debug)]
pub struct Found {
    /// The caller.
    pub caller: Arc<Caller>,
    /// Time from which on the credential has expired. None: it does not expire.
    pub valid_until: Option<SystemTime>,
    /// Last use of the key, in seconds since the epoch. None: the credential is no key.
    pub(super) last_used: Option<Arc<AtomicU64>>,
}

/// An API key of a caller.
pub(super) struct Key {
    pub caller: Arc<Caller>,
    pub hash: KeyHash,
    /// Time from which on the key is valid. None: from the start.
    pub not_before: Option<SystemTime>,
    /// Time from which on the key has expired. None: never.
    pub expires: Option<SystemTime>,
    /// Last use, in seconds since the epoch.
    pub last_used: Arc<AtomicU64>,
}

/// All callers, by their credentials.
#[derive(Default)]
pub struct Callers {
    pub(super) keys: HashMap<KeyId, Key>,
    pub(super) certificates: HashMap<Identity, Arc<Caller>>,
    /// What each caller uses.
    pub loads: Loads,
}

impl Callers {
    /// Returns the keys, with the names of their callers, that the others do not have.
    pub(super) fn keys_missing_in(&self, others: &Callers) -> Vec<(Arc<str>, KeyId)> {
        let has = |id: &KeyId, name: &Arc<str>| others.keys.get(id).is_some_and(|key| key.caller.name == *name);
        let missing = self.keys.iter().filter(|(id, key)| !has(id, &key.caller.name));
        missing.map(|(id, key)| (key.caller.name.clone(), *id)).collect()
    }

    /// Finds the caller of a key that is valid at this time.
    pub(super) fn by_key(&self, id: KeyId, hash: &KeyHash, now: SystemTime) -> Result<Found, Refusal> {
        let key = self.keys.get(&id);
        // Compared for an unknown id as well, so that the time of the answer does not show which ids exist.
        let is_equal = key.map_or(&KeyHash::DUMMY, |key| &key.hash).equals(hash);
        let key = key.filter(|_| is_equal).ok_or(Refusal::UnknownKey)?;
        if key.not_before.is_some_and(|not_before| now < not_before) {
            return Err(Refusal::EarlyKey(id));
        }
        if key.expires.is_some_and(|expires| now >= expires) {
            return Err(Refusal::ExpiredKey(id));
        }
        Ok(Found { caller: key.caller.clone(), valid_until: key.expires, last_used: Some(key.last_used.clone()) })
    }

    /// Finds the caller of a certificate. A certificate with the names of several callers has none.
    pub(super) fn by_certificate(&self, certificate: &ClientCertificate) -> Result<Found, Refusal> {
        let caller = match certificate.names() {
            CertificateNames::Unusable => None,
            CertificateNames::Uri(uri) => self.certificates.get(uri),
            CertificateNames::Dns(names) => {
                let mut callers = names.iter().filter_map(|name| self.certificates.get(name));
                let first = callers.next();
                first.filter(|first| callers.all(|caller| Arc::ptr_eq(caller, first)))
            }
        };
        let caller = caller.ok_or(Refusal::UnknownCertificate)?.clone();
        Ok(Found { caller, valid_until: Some(certificate.not_after()), last_used: None })
    }
}
