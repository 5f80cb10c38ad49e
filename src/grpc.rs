//! The gRPC service: each method parses the request, calls the service and renders the response.
//!
//! [`layers`] reads the message and sets the deadline before. [`status`] makes every error status. [`stream`] resets
//! streams whose clients do not read.

mod access;
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
    store,
};

use layers::CallContext;
pub use layers::{
    Admission, CallLimits, CallService, Gate, HealthService, MAX_HEALTH_WATCHES, MAX_MESSAGE_BYTES,
    MAX_REFLECTION_STREAMS, MAX_TOTAL_MESSAGE_BYTES, ReflectionService, ResponseBody, Suspensions, largest_response,
    largest_session, unknown_service,
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

/// Returns the context that [`CallService`] adds to every request.
fn context<T>(request: &Request<T>) -> CallContext {
    #[expect(clippy::expect_used, reason = "the server adds this service only inside of CallService")]
    request.extensions().get::<CallContext>().expect("CallService adds the context").clone()
}

/// Returns the result of a read, or STORE_TIMEOUT at the deadline: a read applies nothing.
async fn read_within<T>(deadline: Instant, read: impl Future<Output = Result<T, Error>>) -> Result<T, Status> {
    let result = timeout_at(deadline, read).await.unwrap_or(Err(store::Error::Timeout.into()));
    result.map_err(status::from_error)
}

#[tonic::async_trait]
impl SessionService for Grpc {
    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<Response<pb::CreateSessionResponse>, Status> {
        let CallContext { deadline, requester, .. } = context(&request);
        let call = parse::create(request.into_inner(), &requester.caller, &self.service)?;
        let (session, token) = self.service.create(call, deadline).await.map_err(status::from_error)?;
        let token = token.map_or_else(String::new, |token| token.reveal());
        Ok(Response::new(pb::CreateSessionResponse { session: Some(render::session(session)?), token }))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let CallContext { deadline, requester, .. } = context(&request);
        let call = parse::get(request.into_inner(), &requester.caller)?;
        let (session, token_state) = self.service.get(call, deadline).await.map_err(status::from_error)?;
        let token_state = pb::TokenState::from(token_state);
        let session = Some(render::session(session)?);
        Ok(Response::new(pb::GetSessionResponse { session, token_state: token_state.into() }))
    }

    async fn update_session(
        &self,
        request: Request<pb::UpdateSessionRequest>,
    ) -> Result<Response<pb::UpdateSessionResponse>, Status> {
        let CallContext { deadline, requester, .. } = context(&request);
        let call = parse::update(request.into_inner(), &requester.caller, &self.service)?;
        let session = self.service.update(call, deadline).await.map_err(status::from_error)?;
        Ok(Response::new(pb::UpdateSessionResponse { session: Some(render::session(session)?) }))
    }

    async fn touch_session(
        &self,
        request: Request<pb::TouchSessionRequest>,
    ) -> Result<Response<pb::TouchSessionResponse>, Status> {
        let CallContext { deadline, requester, .. } = context(&request);
        let call = parse::touch(request.into_inner(), &requester.caller)?;
        let (session, _) = self.service.get(call, deadline).await.map_err(status::from_error)?;
        Ok(Response::new(pb::TouchSessionResponse { expire_time: session.expires().map(render::timestamp) }))
    }

    async fn rotate_session(
        &self,
        request: Request<pb::RotateSessionRequest>,
    ) -> Result<Response<pb::RotateSessionResponse>, Status> {
        let CallContext { deadline, requester, .. } = context(&request);
        let call = parse::rotate(request.into_inner(), &requester.caller, &self.service)?;
        let (session, token) = self.service.rotate(call, deadline).await.map_err(status::from_error)?;
        let token = token.map_or_else(String::new, |token| token.reveal());
        Ok(Response::new(pb::RotateSessionResponse { session: Some(render::session(session)?), token }))
    }

    async fn delete_session(
        &self,
        request: Request<pb::DeleteSessionRequest>,
    ) -> Result<Response<pb::DeleteSessionResponse>, Status> {
        let CallContext { deadline, requester, .. } = context(&request);
        let call = parse::delete(request.into_inner(), &requester.caller)?;
        let deleted = self.service.delete(call, deadline).await.map_err(status::from_error)?;
        Ok(Response::new(pb::DeleteSessionResponse { deleted }))
    }

    async fn delete_subject_sessions(
        &self,
        request: Request<pb::DeleteSubjectSessionsRequest>,
    ) -> Result<Response<pb::DeleteSubjectSessionsResponse>, Status> {
        let CallContext { deadline, requester, .. } = context(&request);
        let call = parse::delete_subject_sessions(request.into_inner(), &requester.caller)?;
        let deleted = self.service.delete_subject_sessions(call, deadline).await.map_err(status::from_error)?;
        let deleted_count = i32::try_from(deleted).unwrap_or(i32::MAX);
        Ok(Response::new(pb::DeleteSubjectSessionsResponse { deleted_count }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let CallContext { deadline, requester, .. } = context(&request);
        let call = parse::list(request.into_inner(), &requester.caller, &self.service)?;
        let page = read_within(deadline, self.service.list(&call, deadline)).await?;
        let sessions = page.sessions.into_iter().map(render::session).collect::<Result<_, _>>()?;
        let next_page_token = page.next.map_or_else(String::new, |next| next.encode(&call.scope));
        Ok(Response::new(pb::ListSessionsResponse { sessions, next_page_token }))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let CallContext { deadline, metrics, requester } = context(&request);
        let (call, view) = parse::watch(request.into_inner(), &requester.caller)?;
        let stream =
            service::WatchStream { reset: stream::reset_handle(), requester, budget: stream::connection_budget() };
        let subscription = read_within(deadline, self.service.watch(call, stream)).await?;
        Ok(Response::new(watch_stream::stream(subscription, view, self.service.store.clone(), metrics)))
    }
}
