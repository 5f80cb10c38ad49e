//! Making, reading, changing and ending one session.

use std::collections::BTreeMap;

use super::*;
use crate::{
    session::Encoded,
    store::{Created, Ended, Found, Lane, Updated},
};

impl Service {
    /// Makes a session; answers its token if the server made that.
    pub async fn create(&self, call: Create, deadline: Instant) -> Result<(Session, Option<Token>), Error> {
        let policy = self.policy(&call.namespace)?;
        let refused = refused("attributes", policy, &call.content.attributes, call.timeouts);
        let (true, Ok(timeouts)) = (refused.is_empty(), policy.resolve(call.timeouts)) else {
            return Err(Error::Refused(refused));
        };
        if call.token.as_ref().is_some_and(Token::is_foreign) && !policy.client_tokens {
            return Err(Error::ClientTokensForbidden);
        }
        let made = call.token.is_none().then(|| Token::generate(random));
        let token = call.token.as_ref().or(made.as_ref()).expect("one of both");
        let name = SessionName { namespace: call.namespace, id: token.id() };
        let (verifier, content) = (token.verifier(), &call.content);
        let create = store::Create { verifier, content, timeouts, request: call.request };
        match self.store.create(&name, &create, policy, deadline).await? {
            Created::Session(session) => Ok((session, made)),
            Created::Exists => Err(Error::Exists),
            Created::Ended(cause) => Err(Error::Ended(cause)),
            Created::RequestIdReused => Err(Error::RequestIdReused),
        }
    }

    /// What the namespace's policy does not allow of a create; None: the namespace is unknown.
    pub fn refuses_create(&self, namespace: &Namespace, content: &Content, timeouts: Timeouts) -> Option<Vec<Refused>> {
        Some(refused("attributes", self.policies.of(namespace)?, &content.attributes, timeouts))
    }

    /// What the namespace's policy does not allow of an update; None: the namespace is unknown.
    pub fn refuses_update(&self, namespace: &Namespace, patch: &Patch, timeouts: Timeouts) -> Option<Vec<Refused>> {
        Some(refused("set_attributes", self.policies.of(namespace)?, &patch.set_attributes, timeouts))
    }

    pub async fn get(&self, call: Get, deadline: Instant) -> Result<Session, Error> {
        let policy = self.policy(&call.namespace)?;
        let (id, proof) = call.key.proof().ok_or(Error::NotFound)?;
        let name = SessionName { namespace: call.namespace, id };
        let get = store::Get { proof, view: call.view, use_: call.use_, lane: Lane::Calls };
        match self.store.get(&name, get, policy, deadline).await? {
            Found::Session(session) => Ok(session),
            Found::NotFound => Err(Error::NotFound),
            Found::Ended(cause) => Err(Error::Ended(cause)),
        }
    }

    pub async fn update(&self, call: Update, deadline: Instant) -> Result<Session, Error> {
        let policy = self.policy(&call.namespace)?;
        let refused = refused("set_attributes", policy, &call.patch.set_attributes, call.timeouts);
        let (true, Ok(timeouts)) = (refused.is_empty(), policy.check(call.timeouts)) else {
            return Err(Error::Refused(refused));
        };
        let (id, proof) = call.key.proof().ok_or(Error::NotFound)?;
        let name = SessionName { namespace: call.namespace, id };
        let update = store::Update {
            patch: &call.patch,
            timeouts,
            use_: call.use_,
            if_revision: call.if_revision,
            view: call.view,
            request: call.request,
        };
        match self.store.update(&name, proof, &update, policy, deadline).await? {
            Updated::Session(session) => Ok(session),
            Updated::NotFound => Err(Error::NotFound),
            Updated::Ended(cause) => Err(Error::Ended(cause)),
            Updated::RevisionMismatch { current } => Err(Error::RevisionMismatch { current }),
            Updated::RequestIdReused => Err(Error::RequestIdReused),
            Updated::SubjectChange => Err(Error::SubjectChange),
            Updated::TooManyAttributes { count } => {
                Err(would_leave("set_attributes", count, "attributes", policy.max_attributes))
            }
            Updated::TooManyLabels { count } => Err(would_leave("set_labels", count, "labels", store::MAX_LABELS)),
            Updated::TooLarge { bytes } => {
                Err(would_leave("set_attributes", bytes, "bytes of attributes", policy.max_payload_bytes))
            }
        }
    }

    /// Ends a session; whether there was one.
    pub async fn delete(&self, call: Delete, deadline: Instant) -> Result<bool, Error> {
        let policy = self.policy(&call.namespace)?;
        let Some((id, proof)) = call.key.proof() else { return Ok(false) };
        let name = SessionName { namespace: call.namespace, id };
        match self.store.end(&name, proof, call.cause, call.request, policy, deadline).await? {
            Ended::Now => Ok(true),
            Ended::Before => Ok(false),
            Ended::RequestIdReused => Err(Error::RequestIdReused),
        }
    }
}

fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system gives random bytes");
}

/// What the policy does not allow, whatever the session holds already.
fn refused(field: &str, policy: &Policy, attributes: &BTreeMap<String, Encoded>, timeouts: Timeouts) -> Vec<Refused> {
    let mut refused = Vec::new();
    let mut refuse = |reason| refused.push(Refused { field: field.to_owned(), reason });
    if attributes.len() > policy.max_attributes {
        refuse(format!("{} attributes; at most {} are allowed", attributes.len(), policy.max_attributes));
    }
    let bytes: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > policy.max_payload_bytes {
        refuse(format!("{bytes} bytes of names and values; at most {} are allowed", policy.max_payload_bytes));
    }
    refused.extend(policy.check(timeouts).err().into_iter().flatten().map(Refused::from));
    refused
}

fn would_leave(field: &str, count: u64, of: &str, limit: usize) -> Error {
    let reason = format!("would leave the session with {count} {of}; at most {limit} are allowed");
    Error::Refused(vec![Refused { field: field.to_owned(), reason }])
}
