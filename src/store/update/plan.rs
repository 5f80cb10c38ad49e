//! What an update does to the record that was read: merges the patch into the content, and checks the limits.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::Instant;

use super::outcome::{MAX_LABELS, Update, Updated};
use crate::{
    session::{
        AttributeBlock, Basic, Credential, Durability, PatchedAttributes, Policy, Session, SessionRef, Touch, View,
        millis, wire,
    },
    store::{
        index_entry::Reservation,
        keys::SessionKeys,
        log_entry::{CHANGED_ATTRIBUTE, FILTER_FIELDS_BEFORE},
        record::{CommonRead, Corrupt, EncodedContent, MAX_REQUESTS, Record, common_read, plain_attributes},
    },
};

/// Time added to `retry_window` before a request id is left out of a new record: the estimated time may be ahead.
const REQUEST_MARGIN_MS: u64 = 5_000;

/// An update of one session.
pub(super) struct UpdateCall<'a> {
    pub name: &'a SessionRef,
    pub keys: SessionKeys,
    pub credential: Credential,
    pub update: &'a Update<'a>,
    pub policy: &'a Policy,
    pub deadline: Instant,
}

/// What an update does to the record that was read.
#[derive(Default)]
pub(super) struct Plan {
    /// New content. None: it stays.
    pub content: Option<EncodedContent>,
    /// Number of request ids of the new record.
    pub requests: usize,
    /// Changes for the log entry.
    pub changes: Bytes,
    /// Reason why the content does not allow the update.
    pub refusal: Option<Updated>,
    /// Whether the session gets its first subject.
    pub gets_subject: bool,
    /// Subject that the session loses.
    pub lost_subject: Option<String>,
}

impl UpdateCall<'_> {
    /// Merges the patch into the content of the record, and checks the limits: only growth is refused.
    pub(super) fn plan(&self, record: &Record, now_us: Option<u64>) -> Result<Plan, Corrupt> {
        let (update, patch) = (self.update, self.update.patch);
        let before = record.basic(&self.keys.name)?;
        let attributes = plain_attributes(&record.attributes(&self.keys.name)?)?;
        let basic = before.patched(patch);
        let patched = attributes.patched(patch).map_err(|_| Corrupt::Attributes)?;
        let mut plan = Plan { refusal: self.refusal(&before, &basic, &patched), ..Plan::default() };
        if plan.refusal.is_some() || basic == before && patched.changed.is_empty() {
            return Ok(plan);
        }
        plan.gets_subject = before.subject().is_empty() && !basic.subject().is_empty();
        plan.lost_subject =
            (basic.subject().is_empty() && !before.subject().is_empty()).then(|| before.subject().to_owned());
        plan.changes = changes(&patched.changed, &before, &basic);
        plan.requests = record.requests_kept(update.request.is_some(), now_us, self.policy);
        plan.content = Some(EncodedContent::new(&self.keys.name, basic, patched.attributes));
        Ok(plan)
    }

    fn refusal(&self, before: &Basic, after: &Basic, patched: &PatchedAttributes) -> Option<Updated> {
        let (policy, count, bytes) = (self.policy, patched.after.count, patched.after.bytes);
        if !before.subject().is_empty() && !after.subject().is_empty() && before.subject() != after.subject() {
            return Some(Updated::SubjectChange);
        }
        if count > policy.max_attributes && count > patched.before.count {
            return Some(Updated::TooManyAttributes { count: count as u64 });
        }
        let labels = after.labels().count();
        if labels > MAX_LABELS && labels > before.labels().count() {
            return Some(Updated::TooManyLabels { count: labels as u64 });
        }
        (bytes > policy.max_payload_bytes && bytes > patched.before.bytes)
            .then_some(Updated::TooLarge { bytes: bytes as u64 })
    }

    /// Whether the record that was read decides the call without the script: it is refused, or changes nothing.
    pub(super) fn is_decided_by(&self, record: &Record, plan: &Plan, now_us: Option<u64>) -> bool {
        let update = self.update;
        let CommonRead::Accepted { is_first_use: false, touch_is_due, .. } =
            common_read(&record.front, self.credential, self.policy, now_us)
        else {
            return false;
        };
        let is_right_revision = update.if_revision.is_none_or(|revision| revision == record.front.position.revision);
        if update.request.is_some() || !is_right_revision || self.policy.durability == Durability::Replicated {
            return false;
        }
        let changes_nothing = plan.content.is_none()
            && update.successor.is_none()
            && update.timeouts.idle.is_none()
            && update.timeouts.absolute.is_none()
            && !(update.touch == Touch::Yes && touch_is_due)
            && !(update.patch.is_login() && record.front.tokens().has_superseded());
        // Only the script knows whether the successor is one of the session's tokens, which is checked first.
        plan.refusal.is_some() && update.successor.is_none() || changes_nothing
    }

    /// The change, as CHANGE in update.lua.
    pub(super) fn change(&self, plan: &Plan, turn: u64) -> Bytes {
        let update = self.update;
        let mut change = BytesMut::with_capacity(64);
        let flags = [
            update.patch.is_login(),
            update.touch == Touch::Yes,
            plan.refusal.is_some(),
            plan.gets_subject,
            plan.lost_subject.is_some(),
            update.view == View::Basic,
            update.timeouts.idle.is_some(),
            update.timeouts.absolute.is_some(),
        ];
        change.extend(flags.map(u8::from));
        let reserved = if let Reservation::Held { added, .. } = update.reserved { added } else { 0 };
        let numbers = [
            update.timeouts.idle.unwrap_or(0),
            update.timeouts.absolute.unwrap_or(0),
            update.successor.as_ref().map_or(0, |successor| millis(successor.grace)),
            reserved,
            turn,
            // A revision that no session has is never the current one.
            update.if_revision.map_or(0, |revision| revision.0.min(1 << 53) + 1),
        ];
        if numbers != [0; 6] {
            numbers.into_iter().for_each(|number| change.put_u64(number));
        }
        change.freeze()
    }

    /// The session after the change that this call made.
    pub(super) fn session_after(&self, record: &Record, content: EncodedContent) -> Session {
        let attributes = match self.update.view {
            View::Basic => None,
            View::Full => Some(AttributeBlock::Plain(content.attributes)),
        };
        record.front.session(self.name.clone(), content.basic, attributes)
    }
}

impl Update<'_> {
    /// Whether the record keeps the salt of the new token: without a grace period only a retry may receive the token again.
    /// None: there is no new token. The same rule is in tokens_after.lua.
    pub(super) fn keeps_salt(&self) -> Option<bool> {
        let successor = self.successor.as_ref()?;
        Some(successor.salt.is_some() && (millis(successor.grace) > 0 || self.request.is_some()))
    }
}

/// Changes for a log entry: names of attributes, and subject and labels before the change if it changed them.
fn changes(attributes: &[String], before: &Basic, after: &Basic) -> Bytes {
    let mut changes = Vec::new();
    for name in attributes {
        wire::put_field(&mut changes, CHANGED_ATTRIBUTE, name.as_bytes());
    }
    let filter_fields = before.filter_fields();
    if filter_fields != after.filter_fields() {
        wire::put_field(&mut changes, FILTER_FIELDS_BEFORE, filter_fields.bytes());
    }
    changes.into()
}

impl Record {
    /// Number of request ids in the next record: those that are still known, and one more for this call. An expired one that is
    /// kept a bit longer does no harm.
    fn requests_kept(&self, has_request: bool, now_us: Option<u64>, policy: &Policy) -> usize {
        let oldest = now_us.map(|now| (now / 1_000).saturating_sub(millis(policy.retry_window) + REQUEST_MARGIN_MS));
        let kept = self.request_times().filter(|seen_at| oldest.is_none_or(|oldest| *seen_at >= oldest)).count();
        (kept + usize::from(has_request)).min(MAX_REQUESTS)
    }
}
