//! `/metrics`, `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{observe::Metrics, store::Store};

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, store: Arc<Store>, draining: CancellationToken) {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let ready = move || {
        let is_ready = store.is_up() && !draining.is_cancelled();
        std::future::ready(if is_ready {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        })
    };
    let router = Router::new()
        .route("/metrics", get(move || std::future::ready(([(CONTENT_TYPE, TEXT)], metrics.render()))))
        .route("/healthz", get(|| std::future::ready("alive\n")))
        .route("/readyz", get(ready));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "metrics are not served any more");
    }
}
