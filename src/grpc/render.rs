//! Renders domain types as messages of the API.

use bytes::Bytes;
use prost::Message;
use prost_types::{Duration, Timestamp};
use tonic::Status;

use super::status;
use crate::{
    pb,
    service::Error,
    session::{Cause, Change, Event, Millis, Session, TokenState, View},
    store,
    watch::{Batch, Control, MatchedEvent, ResyncReason, Visibility},
};

/// Returns a time as a protobuf timestamp.
pub(super) fn timestamp(Millis(ms): Millis) -> Timestamp {
    let (seconds, nanos) = seconds_and_nanos(ms, 1_000);
    Timestamp { seconds, nanos }
}

fn timestamp_us(us: u64) -> Timestamp {
    let (seconds, nanos) = seconds_and_nanos(us, 1_000_000);
    Timestamp { seconds, nanos }
}

fn duration_ms(ms: u64) -> Duration {
    let (seconds, nanos) = seconds_and_nanos(ms, 1_000);
    Duration { seconds, nanos }
}

/// Splits a number of units, of which a second has `per_second`, into seconds and nanoseconds.
fn seconds_and_nanos(units: u64, per_second: u64) -> (i64, i32) {
    let nanos = units % per_second * (1_000_000_000 / per_second);
    (int64(units / per_second), i32::try_from(nanos).unwrap_or(i32::MAX))
}

/// Returns the number as a protobuf int64. Numbers out of range, which no valid record has, become the maximum.
fn int64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Renders a session in a view, or returns DATA_LOSS if its attributes cannot be read.
pub(super) fn session(session: Session) -> Result<pb::Session, Status> {
    try_session(&session, View::Full).map_err(|cause| {
        let name = session.name;
        crate::observe::error!(session = %name, %cause, "attributes of a record are unreadable");
        status::from_error(Error::Store(store::Error::Corrupt { name, cause }))
    })
}

fn try_session(session: &Session, view: View) -> Result<pb::Session, store::Corrupt> {
    let attributes = match (&session.attributes, view) {
        (Some(block), View::Full) => store::plain_attributes(block)?.bytes().clone(),
        _ => Bytes::new(),
    };
    Ok(pb::Session { head: head(session), basic: session.basic.bytes().clone(), attributes })
}

/// Encodes the fields that the service determines.
fn head(session: &Session) -> Vec<u8> {
    let revision = session.revision.0;
    pb::SessionHead {
        namespace: session.name.namespace.to_string(),
        id: session.name.id.to_string(),
        revision: int64(revision),
        create_time: (session.created.0 > 0).then(|| timestamp(session.created)),
        update_time: (revision > 0).then(|| timestamp_us(revision)),
        access_time: (session.accessed.0 > 0).then(|| timestamp(session.accessed)),
        expire_time: session.expires().map(timestamp),
        absolute_expire_time: session.absolute_until.map(timestamp),
        idle_timeout: session.idle_timeout.map(duration_ms),
        token_generation: i32::try_from(session.token_generation).unwrap_or(i32::MAX),
    }
    .encode_to_vec()
}

impl From<Cause> for pb::Cause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Logout => pb::Cause::Logout,
            Cause::Revoked => pb::Cause::Revoked,
            Cause::Replaced => pb::Cause::Replaced,
            Cause::TokenReuse => pb::Cause::TokenReuse,
            Cause::IdleTimeout => pb::Cause::IdleTimeout,
            Cause::AbsoluteTimeout => pb::Cause::AbsoluteTimeout,
            Cause::OutOfBand => pb::Cause::OutOfBand,
        }
    }
}

impl From<TokenState> for pb::TokenState {
    fn from(token_state: TokenState) -> Self {
        match token_state {
            TokenState::NotPresented => pb::TokenState::Unspecified,
            TokenState::Current => pb::TokenState::Current,
            TokenState::RotationDue => pb::TokenState::RotationDue,
            TokenState::Superseded => pb::TokenState::Superseded,
        }
    }
}

fn event(event: &Event, seen: Visibility, view: View) -> pb::SessionEvent {
    let (kind, cause) = match seen {
        Visibility::Left => (pb::EventType::Left, pb::Cause::Unspecified),
        Visibility::Present => (pb::EventType::Snapshot, pb::Cause::Unspecified),
        Visibility::Change(Change::Created) => (pb::EventType::Created, pb::Cause::Unspecified),
        Visibility::Change(Change::Updated) => (pb::EventType::Updated, pb::Cause::Unspecified),
        Visibility::Change(Change::Rotated) => (pb::EventType::Rotated, pb::Cause::Unspecified),
        Visibility::Change(Change::TokenReused) => (pb::EventType::TokenReused, pb::Cause::Unspecified),
        Visibility::Change(Change::Ended(cause)) => (pb::EventType::Ended, cause.into()),
    };
    let name = &event.session.name;
    let session = try_session(&event.session, view).unwrap_or_else(|cause| {
        crate::observe::error!(session = %name, %cause, "attributes of an event are unreadable");
        pb::Session { head: head(&Session::without_state(name.clone())), ..pb::Session::default() }
    });
    pb::SessionEvent {
        r#type: kind.into(),
        id: name.id.to_string(),
        revision: int64(event.revision.0),
        event_time: Some(timestamp_us(event.revision.0)),
        cause: cause.into(),
        session: Some(session),
        changed_attributes: event.changed_attributes.clone(),
    }
}

/// Encodes the field `events` of a response with one event.
fn event_field(matched: &MatchedEvent, view: View) -> Bytes {
    let encode = |event: &Event, seen| {
        let response = pb::WatchResponse { events: vec![self::event(event, seen, view)], ..Default::default() };
        Bytes::from(response.encode_to_vec())
    };
    match matched.visibility {
        Visibility::Left | Visibility::Present => encode(&matched.shared.event, matched.visibility),
        Visibility::Change(_) => {
            matched.shared.rendered(view, |event| encode(event, Visibility::Change(event.change))).clone()
        }
    }
}

/// Renders one response of Watch. `now` returns the Redis clock in microseconds; None: unknown.
///
/// Watchers share the encoded events.
pub(super) fn batch(batch: Batch, view: View, now: impl FnOnce() -> Option<u64>) -> pb::EncodedWatchResponse {
    use pb::watch_response::Control as ControlField;
    let control = batch.control.map(|control| match control {
        Control::Bookmark { as_of } => {
            let lag = now().unwrap_or(as_of).saturating_sub(as_of);
            ControlField::Bookmark(pb::Bookmark {
                as_of: Some(timestamp_us(as_of)),
                lag: Some(duration_ms(lag / 1000)),
            })
        }
        Control::Synced => ControlField::Synced(pb::Synced {}),
        Control::Resync { reason, ids } => {
            let reason = match reason {
                ResyncReason::Compacted => pb::ResyncReason::Compacted,
                ResyncReason::RolledBack => pb::ResyncReason::Rollback,
                ResyncReason::Flushed => pb::ResyncReason::Flushed,
                ResyncReason::SlowConsumer => pb::ResyncReason::SlowConsumer,
            };
            ControlField::Resync(pb::Resync {
                reason: reason.into(),
                ids: ids.iter().map(ToString::to_string).collect(),
            })
        }
    });
    let events = batch.events.iter().map(|matched| event_field(matched, view)).collect();
    pb::EncodedWatchResponse { events, resume_token: batch.token, control }
}
