//! The wire: parse, call, render. Ten lines a method; every status is made in [`status`].

mod layers;
mod parse;
mod render;
mod status;
mod watch_stream;

use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use crate::{
    pb::{self, service::session_service_server::SessionService},
    service::{Error, Service},
    store,
};

use layers::CallRecord;
pub use layers::{Guard, MAX_MESSAGE, MAX_MESSAGES};
use watch_stream::WatchStream;

/// The service on the wire.
#[derive(Clone)]
pub struct Grpc {
    pub service: Service,
}

/// When a call's answer is due; put into every request by [`Guard`].
#[derive(Clone, Copy)]
struct Deadline(Instant);

fn deadline<T>(request: &Request<T>) -> Instant {
    request.extensions().get::<Deadline>().expect("every call comes through the guard").0
}

/// A read that is not over at the deadline has applied nothing.
async fn within<T>(deadline: Instant, call: impl Future<Output = Result<T, Error>>) -> Result<T, Status> {
    let answer = timeout_at(deadline, call).await.unwrap_or(Err(store::Error::Timeout.into()));
    answer.map_err(status::from_error)
}

#[tonic::async_trait]
impl SessionService for Grpc {
    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<Response<pb::CreateSessionResponse>, Status> {
        let deadline = deadline(&request);
        let call = parse::create(request.into_inner(), &self.service)?;
        let (session, token) = self.service.create(call, deadline).await.map_err(status::from_error)?;
        let token = token.map_or_else(String::new, |token| token.reveal());
        Ok(Response::new(pb::CreateSessionResponse { session: Some(render::session(session)?), token }))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let deadline = deadline(&request);
        let call = parse::get(request.into_inner())?;
        let (session, standing) = self.service.get(call, deadline).await.map_err(status::from_error)?;
        let token_state = pb::TokenState::from(standing);
        let session = Some(render::session(session)?);
        Ok(Response::new(pb::GetSessionResponse { session, token_state: token_state.into() }))
    }

    async fn update_session(
        &self,
        request: Request<pb::UpdateSessionRequest>,
    ) -> Result<Response<pb::UpdateSessionResponse>, Status> {
        let deadline = deadline(&request);
        let call = parse::update(request.into_inner(), &self.service)?;
        let session = self.service.update(call, deadline).await.map_err(status::from_error)?;
        Ok(Response::new(pb::UpdateSessionResponse { session: Some(render::session(session)?) }))
    }

    async fn touch_session(
        &self,
        request: Request<pb::TouchSessionRequest>,
    ) -> Result<Response<pb::TouchSessionResponse>, Status> {
        let deadline = deadline(&request);
        let call = parse::touch(request.into_inner())?;
        let (session, _) = self.service.get(call, deadline).await.map_err(status::from_error)?;
        Ok(Response::new(pb::TouchSessionResponse { expire_time: session.expires().map(render::timestamp) }))
    }

    async fn rotate_session(
        &self,
        request: Request<pb::RotateSessionRequest>,
    ) -> Result<Response<pb::RotateSessionResponse>, Status> {
        let deadline = deadline(&request);
        let call = parse::rotate(request.into_inner(), &self.service)?;
        let (session, token) = self.service.rotate(call, deadline).await.map_err(status::from_error)?;
        let token = token.map_or_else(String::new, |token| token.reveal());
        Ok(Response::new(pb::RotateSessionResponse { session: Some(render::session(session)?), token }))
    }

    async fn delete_session(
        &self,
        request: Request<pb::DeleteSessionRequest>,
    ) -> Result<Response<pb::DeleteSessionResponse>, Status> {
        let deadline = deadline(&request);
        let call = parse::delete(request.into_inner())?;
        let deleted = self.service.delete(call, deadline).await.map_err(status::from_error)?;
        Ok(Response::new(pb::DeleteSessionResponse { deleted }))
    }

    async fn delete_subject_sessions(
        &self,
        request: Request<pb::DeleteSubjectSessionsRequest>,
    ) -> Result<Response<pb::DeleteSubjectSessionsResponse>, Status> {
        let deadline = deadline(&request);
        let call = parse::delete_all(request.into_inner())?;
        let deleted = self.service.delete_all(call, deadline).await.map_err(status::from_error)?;
        Ok(Response::new(pb::DeleteSubjectSessionsResponse { deleted_count: deleted as i32 }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let deadline = deadline(&request);
        let call = parse::list(request.into_inner(), self.service.store.partitions().len())?;
        let page = within(deadline, self.service.list(&call, deadline)).await?;
        let sessions = page.sessions.into_iter().map(render::session).collect::<Result<_, _>>()?;
        let next_page_token = page.next.map_or_else(String::new, |next| next.encode(&call.of));
        Ok(Response::new(pb::ListSessionsResponse { sessions, next_page_token }))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let deadline = deadline(&request);
        let record = request.extensions().get::<CallRecord>().expect("every call comes through the guard").clone();
        let (call, view) = parse::watch(request.into_inner())?;
        let subscription = within(deadline, self.service.watch(call)).await?;
        Ok(Response::new(watch_stream::stream(subscription, view, self.service.store.clone(), record)))
    }
}
