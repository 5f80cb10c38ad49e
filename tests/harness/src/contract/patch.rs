//! The changes that a call makes to a session.

use std::collections::BTreeMap;

use sessiond_client::v1::{AttributeValue, Authentication};

use super::{Call, state::Content};

/// The fields that UpdateSession and RotateSession have in common.
#[derive(Default)]
pub(super) struct Patch {
    pub set_attributes: BTreeMap<String, AttributeValue>,
    pub remove_attributes: Vec<String>,
    pub clear_attributes: bool,
    pub set_labels: BTreeMap<String, String>,
    pub remove_labels: Vec<String>,
    pub subject: Option<String>,
    pub authentication: Option<Authentication>,
    /// New idle timeout in seconds. None: not changed.
    pub idle_timeout: Option<i64>,
    pub touch: bool,
    pub if_revision: Option<i64>,
    /// New token. Empty: the server generates it. None: UpdateSession.
    pub successor: Option<String>,
    /// Whether the request sets a grace period, which is 0 in all tests of the model.
    pub without_grace: bool,
}

impl Patch {
    pub(super) fn of(call: &Call) -> Self {
        match call.clone() {
            Call::Update(request) => Patch {
                set_attributes: request.set_attributes,
                remove_attributes: request.remove_attributes,
                clear_attributes: request.clear_attributes,
                set_labels: request.set_labels,
                remove_labels: request.remove_labels,
                subject: request.subject,
                authentication: request.authentication,
                idle_timeout: request.idle_timeout.map(|timeout| timeout.seconds),
                touch: request.touch,
                if_revision: request.if_revision,
                ..Patch::default()
            },
            Call::Rotate(request) => Patch {
                set_attributes: request.set_attributes,
                remove_attributes: request.remove_attributes,
                clear_attributes: request.clear_attributes,
                subject: request.subject,
                authentication: request.authentication,
                if_revision: request.if_revision,
                successor: Some(request.new_token),
                without_grace: request.grace_period.is_some(),
                ..Patch::default()
            },
            _ => unreachable!("no other call changes a session"),
        }
    }

    /// Applies the patch: first clear, then remove, then set.
    pub(super) fn apply(&self, content: &mut Content) {
        if self.clear_attributes {
            content.attributes.clear();
        }
        content.attributes.retain(|name, _| !self.remove_attributes.contains(name));
        content.labels.retain(|name, _| !self.remove_labels.contains(name));
        content.attributes.extend(self.set_attributes.clone());
        content.labels.extend(self.set_labels.clone());
        content.subject = self.subject.clone().unwrap_or_else(|| content.subject.clone());
        content.authentication = self.authentication.clone().or(content.authentication.take());
        content.idle_timeout = self.idle_timeout.unwrap_or(content.idle_timeout);
    }
}
