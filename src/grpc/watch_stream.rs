//! The response stream of Watch: renders the batches of a subscription.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use tonic::Status;

use super::{layers::CallMetrics, render, status};
use crate::{pb::EncodedWatchResponse, session::View, store::Store, watch::Subscription};

/// Response stream of Watch.
pub(super) type WatchStream = Pin<Box<dyn Stream<Item = Result<EncodedWatchResponse, Status>> + Send>>;

/// Returns the responses of a subscription, then the status that closes the watch.
///
/// The metrics count a stream that is dropped before its end as cancelled.
pub(super) fn stream(subscription: Subscription, view: View, store: Arc<Store>, metrics: CallMetrics) -> WatchStream {
    Box::pin(stream::unfold(Some((subscription, metrics)), move |open| {
        let store = store.clone();
        async move {
            let (mut subscription, metrics) = open?;
            match subscription.next().await {
                Ok(batch) => Some((Ok(render::batch(batch, view, store.now().ok())), Some((subscription, metrics)))),
                Err(reason) => {
                    let status = status::from_close_reason(reason);
                    metrics.finish(status.as_ref().map_or(tonic::Code::Ok, Status::code));
                    status.map(|status| (Err(status), None))
                }
            }
        }
    }))
}
