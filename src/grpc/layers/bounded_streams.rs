//! The tower service around health and reflection: it bounds how many of their streams are open, and ends them. What a stream holds
//! while its client does not read is in no budget, and the drain would wait for a health watch.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body, metadata::MetadataMap, server::NamedService};
use tower::Service;

use super::{
    super::{status, stream},
    discard,
};

/// Maximum number of open health watches of all connections.
const MAX_HEALTH_WATCHES: usize = 1_000;
/// Maximum number of open reflection streams of all connections.
const MAX_REFLECTION_STREAMS: usize = 32;

/// Bound on the streams of services. All clones share it.
#[derive(Clone)]
pub struct StreamBound {
    /// Name of the services in error texts.
    kind: &'static str,
    /// End of the path of their streams. Other calls are not bounded.
    stream: &'static str,
    /// Number of streams that may still be opened.
    places: Arc<Semaphore>,
    /// Maximum time until a call is answered, or the response of a stream begins: its message may never arrive.
    call_timeout: Duration,
    end: End,
}

/// End of a stream that its client does not end.
#[derive(Clone)]
enum End {
    /// It is reset after this time.
    After(Duration),
    /// It ends with DRAINING when this is cancelled.
    AtDrain(CancellationToken),
}

impl StreamBound {
    /// Bound on health watches, which end at the drain.
    pub fn of_health(call_timeout: Duration, drain: CancellationToken) -> Self {
        let places = Arc::new(Semaphore::new(MAX_HEALTH_WATCHES));
        StreamBound { kind: "health", stream: "/Watch", places, call_timeout, end: End::AtDrain(drain) }
    }

    /// Bound on reflection streams, which are reset after `stream_timeout`.
    pub fn of_reflection(call_timeout: Duration, stream_timeout: Duration) -> Self {
        let places = Arc::new(Semaphore::new(MAX_REFLECTION_STREAMS));
        let end = End::After(stream_timeout);
        StreamBound { kind: "reflection", stream: "/ServerReflectionInfo", places, call_timeout, end }
    }
}

/// Tower service that wraps a service with streams.
#[derive(Clone)]
pub struct BoundedStreams<S> {
    /// Wrapped service.
    pub inner: S,
    /// Bound on its streams.
    pub bound: StreamBound,
}

impl<S: NamedService> NamedService for BoundedStreams<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for BoundedStreams<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let BoundedStreams { mut inner, bound } = self.clone();
        Box::pin(async move {
            let late = || Ok(status::request_timeout().into_http());
            if !request.uri().path().ends_with(bound.stream) {
                return timeout(bound.call_timeout, inner.call(request)).await.unwrap_or_else(|_| late());
            }
            let Ok(place) = bound.places.try_acquire_owned() else {
                discard(request.body_mut()).await;
                return Ok(status::too_many_streams(bound.kind).into_http());
            };
            let mut drained = match bound.end {
                End::AtDrain(drain) => Some(Box::pin(drain.cancelled_owned())),
                End::After(time) => {
                    stream::reset_after(time);
                    None
                }
            };
            let opening = timeout(bound.call_timeout, inner.call(request));
            let opened = match &mut drained {
                None => opening.await,
                Some(drained) => tokio::select! {
                    opened = opening => opened,
                    () = drained => return Ok(status::health_watch_drained().into_http()),
                },
            };
            let Ok(response) = opened else { return late() };
            Ok(response?.map(|inner| Body::new(Stream { inner, drained, has_ended: false, _place: place })))
        })
    }
}

/// Body of a stream, which has its place until it is dropped.
struct Stream {
    inner: Body,
    /// The drain. None: it does not end the stream.
    drained: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        // Not before a frame that is ready: the last one of a health watch is that the server is not serving.
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        let is_drained = frame.is_pending()
            && self.drained.as_mut().is_some_and(|drained| drained.as_mut().poll(context).is_ready());
        if !is_drained {
            return frame;
        }
        self.has_ended = true;
        let mut trailers = MetadataMap::new().into_headers();
        let _ = status::health_watch_drained().add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
