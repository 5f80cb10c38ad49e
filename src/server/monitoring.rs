//! `/metrics`, `/healthz` and `/readyz`; how many sessions there are.

use std::{sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, sleep},
};

use crate::{observe::Metrics, session::Policies, store::Store};

const COUNT_EVERY: Duration = Duration::from_secs(5);
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until it is dropped. Alive from the start on, ready while told so.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, ready: watch::Receiver<bool>) {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let notifications = metrics.keyspace.notifications.clone();
    let is_ready = move || {
        let answer = match (*ready.borrow(), notifications.get()) {
            (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            (true, 0) => (StatusCode::OK, "ready; Redis does not tell of keys that vanish\n"),
            (true, _) => (StatusCode::OK, "ready\n"),
        };
        std::future::ready(answer)
    };
    let router = Router::new()
        .route("/metrics", get(move || std::future::ready(([(CONTENT_TYPE, TEXT)], metrics.render()))))
        .route("/healthz", get(|| std::future::ready("alive\n")))
        .route("/readyz", get(is_ready));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "metrics are not served any more");
    }
}

/// Counts the sessions of every listed namespace, for ever. What is not listed could be any number of namespaces.
pub async fn count_sessions(store: Arc<Store>, policies: Arc<Policies>, metrics: Arc<Metrics>) {
    loop {
        for namespace in policies.listed.keys() {
            match store.count(namespace, Instant::now() + COUNT_TIMEOUT).await {
                Ok(count) => metrics.sessions(namespace.as_str(), count),
                Err(error) => tracing::debug!(%namespace, %error, "sessions could not be counted"),
            }
        }
        sleep(COUNT_EVERY).await;
    }
}
