//! Parses the request of RotateSession.

use std::{collections::BTreeMap, time::Duration};

use tonic::Status;

use super::Violations;
use crate::{
    auth::Caller,
    pb,
    service::{PresentedToken, Rotate, Service},
    session::{MalformedToken, Patch, Token},
};

/// Parses the request of RotateSession.
pub(crate) fn rotate(request: pb::RotateSessionRequest, caller: &Caller, service: &Service) -> Result<Rotate, Status> {
    let mut violations = Violations::default();
    let namespace = violations.authorize(caller, &request)?;
    let fingerprint = violations.request_id(&request.request_id, "RotateSession", &request);
    if request.token.is_empty() {
        violations.add("token", "is required");
    }
    let token = PresentedToken::parse(request.token);
    let successor = violations.successor(request.new_token, token.well_formed());
    violations.disjoint("remove_attributes", &request.remove_attributes, &request.set_attributes, "set_attributes");
    if let Some(subject) = &request.subject {
        violations.subject("subject", subject);
    }
    let if_revision = violations.revision("if_revision", request.if_revision);
    let patch = Patch {
        set_attributes: violations.attributes("set_attributes", request.set_attributes),
        remove_attributes: violations.names("remove_attributes", request.remove_attributes),
        clear_attributes: request.clear_attributes,
        set_labels: BTreeMap::new(),
        remove_labels: Vec::new(),
        subject: request.subject,
        authentication: violations.authentication(request.authentication),
    };
    let grace = request.grace_period.and_then(|grace| violations.duration("grace_period", grace));
    if patch.is_login() && grace.is_some_and(|grace| grace > Duration::ZERO) {
        violations.add(
            "grace_period",
            "must be 0 s if subject or authentication is set: a login ends the grace period of every old token",
        );
    }
    violations.add_policy_violations(|| service.grace_violations(namespace.as_ref()?, grace));
    violations.finish(|| {
        let namespace = namespace?;
        Some(Rotate { namespace, token, successor, patch, grace, if_revision, request: fingerprint })
    })
}

impl Violations {
    /// Parses the new token, which must be in the server form, have the id of the old token, and another secret. An empty
    /// text is none.
    fn successor(&mut self, text: String, token: Option<&Token>) -> Option<Token> {
        const FORM: &str = "must be ses_<id of token>_<new secret>";
        if text.is_empty() {
            return None;
        }
        match (Token::parse(text), token) {
            (Err(MalformedToken::Length), _) => self.invalid("new_token", FORM),
            (Err(malformed), _) => self.invalid("new_token", malformed.to_string()),
            (Ok(successor), _) if successor.is_client_token() => self.invalid("new_token", FORM),
            (Ok(successor), Some(token)) if successor.id() != token.id() => {
                self.invalid("new_token", "must have the id of token: ses_<same id>_<new secret>")
            }
            (Ok(successor), Some(token)) if successor.verifier() == token.verifier() => {
                self.invalid("new_token", "must have a new secret: it is equal to token")
            }
            (Ok(successor), _) => Some(successor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_successor_is_rejected_with_its_reason() {
        let token = Token::generate(|bytes| bytes.fill(7));
        let successor = token.successor(&[8; 32]).reveal();
        let with_last = |last: &str| successor[..successor.len() - 1].to_owned() + last;
        let rows = [
            (with_last("b"), "non-zero spare bits"),
            (with_last("1"), "outside of a-z2-7"),
            (with_last(""), "a secret of 52 characters"),
            ("x".repeat(21), "must be ses_<id of token>_<new secret>"),
            ("x".repeat(22), "must be ses_<id of token>_<new secret>"),
            (token.reveal(), "must have a new secret"),
            (Token::generate(|bytes| bytes.fill(9)).reveal(), "must have the id of token"),
        ];
        for (text, reason) in rows {
            let mut violations = Violations::default();
            assert!(violations.successor(text.clone(), Some(&token)).is_none());
            let status = violations.finish(|| Some(())).unwrap_err();
            assert!(status.message().contains(reason), "{reason}: {status:?}");
            assert!(!status.message().contains(&text), "{status:?}");
        }
        assert!(Violations::default().successor(successor, Some(&token)).is_some());
    }
}
