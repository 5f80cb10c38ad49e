//! Proof, in the type of a namespace, that a caller may do what a call asks.

use std::ops::Deref;

use super::{callers::Caller, grant::Grant};
use crate::session::{Namespace, SessionId, SessionRef, Subject};

/// Value for which a caller was authorized. Only [`Caller::authorize`] makes it.
#[derive(Clone, Debug)]
pub struct Authorized<T> {
    value: T,
    needed: Grant,
}

impl Authorized<Namespace> {
    /// Checks again whether the caller has the grant.
    pub(super) fn check_again(&self, caller: &Caller) -> Result<(), GrantMissing> {
        caller.authorize(self.needed, self.value.clone()).map(drop)
    }

    /// Returns the session of the namespace with this id.
    pub fn session(&self, id: SessionId) -> SessionRef {
        SessionRef { namespace: self.value.clone(), id }
    }

    /// Returns the subject of the namespace with this name.
    pub fn subject(self, name: String) -> Authorized<Subject> {
        Authorized { value: Subject { namespace: self.value, name }, needed: self.needed }
    }
}

impl<T> Deref for Authorized<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The caller has no grant for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantMissing {
    /// Grant that the call needs. The grant `full` allows it as well.
    pub needed: Grant,
    /// Namespace of the call.
    pub namespace: Namespace,
}

impl Caller {
    /// Checks that the caller has the grant that a call in this namespace needs.
    pub fn authorize(&self, needed: Grant, namespace: Namespace) -> Result<Authorized<Namespace>, GrantMissing> {
        match self.grants.allow(needed, &namespace) {
            true => Ok(Authorized { value: namespace, needed }),
            false => Err(GrantMissing { needed, namespace }),
        }
    }
}
