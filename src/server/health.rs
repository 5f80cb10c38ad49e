//! Reports whether the server can serve calls: to the gRPC health service, to `/readyz` and to the log.

use std::{convert::Infallible, time::Duration};

use tokio::{sync::watch, time::Instant};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::store::{Health, Store};

/// Name of the service in the gRPC health service.
const NAME: &str = "sessiond.v1.SessionService";
/// Time between two reads of the store's health.
const INTERVAL: Duration = Duration::from_millis(250);
/// Minimum time between two log lines about problems.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Returns the health of a server that does not serve calls for this reason.
pub(super) fn not_ready(reason: impl ToString) -> Health {
    Health { is_ready: false, problems: vec![reason.to_string()] }
}

/// Reports the health of the server.
pub(super) struct HealthReport {
    reporter: HealthReporter,
    readiness: watch::Sender<Health>,
    /// Problems that the log named last.
    logged: Vec<String>,
    logged_at: Instant,
}

impl HealthReport {
    /// A report that updates `readiness` and the gRPC health service.
    pub(super) fn new(reporter: HealthReporter, readiness: watch::Sender<Health>) -> Self {
        HealthReport { reporter, readiness, logged: Vec::new(), logged_at: Instant::now() }
    }

    /// Reports SERVING while the store is ready, and logs every change of its problems once; never returns.
    pub(super) async fn follow(&mut self, store: &Store) -> Infallible {
        let mut tick = tokio::time::interval(INTERVAL);
        loop {
            tick.tick().await;
            let health = store.health();
            if self.readiness.borrow().is_ready != health.is_ready {
                tracing::info!(ready = health.is_ready, "health");
            }
            self.log(&health.problems);
            self.set(health).await;
        }
    }

    /// Logs the problems if they have changed, at most once per [`LOG_INTERVAL`].
    fn log(&mut self, problems: &[String]) {
        if self.logged == problems || self.logged_at.elapsed() < LOG_INTERVAL {
            return;
        }
        if problems.is_empty() {
            tracing::info!("Redis has no problems");
        } else {
            crate::observe::warning!(problems = problems.join("; "), "Redis has problems");
        }
        (self.logged, self.logged_at) = (problems.to_vec(), Instant::now());
    }

    /// Reports this health.
    pub(super) async fn set(&mut self, health: Health) {
        let status = if health.is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        let before = self.readiness.send_replace(health);
        if before != *self.readiness.borrow() {
            self.reporter.set_service_status(NAME, status).await;
            self.reporter.set_service_status("", status).await;
        }
    }
}
