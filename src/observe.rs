//! Logs and metrics. No metric carries an id, a subject, or a namespace that the configuration does not list.

use std::{io::IsTerminal, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Sends logs to standard error. The level takes the directives of `tracing`'s EnvFilter, `info` or `sessiond=debug`.
pub fn start_logs(format: LogFormat, level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log_level: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| error.to_string())
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RedisCall {
    command: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sessions {
    namespace: String,
}

type Histograms = Family<Method, Histogram, fn() -> Histogram>;

/// Of what happens to our keys behind our back.
#[derive(Default)]
pub struct Keyspace {
    /// Sessions found gone from Redis.
    pub vanished_sessions: Counter,
    /// 1 = every server tells of keys that vanish, 0 = one does not, -1 = one does not say.
    pub notifications: Gauge,
}

impl Keyspace {
    fn register(&self, r: &mut Registry) {
        const NOTIFICATIONS: &str =
            "1 = every Redis tells of keys that vanish, 0 = one does not, -1 = one does not say";
        self.notifications.set(-1);
        r.register("keyspace_notifications", NOTIFICATIONS, self.notifications.clone());
        let vanished = "Sessions found deleted or evicted behind our back";
        r.register("vanished_sessions", vanished, self.vanished_sessions.clone());
    }
}

/// Every metric of the service.
pub struct Metrics {
    registry: Registry,
    calls: Family<Call, Counter>,
    call_seconds: Histograms,
    redis_calls: Family<RedisCall, Counter>,
    redis_seconds: Histogram,
    /// 1 = Redis answered the last heartbeat.
    pub store_up: Gauge,
    pub connections: Gauge,
    pub watchers: Gauge,
    pub events_received: Counter,
    pub events_delivered: Counter,
    /// Times the live path was left for the log: a message lost, late, or too large to travel.
    pub feed_gaps: Counter,
    pub resyncs: Counter,
    /// Watches ended because nothing was read from them for too long, or they fell off the log.
    pub slow_watchers: Counter,
    pub keyspace: Keyspace,
    /// From the change in Redis to its arrival here.
    pub feed_lag_seconds: Histogram,
    pub sessions_expired: Counter,
    /// From a session's deadline to its end.
    pub expiry_lag_seconds: Histogram,
    /// Bytes of values before compression.
    pub value_bytes: Counter,
    /// Bytes of values as they are stored.
    pub stored_bytes: Counter,
    pub corrupt_records: Counter,
    /// Entries of subjects' indexes that an audit added or took out.
    pub index_repairs: Counter,
    sessions: Family<Sessions, Gauge>,
}

fn latency() -> Histogram {
    // 100 us to 13 s in steps of two.
    Histogram::new((0..18).map(|step| 0.000_1 * f64::from(1 << step)))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sessiond");
        let metrics = Metrics {
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(latency as fn() -> Histogram),
            redis_calls: Family::default(),
            redis_seconds: latency(),
            store_up: Gauge::default(),
            connections: Gauge::default(),
            watchers: Gauge::default(),
            events_received: Counter::default(),
            events_delivered: Counter::default(),
            feed_gaps: Counter::default(),
            resyncs: Counter::default(),
            slow_watchers: Counter::default(),
            keyspace: Keyspace::default(),
            feed_lag_seconds: latency(),
            sessions_expired: Counter::default(),
            expiry_lag_seconds: latency(),
            value_bytes: Counter::default(),
            stored_bytes: Counter::default(),
            corrupt_records: Counter::default(),
            index_repairs: Counter::default(),
            sessions: Family::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("calls", "Calls by method and status code", metrics.calls.clone());
        let seconds = |r: &mut Registry, name: &str, help: &str, histogram: &Histogram| {
            r.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        r.register_with_unit("call_duration", "Time to answer a call", Unit::Seconds, metrics.call_seconds.clone());
        r.register("redis_calls", "Commands and scripts sent to Redis", metrics.redis_calls.clone());
        seconds(r, "redis_call_duration", "Time to an answer of Redis", &metrics.redis_seconds);
        r.register("store_up", "1 = Redis answered the last heartbeat", metrics.store_up.clone());
        r.register("connections", "Open gRPC connections", metrics.connections.clone());
        r.register("watchers", "Open watches", metrics.watchers.clone());
        r.register("events_received", "Changes received from Redis", metrics.events_received.clone());
        r.register("events_delivered", "Events handed to watches", metrics.events_delivered.clone());
        r.register(
            "feed_gaps",
            "Times the log had to be read for what the channel did not bring",
            metrics.feed_gaps.clone(),
        );
        r.register("slow_watchers", "Watches ended for they were too slow", metrics.slow_watchers.clone());
        metrics.keyspace.register(r);
        r.register("resyncs", "Resync controls sent to watches", metrics.resyncs.clone());
        seconds(r, "feed_lag", "Time from a change in Redis to its arrival", &metrics.feed_lag_seconds);
        r.register(
            "sessions_expired",
            "Sessions ended by this instance at their deadline",
            metrics.sessions_expired.clone(),
        );
        seconds(r, "expiry_lag", "Time from a deadline to the session's end", &metrics.expiry_lag_seconds);
        r.register_with_unit("values", "Values before compression", Unit::Bytes, metrics.value_bytes.clone());
        r.register_with_unit("stored_values", "Values as stored", Unit::Bytes, metrics.stored_bytes.clone());
        r.register("corrupt_records", "Records that could not be read", metrics.corrupt_records.clone());
        r.register("index_repairs", "Entries of subjects' indexes repaired by audits", metrics.index_repairs.clone());
        r.register("sessions", "Live sessions of a namespace that the configuration lists", metrics.sessions.clone());
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    /// One answered call, by the name of its method and of its status code.
    pub fn call(&self, method: &'static str, code: &'static str, took: Duration) {
        self.calls.get_or_create(&Call { method, code }).inc();
        self.call_seconds.get_or_create(&Method { method }).observe(took.as_secs_f64());
    }

    pub fn redis_call(&self, command: &'static str, took: Duration, answered: bool) {
        let result = if answered { "ok" } else { "failed" };
        self.redis_calls.get_or_create(&RedisCall { command, result }).inc();
        self.redis_seconds.observe(took.as_secs_f64());
    }

    /// How many sessions of a namespace live. Only for namespaces that the configuration lists: they are few.
    pub fn sessions(&self, namespace: &str, count: u64) {
        self.sessions.get_or_create(&Sessions { namespace: namespace.to_owned() }).set(count as i64);
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}
