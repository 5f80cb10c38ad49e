//! Starts, runs and drains the server: [`run`] shows the whole order.

mod accept;
mod admin;
mod backend;
mod connections;
mod credentials;
mod descriptors;
mod file;
mod frame_meter;
mod health;
mod memory_dumps;
mod pem;
mod redis_files;
mod reload;
mod services;
mod socket;
mod streams;
mod tls;
mod write_buffer;

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Notify, watch as channel},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit_log::{AuditLog, Event, Outcome, Requirement, Target},
    config::Config,
    embedded::Embedded,
    feed::Feed,
    grpc::{self, Admission, BoundedStreams, StreamBound, Suspensions},
    observe::Metrics,
    session::Policies,
    store::{CurrentRedisCredentials, Health, LogBounds, StartError, Store},
    tasks::Tasks,
    workers::{DueSets, ExpiryWorker, IndexReconciler, KeyRepairer, KeyspaceReconciler, LogTrimmer, MissingKeyFinder},
};
use accept::Acceptor;
use backend::Backend;
use connections::Connections;
use credentials::Credentials;
use descriptors::FileDescriptors;
pub use descriptors::TooFewDescriptors;
pub use file::UnusableFile;
use health::{HealthReport, not_ready};
pub use memory_dumps::forbid_memory_dumps;
use services::{MAX_SMALL_MESSAGE_BYTES, services};

/// Maximum number of entries in the log of a partition, of any age and size.
const LOG_ENTRIES: u64 = 1_000_000;
/// Maximum number of entries that one trim removes from a log.
const TRIM_BATCH: u64 = 1_000;
/// Maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1_024;

/// Failure of the server at start, or while it ran.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listening address cannot be used.
    #[error("cannot listen on {address}: {cause}")]
    Bind {
        /// Configured address.
        address: SocketAddr,
        /// Error of the operating system.
        cause: std::io::Error,
    },
    /// The embedded Redis did not start.
    #[error(transparent)]
    Embedded(#[from] crate::embedded::Error),
    /// The process may open too few file descriptors.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// The audit log cannot be written.
    #[error(transparent)]
    AuditLog(#[from] crate::audit_log::Unusable),
    /// A file with credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] UnusableFile),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StartError),
    /// A task that must run until shutdown ended; with its name.
    #[error("{0} ended unexpectedly")]
    Task(&'static str),
}

/// Sockets of the server.
pub struct Listeners {
    /// Socket of the gRPC server. It is bound and does not listen: clients are refused until the server is ready, so that
    /// they use another instance.
    pub grpc: TcpSocket,
    /// Socket of the admin port.
    pub metrics: TcpListener,
}

impl Listeners {
    /// Binds both addresses of the configuration.
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let failed = |address| move |cause| Error::Bind { address, cause };
        let grpc = bind_socket(config.listen).map_err(failed(config.listen))?;
        let metrics = TcpListener::bind(config.metrics_listen).await.map_err(failed(config.metrics_listen))?;
        Ok(Listeners { grpc, metrics })
    }
}

fn bind_socket(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Runs the server until `shutdown` is cancelled, then drains it. Checks its files with credentials at once when `reload` is
/// notified. Fails if a part of it fails.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: CancellationToken,
    reload: Arc<Notify>,
) -> Result<(), Error> {
    let descriptors = FileDescriptors::raise_limit()?;
    let metrics = Arc::new(Metrics::default());
    let address = listeners.grpc.local_addr().unwrap_or(config.listen);
    let metrics_address = listeners.metrics.local_addr().unwrap_or(config.metrics_listen);
    let readiness = channel::Sender::new(not_ready("starting"));
    let mut tasks = Tasks::default();
    tasks.spawn("admin port", admin::serve(listeners.metrics, metrics.clone(), readiness.subscribe()));

    let policies = Arc::new(config.policies());
    let audit_log = Arc::new(start_audit_log(&config, &metrics)?);
    let Credentials { authenticator, tls, redis, files } = Credentials::load(&config, &metrics)?;
    tasks.spawn("reload of credentials", reload::run(files, reload, metrics.clone(), audit_log.clone()));

    // Start: the embedded Redis, the store, the feed with its consumers, the workers.
    let (mut embedded, backend) = tokio::select! {
        // Boxed: dropped when the server runs.
        started = Box::pin(start(&config, &redis, &policies, &metrics, &readiness)) => started?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (store, feed, hub) = (backend.store.clone(), backend.feed.clone(), backend.hub.clone());
    spawn_workers(&mut tasks, &config, &store, &feed, &policies, &metrics);
    let service = backend.start(&mut tasks, &authenticator, &policies);
    tasks.spawn("session counter", admin::count_sessions(store.clone(), policies, metrics.clone()));

    // Serve.
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health_service = health_service.max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES);
    let mut health = HealthReport::new(reporter, readiness);
    let (suspensions, stop_accepting) = (Arc::new(Suspensions::new()), CancellationToken::new());
    let watching = suspensions.clone();
    tasks.spawn("suspension watch", async move { watching.watch().await });
    let bound = StreamBound::of_health(config.limits.call_timeout, stop_accepting.clone());
    let health_service = BoundedStreams { inner: health_service, bound };
    let services = services(service.clone(), health_service, &config, metrics.clone(), suspensions, audit_log.clone());
    let max_connections = descriptors.max_connections(config.limits.connections, store.max_connections())?;
    let listener = listeners.grpc.listen(BACKLOG).map_err(|cause| Error::Bind { address, cause })?;
    let acceptor = Acceptor { port: "gRPC", listener, max_connections };
    let (limits, max_age) = (config.limits.clone(), config.max_connection_age);
    let largest_response = grpc::largest_response(&service.policies);
    let (calls, unknown) = (limits.calls, limits.unauthenticated_connections);
    let admission = Arc::new(Admission::new(authenticator, audit_log.clone(), calls, unknown));
    let connections = Connections { acceptor, services, admission, tls, limits, largest_response, max_age, metrics };
    tracing::info!(%address, metrics = %metrics_address, "listening");
    audit_log.note(Event::SysStartup, Target::default(), Outcome::Ok, None);
    let mut serving = Box::pin(connections.serve(stop_accepting.clone(), config.drain_timeout));
    let failed = {
        let mut failure = std::pin::pin!(first_failure(&mut tasks, serving.as_mut(), &mut embedded));
        let failed = tokio::select! {
            () = shutdown.cancelled() => None,
            name = &mut failure => Some(name),
            never = health.follow(&store) => match never {},
        };
        // Not ready: load balancers stop sending clients to this instance, which still serves them.
        tracing::info!(drain_delay = ?config.drain_delay, "shutting down; not ready");
        health.set(not_ready("shutting down")).await;
        match failed {
            Some(name) => Some(name),
            None => timeout(config.drain_delay, failure).await.ok(),
        }
    };

    // Drain: stop accepting, end the watches with their resume tokens, wait for open calls or end them. Stop in reverse order.
    tracing::info!("draining");
    hub.drain();
    stop_accepting.cancel();
    match failed {
        None => serving.await,
        Some(_) => drop(serving),
    }
    audit_log.close().await;
    tasks.stop().await;
    store.close().await;
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    tracing::info!("stopped");
    failed.map_or(Ok(()), |name| Err(Error::Task(name)))
}

/// Starts the audit log that the configuration names.
fn start_audit_log(config: &Config, metrics: &Arc<Metrics>) -> Result<AuditLog, Error> {
    let requirement = if config.audit_required { Requirement::Required } else { Requirement::Optional };
    match &config.audit_file {
        Some(path) => Ok(AuditLog::start(path, requirement, config.limits.calls, metrics.clone())?),
        None => Ok(AuditLog::default()),
    }
}

/// Starts the embedded Redis, if no other one is configured, and opens the store.
async fn start(
    config: &Config,
    credentials: &Arc<CurrentRedisCredentials>,
    policies: &Policies,
    metrics: &Arc<Metrics>,
    readiness: &channel::Sender<Health>,
) -> Result<(Option<Embedded>, Backend), Error> {
    let embedded = match &config.redis {
        Some(_) => None,
        None => Some(Embedded::start(&config.data_dir).await?),
    };
    let url = embedded.as_ref().map_or_else(|| config.redis.clone().unwrap_or_default(), Embedded::url);
    let backend = Backend::open(&url, config, credentials, policies, metrics, readiness).await?;
    Ok((embedded, backend))
}

fn spawn_workers(
    tasks: &mut Tasks,
    config: &Config,
    store: &Arc<Store>,
    feed: &Feed,
    policies: &Arc<Policies>,
    metrics: &Arc<Metrics>,
) {
    let due_sets = DueSets {
        store: store.clone(),
        missing_keys: feed.missing_keys.clone(),
        policies: policies.clone(),
        metrics: metrics.clone(),
    };
    let expiry = ExpiryWorker {
        store: store.clone(),
        deadlines: feed.deadlines.clone(),
        policies: policies.clone(),
        metrics: metrics.clone(),
    };
    let keyspace = Arc::new(KeyspaceReconciler {
        store: store.clone(),
        missing_keys: feed.missing_keys.clone(),
        policies: policies.clone(),
        metrics: metrics.clone(),
    });
    let trimmer = LogTrimmer::new(store.clone(), bounds(config), metrics.clone());
    let finder = MissingKeyFinder { due_sets: due_sets.clone() };
    let repairer = KeyRepairer { due_sets: due_sets.clone() };
    let (rollbacks, interval) = (feed.rollbacks.clone(), config.reconcile_interval);
    let index = Arc::new(IndexReconciler { due_sets, rollbacks, interval });
    let (removal, settings) = (index.clone(), keyspace.clone());
    tasks.spawn("expiry", async move { expiry.run().await });
    tasks.spawn("log trimmer", async move { trimmer.run().await });
    tasks.spawn("index removal", async move { removal.remove_ended().await });
    tasks.spawn("index reconciler", async move { index.run().await });
    tasks.spawn("missing key finder", async move { finder.run().await });
    tasks.spawn("key repairer", async move { repairer.run().await });
    tasks.spawn("keyspace reconciler", async move { keyspace.run().await });
    tasks.spawn("notification settings", async move { settings.watch_notification_settings().await });
}

/// Waits until a part of the server ends, which none does before the drain, and returns its name.
async fn first_failure(
    tasks: &mut Tasks,
    serving: impl Future<Output = ()>,
    embedded: &mut Option<Embedded>,
) -> &'static str {
    tokio::select! {
        name = tasks.first_ended() => name,
        () = serving => "accept loop",
        () = ended(embedded) => "embedded Redis",
    }
}

/// Waits until the embedded Redis has ended. Never returns without one.
async fn ended(embedded: &mut Option<Embedded>) {
    match embedded {
        Some(embedded) => embedded.ended().await,
        None => std::future::pending().await,
    }
}

fn bounds(config: &Config) -> LogBounds {
    LogBounds {
        age_us: config.log_max_age.as_micros().try_into().unwrap_or(u64::MAX),
        aged: 0,
        entries: LOG_ENTRIES,
        bytes: config.log_max_bytes,
        batch: TRIM_BATCH,
    }
}
