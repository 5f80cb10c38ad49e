//! From the domain to the wire.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost_types::{Duration, Timestamp};
use tonic::Status;

use super::status;
use crate::{
    pb,
    service::Error,
    session::{Cause, Change, Event, Millis, Session, Standing, View},
    store,
    watch::{Batch, Control, Matched, Resync, Seen},
};

pub fn timestamp(Millis(ms): Millis) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000 * 1_000_000) as i32 }
}

fn timestamp_us(us: u64) -> Timestamp {
    Timestamp { seconds: (us / 1_000_000) as i64, nanos: (us % 1_000_000 * 1_000) as i32 }
}

fn duration_ms(ms: u64) -> Duration {
    Duration { seconds: (ms / 1000) as i64, nanos: (ms % 1000 * 1_000_000) as i32 }
}

/// The session as it is answered; DATA_LOSS where a value is no message of its type.
pub fn session(session: Session) -> Result<pb::Session, Status> {
    let name = session.name.clone();
    try_session(session).map_err(|error| {
        tracing::error!(session = %name, %error, "a value of the record is no message of its type");
        let cause = store::Corrupt::Truncated;
        status::from_error(Error::Store(store::Error::Corrupt { name, cause }))
    })
}

fn try_session(session: Session) -> Result<pb::Session, prost::DecodeError> {
    let (revision, expire_time) = (session.revision.0, session.expires().map(timestamp));
    let mut attributes = BTreeMap::new();
    for (name, value) in session.attributes {
        attributes.insert(name, pb::AttributeValue::decode(value)?);
    }
    Ok(pb::Session {
        attributes,
        client: session.client.map(pb::ClientInfo::decode).transpose()?,
        authentication: session.authentication.map(pb::Authentication::decode).transpose()?,
        expire_time,
        namespace: session.name.namespace.to_string(),
        id: session.name.id.to_string(),
        revision: revision as i64,
        subject: session.subject,
        labels: session.labels,
        create_time: (session.created.0 > 0).then(|| timestamp(session.created)),
        update_time: (revision > 0).then(|| timestamp_us(revision)),
        access_time: (session.accessed.0 > 0).then(|| timestamp(session.accessed)),
        absolute_expire_time: session.absolute_until.map(timestamp),
        idle_timeout: session.idle_timeout.map(duration_ms),
        token_generation: session.token_generation as i32,
    })
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

impl From<Standing> for pb::TokenState {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Named => pb::TokenState::Unspecified,
            Standing::Current => pb::TokenState::Current,
            Standing::RotationDue => pb::TokenState::RotationDue,
            Standing::Superseded => pb::TokenState::Superseded,
        }
    }
}

fn event(event: &Event, seen: Seen, view: View) -> pb::SessionEvent {
    let (kind, cause) = match seen {
        Seen::Left => (pb::EventType::Left, pb::Cause::Unspecified),
        Seen::Present => (pb::EventType::Snapshot, pb::Cause::Unspecified),
        Seen::Change(Change::Created) => (pb::EventType::Created, pb::Cause::Unspecified),
        Seen::Change(Change::Updated) => (pb::EventType::Updated, pb::Cause::Unspecified),
        Seen::Change(Change::Rotated) => (pb::EventType::Rotated, pb::Cause::Unspecified),
        Seen::Change(Change::TokenReused) => (pb::EventType::TokenReused, pb::Cause::Unspecified),
        Seen::Change(Change::Ended(cause)) => (pb::EventType::Ended, cause.into()),
    };
    let told = match view {
        View::Full => event.session.clone(),
        View::Basic => Session { attributes: BTreeMap::new(), ..event.session.clone() },
    };
    let session = try_session(told).unwrap_or_else(|cause| {
        tracing::error!(session = %event.session.name, %cause, "event holds a value that cannot be read");
        let name = &event.session.name;
        pb::Session { namespace: name.namespace.to_string(), id: name.id.to_string(), ..Default::default() }
    });
    pb::SessionEvent {
        r#type: kind.into(),
        id: session.id.clone(),
        revision: event.revision.0 as i64,
        event_time: Some(timestamp_us(event.revision.0)),
        cause: cause.into(),
        session: Some(session),
        changed_attributes: event.changed_attributes.clone(),
    }
}

/// The field `events` with one event, as it stands in a response.
fn event_field(matched: &Matched, view: View) -> Bytes {
    let encode = |of: &Event, seen| {
        let response = pb::WatchResponse { events: vec![event(of, seen, view)], ..Default::default() };
        Bytes::from(response.encode_to_vec())
    };
    match matched.seen {
        Seen::Left | Seen::Present => encode(&matched.entry.event, matched.seen),
        Seen::Change(_) => matched.entry.rendered(view, |event| encode(event, Seen::Change(event.change))).clone(),
    }
}

/// One response of Watch. Its fields are put together from parts that watchers share.
pub fn batch(batch: Batch, view: View, now: Option<u64>) -> pb::EncodedWatchResponse {
    use pb::watch_response::Control as Wire;
    let control = batch.control.map(|control| match control {
        Control::Bookmark { as_of } => {
            let lag = now.unwrap_or(as_of).saturating_sub(as_of);
            Wire::Bookmark(pb::Bookmark { as_of: Some(timestamp_us(as_of)), lag: Some(duration_ms(lag / 1000)) })
        }
        Control::Synced => Wire::Synced(pb::Synced {}),
        Control::Resync { reason, ids } => {
            let reason = match reason {
                Resync::Compacted => pb::ResyncReason::Compacted,
                Resync::RolledBack => pb::ResyncReason::Rollback,
                Resync::Flushed => pb::ResyncReason::Flushed,
                Resync::SlowConsumer => pb::ResyncReason::SlowConsumer,
            };
            Wire::Resync(pb::Resync { reason: reason.into(), ids: ids.iter().map(ToString::to_string).collect() })
        }
    });
    let rest = pb::WatchResponse { events: Vec::new(), resume_token: batch.token, control };
    let fields: Vec<Bytes> = batch.events.iter().map(|matched| event_field(matched, view)).collect();
    let mut whole = BytesMut::with_capacity(fields.iter().map(Bytes::len).sum::<usize>() + rest.encoded_len());
    fields.iter().for_each(|field| whole.extend_from_slice(field));
    rest.encode(&mut whole).expect("the buffer grows");
    pb::EncodedWatchResponse(whole.freeze())
}
