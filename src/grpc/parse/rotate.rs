//! The request of RotateSession.

use std::{collections::BTreeMap, time::Duration};

use tonic::Status;

use super::Problems;
use crate::{
    pb,
    service::{Rotate, Service},
    session::{Patch, Token},
};

pub fn rotate(request: pb::RotateSessionRequest, service: &Service) -> Result<Rotate, Status> {
    let mut problems = Problems::default();
    let namespace = problems.namespace(&request.namespace);
    let fingerprint = problems.request_id(&request.request_id, "RotateSession", &request);
    if fingerprint.is_some() && request.new_token.is_empty() {
        problems.add("request_id", "needs new_token: a token that the server made cannot be told twice");
    }
    if request.token.is_empty() {
        problems.add("token", "is required");
    }
    let token = Token::parse(request.token).ok();
    let successor = problems.successor(request.new_token, token.as_ref());
    problems.disjoint("remove_attributes", &request.remove_attributes, &request.set_attributes, "set_attributes");
    if let Some(subject) = &request.subject {
        problems.subject("subject", subject);
    }
    let if_revision = problems.revision("if_revision", request.if_revision);
    let patch = Patch {
        set_attributes: problems.attributes("set_attributes", request.set_attributes),
        remove_attributes: problems.names("remove_attributes", request.remove_attributes),
        clear_attributes: request.clear_attributes,
        set_labels: BTreeMap::new(),
        remove_labels: Vec::new(),
        subject: request.subject,
        authentication: problems.authentication(request.authentication),
    };
    let grace = request.grace_period.and_then(|grace| problems.duration("grace_period", grace));
    if patch.is_login() && grace.is_some_and(|grace| grace > Duration::ZERO) {
        problems
            .add("grace_period", "must be 0 s where subject or authentication is set: no old token outlasts a login");
    }
    problems.with_refused(|| service.refuses_rotate(namespace.as_ref()?, &patch, grace));
    problems.finish(|| {
        let namespace = namespace?;
        Some(Rotate { namespace, token, successor, patch, grace, if_revision, request: fingerprint })
    })
}

impl Problems {
    /// Of the same session, in the server's form, and not the token itself.
    fn successor(&mut self, text: String, token: Option<&Token>) -> Option<Token> {
        if text.is_empty() {
            return None;
        }
        let successor = Token::parse(text).ok().filter(|successor| !successor.is_foreign());
        match (successor, token) {
            (None, _) => self.refuse("new_token", "must be ses_<id of token>_<new secret>"),
            (Some(successor), Some(token)) if successor.id() != token.id() => {
                self.refuse("new_token", "must have the id of token: ses_<same id>_<new secret>")
            }
            (Some(successor), Some(token)) if successor.verifier() == token.verifier() => {
                self.refuse("new_token", "must have a new secret: it is token itself")
            }
            (Some(successor), _) => Some(successor),
        }
    }
}
