//! The admin port (`/metrics`, `/healthz`, `/readyz`), and the periodic count of live sessions.

use std::{sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, routing::get};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::accept::Acceptor;
use crate::{
    observe::Metrics,
    session::Policies,
    store::{Health, Store},
    tasks::ConnectionTasks,
};

/// Maximum number of connections of the admin port.
pub(super) const MAX_CONNECTIONS: usize = 16;
/// Time after which a connection of the admin port is closed.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two counts of the sessions.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit of the count of one namespace.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the admin port until the future is dropped, one request per connection, so that idle clients do not use up the
/// connections. `/healthz` answers as long as the process runs, `/readyz` reports the readiness and every known problem.
pub(super) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, readiness: watch::Receiver<Health>) {
    let notifications = metrics.keyspace_notifications.clone();
    let readiness = move || {
        let Health { is_ready, mut problems } = readiness.borrow().clone();
        if is_ready && notifications.get() == 0 {
            problems.push("Redis publishes no keyspace notifications".into());
        }
        let (code, state) =
            if is_ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
        problems.insert(0, state.into());
        std::future::ready((code, problems.join("; ") + "\n"))
    };
    let report = move || {
        let tasks = Handle::current().metrics().num_alive_tasks();
        metrics.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
        std::future::ready(([(CONTENT_TYPE, OPENMETRICS)], metrics.render()))
    };
    let router = Router::new()
        .route("/metrics", get(report))
        .route("/healthz", get(|| std::future::ready("alive\n")))
        .route("/readyz", get(readiness));
    let service = TowerToHyperService::new(router);
    let acceptor = Acceptor { port: "admin", listener, max_connections: MAX_CONNECTIONS };
    let mut open = ConnectionTasks::default();
    loop {
        let (stream, _) = acceptor.accept(&mut open).await;
        let connection =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service.clone());
        open.spawn(async move {
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
        });
    }
}

/// Counts the live sessions of every listed namespace periodically; never returns. Namespaces that are not listed are
/// not counted, because their number is not bounded.
pub(super) async fn count_sessions(store: Arc<Store>, policies: Arc<Policies>, metrics: Arc<Metrics>) {
    loop {
        for namespace in policies.listed.keys() {
            match store.count(namespace, Instant::now() + COUNT_TIMEOUT).await {
                Ok(count) => metrics.set_sessions(namespace.as_str(), count),
                Err(error) => tracing::debug!(%namespace, %error, "counting sessions failed"),
            }
        }
        sleep(COUNT_INTERVAL).await;
    }
}
