//! Creates sessions.

use bytes::{BufMut, BytesMut};
use tokio::time::Instant;

use super::{
    Create, Created, Reservation, Store,
    error::Error,
    record::{EncodedContent, Extent, Front, HEAD_BYTES, NEW_TOKEN_BYTES, Record},
    replies::CreateReply,
    script_call::WriteConcern,
    scripts,
};
use crate::session::{AttributeBlock, Attributes, Basic, Credential, Policy, Session, SessionRef, View};

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
    ) -> Result<Session, super::Corrupt> {
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
