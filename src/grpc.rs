//! The gRPC service: each method parses the request, calls the service and renders the response.
//!
//! [`layers`] reads the message and sets the deadline before. [`status`] makes every error status. [`stream`] resets
//! streams whose clients do not read.

mod access;
mod audit;
mod layers;
mod parse;
mod render;
mod status;
mod stream;
mod watch_stream;

use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use crate::{
    pb::{self, service::session_service_server::SessionService},
    service::{self, Error, Service},
    session::Session,
    store,
};

use audit::Found;
use layers::CallContext;
pub use layers::{
    Admission, BoundedStreams, CallLimits, CallService, Gate, MAX_MESSAGE_BYTES, MAX_TOTAL_MESSAGE_BYTES, ResponseBody,
    StreamBound, Suspensions, discard, largest_response, largest_session, unknown_service,
};
pub use status::panicked_anywhere as panicked;
pub use stream::{StreamEnd, run_stream};
use watch_stream::WatchStream;

/// Implementation of the gRPC service `sessiond.v1.SessionService`.
#[derive(Clone)]
pub struct Grpc {
    /// Use cases that the methods call.
    pub service: Service,
}

/// Returns the context that [`CallService`] adds to every request, and the message.
fn open<T>(mut request: Request<T>) -> (CallContext, T) {
    #[expect(clippy::expect_used, reason = "the server adds this service only inside of CallService")]
    let context = request.extensions_mut().remove::<CallContext>().expect("CallService adds the context");
    (context, request.into_inner())
}

/// Returns the result of a read, or STORE_TIMEOUT at the deadline: a read applies nothing.
async fn read_within<T>(deadline: Instant, read: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout_at(deadline, read).await.unwrap_or(Err(store::Error::Timeout.into()))
}

/// Describes a call that returned this session.
fn one(session: &Session) -> Found {
    Found { id: Some(session.name.id), ..Found::default() }
}

#[tonic::async_trait]
impl SessionService for Grpc {
    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<Response<pb::CreateSessionResponse>, Status> {
        let (CallContext { deadline, audit, .. }, request) = open(request);
        let call = parse::create(request, &audit.requester.caller, &self.service)?;
        let line = audit.begin(&call)?;
        let (session, token) = line.end(self.service.create(call, deadline).await, |(session, _)| one(session))?;
        let token = token.map_or_else(String::new, |token| token.reveal());
        Ok(Response::new(pb::CreateSessionResponse { session: Some(render::session(session)?), token }))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let (CallContext { deadline, audit, .. }, request) = open(request);
        let call = parse::get(request, &audit.requester.caller)?;
        let line = audit.begin(&call)?;
        let (session, token_state) = line.end(self.service.get(call, deadline).await, |(session, _)| one(session))?;
        let token_state = pb::TokenState::from(token_state);
        let session = Some(render::session(session)?);
        Ok(Response::new(pb::GetSessionResponse { session, token_state: token_state.into() }))
    }

    async fn update_session(
        &self,
        request: Request<pb::UpdateSessionRequest>,
    ) -> Result<Response<pb::UpdateSessionResponse>, Status> {
        let (CallContext { deadline, audit, .. }, request) = open(request);
        let call = parse::update(request, &audit.requester.caller, &self.service)?;
        let line = audit.begin(&call)?;
        let session = line.end(self.service.update(call, deadline).await, one)?;
        Ok(Response::new(pb::UpdateSessionResponse { session: Some(render::session(session)?) }))
    }

    async fn touch_session(
        &self,
        request: Request<pb::TouchSessionRequest>,
    ) -> Result<Response<pb::TouchSessionResponse>, Status> {
        let (CallContext { deadline, audit, .. }, request) = open(request);
        let call = parse::touch(request, &audit.requester.caller)?;
        let line = audit.begin(&call)?;
        let (session, _) = line.end(self.service.get(call, deadline).await, |(session, _)| one(session))?;
        Ok(Response::new(pb::TouchSessionResponse { expire_time: session.expires().map(render::timestamp) }))
    }

    async fn rotate_session(
        &self,
        request: Request<pb::RotateSessionRequest>,
    ) -> Result<Response<pb::RotateSessionResponse>, Status> {
        let (CallContext { deadline, audit, .. }, request) = open(request);
        let call = parse::rotate(request, &audit.requester.caller, &self.service)?;
        let line = audit.begin(&call)?;
        let (session, token) = line.end(self.service.rotate(call, deadline).await, |(session, _)| one(session))?;
        let token = token.map_or_else(String::new, |token| token.reveal());
        Ok(Response::new(pb::RotateSessionResponse { session: Some(render::session(session)?), token }))
    }

    async fn delete_session(
        &self,
        request: Request<pb::DeleteSessionRequest>,
    ) -> Result<Response<pb::DeleteSessionResponse>, Status> {
        let (CallContext { deadline, audit, .. }, request) = open(request);
        let call = parse::delete(request, &audit.requester.caller)?;
        let line = audit.begin(&call)?;
        let deleted = line.end(self.service.delete(call, deadline).await, |deleted| Found::sessions(*deleted))?;
        Ok(Response::new(pb::DeleteSessionResponse { deleted }))
    }

    async fn delete_subject_sessions(
        &self,
        request: Request<pb::DeleteSubjectSessionsRequest>,
    ) -> Result<Response<pb::DeleteSubjectSessionsResponse>, Status> {
        let (CallContext { deadline, audit, .. }, request) = open(request);
        let call = parse::delete_subject_sessions(request, &audit.requester.caller)?;
        let line = audit.begin(&call)?;
        let deleted = self.service.delete_subject_sessions(call, deadline).await;
        let deleted = line.end(deleted, |deleted| Found::sessions(*deleted))?;
        let deleted_count = i32::try_from(deleted).unwrap_or(i32::MAX);
        Ok(Response::new(pb::DeleteSubjectSessionsResponse { deleted_count }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let (CallContext { deadline, audit, .. }, request) = open(request);
        let call = parse::list(request, &audit.requester.caller, &self.service)?;
        let line = audit.begin(&call)?;
        let page = read_within(deadline, self.service.list(&call, deadline)).await;
        let page = line.end(page, |page| Found::sessions(page.sessions.len() as u64))?;
        let sessions = page.sessions.into_iter().map(render::session).collect::<Result<_, _>>()?;
        let next_page_token = page.next.map_or_else(String::new, |next| next.encode(&call.scope));
        Ok(Response::new(pb::ListSessionsResponse { sessions, next_page_token }))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let (CallContext { deadline, metrics, audit }, request) = open(request);
        let (call, view) = parse::watch(request, &audit.requester.caller)?;
        let line = audit.begin(&call)?;
        let (reset, budget) = (stream::reset_handle(), stream::connection_budget());
        let stream = service::WatchStream { reset, requester: audit.requester.clone(), budget };
        let subscription = read_within(deadline, self.service.watch(call, stream)).await;
        let subscription = line.end(subscription, |_| Found::default())?;
        Ok(Response::new(watch_stream::stream(subscription, view, self.service.store.clone(), metrics)))
    }
}
