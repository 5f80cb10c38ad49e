//! Parses requests into domain types: checks every field and returns all violations in one status.

mod fields;
mod rotate;
mod watch;

use std::fmt;

use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::{
    access::{self, Access, NotAuthorized},
    status,
};
use crate::{
    auth::{Authorized, Caller},
    pb,
    service::{
        Create, Delete, DeleteSubjectSessions, Get, Key, List, ListScope, PageToken, PresentedToken, Service, Update,
        Violation,
    },
    session::{Cause, Content, Namespace, Patch, RequestId, Revision, SessionId, Timeouts, Token, Touch, View},
};
use fields::Violations;

pub(super) use rotate::rotate;
pub(super) use watch::watch;

/// Parses the request of CreateSession.
pub(super) fn create(request: pb::CreateSessionRequest, caller: &Caller, service: &Service) -> Result<Create, Status> {
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    let fingerprint = violations.request_id(&request.request_id, "CreateSession", &request);
    if fingerprint.is_some() && request.token.is_empty() {
        violations.add("request_id", "requires token: the server returns a generated token only once");
    }
    let token = if request.token.is_empty() { None } else { violations.token("token", request.token) };
    violations.subject("subject", &request.subject);
    let content = Content {
        subject: request.subject,
        attributes: violations.attributes("attributes", request.attributes),
        labels: violations.labels("labels", request.labels),
        client: violations.client(request.client),
        authentication: violations.authentication(request.authentication),
    };
    let timeouts = violations.timeouts(request.idle_timeout, request.absolute_timeout);
    violations.add_policy_violations(|| service.create_violations(namespace.as_ref()?, &content, timeouts));
    violations.finish(|| Some(Create { namespace: namespace?, content, timeouts, token, request: fingerprint }))
}

/// Parses the request of GetSession.
pub(super) fn get(request: pb::GetSessionRequest, caller: &Caller) -> Result<Get, Status> {
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    let key = violations.key("key", request.key);
    let view = violations.view(request.view, View::Full);
    let min_revision = request.min_revision.map(|revision| u64::try_from(revision).map(Revision));
    if let Some(Err(_)) = min_revision {
        violations.add("min_revision", "must not be negative");
    }
    let (touch, min_revision) = (touch_of(request.touch), min_revision.and_then(Result::ok));
    violations.finish(|| Some(Get { namespace: namespace?, key: key?, touch, view: view?, min_revision }))
}

/// Parses the request of TouchSession: a get that touches.
pub(super) fn touch(request: pb::TouchSessionRequest, caller: &Caller) -> Result<Get, Status> {
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    let key = violations.key("key", request.key);
    let (touch, view, min_revision) = (Touch::Yes, View::Basic, None);
    violations.finish(|| Some(Get { namespace: namespace?, key: key?, touch, view, min_revision }))
}

/// Parses the request of UpdateSession.
pub(super) fn update(request: pb::UpdateSessionRequest, caller: &Caller, service: &Service) -> Result<Update, Status> {
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    let fingerprint = violations.request_id(&request.request_id, "UpdateSession", &request);
    let key = violations.key("key", request.key);
    let view = violations.view(request.view, View::Basic);
    violations.disjoint("remove_attributes", &request.remove_attributes, &request.set_attributes, "set_attributes");
    violations.disjoint("remove_labels", &request.remove_labels, &request.set_labels, "set_labels");
    if let Some(subject) = &request.subject {
        violations.subject("subject", subject);
    }
    let if_revision = violations.revision("if_revision", request.if_revision);
    let patch = Patch {
        set_attributes: violations.attributes("set_attributes", request.set_attributes),
        remove_attributes: violations.names("remove_attributes", request.remove_attributes),
        clear_attributes: request.clear_attributes,
        set_labels: violations.labels("set_labels", request.set_labels),
        remove_labels: violations.label_names("remove_labels", request.remove_labels),
        subject: request.subject,
        authentication: violations.authentication(request.authentication),
    };
    let timeouts = violations.timeouts(request.idle_timeout, request.absolute_timeout);
    violations.add_policy_violations(|| service.timeout_violations(namespace.as_ref()?, timeouts));
    violations.finish(|| {
        Some(Update {
            namespace: namespace?,
            key: key?,
            patch,
            timeouts,
            touch: touch_of(request.touch),
            if_revision,
            view: view?,
            request: fingerprint,
        })
    })
}

/// Parses the request of DeleteSession.
pub(super) fn delete(request: pb::DeleteSessionRequest, caller: &Caller) -> Result<Delete, Status> {
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    let fingerprint = violations.request_id(&request.request_id, "DeleteSession", &request);
    let key = violations.key("key", request.key);
    let cause = match pb::Cause::try_from(request.cause) {
        Ok(pb::Cause::Unspecified | pb::Cause::Logout) => Some(Cause::Logout),
        Ok(pb::Cause::Revoked) => Some(Cause::Revoked),
        Ok(pb::Cause::Replaced) => Some(Cause::Replaced),
        _ => violations.invalid("cause", "must be CAUSE_LOGOUT, CAUSE_REVOKED or CAUSE_REPLACED"),
    };
    violations.finish(|| Some(Delete { namespace: namespace?, key: key?, cause: cause?, request: fingerprint }))
}

/// Parses the request of DeleteSubjectSessions.
pub(super) fn delete_subject_sessions(
    request: pb::DeleteSubjectSessionsRequest,
    caller: &Caller,
) -> Result<DeleteSubjectSessions, Status> {
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    violations.present_subject("subject", &request.subject);
    let except = match &request.except_id[..] {
        "" => None,
        id => violations.id("except_id", id),
    };
    let cause = match pb::Cause::try_from(request.cause) {
        Ok(pb::Cause::Unspecified | pb::Cause::Revoked) => Some(Cause::Revoked),
        Ok(pb::Cause::Logout) => Some(Cause::Logout),
        _ => violations.invalid("cause", "must be CAUSE_REVOKED or CAUSE_LOGOUT"),
    };
    let created_before = request.created_before.and_then(|at| violations.millis_rounded_up("created_before", at));
    violations.finish(|| {
        let subject = namespace?.subject(request.subject);
        Some(DeleteSubjectSessions { subject, except, cause: cause?, created_before })
    })
}

/// Parses the request of ListSessions.
pub(super) fn list(request: pb::ListSessionsRequest, caller: &Caller, service: &Service) -> Result<List, Status> {
    const DEFAULT: usize = 100;
    const MAX: usize = 1_000;
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    let labels = violations.labels("labels", request.labels);
    let view = violations.view(request.view, View::Basic);
    if let Some(subject) = &request.subject {
        violations.present_subject("subject", subject);
    }
    let page_size = match usize::try_from(request.page_size) {
        Ok(0) => Some(DEFAULT),
        Ok(size @ 1..=MAX) => Some(size),
        _ => violations.invalid("page_size", "must be 1 to 1,000, or 0 for the default of 100"),
    };
    let (store, partitions) = (service.store.id(), service.store.partitions().len());
    let subject = request.subject;
    let scope = namespace.map(|namespace| ListScope { store, partitions, namespace, subject, labels });
    let from = scope.as_ref().and_then(|scope| violations.page_token(&request.page_token, scope));
    violations.finish(|| Some(List { scope: scope?, page_size: page_size?, from: from?, view: view? }))
}

/// Returns the flag `touch` of a request as a type.
fn touch_of(touch: bool) -> Touch {
    if touch { Touch::Yes } else { Touch::No }
}

/// Returns the first bytes of SHA-256 over both parts.
fn hash<const N: usize>(parts: [&[u8]; 2]) -> [u8; N] {
    const { assert!(N <= 32) };
    let digest: [u8; 32] = Sha256::new().chain_update(parts[0]).chain_update(parts[1]).finalize().into();
    std::array::from_fn(|at| digest[at])
}

impl Violations {
    /// Checks that the caller may make this call in the namespace of the request, which is required.
    fn authorize(&mut self, caller: &Caller, request: &impl Access) -> Result<Option<Authorized<Namespace>>, Status> {
        match access::authorize(caller, request) {
            Ok(namespace) => Ok(Some(namespace)),
            Err(NotAuthorized::GrantMissing(missing)) => Err(status::grant_missing(&missing)),
            Err(NotAuthorized::Malformed(_)) if request.namespace().is_empty() => {
                Ok(self.invalid("namespace", "is required"))
            }
            Err(NotAuthorized::Malformed(_)) => Ok(self.invalid("namespace", "must match [a-z0-9]([-a-z0-9]{0,62})")),
        }
    }

    /// Parses a required key. A malformed token is no violation: see [`PresentedToken`].
    fn key(&mut self, field: &str, key: Option<pb::SessionKey>) -> Option<Key> {
        match key.and_then(|key| key.key) {
            None => self.invalid(field, "is required: id or token"),
            Some(pb::session_key::Key::Id(id)) => self.id(format_args!("{field}.id"), &id).map(Key::Id),
            Some(pb::session_key::Key::Token(token)) => Some(Key::Token(PresentedToken::parse(token))),
        }
    }

    fn id(&mut self, field: impl fmt::Display, text: &str) -> Option<SessionId> {
        // The violation has no part of the text: a caller may have put a token into the wrong field.
        const FORM: &str = "must be 26 characters of a-z2-7 that end with one of a, e, i, m, q, u, y, 4";
        text.parse().map_or_else(|_| self.invalid(field, FORM), Some)
    }

    fn revision(&mut self, field: &str, revision: Option<i64>) -> Option<Revision> {
        match u64::try_from(revision?) {
            Ok(revision @ 1..) => Some(Revision(revision)),
            Ok(0) | Err(_) => self.invalid(field, "must be positive"),
        }
    }

    /// Adds the violations of the policy to a request that already has others. The service checks a valid request.
    fn add_policy_violations(&mut self, violations: impl FnOnce() -> Option<Vec<Violation>>) {
        if !self.is_empty() {
            self.extend(violations().unwrap_or_default());
        }
    }

    /// Parses a token that the caller made.
    fn token(&mut self, field: &str, text: String) -> Option<Token> {
        Token::parse(text).map_or_else(|malformed| self.invalid(field, malformed.to_string()), Some)
    }

    /// Parses a page token for a list of this scope. An empty text is the start of the list.
    fn page_token(&mut self, text: &str, scope: &ListScope) -> Option<PageToken> {
        const ORIGIN: &str = "must be a next_page_token of this store, from a request with the same namespace, subject and \
                              labels";
        if text.is_empty() {
            return Some(PageToken::start(scope));
        }
        PageToken::decode(text, scope).map_or_else(|| self.invalid("page_token", ORIGIN), Some)
    }

    /// Hashes a request id, and the request in its one encoding, which includes the id.
    fn request_id(&mut self, text: &str, method: &str, request: &impl Message) -> Option<RequestId> {
        if text.is_empty() {
            return None;
        }
        if !(16..=64).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return self.invalid("request_id", "must be 16 to 64 visible ASCII characters");
        }
        Some(RequestId {
            id: hash([b"sessiond/request-id", text.as_bytes()]),
            fingerprint: hash([method.as_bytes(), &request.encode_to_vec()]),
        })
    }

    fn view(&mut self, view: i32, default: View) -> Option<View> {
        match pb::SessionView::try_from(view) {
            Ok(pb::SessionView::Unspecified) => Some(default),
            Ok(pb::SessionView::Basic) => Some(View::Basic),
            Ok(pb::SessionView::Full) => Some(View::Full),
            Err(_) => self.invalid("view", "must be SESSION_VIEW_BASIC or SESSION_VIEW_FULL"),
        }
    }

    fn timeouts(&mut self, idle: Option<prost_types::Duration>, absolute: Option<prost_types::Duration>) -> Timeouts {
        Timeouts {
            idle: idle.and_then(|idle| self.timeout("idle_timeout", idle)),
            absolute: absolute.and_then(|absolute| self.timeout("absolute_timeout", absolute)),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::session::Millis;

    fn violations(status: &Status) -> Vec<(String, String)> {
        let details = tonic_types::StatusExt::get_details_bad_request(status).unwrap();
        details.field_violations.into_iter().map(|violation| (violation.field, violation.description)).collect()
    }

    #[test]
    fn created_before_is_rounded_up_to_milliseconds() {
        let parsed = |seconds, nanos| {
            let request = pb::DeleteSubjectSessionsRequest {
                namespace: "web".into(),
                subject: "alice".into(),
                created_before: Some(Timestamp { seconds, nanos }),
                ..Default::default()
            };
            delete_subject_sessions(request, &Caller::anyone()).map(|call| call.created_before)
        };
        // Before 1970 there is no session, whatever the nanoseconds are.
        let rows =
            [(0, 0, 0), (0, 1, 1), (5, 1_000_000, 5_001), (5, 1_000_001, 5_002), (-1, 999_999_999, 0), (-5, 0, 0)];
        for (seconds, nanos, millis) in rows {
            assert_eq!(parsed(seconds, nanos).unwrap(), Some(Millis(millis)), "{seconds} s {nanos} ns");
        }
        assert_eq!(parsed(253_402_300_799, 999_999_999).unwrap(), Some(Millis(253_402_300_800_000)));
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
            let status = parsed(seconds, nanos).unwrap_err();
            let fields: Vec<_> = violations(&status).into_iter().map(|(field, _)| field).collect();
            assert_eq!(fields, ["created_before"], "{seconds} s {nanos} ns");
        }
    }

    #[test]
    fn malformed_new_token_is_rejected_with_its_reason() {
        let good = Token::generate(|bytes| bytes.fill(7)).reveal();
        let last = |last: &str| good[..good.len() - 1].to_owned() + last;
        let rows = [
            (last("b"), "non-zero spare bits"),
            (last("1"), "outside of a-z2-7"),
            (last(""), "a secret of 52 characters"),
            ("x".repeat(21), "22 to 256 bytes"),
        ];
        for (text, reason) in rows {
            let mut parsed = Violations::default();
            assert!(parsed.token("token", text.clone()).is_none());
            let status = parsed.finish(|| Some(())).unwrap_err();
            let [(field, description)] = &violations(&status)[..] else { panic!("{status:?}") };
            assert!(field == "token" && description.contains(reason), "{reason}: {status:?}");
            assert!(!status.message().contains(&text), "{status:?}");
        }
        assert!(Violations::default().token("token", good.clone()).is_some());
    }
}
