//! Bind, run, drain: in one visible order.

mod connections;
mod monitoring;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch as channel},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    auditor::Auditor,
    bridge::Bridge,
    config::{Config, Limits},
    embedded::Embedded,
    grpc::{Grpc, Guard, MAX_MESSAGE, MAX_MESSAGES},
    observe::Metrics,
    pb::{self, service::session_service_server::SessionServiceServer},
    service::Service,
    session::Durability,
    store::{Eviction, LogBounds, Open, StartError, Store, Waits},
    sweeper::Sweeper,
    tasks::Tasks,
    watch::{self, Hub, feed},
};
use connections::Connections;

const NAME: &str = "sessiond.v1.SessionService";
/// Entries per partition's log, whatever their age and size.
const LOG_ENTRIES: u64 = 1_000_000;
const TRIM_BATCH: u64 = 1_000;
const HEALTH_EVERY: Duration = Duration::from_millis(250);

/// Why the server could not be started, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: {cause}")]
    Bind { address: SocketAddr, cause: std::io::Error },
    #[error(transparent)]
    Embedded(#[from] crate::embedded::Error),
    #[error(transparent)]
    Store(#[from] StartError),
    #[error("{0} ended unexpectedly")]
    Task(&'static str),
}

/// What the server answers on.
pub struct Listeners {
    pub grpc: TcpListener,
    pub metrics: TcpListener,
}

impl Listeners {
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let bind = async |address| TcpListener::bind(address).await.map_err(|cause| Error::Bind { address, cause });
        Ok(Listeners { grpc: bind(config.listen).await?, metrics: bind(config.metrics_listen).await? })
    }
}

/// Runs until `shutdown` is cancelled, then drains.
pub async fn run(config: Config, listeners: Listeners, shutdown: CancellationToken) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::default());
    let metrics_address = listeners.metrics.local_addr().unwrap_or(config.metrics_listen);
    let ready = channel::Sender::new(false);
    let mut tasks = Tasks::default();
    tasks.spawn("metrics", monitoring::serve(listeners.metrics, metrics.clone(), ready.subscribe()));

    // Start: what the service stands on, from below.
    let started = tokio::select! {
        started = start(&config, &metrics) => started?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let Started { mut embedded, store, hub } = started;
    let policies = Arc::new(config.policies.clone());
    let draining = CancellationToken::new();
    let service = Service { store: store.clone(), hub: hub.clone(), policies: policies.clone(), draining };
    let sweeper = Arc::new(Sweeper { store: store.clone(), hub: hub.clone(), policies: policies.clone() });
    let auditor = Auditor::new(store.clone(), hub.clone(), policies.clone(), metrics.clone(), config.audit_interval);
    let auditor = Arc::new(auditor);
    let tidier = auditor.clone();
    let bridge = Arc::new(Bridge {
        store: store.clone(),
        hub: hub.clone(),
        policies: policies.clone(),
        metrics: metrics.clone(),
    });
    let looking = bridge.clone();
    let (keeper, sweeping, trimming, bounds) = (store.clone(), sweeper.clone(), sweeper, bounds(&config));
    tasks.spawn("keep-alive", async move { keeper.keep_alive().await });
    tasks.spawn("feed", feed(store.clone(), hub));
    tasks.spawn("sweeper", async move { sweeping.run().await });
    tasks.spawn("keyspace bridge", async move { bridge.run().await });
    tasks.spawn("keyspace notifications", async move { looking.look_after_notifications().await });
    tasks.spawn("log trimmer", async move { trimming.trim(bounds).await });
    tasks.spawn("tidier", async move { tidier.tidy().await });
    tasks.spawn("auditor", async move { auditor.run().await });
    tasks.spawn("session counter", monitoring::count_sessions(store.clone(), policies, metrics.clone()));

    // Serve.
    let (health, health_service) = tonic_health::server::health_reporter();
    let routes = routes(service.clone(), health_service, &config.limits, metrics.clone());
    let connections = Connections::new(listeners.grpc, routes, config.limits.clone(), metrics);
    tracing::info!(address = %connections.address(), metrics = %metrics_address, "listening");
    let stop_accepting = CancellationToken::new();
    let mut serving = std::pin::pin!(connections.serve(stop_accepting.clone(), config.drain_timeout));
    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        name = tasks.first_end() => Some(name),
        name = &mut serving => Some(name),
        name = ended(&mut embedded) => Some(name),
        name = report_health(&health, &ready, &store) => Some(name),
    };

    // Drain: no new calls, the watches end with their token, the others have their time; then what they stood on.
    tracing::info!("draining");
    set_health(&health, &ready, ServingStatus::NotServing).await;
    service.draining.cancel();
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

/// What the service stands on.
struct Started {
    embedded: Option<Embedded>,
    store: Arc<Store>,
    hub: Arc<Hub>,
}

async fn start(config: &Config, metrics: &Arc<Metrics>) -> Result<Started, Error> {
    let embedded = match &config.redis {
        Some(_) => None,
        None => Some(Embedded::start(&config.data_dir).await?),
    };
    let url = embedded.as_ref().map_or_else(|| config.redis.clone().unwrap_or_default(), Embedded::url);
    let eviction = if config.allow_eviction { Eviction::Allowed } else { Eviction::Refused };
    let password = config.redis_password.as_deref();
    let replicated = config.policies.all().any(|policy| policy.durability == Durability::Replicated);
    let open = Open {
        url: &url,
        password,
        prefix: &config.key_prefix,
        partitions: config.partitions,
        eviction,
        waits: if replicated { Waits::ForReplicas } else { Waits::Never },
        feed_buffer: config.limits.feed_buffer,
    };
    let store = Arc::new(Store::open(open, metrics.clone()).await?);
    let ends = store.ends(Instant::now() + config.limits.call_timeout).await.map_err(StartError::from)?;
    let limits = watch::Limits {
        watches: config.limits.watches,
        patience: config.limits.slow_consumer_timeout,
        ring_slots: config.limits.ring_slots,
    };
    let hub = Arc::new(Hub::new(store.id(), ends, limits, metrics.clone()));
    Ok(Started { embedded, store, hub })
}

async fn ended(embedded: &mut Option<Embedded>) -> &'static str {
    match embedded {
        Some(embedded) => embedded.ended().await,
        None => std::future::pending().await,
    }
    "embedded Redis"
}

fn bounds(config: &Config) -> LogBounds {
    LogBounds {
        age_us: config.log_max_age.as_micros() as u64,
        entries: LOG_ENTRIES,
        bytes: config.log_max_bytes,
        batch: TRIM_BATCH,
    }
}

fn routes<H>(service: Service, health: H, limits: &Limits, metrics: Arc<Metrics>) -> Routes
where
    H: tower::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    H::Future: Send,
{
    // The guard has held the message against its limit before it is decoded.
    let inner = SessionServiceServer::new(Grpc { service }).max_decoding_message_size(MAX_MESSAGE);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    const VALID: &str = "the descriptors are generated";
    let mut routes = Routes::builder();
    routes
        .add_service(Guard {
            inner,
            metrics,
            call_timeout: limits.call_timeout,
            room: Arc::new(Semaphore::new(MAX_MESSAGES)),
        })
        .add_service(health)
        .add_service(reflection().build_v1().expect(VALID))
        .add_service(reflection().build_v1alpha().expect(VALID));
    routes.routes()
}

/// SERVING only while Redis answers; never ends.
async fn report_health(health: &HealthReporter, ready: &channel::Sender<bool>, store: &Store) -> &'static str {
    let mut tick = tokio::time::interval(HEALTH_EVERY);
    let mut told = None;
    loop {
        tick.tick().await;
        let status = if store.is_up() { ServingStatus::Serving } else { ServingStatus::NotServing };
        if told != Some(status) {
            tracing::info!(%status, "health");
            set_health(health, ready, status).await;
            told = Some(status);
        }
    }
}

async fn set_health(health: &HealthReporter, ready: &channel::Sender<bool>, status: ServingStatus) {
    ready.send_replace(status == ServingStatus::Serving);
    health.set_service_status(NAME, status).await;
    health.set_service_status("", status).await;
}
