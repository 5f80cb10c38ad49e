//! The tower service around the health service: it bounds how many watches of the health are open, and ends them at the drain,
//! which would wait for them.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body, metadata::MetadataMap, server::NamedService};
use tower::Service;

use super::super::status;

/// Maximum number of open health watches of all connections.
pub const MAX_HEALTH_WATCHES: usize = 1_000;

/// Tower service that wraps the health service.
#[derive(Clone)]
pub struct HealthService<S> {
    /// Wrapped service.
    pub inner: S,
    /// Number of watches that may still be opened.
    pub places: Arc<Semaphore>,
    /// Ends all watches when it is cancelled.
    pub drain: CancellationToken,
}

impl<S: NamedService> NamedService for HealthService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for HealthService<S>
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
        let HealthService { mut inner, places, drain } = self.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/Watch") {
                return inner.call(request).await;
            }
            let Ok(place) = places.try_acquire_owned() else {
                return Ok(status::too_many_streams("health").into_http());
            };
            let drained = Box::pin(drain.cancelled_owned());
            let response = inner.call(request).await?;
            Ok(response.map(|inner| Body::new(Watch { inner, drained, has_ended: false, _place: place })))
        })
    }
}

/// Body of a health watch.
struct Watch {
    inner: Body,
    drained: Pin<Box<WaitForCancellationFutureOwned>>,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Watch {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        // Not before a change that is ready: the last one is that the server is not serving.
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(frame) => Poll::Ready(frame),
            Poll::Pending if self.drained.as_mut().poll(context).is_ready() => {
                self.has_ended = true;
                let mut trailers = MetadataMap::new().into_headers();
                let _ = status::health_watch_drained().add_header(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
