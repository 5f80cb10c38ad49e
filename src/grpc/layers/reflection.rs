//! The tower service around server reflection: it bounds how many streams there are, and how long each lasts, because what
//! a stream holds while its client does not read is in no budget.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tonic::{body::Body, server::NamedService};
use tower::Service;

use super::super::{status, stream};

/// Maximum number of open reflection streams of all connections.
pub const MAX_REFLECTION_STREAMS: usize = 32;

/// Tower service that wraps a reflection service.
#[derive(Clone)]
pub struct ReflectionService<S> {
    /// Wrapped service.
    pub inner: S,
    /// Number of streams that may still be opened.
    pub places: Arc<Semaphore>,
    /// Time after which a stream is reset.
    pub timeout: Duration,
}

impl<S: NamedService> NamedService for ReflectionService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for ReflectionService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ReflectionService { mut inner, places, timeout } = self.clone();
        Box::pin(async move {
            let Ok(place) = places.try_acquire_owned() else {
                return Ok(status::too_many_streams("reflection").into_http());
            };
            stream::reset_after(timeout);
            let response = inner.call(request).await?;
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held_until_the_end = &place;
                    frame
                }))
            }))
        })
    }
}
