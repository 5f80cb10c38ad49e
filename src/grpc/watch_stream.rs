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
    // Boxed: the state of `unfold` and the future of each response both contain it.
    let open = Box::new(WatchCall { subscription, view, store, metrics });
    Box::pin(stream::unfold(Some(open), async |open| {
        let mut call = open?;
        match call.subscription.next().await {
            Ok(batch) => {
                let response = render::batch(batch, call.view, || call.store.now().ok());
                Some((Ok(response), Some(call)))
            }
            Err(reason) => {
                let status = status::from_close_reason(reason);
                call.metrics.finish(status.as_ref().map_or(tonic::Code::Ok, Status::code));
                status.map(|status| (Err(status), None))
            }
        }
    }))
}

/// An open call of Watch.
struct WatchCall {
    subscription: Subscription,
    view: View,
    store: Arc<Store>,
    metrics: CallMetrics,
}
