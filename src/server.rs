//! Starts, runs and drains the server: [`run`] shows the whole order.

mod accept;
mod admin;
mod backend;
mod connections;
mod descriptors;
mod health;
mod services;
mod streams;
mod write_buffer;

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, watch as channel},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    config::{Config, Limits},
    embedded::Embedded,
    feed::Feed,
    grpc::{
        self, CallLimits, CallService, Grpc, MAX_MESSAGE_BYTES, MAX_REFLECTION_STREAMS, MAX_TOTAL_MESSAGE_BYTES,
        ReflectionService, Suspensions,
    },
    observe::Metrics,
    pb::{self, service::session_service_server::SessionServiceServer},
    service::Service,
    session::Policies,
    store::{Health, LogBounds, StartError, Store},
    tasks::Tasks,
    workers::{DueSets, ExpiryWorker, IndexReconciler, KeyRepairer, KeyspaceReconciler, LogTrimmer, MissingKeyFinder},
};
use accept::Acceptor;
use backend::Backend;
use connections::Connections;
use descriptors::FileDescriptors;
pub use descriptors::TooFewDescriptors;
use health::{HealthReport, not_ready};
use services::Services;

/// Maximum number of entries in the log of a partition, of any age and size.
const LOG_ENTRIES: u64 = 1_000_000;
/// Maximum number of entries that one trim removes from a log.
const TRIM_BATCH: u64 = 1_000;
/// Maximum size of a request for health or reflection, in bytes: it holds one name.
const MAX_SMALL_MESSAGE_BYTES: usize = 4 * 1024;
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

/// Runs the server until `shutdown` is cancelled, then drains it. Fails if a part of it fails.
pub async fn run(config: Config, listeners: Listeners, shutdown: CancellationToken) -> Result<(), Error> {
    let descriptors = FileDescriptors::raise_limit()?;
    let metrics = Arc::new(Metrics::default());
    let address = listeners.grpc.local_addr().unwrap_or(config.listen);
    let metrics_address = listeners.metrics.local_addr().unwrap_or(config.metrics_listen);
    let readiness = channel::Sender::new(not_ready("starting"));
    let mut tasks = Tasks::default();
    tasks.spawn("admin port", admin::serve(listeners.metrics, metrics.clone(), readiness.subscribe()));

    let policies = Arc::new(config.policies());

    // Start: the embedded Redis, the store, the feed with its consumers, the workers.
    let (mut embedded, backend) = tokio::select! {
        // Boxed: dropped when the server runs.
        started = Box::pin(start(&config, &policies, &metrics, &readiness)) => started?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let consumers = backend.consumers();
    let Backend { store, feed, followers, hub, watch_source, cache } = backend;
    spawn_workers(&mut tasks, &config, &store, &feed, &policies, &metrics);
    let service = Service { store: store.clone(), cache, watch_source, hub: hub.clone(), policies: policies.clone() };
    let kept_alive = store.clone();
    tasks.spawn("keep-alive", async move { kept_alive.keep_alive().await });
    let checked = store.clone();
    tasks.spawn("preconditions", async move { checked.check_preconditions().await });
    let evicting = hub.clone();
    tasks.spawn("slow consumer eviction", async move { evicting.evict_slow_consumers().await });
    tasks.spawn("feed", followers.run(consumers));
    tasks.spawn("session counter", admin::count_sessions(store.clone(), policies, metrics.clone()));

    // Serve.
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health_service = health_service.max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES);
    let mut health = HealthReport::new(reporter, readiness);
    let suspensions = Arc::new(Suspensions::new());
    let watching = suspensions.clone();
    tasks.spawn("suspension watch", async move { watching.watch().await });
    let services = services(service.clone(), health_service, &config.limits, metrics.clone(), suspensions);
    let max_connections = descriptors.max_connections(config.limits.connections, store.max_connections())?;
    let listener = listeners.grpc.listen(BACKLOG).map_err(|cause| Error::Bind { address, cause })?;
    let acceptor = Acceptor { port: "gRPC", listener, max_connections };
    let (limits, max_age) = (config.limits.clone(), config.max_connection_age);
    let largest_response = grpc::largest_response(&service.policies);
    let connections = Connections { acceptor, services, limits, largest_response, max_age, metrics };
    tracing::info!(%address, metrics = %metrics_address, "listening");
    let stop_accepting = CancellationToken::new();
    let mut serving = std::pin::pin!(connections.serve(stop_accepting.clone(), config.drain_timeout));
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

    // Drain: stop accepting, end the watches with their resume tokens, wait for open calls. Then stop in reverse order.
    tracing::info!("draining");
    hub.drain();
    stop_accepting.cancel();
    if failed.is_none() {
        serving.await;
    }
    tasks.stop().await;
    store.close().await;
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    tracing::info!("stopped");
    failed.map_or(Ok(()), |name| Err(Error::Task(name)))
}

/// Starts the embedded Redis, if no other one is configured, and opens the store.
async fn start(
    config: &Config,
    policies: &Policies,
    metrics: &Arc<Metrics>,
    readiness: &channel::Sender<Health>,
) -> Result<(Option<Embedded>, Backend), Error> {
    let embedded = match &config.redis {
        Some(_) => None,
        None => Some(Embedded::start(&config.data_dir).await?),
    };
    let url = embedded.as_ref().map_or_else(|| config.redis.clone().unwrap_or_default(), Embedded::url);
    let backend = Backend::open(&url, config, policies, metrics, readiness).await?;
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

#[expect(clippy::expect_used, reason = "the descriptors are generated by the build script")]
fn services<H>(
    service: Service,
    health: H,
    limits: &Limits,
    metrics: Arc<Metrics>,
    suspensions: Arc<Suspensions>,
) -> Services
where
    H: tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    H::Future: Send,
{
    let call_limits = CallLimits {
        call_timeout: limits.call_timeout,
        response_timeout: limits.response_timeout,
        largest_session: grpc::largest_session(&service.policies),
    };
    // `CallService` checks the size of the message first: tonic would answer OUT_OF_RANGE.
    let inner = SessionServiceServer::new(Grpc { service }).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let description = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    const VALID: &str = "generated descriptors are valid";
    let v1 = description().build_v1().expect(VALID).max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES);
    let v1alpha = description().build_v1alpha().expect(VALID).max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES);
    let (places, timeout) = (Arc::new(Semaphore::new(MAX_REFLECTION_STREAMS)), limits.response_timeout);
    let sessions = CallService {
        inner,
        metrics: metrics.clone(),
        limits: call_limits,
        message_budget: Arc::new(Semaphore::new(MAX_TOTAL_MESSAGE_BYTES)),
        response_budget: Arc::new(Semaphore::new(usize::try_from(limits.response_bytes).unwrap_or(usize::MAX))),
        suspensions,
    };
    let mut routes = Routes::builder();
    routes
        .add_service(health)
        .add_service(ReflectionService { inner: v1, places: places.clone(), timeout })
        .add_service(ReflectionService { inner: v1alpha, places, timeout });
    let fallback = move || std::future::ready(grpc::unknown_service(metrics.clone()));
    Services { sessions, others: Routes::from(routes.routes().into_axum_router().fallback(fallback)).prepare() }
}
