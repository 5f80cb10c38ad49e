//! Lines of the audit log about calls: what each call is, who makes it, and its outcome.

use std::{sync::Arc, time::SystemTime};

use data_encoding::HEXLOWER;
use http::HeaderValue;
use tonic::Status;
use tonic_types::{ErrorInfo, StatusExt};

use super::status;
use crate::{
    audit_log::{Actor, AuditLog, Class, Event, Line, Outcome, Place, Refusal, Source, Target, user_agent},
    auth::{CertificateNames, Peer, Requester},
    pb,
    service::{
        Create, Delete, DeleteSubjectSessions, Error, Get, Key, List, PresentedToken, Rotate, Update, Watch, WatchKeys,
    },
    session::{Cause, Namespace, RequestId, SessionId, Token},
};

/// Maximum number of ids in a line.
const MAX_IDS: usize = 64;

/// What the audit log says about a call.
pub(super) struct Action {
    /// Class and event. None: the call uses a token; only a refused use has a line.
    kind: Option<(Class, Event)>,
    namespace: Namespace,
    /// Whether the key is a token.
    has_token: bool,
    /// Ids in the key. Empty: the call names none.
    ids: Vec<SessionId>,
    subject: Option<String>,
    cause: Option<Cause>,
    request: Option<RequestId>,
}

impl Action {
    fn new(kind: Option<(Class, Event)>, namespace: &Namespace, ids: Vec<SessionId>) -> Self {
        let namespace = namespace.clone();
        Action { kind, namespace, has_token: false, ids, subject: None, cause: None, request: None }
    }

    /// A call with this key, which has a line of this kind if it acts by id.
    fn keyed(by_id: (Class, Event), namespace: &Namespace, key: &Key) -> Self {
        let has_token = matches!(key, Key::Token(_));
        let kind = if has_token { None } else { Some(by_id) };
        Action { has_token, ..Action::new(kind, namespace, id_of(key).into_iter().collect()) }
    }

    fn target(&self, method: &'static str) -> Target {
        let ids: Vec<_> = self.ids.iter().take(MAX_IDS).map(ToString::to_string).collect();
        Target {
            method: Some(method),
            namespace: Some(self.namespace.to_string()),
            id: (!ids.is_empty()).then(|| ids.join(",")),
            subject: self.subject.clone(),
            cause: self.cause.map(|cause| pb::Cause::from(cause).short_name()),
            request_id_hash: self.request.as_ref().map(|request| HEXLOWER.encode(&request.id)),
            files: None,
        }
    }
}

fn id_of(key: &Key) -> Option<SessionId> {
    match key {
        Key::Id(id) => Some(*id),
        Key::Token(token) => id_of_token(token),
    }
}

fn id_of_token(token: &PresentedToken) -> Option<SessionId> {
    token.well_formed().map(Token::id)
}

impl From<&Create> for Action {
    fn from(call: &Create) -> Self {
        let ids = call.token.iter().map(Token::id).collect();
        let subject = Some(call.content.subject.clone()).filter(|subject| !subject.is_empty());
        let action = Action::new(Some((Class::Login, Event::SessionCreated)), &call.namespace, ids);
        Action { has_token: call.token.is_some(), subject, request: call.request, ..action }
    }
}

impl From<&Get> for Action {
    fn from(call: &Get) -> Self {
        Action::keyed((Class::Admin, Event::SensitiveRead), &call.namespace, &call.key)
    }
}

impl From<&Update> for Action {
    fn from(call: &Update) -> Self {
        let by_id = (Class::Admin, Event::SensitiveUpdate);
        let mut action = Action::keyed(by_id, &call.namespace, &call.key);
        if call.patch.subject.is_some() || call.patch.authentication.is_some() {
            action.kind = Some((Class::Login, Event::PrivilegePermissionsChanged));
        }
        Action { subject: call.patch.subject.clone(), request: call.request, ..action }
    }
}

impl From<&Rotate> for Action {
    fn from(call: &Rotate) -> Self {
        let ids = id_of_token(&call.token).into_iter().collect();
        let action = Action::new(Some((Class::Login, Event::SessionRenewed)), &call.namespace, ids);
        Action { has_token: true, subject: call.patch.subject.clone(), request: call.request, ..action }
    }
}

impl From<&Delete> for Action {
    fn from(call: &Delete) -> Self {
        let action = Action::keyed((Class::Admin, Event::SessionExpired), &call.namespace, &call.key);
        let kind = action.kind.or(Some((Class::Login, Event::SessionExpired)));
        Action { kind, cause: Some(call.cause), request: call.request, ..action }
    }
}

impl From<&DeleteSubjectSessions> for Action {
    fn from(call: &DeleteSubjectSessions) -> Self {
        let kind = Some((Class::Admin, Event::SessionExpired));
        let action = Action::new(kind, &call.subject.namespace, Vec::new());
        Action { subject: Some(call.subject.name.clone()), cause: Some(call.cause), ..action }
    }
}

impl From<&List> for Action {
    fn from(call: &List) -> Self {
        let kind = Some((Class::Admin, Event::SensitiveRead));
        let action = Action::new(kind, &call.scope.namespace, Vec::new());
        Action { subject: call.scope.subject.clone(), ..action }
    }
}

impl From<&Watch> for Action {
    fn from(call: &Watch) -> Self {
        let read = Some((Class::Admin, Event::SensitiveRead));
        let new = |kind, ids| Action::new(kind, &call.namespace, ids);
        match &call.keys {
            WatchKeys::WholeNamespace => new(read, Vec::new()),
            WatchKeys::Ids(ids) => new(read, ids.iter().copied().collect()),
            WatchKeys::Subject(subject) => Action { subject: Some(subject.clone()), ..new(read, Vec::new()) },
            WatchKeys::Token(token) => {
                Action { has_token: true, ..new(None, id_of_token(token).into_iter().collect()) }
            }
        }
    }
}

/// Who makes a call, for the audit log.
pub(super) struct CallAudit {
    pub log: Arc<AuditLog>,
    pub peer: Arc<Peer>,
    pub requester: Requester,
    pub user_agent: Option<HeaderValue>,
    pub method: &'static str,
}

impl CallAudit {
    /// Takes the place of the line about this call, before the call. Fails if the line is required and cannot be written.
    pub(super) fn begin<T>(self: &Arc<Self>, call: &T) -> Result<PendingLine, Status>
    where
        Action: for<'a> From<&'a T>,
    {
        if !self.log.is_on() {
            return Ok(PendingLine(None));
        }
        let action = Action::from(call);
        let place = match action.kind {
            Some(_) => self.log.take_place().map_err(|_| status::audit_unavailable())?,
            None => None,
        };
        Ok(PendingLine(Some(Box::new(Pending { audit: self.clone(), action, place, is_over: false }))))
    }

    /// Counts a call for which the caller has no grant.
    pub(super) fn refuse(&self, status: &Status) {
        let Some(ErrorInfo { reason, mut metadata, .. }) = status.get_details_error_info() else { return };
        let namespace = metadata.remove("namespace");
        let apart = namespace.clone().unwrap_or_default();
        self.log.refuse(Refusal { source: self.source(), event: Event::AuthzFail, reason, apart }, || {
            (self.actor(), Target { method: Some(self.method), namespace, ..Target::default() })
        });
    }

    fn source(&self) -> Source {
        match self.requester.credential {
            Some(_) => Source::Caller(self.requester.caller.name.clone()),
            None => Source::network_of(self.peer.address.ip()),
        }
    }

    fn actor(&self) -> Actor {
        let Requester { caller, credential, .. } = &self.requester;
        let key = credential.as_ref().and_then(|credential| credential.key_id());
        Actor {
            caller: credential.as_ref().map(|_| caller.name.clone()),
            key: key.map(|key| key.to_string()),
            ..actor_of(&self.peer, self.user_agent.as_ref())
        }
    }
}

/// Returns what is known of a client without a valid credential.
pub(super) fn actor_of(peer: &Peer, agent: Option<&HeaderValue>) -> Actor {
    let certificate = peer.certificate.as_ref().map(|certificate| match certificate.names() {
        CertificateNames::Uri(uri) => uri.to_string(),
        CertificateNames::Dns(names) => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        CertificateNames::Unusable => "unusable".to_owned(),
    });
    Actor {
        certificate,
        peer: Some(peer.address.to_string()),
        user_agent: agent.map(|agent| user_agent(agent.as_bytes())),
        ..Actor::default()
    }
}

/// Line about a call in progress. If it is dropped, the client gave up, and the outcome is unknown. None: the log is off.
pub(super) struct PendingLine(Option<Box<Pending>>);

struct Pending {
    audit: Arc<CallAudit>,
    action: Action,
    place: Option<Place>,
    is_over: bool,
}

/// What a successful call adds to its line.
#[derive(Default)]
pub(super) struct Found {
    /// Id of the session. None: that of the key.
    pub id: Option<SessionId>,
    /// Number of sessions. None: the call is about one.
    pub count: Option<u64>,
}

impl Found {
    /// A call that read or ended this number of sessions.
    pub(super) fn sessions(count: impl Into<u64>) -> Self {
        Found { id: None, count: Some(count.into()) }
    }
}

impl PendingLine {
    /// Ends the call: returns its result with the error as a status. `found` describes what a successful one adds to its line.
    pub(super) fn end<T>(mut self, result: Result<T, Error>, found: impl FnOnce(&T) -> Found) -> Result<T, Status> {
        let ended = match &result {
            Err(Error::Ended(cause)) => Some(*cause),
            Ok(_) | Err(_) => None,
        };
        let is_invalid = matches!(&result, Err(Error::NotFound | Error::Ended(_) | Error::Rotated));
        let result = result.map_err(status::from_error);
        if let Some(pending) = &mut self.0 {
            pending.is_over = true;
            match &result {
                Ok(value) => pending.succeed(&found(value)),
                Err(status) if is_invalid && pending.action.has_token => {
                    pending.refuse(reason_of(status), ended);
                }
                Err(status) => pending.fail(reason_of(status)),
            }
        }
        result
    }
}

impl Pending {
    fn succeed(&mut self, found: &Found) {
        if self.action.has_token && found.count == Some(0) {
            // DeleteSession: no live session has the token.
            return self.refuse("SESSION_NOT_FOUND".to_owned(), None);
        }
        self.action.ids.extend(found.id.filter(|_| self.action.ids.is_empty()));
        self.write(Outcome::Ok, None, found.count);
    }

    fn fail(&mut self, reason: String) {
        let outcome = if reason == "OUTCOME_UNKNOWN" { Outcome::Unknown } else { Outcome::Failed };
        self.write(outcome, Some(reason), None);
    }

    /// Counts the use of a token that no live session has, or that is superseded: users can send any number of them. A session that
    /// ended because of token reuse has its own line.
    fn refuse(&self, reason: String, ended: Option<Cause>) {
        let mut target = self.action.target(self.audit.method);
        target.cause = ended.map(|cause| pb::Cause::from(cause).short_name());
        let apart = match ended {
            Some(Cause::TokenReuse) => target.id.clone().unwrap_or_default(),
            Some(_) | None => String::new(),
        };
        let (source, event) = (self.audit.source(), Event::SessionUseAfterExpire);
        self.audit.log.refuse(Refusal { source, event, reason, apart }, || (self.audit.actor(), target));
    }

    fn write(&mut self, outcome: Outcome, reason: Option<String>, count: Option<u64>) {
        let Some((class, event)) = self.action.kind else { return };
        let actor = self.audit.actor();
        let target = self.action.target(self.audit.method);
        let line = Line::new(class, event, outcome, SystemTime::now());
        self.audit.log.write(self.place.take(), Line { actor, target, reason, count, ..line });
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_over {
            let reason = if std::thread::panicking() { "OUTCOME_UNKNOWN" } else { "CANCELLED" };
            self.write(Outcome::Unknown, Some(reason.to_owned()), None);
        }
    }
}

/// Returns the reason in the ErrorInfo of a status.
fn reason_of(status: &Status) -> String {
    status.get_details_error_info().map_or_else(String::new, |info| info.reason)
}
