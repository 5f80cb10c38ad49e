//! Create, get, update, rotate and delete of one session.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    session::{
        Content, Encoded, Patch, RequestId, SALT_BYTES, Salt, Subject, Timeouts, TimeoutsMs, TokenState, duration_text,
        size_text,
    },
    store::{Created, Ended, Found, Reservation, Successor, Updated},
};
use subjects::Admission;

/// Request of CreateSession.
pub struct Create {
    /// Namespace of the new session.
    pub namespace: Authorized<Namespace>,
    /// Content of the new session.
    pub content: Content,
    /// Requested timeouts.
    pub timeouts: Timeouts,
    /// Token that the caller made. None: the server generates one.
    pub token: Option<Token>,
    /// Hashed request id. None: the call has none.
    pub request: Option<RequestId>,
}

/// Request of GetSession and TouchSession.
pub struct Get {
    /// Namespace of the session.
    pub namespace: Authorized<Namespace>,
    /// Key of the session.
    pub key: Key,
    /// Whether the call extends the idle deadline.
    pub touch: Touch,
    /// Part of the session that is returned.
    pub view: View,
    /// Minimum revision of an answer from memory. None: the session is read from Redis.
    pub min_revision: Option<Revision>,
}

/// Request of UpdateSession.
pub struct Update {
    /// Namespace of the session.
    pub namespace: Authorized<Namespace>,
    /// Key of the session.
    pub key: Key,
    /// Changes of the content.
    pub patch: Patch,
    /// Requested timeouts.
    pub timeouts: Timeouts,
    /// Whether the call extends the idle deadline.
    pub touch: Touch,
    /// Revision that the session must have. None: any.
    pub if_revision: Option<Revision>,
    /// Part of the session that is returned.
    pub view: View,
    /// Hashed request id. None: the call has none.
    pub request: Option<RequestId>,
}

/// Request of RotateSession.
pub struct Rotate {
    /// Namespace of the session.
    pub namespace: Authorized<Namespace>,
    /// Current token of the session.
    pub token: PresentedToken,
    /// New token that the caller made, with the id of `token`. None: the server generates one.
    pub successor: Option<Token>,
    /// Changes of the content.
    pub patch: Patch,
    /// Grace period of the old token. None: the policy's, or zero if the patch is a login.
    pub grace: Option<Duration>,
    /// Revision that the session must have. None: any.
    pub if_revision: Option<Revision>,
    /// Hashed request id. None: the call has none.
    pub request: Option<RequestId>,
}

/// Request of DeleteSession.
pub struct Delete {
    /// Namespace of the session.
    pub namespace: Authorized<Namespace>,
    /// Key of the session.
    pub key: Key,
    /// Cause of the end.
    pub cause: Cause,
    /// Hashed request id. None: the call has none.
    pub request: Option<RequestId>,
}

/// Token of a new session or of a rotation.
enum NewToken<'a> {
    /// The caller chose the token.
    Caller(&'a Token),
    /// The server generated it.
    Server(Token),
}

impl<'a> NewToken<'a> {
    fn new(caller: Option<&'a Token>, generate: impl FnOnce() -> Token) -> Self {
        caller.map_or_else(|| NewToken::Server(generate()), NewToken::Caller)
    }

    fn token(&self) -> &Token {
        match self {
            NewToken::Caller(token) => token,
            NewToken::Server(token) => token,
        }
    }

    /// Returns the token for the response. None: the caller chose it.
    fn into_response(self) -> Option<Token> {
        match self {
            NewToken::Caller(_) => None,
            NewToken::Server(token) => Some(token),
        }
    }
}

impl Service {
    /// Creates a session. Returns its token if the server generated it.
    pub async fn create(&self, call: Create, deadline: Instant) -> Result<(Session, Option<Token>), Error> {
        let steps = self.steps(&call.namespace, &call.content.subject);
        let service = self.clone();
        steps.run(Box::pin(async move { service.create_in_steps(call, deadline).await })).await
    }

    async fn create_in_steps(&self, call: Create, deadline: Instant) -> Result<(Session, Option<Token>), Error> {
        let policy = self.policy(&call.namespace)?;
        let violations = policy_violations("attributes", policy, &call.content.attributes, call.timeouts);
        let (true, Ok(timeouts)) = (violations.is_empty(), policy.resolve(call.timeouts)) else {
            return Err(Error::Violations(violations));
        };
        if call.token.as_ref().is_some_and(Token::is_client_token) && !policy.client_tokens {
            return Err(Error::ClientTokensForbidden);
        }
        let new = NewToken::new(call.token.as_ref(), || Token::generate(random));
        let (id, verifier) = (new.token().id(), new.token().verifier());
        let (name, content) = (call.namespace.session(id), &call.content);
        let subject = Subject { namespace: name.namespace.clone(), name: content.subject.clone() };
        let _forget = self.forget_after_write(&name);
        // No session has an id that the server just generated, so it is reserved at once. With an id from the caller the
        // script checks first whether it would create the session.
        let mut admission = match (&subject.name[..], &new) {
            ("", _) => Admission::new(Reservation::NotRequired),
            (_, NewToken::Server(_)) => self.admit(&subject, name.id, 0, policy, deadline).await?,
            (_, NewToken::Caller(_)) => Admission::new(Reservation::Missing),
        };
        loop {
            let reserved = admission.reservation;
            let create = store::Create { verifier, content, timeouts, request: call.request, reserved };
            let created = self.store.create(&name, &create, policy, deadline).await;
            return match created.map_err(|error| admission.error_of_next_step(error))? {
                Created::NotReserved => {
                    admission = self.admit(&subject, name.id, 0, policy, deadline).await?;
                    continue;
                }
                Created::Session(session) => Ok((session, new.into_response())),
                Created::Rotated => Err(Error::Rotated),
                Created::Exists => Err(Error::Exists),
                Created::Ended(cause) => Err(Error::Ended(cause)),
                Created::RequestIdReused => Err(Error::RequestIdReused),
            };
        }
    }

    /// Returns the fields of a create that the policy does not allow. None: the namespace is unknown.
    pub fn create_violations(
        &self,
        namespace: &Namespace,
        content: &Content,
        timeouts: Timeouts,
    ) -> Option<Vec<Violation>> {
        Some(policy_violations("attributes", self.policies.of(namespace)?, &content.attributes, timeouts))
    }

    /// Returns the timeouts of an update that the policy does not allow. None: the namespace is unknown.
    ///
    /// The store checks the limits of attributes: a session that exceeds a lowered limit may still change without growing.
    pub fn timeout_violations(&self, namespace: &Namespace, timeouts: Timeouts) -> Option<Vec<Violation>> {
        Some(timeout_violations(self.policies.of(namespace)?, timeouts))
    }

    /// Returns the grace period of a rotation if the policy does not allow it. None: the namespace is unknown.
    pub fn grace_violations(&self, namespace: &Namespace, grace: Option<Duration>) -> Option<Vec<Violation>> {
        Some(grace_violations(self.policies.of(namespace)?, grace))
    }

    /// Reads a session. Returns the state of the presented token with it.
    pub async fn get(&self, call: Get, deadline: Instant) -> Result<(Session, TokenState), Error> {
        let policy = self.policy(&call.namespace)?;
        let (id, credential) = call.key.credential()?;
        let name = call.namespace.session(id);
        let get = store::Get { credential, view: call.view, touch: call.touch };
        let fill = match call.min_revision.zip(self.cache.as_ref()) {
            None => None,
            Some((min_revision, cache)) => {
                let partition = self.store.partition_of(&id);
                let now = self.store.now_at(partition);
                if let Some(answer) = cache.read((partition, &name), &get, policy, min_revision, now) {
                    return Ok(answer);
                }
                Some((cache, cache.begin((partition, &name))))
            }
        };
        match self.store.get(&name, get, policy, deadline).await? {
            Found::Live(live) => {
                if let Some((cache, fill)) = fill {
                    cache.fill(fill, &live);
                }
                Ok((live.session, live.token_state))
            }
            Found::NotFound => Err(Error::NotFound),
            Found::Ended(cause, _) => {
                // This read may have ended it: a token was reused, or its key was deleted directly in Redis.
                self.forget(&name);
                Err(Error::Ended(cause))
            }
            Found::Rotated => Err(Error::Rotated),
        }
    }

    /// Changes a session. Returns its state after the change.
    pub async fn update(&self, call: Update, deadline: Instant) -> Result<Session, Error> {
        let steps = self.steps(&call.namespace, call.patch.subject.as_deref().unwrap_or_default());
        let service = self.clone();
        steps.run(Box::pin(async move { service.update_in_steps(call, deadline).await })).await
    }

    async fn update_in_steps(&self, call: Update, deadline: Instant) -> Result<Session, Error> {
        let policy = self.policy(&call.namespace)?;
        let violations = timeout_violations(policy, call.timeouts);
        let (true, Ok(timeouts)) = (violations.is_empty(), policy.check(call.timeouts)) else {
            return Err(Error::Violations(violations));
        };
        let (id, credential) = call.key.credential()?;
        let name = call.namespace.session(id);
        let update = store::Update {
            patch: &call.patch,
            timeouts,
            touch: call.touch,
            if_revision: call.if_revision,
            view: call.view,
            request: call.request,
            reserved: Reservation::Missing,
            successor: None,
        };
        Ok(self.change(&name, credential, update, policy, deadline).await?.0)
    }

    /// Replaces the token of a session. Returns the new one if the server generated it.
    pub async fn rotate(&self, call: Rotate, deadline: Instant) -> Result<(Session, Option<Token>), Error> {
        let steps = self.steps(&call.namespace, call.patch.subject.as_deref().unwrap_or_default());
        let service = self.clone();
        steps.run(Box::pin(async move { service.rotate_in_steps(call, deadline).await })).await
    }

    async fn rotate_in_steps(&self, call: Rotate, deadline: Instant) -> Result<(Session, Option<Token>), Error> {
        let policy = self.policy(&call.namespace)?;
        let violations = grace_violations(policy, call.grace);
        if !violations.is_empty() {
            return Err(Error::Violations(violations));
        }
        let (id, credential) = call.token.credential()?;
        let presented = call.token.well_formed().ok_or(Error::NotFound)?;
        let mut salt = [0; SALT_BYTES];
        random(&mut salt);
        let derived = call.successor.is_none().then(|| presented.successor(&salt));
        let verifier = call.successor.as_ref().or(derived.as_ref()).map(Token::verifier).ok_or(Error::NotFound)?;
        let default_grace = if call.patch.is_login() { Duration::ZERO } else { policy.rotation_grace };
        let name = call.namespace.session(id);
        let update = store::Update {
            patch: &call.patch,
            timeouts: TimeoutsMs { idle: None, absolute: None },
            touch: Touch::No,
            if_revision: call.if_revision,
            view: View::Full,
            request: call.request,
            reserved: Reservation::Missing,
            successor: Some(Successor {
                verifier,
                salt: derived.is_some().then_some(salt),
                grace: call.grace.unwrap_or(default_grace),
            }),
        };
        let (session, issued) = self.change(&name, credential, update, policy, deadline).await?;
        // Another rotation of the same token was first: its successor is the one.
        let derived = match issued {
            Some(salt) => derived.map(|_| presented.successor(&salt)),
            None => derived,
        };
        Ok((session, derived))
    }

    /// Changes a session. If the change sets the subject, reserves the id in the subject index first. Returns the salt of the
    /// successor if another rotation of the presented token was first.
    async fn change(
        &self,
        name: &SessionRef,
        credential: Credential,
        mut update: store::Update<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<(Session, Option<Salt>), Error> {
        let _forget = self.forget_after_write(name);
        let mut admission = Admission::new(Reservation::Missing);
        loop {
            update.reserved = admission.reservation;
            let updated = self.store.update(name, credential, &update, policy, deadline).await;
            return match updated.map_err(|error| admission.error_of_next_step(error))? {
                Updated::NotReserved { void_until } => {
                    let subject = update.patch.subject.clone().unwrap_or_default();
                    let subject = Subject { namespace: name.namespace.clone(), name: subject };
                    admission = self.admit(&subject, name.id, void_until, policy, deadline).await?;
                    continue;
                }
                Updated::Session { session, salt } => Ok((session, salt)),
                Updated::NotFound => Err(Error::NotFound),
                Updated::Ended(cause) => Err(Error::Ended(cause)),
                Updated::Rotated => Err(Error::Rotated),
                Updated::TokenKnown => {
                    Err(violation("new_token", "is or was a token of this session; create a new token"))
                }
                Updated::RevisionMismatch { current } => Err(Error::RevisionMismatch { current }),
                Updated::RequestIdReused => Err(Error::RequestIdReused),
                Updated::RequestIdLimit { wait } => Err(Error::RequestIdLimit { wait }),
                Updated::SubjectChange => Err(Error::SubjectChange),
                Updated::TooManyAttributes { count } => Err(would_exceed(
                    "set_attributes",
                    format!("{count} attributes"),
                    policy.max_attributes.to_string(),
                )),
                Updated::TooManyLabels { count } => {
                    Err(would_exceed("set_labels", format!("{count} labels"), store::MAX_LABELS.to_string()))
                }
                Updated::TooLarge { bytes } => {
                    let maximum = size_text(policy.max_payload_bytes);
                    Err(would_exceed("set_attributes", format!("{bytes} bytes of attributes"), maximum))
                }
            };
        }
    }

    /// Ends a session. Returns whether a live session had the key.
    pub async fn delete(&self, call: Delete, deadline: Instant) -> Result<bool, Error> {
        let policy = self.policy(&call.namespace)?;
        let Ok((id, credential)) = call.key.credential() else { return Ok(false) };
        let name = call.namespace.session(id);
        let _forget = self.forget_after_write(&name);
        match self.store.end(&name, credential, call.cause, call.request, policy, deadline).await? {
            Ended::Now => Ok(true),
            Ended::Before | Ended::NotMeant => Ok(false),
            Ended::RequestIdReused => Err(Error::RequestIdReused),
        }
    }
}

/// Fills the buffer with random bytes of the operating system.
#[expect(clippy::expect_used, reason = "without random bytes no token is secure, so the call must not continue")]
fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system provides random bytes");
}

/// Returns the violations of the policy that do not depend on the stored session.
fn policy_violations(
    field: &str,
    policy: &Policy,
    attributes: &BTreeMap<String, Encoded>,
    timeouts: Timeouts,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut add = |reason| violations.push(Violation { field: field.to_owned(), reason });
    if attributes.len() > policy.max_attributes {
        add(format!("{} attributes; at most {} are allowed", attributes.len(), policy.max_attributes));
    }
    let bytes: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > policy.max_payload_bytes {
        let maximum = size_text(policy.max_payload_bytes);
        add(format!("{bytes} bytes of names and values; at most {maximum} are allowed"));
    }
    violations.extend(timeout_violations(policy, timeouts));
    violations
}

fn timeout_violations(policy: &Policy, timeouts: Timeouts) -> Vec<Violation> {
    policy.check(timeouts).err().into_iter().flatten().map(Violation::from).collect()
}

fn grace_violations(policy: &Policy, grace: Option<Duration>) -> Vec<Violation> {
    let is_too_long = grace.is_some_and(|grace| grace > policy.rotation_grace);
    let reason = || format!("at most {} is allowed by the policy", duration_text(policy.rotation_grace));
    is_too_long.then(|| Violation { field: "grace_period".into(), reason: reason() }).into_iter().collect()
}

/// Returns the error of an update after which the session would exceed a limit.
fn would_exceed(field: &str, total: String, limit: String) -> Error {
    violation(field, format!("would leave the session with {total}; at most {limit} are allowed"))
}
