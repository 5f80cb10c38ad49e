//! A subscription as the body of a Watch call.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use tonic::Status;

use super::{layers::CallRecord, render, status};
use crate::{pb::EncodedWatchResponse, session::View, store::Store, watch::Subscription};

pub type WatchStream = Pin<Box<dyn Stream<Item = Result<EncodedWatchResponse, Status>> + Send>>;

/// The responses as they come, then the status that ends the watch. A stream that is dropped before was cancelled.
pub fn stream(subscription: Subscription, view: View, store: Arc<Store>, record: CallRecord) -> WatchStream {
    struct Watching {
        subscription: Subscription,
        record: CallRecord,
    }
    let watching = Watching { subscription, record };
    Box::pin(stream::unfold(Some(watching), move |watching| {
        let store = store.clone();
        async move {
            let mut watching = watching?;
            match watching.subscription.next().await {
                Ok(batch) => Some((Ok(render::batch(batch, view, store.now())), Some(watching))),
                Err(finish) => {
                    let status = status::from_finish(finish);
                    watching.record.finish(status.as_ref().map_or(tonic::Code::Ok, Status::code));
                    status.map(|status| (Err(status), None))
                }
            }
        }
    }))
}
