//! `/metrics`, `/healthz` and `/readyz`.

use std::sync::Arc;

use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use tokio::{net::TcpListener, sync::watch};

use crate::observe::Metrics;

/// Serves until it is dropped. Alive from the start on, ready while told so.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, ready: watch::Receiver<bool>) {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let is_ready = move || {
        let answer = if *ready.borrow() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
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
