//! From the wire to the domain: every field is checked, and all that are bad are told at once.

mod fields;
mod rotate;
mod watch;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::{
    pb,
    service::{Create, Delete, DeleteAll, Get, Key, List, Listed, PageToken, Refused, Service, Update},
    session::{
        Cause, Content, Millis, Namespace, Patch, RequestId, Revision, SessionId, Subject, Timeouts, Token, Use, View,
    },
};
use fields::Problems;
use tonic::Status;

pub use rotate::rotate;
pub use watch::watch;

pub fn create(request: pb::CreateSessionRequest, service: &Service) -> Result<Create, Status> {
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    let fingerprint = problems.request_id(&request.request_id, "CreateSession", &request);
    if fingerprint.is_some() && request.token.is_empty() {
        problems.add("request_id", "needs token: a token that the server made cannot be told twice");
    }
    let token = if request.token.is_empty() { None } else { problems.token("token", request.token) };
    problems.subject("subject", &request.subject);
    let content = Content {
        subject: request.subject,
        attributes: problems.attributes("attributes", request.attributes),
        labels: problems.labels("labels", request.labels),
        client: problems.client(request.client),
        authentication: problems.authentication(request.authentication),
    };
    let timeouts = problems.timeouts(request.idle_timeout, request.absolute_timeout);
    problems.with_refused(|| service.refuses_create(namespace.as_ref()?, &content, timeouts));
    problems.finish(|| Some(Create { namespace: namespace?, content, timeouts, token, request: fingerprint }))
}

pub fn get(request: pb::GetSessionRequest) -> Result<Get, Status> {
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    let key = problems.key("key", request.key);
    let view = problems.view(request.view, View::Full);
    if request.min_revision.is_some_and(|revision| revision < 0) {
        problems.add("min_revision", "must not be negative");
    }
    let use_ = use_of(request.touch);
    problems.finish(|| Some(Get { namespace: namespace?, key: key?, use_, view: view? }))
}

pub fn touch(request: pb::TouchSessionRequest) -> Result<Get, Status> {
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    let key = problems.key("key", request.key);
    problems.finish(|| Some(Get { namespace: namespace?, key: key?, use_: Use::Counts, view: View::Basic }))
}

pub fn update(request: pb::UpdateSessionRequest, service: &Service) -> Result<Update, Status> {
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    let fingerprint = problems.request_id(&request.request_id, "UpdateSession", &request);
    let key = problems.key("key", request.key);
    let view = problems.view(request.view, View::Basic);
    problems.disjoint("remove_attributes", &request.remove_attributes, &request.set_attributes, "set_attributes");
    problems.disjoint("remove_labels", &request.remove_labels, &request.set_labels, "set_labels");
    if let Some(subject) = &request.subject {
        problems.subject("subject", subject);
    }
    let if_revision = problems.revision("if_revision", request.if_revision);
    let patch = Patch {
        set_attributes: problems.attributes("set_attributes", request.set_attributes),
        remove_attributes: problems.names("remove_attributes", request.remove_attributes),
        clear_attributes: request.clear_attributes,
        set_labels: problems.labels("set_labels", request.set_labels),
        remove_labels: problems.label_names("remove_labels", request.remove_labels),
        subject: request.subject,
        authentication: problems.authentication(request.authentication),
    };
    let timeouts = problems.timeouts(request.idle_timeout, request.absolute_timeout);
    problems.with_refused(|| service.refuses_update(namespace.as_ref()?, &patch, timeouts));
    problems.finish(|| {
        Some(Update {
            namespace: namespace?,
            key: key?,
            patch,
            timeouts,
            use_: use_of(request.touch),
            if_revision,
            view: view?,
            request: fingerprint,
        })
    })
}

pub fn delete(request: pb::DeleteSessionRequest) -> Result<Delete, Status> {
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    let fingerprint = problems.request_id(&request.request_id, "DeleteSession", &request);
    let key = problems.key("key", request.key);
    let cause = match pb::Cause::try_from(request.cause) {
        Ok(pb::Cause::Unspecified | pb::Cause::Logout) => Some(Cause::Logout),
        Ok(pb::Cause::Revoked) => Some(Cause::Revoked),
        Ok(pb::Cause::Replaced) => Some(Cause::Replaced),
        _ => problems.refuse("cause", "must be CAUSE_LOGOUT, CAUSE_REVOKED or CAUSE_REPLACED"),
    };
    problems.finish(|| Some(Delete { namespace: namespace?, key: key?, cause: cause?, request: fingerprint }))
}

pub fn delete_all(request: pb::DeleteSubjectSessionsRequest) -> Result<DeleteAll, Status> {
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    problems.present_subject("subject", &request.subject);
    let except = match &request.except_id[..] {
        "" => None,
        id => problems.id("except_id", id),
    };
    let cause = match pb::Cause::try_from(request.cause) {
        Ok(pb::Cause::Unspecified | pb::Cause::Revoked) => Some(Cause::Revoked),
        Ok(pb::Cause::Logout) => Some(Cause::Logout),
        _ => problems.refuse("cause", "must be CAUSE_REVOKED or CAUSE_LOGOUT"),
    };
    if let Some(at) = request.created_before {
        problems.timestamp("created_before", at);
    }
    // Whole milliseconds, as sessions have: one that was made in this very one was made before.
    let created_before = request.created_before.map(|at| {
        let seconds = u64::try_from(at.seconds).unwrap_or(0);
        Millis(seconds.saturating_mul(1000) + (at.nanos.max(0) as u64).div_ceil(1_000_000))
    });
    problems.finish(|| {
        let subject = Subject { namespace: namespace?, name: request.subject };
        Some(DeleteAll { subject, except, cause: cause?, created_before })
    })
}

pub fn list(request: pb::ListSessionsRequest, partitions: usize) -> Result<List, Status> {
    const DEFAULT: i32 = 100;
    const MOST: i32 = 1_000;
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    let labels = problems.labels("labels", request.labels);
    let view = problems.view(request.view, View::Basic);
    if let Some(subject) = &request.subject {
        problems.present_subject("subject", subject);
    }
    let page_size = match request.page_size {
        0 => DEFAULT,
        size @ 1..=MOST => size,
        _ => problems.refuse("page_size", "must be 1 to 1,000; 0 = 100").unwrap_or(DEFAULT),
    };
    let of = namespace.map(|namespace| Listed { namespace, subject: request.subject, labels });
    let from = match (&request.page_token[..], &of) {
        (_, None) => None,
        ("", Some(of)) => Some(PageToken::start(of)),
        (text, Some(of)) => match PageToken::decode(text, partitions, of) {
            None => problems.refuse("page_token", "must be the next_page_token of the last response to this request"),
            token => token,
        },
    };
    problems.finish(|| Some(List { of: of?, page_size: page_size as usize, from: from?, view: view? }))
}

fn use_of(touch: bool) -> Use {
    if touch { Use::Counts } else { Use::DoesNotCount }
}

impl Problems {
    fn namespace(&mut self, text: &str) -> Option<Namespace> {
        match text.parse() {
            Ok(namespace) => Some(namespace),
            Err(_) if text.is_empty() => self.refuse("namespace", "is required"),
            Err(_) => self.refuse("namespace", "must match [a-z0-9]([-a-z0-9]{0,62})"),
        }
    }

    fn key(&mut self, field: &str, key: Option<pb::SessionKey>) -> Option<Key> {
        match key.and_then(|key| key.key) {
            None => self.refuse(field, "is required: id or token"),
            Some(pb::session_key::Key::Id(id)) => self.id(&format!("{field}.id"), &id).map(Key::Id),
            Some(pb::session_key::Key::Token(token)) => {
                Some(Token::parse(token).map_or(Key::MalformedToken, Key::Token))
            }
        }
    }

    fn id(&mut self, field: &str, text: &str) -> Option<SessionId> {
        // Not echoed: it may be a token that was put into the wrong field.
        text.parse().map_or_else(|_| self.refuse(field, "must be 26 characters of a-z2-7"), Some)
    }

    fn revision(&mut self, field: &str, revision: Option<i64>) -> Option<Revision> {
        match revision? {
            revision @ 1.. => Some(Revision(revision as u64)),
            _ => self.refuse(field, "must be positive"),
        }
    }

    /// Where the request is refused anyway, what the namespace's policy does not allow is told too.
    fn with_refused(&mut self, refused: impl FnOnce() -> Option<Vec<Refused>>) {
        if !self.is_empty() {
            self.extend(refused().unwrap_or_default());
        }
    }

    fn token(&mut self, field: &str, text: String) -> Option<Token> {
        const FORM: &str = "must be ses_<id>_<secret>, or 22 to 256 bytes that do not begin with ses_";
        Token::parse(text).map_or_else(|_| self.refuse(field, FORM), Some)
    }

    /// A request id as it is kept. The fingerprint is over the request in its one encoding, its id included.
    fn request_id(&mut self, text: &str, method: &str, request: &impl Message) -> Option<RequestId> {
        if text.is_empty() {
            return None;
        }
        if !(16..=64).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return self.refuse("request_id", "must be 16 to 64 visible ASCII characters");
        }
        let hash = |parts: [&[u8]; 2]| Sha256::new().chain_update(parts[0]).chain_update(parts[1]).finalize();
        let id = hash([b"sessiond/request-id", text.as_bytes()]);
        let fingerprint = hash([method.as_bytes(), &request.encode_to_vec()]);
        Some(RequestId {
            id: id[..16].try_into().expect("SHA-256 has 32 bytes"),
            fingerprint: fingerprint[..8].try_into().expect("SHA-256 has 32 bytes"),
        })
    }

    fn view(&mut self, view: i32, default: View) -> Option<View> {
        match pb::SessionView::try_from(view) {
            Ok(pb::SessionView::Unspecified) => Some(default),
            Ok(pb::SessionView::Basic) => Some(View::Basic),
            Ok(pb::SessionView::Full) => Some(View::Full),
            Err(_) => self.refuse("view", "must be SESSION_VIEW_BASIC or SESSION_VIEW_FULL"),
        }
    }

    fn timeouts(&mut self, idle: Option<prost_types::Duration>, absolute: Option<prost_types::Duration>) -> Timeouts {
        Timeouts {
            idle: idle.and_then(|idle| self.timeout("idle_timeout", idle)),
            absolute: absolute.and_then(|absolute| self.timeout("absolute_timeout", absolute)),
        }
    }
}
