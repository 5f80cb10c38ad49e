//! Creates sessions.

use bytes::{BufMut, BytesMut};
use tokio::time::Instant;

use super::{
    Store,
    error::Error,
    index_entry::Reservation,
    record::{Corrupt, EncodedContent, Extent, Front, HEAD_BYTES, NEW_TOKEN_BYTES, Record},
    replies::CreateReply,
    script_call::WriteConcern,
    scripts,
};
use crate::session::{
    AttributeBlock, Attributes, Basic, Cause, Content, Credential, Policy, RequestId, Session, SessionRef, TimeoutsMs,
    Verifier, View,
};

/// Arguments of [`Store::create`].
pub struct Create<'a> {
    /// Hash of the new session's token.
    pub verifier: Verifier,
    /// Initial subject, attributes, labels, client and authentication.
    pub content: &'a Content,
    /// Idle and absolute timeout in ms; 0 = none.
    pub timeouts: TimeoutsMs<u64>,
    /// Request id that makes a retry safe. None: a retry is not detected.
    pub request: Option<RequestId>,
    /// Reservation of the id in the index of the subject.
    pub reserved: Reservation,
}

/// Outcome of [`Store::create`].
#[derive(Debug)]
pub enum Created {
    /// Created by this call, or by an earlier call with the same request id: the current session.
    Session(Session),
    /// An earlier call with the same request id created the session, and the token is not accepted any more.
    Rotated,
    /// A live session has this id.
    Exists,
    /// A session with this id has ended.
    Ended(Cause),
    /// The request id belongs to another request.
    RequestIdReused,
    /// Nothing was applied: the index of the subject does not have the id. All other checks passed.
    NotReserved,
}

impl Store {
    /// Creates a session.
    pub async fn create(
        &self,
        name: &SessionRef,
        create: &Create<'_>,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Created, Error> {
        let keys = self.keys.session_keys(name);
        let attributes = Attributes::of(&create.content.attributes);
        let content = EncodedContent::new(&keys.name, Basic::of(create.content), attributes);
        self.note_sizes(&content);
        let requests = usize::from(create.request.is_some());
        let mut setup = BytesMut::with_capacity(64);
        setup.extend_from_slice(&content.layout(requests));
        setup.extend_from_slice(create.verifier.as_bytes());
        setup.put_u64(create.timeouts.idle);
        setup.put_u64(create.timeouts.absolute);
        setup.put_u8((create.reserved != Reservation::Missing).into());
        let mut call = self.session_call(name, &keys, Credential::Id, policy).in_store(create.reserved);
        call = call.arg(setup).content(content.argument(HEAD_BYTES + NEW_TOKEN_BYTES, requests));
        if let Some(request) = create.request {
            call = call.request(Some(request));
        }
        let reply = self.write(&scripts::CREATE, WriteConcern::of(policy), &call, deadline).await?;
        Ok(match CreateReply::decode(reply)? {
            CreateReply::Done(record) => {
                let session = self.created(name, &keys.name, &record, content);
                Created::Session(session.map_err(|cause| self.corrupt(name, cause))?)
            }
            CreateReply::Rotated => Created::Rotated,
            CreateReply::Exists => Created::Exists,
            CreateReply::Ended(ending) => Created::Ended(self.note_ended(name, ending)),
            CreateReply::RequestIdReused => Created::RequestIdReused,
            CreateReply::NotReserved => Created::NotReserved,
        })
    }

    /// The session that this call created, or an earlier one with the same request id: the reply is the whole record then.
    fn created(
        &self,
        name: &SessionRef,
        text: &[u8],
        reply: &bytes::Bytes,
        content: EncodedContent,
    ) -> Result<Session, Corrupt> {
        let front = Front::parse(text, reply)?;
        if reply.len() > front.bytes() || front.rest_bytes() == 0 {
            return Record::parse(text, reply, Extent::Whole)?.session(name, text, View::Full);
        }
        let attributes = AttributeBlock::Plain(content.attributes);
        Ok(front.session(name.clone(), content.basic, Some(attributes)))
    }

    pub(super) fn note_sizes(&self, content: &EncodedContent) {
        self.metrics.count_attribute_bytes(content.attributes.bytes().len(), content.stored_attribute_bytes());
    }
}
