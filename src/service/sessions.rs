//! Making, reading, changing, rotating and ending one session.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    session::{Content, Encoded, Patch, RequestId, Standing, Subject, Timeouts, TimeoutsMs},
    store::{Created, Ended, Found, Reserved, Successor, Updated},
};
use subjects::Place;

pub struct Create {
    pub namespace: Namespace,
    pub content: Content,
    pub timeouts: Timeouts,
    /// None = the server makes one.
    pub token: Option<Token>,
    pub request: Option<RequestId>,
}

pub struct Get {
    pub namespace: Namespace,
    pub key: Key,
    pub use_: Use,
    pub view: View,
}

pub struct Update {
    pub namespace: Namespace,
    pub key: Key,
    pub patch: Patch,
    pub timeouts: Timeouts,
    pub use_: Use,
    pub if_revision: Option<Revision>,
    pub view: View,
    pub request: Option<RequestId>,
}

pub struct Rotate {
    pub namespace: Namespace,
    /// None = malformed: no session has it.
    pub token: Option<Token>,
    /// None = the server makes one. Else of the same id.
    pub successor: Option<Token>,
    pub patch: Patch,
    /// None = the policy's, or none where the patch is a login.
    pub grace: Option<Duration>,
    pub if_revision: Option<Revision>,
    pub request: Option<RequestId>,
}

pub struct Delete {
    pub namespace: Namespace,
    pub key: Key,
    pub cause: Cause,
    pub request: Option<RequestId>,
}

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
        let (name, content) = (SessionName { namespace: call.namespace, id: token.id() }, &call.content);
        let subject = Subject { namespace: name.namespace.clone(), name: content.subject.clone() };
        let verifier = token.verifier();
        // An id that the server made is nobody's yet. Of any other the store says first whether it would be made.
        let mut place = match &subject.name[..] {
            "" => Place::none(Reserved::NeedsNot),
            _ if made.is_some() => self.admit(&subject, name.id, 0, policy, deadline).await?,
            _ => Place::none(Reserved::No),
        };
        loop {
            let reserved = place.reserved;
            let create = store::Create { verifier, content, timeouts, request: call.request, reserved };
            let created = self.store.create(&name, &create, policy, deadline).await;
            return match created.map_err(|error| place.failure(error))? {
                Created::NotReserved => {
                    place = self.admit(&subject, name.id, 0, policy, deadline).await?;
                    continue;
                }
                Created::Session(session) => Ok((session, made)),
                Created::Exists => Err(Error::Exists),
                Created::Ended(cause) => Err(Error::Ended(cause)),
                Created::RequestIdReused => Err(Error::RequestIdReused),
            };
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

    /// What the namespace's policy does not allow of a rotation; None: the namespace is unknown.
    pub fn refuses_rotate(
        &self,
        namespace: &Namespace,
        patch: &Patch,
        grace: Option<Duration>,
    ) -> Option<Vec<Refused>> {
        let policy = self.policies.of(namespace)?;
        let mut refused = refused("set_attributes", policy, &patch.set_attributes, Timeouts::default());
        if grace.is_some_and(|grace| grace > policy.rotation_grace) {
            let longest = humantime::format_duration(policy.rotation_grace);
            let reason = format!("at most {longest} is allowed here");
            refused.push(Refused { field: "grace_period".into(), reason });
        }
        Some(refused)
    }

    /// Reads a session, and says how the presented token stands.
    pub async fn get(&self, call: Get, deadline: Instant) -> Result<(Session, Standing), Error> {
        let policy = self.policy(&call.namespace)?;
        let (id, proof) = call.key.proof().ok_or(Error::NotFound)?;
        let name = SessionName { namespace: call.namespace, id };
        let get = store::Get { proof, view: call.view, use_: call.use_ };
        match self.store.get(&name, get, policy, deadline).await? {
            Found::Session(session, standing) => Ok((session, standing)),
            Found::NotFound => Err(Error::NotFound),
            Found::Ended(cause, _) => Err(Error::Ended(cause)),
            Found::Rotated => Err(Error::Rotated),
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
            reserved: Reserved::No,
            successor: None,
        };
        self.change(&name, proof, update, policy, deadline).await
    }

    /// Gives a session a new token; answers it if the server made it.
    pub async fn rotate(&self, call: Rotate, deadline: Instant) -> Result<(Session, Option<Token>), Error> {
        let policy = self.policy(&call.namespace)?;
        let refused = self.refuses_rotate(&call.namespace, &call.patch, call.grace).unwrap_or_default();
        if !refused.is_empty() {
            return Err(Error::Refused(refused));
        }
        let token = call.token.ok_or(Error::NotFound)?;
        if token.is_foreign() && !policy.client_tokens {
            return Err(Error::ClientTokensForbidden);
        }
        let made = call.successor.is_none().then(|| Token::successor(token.id(), random));
        let successor = call.successor.as_ref().or(made.as_ref()).expect("one of both");
        let own_grace = if call.patch.is_login() { Duration::ZERO } else { policy.rotation_grace };
        let name = SessionName { namespace: call.namespace, id: token.id() };
        let update = store::Update {
            patch: &call.patch,
            timeouts: TimeoutsMs { idle: None, absolute: None },
            use_: Use::DoesNotCount,
            if_revision: call.if_revision,
            view: View::Full,
            request: call.request,
            reserved: Reserved::No,
            successor: Some(Successor { verifier: successor.verifier(), grace: call.grace.unwrap_or(own_grace) }),
        };
        let session = self.change(&name, Proof::Secret(token.verifier()), update, policy, deadline).await?;
        Ok((session, made))
    }

    /// Changes a session; where that makes it a subject's, the subject's index has it before.
    async fn change(
        &self,
        name: &SessionName,
        proof: Proof,
        mut update: store::Update<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Session, Error> {
        let mut place = Place::none(Reserved::No);
        loop {
            update.reserved = place.reserved;
            let updated = self.store.update(name, proof, &update, policy, deadline).await;
            return match updated.map_err(|error| place.failure(error))? {
                Updated::NotReserved { void_until } => {
                    let subject = update.patch.subject.clone().unwrap_or_default();
                    let subject = Subject { namespace: name.namespace.clone(), name: subject };
                    place = self.admit(&subject, name.id, void_until, policy, deadline).await?;
                    continue;
                }
                Updated::Session(session) => Ok(session),
                Updated::NotFound => Err(Error::NotFound),
                Updated::Ended(cause) => Err(Error::Ended(cause)),
                Updated::Rotated => Err(Error::Rotated),
                Updated::TokenKnown => Err(refuse("new_token", "is, or was, a token of this session; make a new one")),
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
            };
        }
    }

    /// Ends a session; whether there was one.
    pub async fn delete(&self, call: Delete, deadline: Instant) -> Result<bool, Error> {
        let policy = self.policy(&call.namespace)?;
        let Some((id, proof)) = call.key.proof() else { return Ok(false) };
        let name = SessionName { namespace: call.namespace, id };
        match self.store.end(&name, proof, call.cause, call.request, policy, deadline).await? {
            Ended::Now => Ok(true),
            Ended::Before | Ended::NotMeant => Ok(false),
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

fn refuse(field: &str, reason: impl Into<String>) -> Error {
    Error::Refused(vec![Refused { field: field.to_owned(), reason: reason.into() }])
}

fn would_leave(field: &str, count: u64, of: &str, limit: usize) -> Error {
    refuse(field, format!("would leave the session with {count} {of}; at most {limit} are allowed"))
}
