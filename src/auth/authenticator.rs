//! Finds the caller of a call, with the credentials of the last reload, and checks again whether it keeps its right.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderMap;
use parking_lot::{Mutex, RwLock};

use super::{
    api_key::KeyId,
    authorized::{Authorized, GrantMissing},
    callers::{Caller, Callers, Found},
    certificate::{ClientCertificate, ClientVerifier},
    credential::{Credential, Refusal},
    load::InUse,
};
use crate::session::Namespace;

/// Callers and client certificates that the server accepts now.
pub struct Authenticator {
    accepted: RwLock<Accepted>,
    /// Number of changes of `accepted`. Rights that were checked at another number are checked again.
    generation: AtomicU64,
    /// Caller of a server without `callers.toml`.
    anyone: Arc<Caller>,
}

#[derive(Clone)]
struct Accepted {
    /// None: everyone may do everything.
    callers: Option<Arc<Callers>>,
    /// None: no client certificate is accepted.
    verifier: Option<ClientVerifier>,
}

impl Authenticator {
    /// Accepts these callers. None: everyone may do everything.
    pub fn new(callers: Option<Callers>, verifier: Option<ClientVerifier>) -> Self {
        Authenticator {
            accepted: RwLock::new(Accepted { callers: callers.map(Arc::new), verifier }),
            generation: AtomicU64::new(0),
            anyone: Arc::new(Caller::anyone()),
        }
    }

    fn accepted(&self) -> Accepted {
        self.accepted.read().clone()
    }

    /// Whether calls need a credential.
    pub fn requires_credentials(&self) -> bool {
        self.accepted.read().callers.is_some()
    }

    /// Returns the callers. None: everyone may do everything.
    pub fn callers(&self) -> Option<Arc<Callers>> {
        self.accepted.read().callers.clone()
    }

    /// Replaces all callers. Returns the keys that no caller has any more.
    pub fn replace_callers(&self, callers: Callers) -> Vec<(Arc<str>, KeyId)> {
        let callers = Arc::new(callers);
        let before = self.accepted.write().callers.replace(callers.clone());
        self.generation.fetch_add(1, Ordering::Release);
        before.map_or_else(Vec::new, |before| before.keys_missing_in(&callers))
    }

    /// Replaces the verifier of client certificates, those of open connections included.
    pub fn replace_verifier(&self, verifier: ClientVerifier) {
        self.accepted.write().verifier = Some(verifier);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Finds the caller of a call by its headers and the client certificate of its connection.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&Arc<ClientCertificate>>,
        now: SystemTime,
    ) -> Result<Requester, Refusal> {
        // Before the check: a change during it makes the next check of a right read everything again.
        let generation = self.generation.load(Ordering::Acquire);
        let accepted = self.accepted();
        if accepted.callers.is_none() {
            let caller = self.anyone.clone();
            return Ok(Requester { caller, credential: None, valid_until: None, last_used: None, generation });
        }
        let credential = Credential::read(headers, certificate)?;
        let Found { caller, valid_until, last_used } = accepted.find(&credential, now)?;
        Ok(Requester { caller, credential: Some(credential), valid_until, last_used, generation })
    }
}

impl Accepted {
    fn find(&self, credential: &Credential, now: SystemTime) -> Result<Found, Refusal> {
        let callers = self.callers.as_ref().ok_or(Refusal::Missing)?;
        match credential {
            Credential::Key(id, hash) => callers.by_key(*id, hash, now),
            Credential::Certificate(certificate) => {
                let verifier = self.verifier.as_ref().ok_or(Refusal::InvalidCertificate)?;
                if !certificate.is_valid(verifier, now) {
                    return Err(Refusal::InvalidCertificate);
                }
                callers.by_certificate(certificate)
            }
        }
    }
}

/// The caller of a call, and how the server knows it.
#[derive(Clone)]
pub struct Requester {
    /// The caller.
    pub caller: Arc<Caller>,
    /// What the call presented. None: the server needs no credential.
    pub credential: Option<Credential>,
    /// Time from which on the credential has expired. None: it does not expire.
    valid_until: Option<SystemTime>,
    /// Last use of the key, in seconds since the epoch. None: the credential is no key.
    last_used: Option<Arc<AtomicU64>>,
    /// Generation of the authenticator before the check.
    generation: u64,
}

impl Requester {
    /// Returns the id of the key if this is its first use in this second.
    pub fn newly_used_key(&self, now: SystemTime) -> Option<KeyId> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let before = self.last_used.as_ref()?.swap(now, Ordering::Relaxed);
        self.credential.as_ref()?.key_id().filter(|_| before != now)
    }
}

/// Why a caller has lost a right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RightLost {
    /// Its credential is no longer valid.
    Credential,
    /// It no longer has the grant.
    Grant(GrantMissing),
}

/// Right of a caller to what lasts longer than a call.
pub struct LastingRight {
    authenticator: Arc<Authenticator>,
    credential: Credential,
    granted: Authorized<Namespace>,
    /// The watch counts for its caller.
    _in_use: InUse,
    checked: Mutex<Checked>,
}

/// Result of the last complete check of a right, which it passed.
struct Checked {
    /// Generation of the authenticator before the check.
    generation: u64,
    /// Time from which on the credential has expired. None: it does not expire.
    valid_until: Option<SystemTime>,
}

impl LastingRight {
    /// Right of this caller, which it had at its authentication. None: it cannot lose it, because the server needs no
    /// credentials.
    pub fn new(
        authenticator: Arc<Authenticator>,
        requester: Requester,
        granted: Authorized<Namespace>,
        in_use: InUse,
    ) -> Option<Self> {
        let Requester { credential, valid_until, generation, .. } = requester;
        let credential = credential?;
        Some(LastingRight {
            authenticator,
            credential,
            granted,
            _in_use: in_use,
            checked: Mutex::new(Checked { generation, valid_until }),
        })
    }

    /// Checks whether the caller still has the right at this time.
    pub fn check(&self, now: SystemTime) -> Result<(), RightLost> {
        let generation = self.authenticator.generation.load(Ordering::Acquire);
        let mut checked = self.checked.lock();
        if checked.generation == generation && checked.valid_until.is_none_or(|until| now < until) {
            return Ok(());
        }
        let found = self.authenticator.accepted().find(&self.credential, now).map_err(|_| RightLost::Credential)?;
        self.granted.check_again(&found.caller).map_err(RightLost::Grant)?;
        *checked = Checked { generation, valid_until: found.valid_until };
        Ok(())
    }
}
