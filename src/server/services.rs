//! The services of a connection: calls of the session service go to it directly, all others through a router.

use std::convert::Infallible;

use futures_util::{
    TryFutureExt,
    future::{Either, MapOk},
};
use http::{Request, Response};
use http_body_util::Either as EitherBody;
use hyper::{body::Incoming, service::Service};
use tonic::{body::Body, server::NamedService, service::Routes};
use tower::Service as _;

use crate::{
    grpc::{CallService, Grpc, ResponseBody},
    pb::service::session_service_server::SessionServiceServer,
};

/// The session service with its layers.
pub(super) type SessionCalls = CallService<SessionServiceServer<Grpc>>;

/// All services of a connection.
#[derive(Clone)]
pub(super) struct Services {
    /// The session service.
    pub sessions: SessionCalls,
    /// Health, reflection, and the response to calls of services that do not exist.
    pub others: Routes,
}

type AnyBody = EitherBody<ResponseBody, Body>;
type Mapped<F, B> = MapOk<F, fn(Response<B>) -> Response<AnyBody>>;

impl Service<Request<Incoming>> for Services {
    type Response = Response<AnyBody>;
    type Error = Infallible;
    type Future = Either<
        Mapped<<SessionCalls as Service<Request<Incoming>>>::Future, ResponseBody>,
        Mapped<<Routes as tower::Service<Request<Body>>>::Future, Body>,
    >;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if is_session_call(request.uri().path()) {
            Either::Left(self.sessions.call(request).map_ok(|response| response.map(EitherBody::Left)))
        } else {
            let response = self.others.clone().call(request.map(Body::new));
            Either::Right(response.map_ok(|response| response.map(EitherBody::Right)))
        }
    }
}

/// Whether a path names a method of the session service, which may not exist.
fn is_session_call(path: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(SessionServiceServer::<Grpc>::NAME));
    method.is_some_and(|method| method.starts_with('/'))
}
