//! Logs and metrics. No metric has a label with an id, a subject, or a namespace that the configuration does not list.

mod labels;
mod log_limit;
mod log_writer;
mod network;

use std::{
    backtrace::Backtrace,
    io::IsTerminal,
    panic::{self, PanicHookInfo},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tracing_subscriber::EnvFilter;

use labels::ResultLabel;
pub(crate) use log_limit::{LogLimit, error, limited, warning};
pub use log_writer::LogGuard;
use log_writer::LogWriter;
pub(crate) use log_writer::write_to_stderr;
pub use network::NetworkMetrics;

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text per event, for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging to standard error, panics included. `level` takes the directives of `tracing`'s EnvFilter, such as `info`
/// or `sessiond=debug`. Fails if the level is malformed or logging has started already.
pub fn start_logs(format: LogFormat, level: &str) -> Result<LogGuard, String> {
    // The Redis client repeats as a warning, for each connection, what the store logs once.
    let filter = EnvFilter::try_new(format!("fred=error,{level}")).map_err(|error| format!("log_level: {error}"))?;
    let writer = LogWriter::start().map_err(|error| format!("cannot start the log writer: {error}"))?;
    let guard = LogGuard(writer.clone());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    // tracing-subscriber writes its own errors to standard error at once, and panics if that fails.
    let builder = builder.with_writer(move || writer.clone()).log_internal_errors(false);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| error.to_string())?;
    // The default hook waits until standard error accepts its text.
    panic::set_hook(Box::new(log_panic));
    Ok(guard)
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let cause = panic.payload_as_str().unwrap_or("not a text");
    let location = panic.location().map(ToString::to_string);
    error!(cause, location, backtrace = %Backtrace::capture(), "panic");
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    command: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamespaceLabel {
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FormLabel {
    form: &'static str,
}

type Histograms = Family<MethodLabel, Histogram, fn() -> Histogram>;

/// Every metric of the service. Names have the prefix `sessiond_`; docs/operating lists them.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histograms,
    redis_commands: Family<CommandLabels, Counter>,
    redis_command_seconds: Histogram,
    attribute_bytes_plain: Counter,
    attribute_bytes_stored: Counter,
    sessions: Family<NamespaceLabel, Gauge>,
    cache_reads: Family<ResultLabel, Counter>,
    cache_bytes: Gauge,
    cache_copies: Gauge,
    /// Connections, credentials and callers.
    pub network: NetworkMetrics,
    /// 1 if every Redis node answered its last heartbeat, else 0.
    pub redis_up: Gauge,
    /// Problems of the store that `/readyz` lists.
    pub store_problems: Gauge,
    /// Open gRPC connections.
    pub grpc_connections: Gauge,
    /// Connections whose client must wait, because as many streams are open as the limit allows.
    pub grpc_connections_at_stream_limit: Gauge,
    /// Streams reset because their client did not read the response in time.
    pub grpc_streams_reset: Counter,
    /// Tasks of the runtime that have not ended, at the time of the last report.
    pub tasks: Gauge,
    /// Open watches, including evicted ones whose stream has not ended.
    pub watches: Gauge,
    /// Log entries that the feed received.
    pub events_received: Counter,
    /// Events delivered to watches.
    pub events_delivered: Counter,
    /// Times the feed read the log because a channel message was lost, late or too large to publish.
    pub feed_gaps: Counter,
    /// Bytes of all log entries, of all partitions.
    pub log_bytes: Gauge,
    /// Maximum of `log_bytes`.
    pub log_limit_bytes: Gauge,
    /// Log entries dropped before their age because Redis was short of memory.
    pub log_entries_trimmed_early: Counter,
    /// Resync responses sent to watches.
    pub resyncs: Counter,
    /// Watches evicted because their client read nothing for too long. Those whose position was compacted do not count.
    pub watches_evicted: Counter,
    /// Sessions ended because their key was deleted or evicted directly in Redis.
    pub sessions_deleted_out_of_band: Counter,
    /// Keyspace notifications: 1 if every node publishes them, 0 if one does not, -1 if that is unknown.
    pub keyspace_notifications: Gauge,
    /// Time from a change in Redis to its arrival at this instance.
    pub feed_lag_seconds: Histogram,
    /// Sessions ended by this instance at their deadline.
    pub sessions_expired: Counter,
    /// Time from the deadline of a session to its end.
    pub expiry_lag_seconds: Histogram,
    /// Records that could not be read.
    pub corrupt_records: Counter,
    /// Subject index entries that a reconciliation added or removed.
    pub index_repairs: Counter,
}

fn latency() -> Histogram {
    // 100 us to 13 s in steps of two.
    Histogram::new((0..18).map(|step| 0.000_1 * f64::from(1 << step)))
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Metrics {
            registry: Registry::with_prefix("sessiond"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(latency as fn() -> Histogram),
            redis_commands: Family::default(),
            redis_command_seconds: latency(),
            attribute_bytes_plain: Counter::default(),
            attribute_bytes_stored: Counter::default(),
            sessions: Family::default(),
            cache_reads: Family::default(),
            cache_bytes: Gauge::default(),
            cache_copies: Gauge::default(),
            network: NetworkMetrics::default(),
            redis_up: Gauge::default(),
            store_problems: Gauge::default(),
            grpc_connections: Gauge::default(),
            grpc_connections_at_stream_limit: Gauge::default(),
            grpc_streams_reset: Counter::default(),
            tasks: Gauge::default(),
            watches: Gauge::default(),
            events_received: Counter::default(),
            events_delivered: Counter::default(),
            feed_gaps: Counter::default(),
            log_bytes: Gauge::default(),
            log_limit_bytes: Gauge::default(),
            log_entries_trimmed_early: Counter::default(),
            resyncs: Counter::default(),
            watches_evicted: Counter::default(),
            sessions_deleted_out_of_band: Counter::default(),
            keyspace_notifications: Gauge::default(),
            feed_lag_seconds: latency(),
            sessions_expired: Counter::default(),
            expiry_lag_seconds: latency(),
            corrupt_records: Counter::default(),
            index_repairs: Counter::default(),
        };
        metrics.keyspace_notifications.set(-1);
        metrics.register_all()
    }
}

impl Metrics {
    fn register_all(mut self) -> Self {
        let mut registry = std::mem::take(&mut self.registry);
        let r = &mut registry;
        r.register("grpc_requests", "Requests answered, by method and status code", self.requests.clone());
        let seconds = |r: &mut Registry, name: &str, help: &str, histogram: &Histogram| {
            r.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        let help = "Time until a request ends, for Watch the life of the stream; a rise with redis_command_duration points to Redis";
        r.register_with_unit("grpc_request_duration", help, Unit::Seconds, self.request_seconds.clone());
        r.register("grpc_connections", "Open gRPC connections", self.grpc_connections.clone());
        let help = "Connections with as many open streams as streams_per_connection allows, so that further calls wait; \
                    any value above 0 means that a client opens too many watches on one connection";
        r.register("grpc_connections_at_stream_limit", help, self.grpc_connections_at_stream_limit.clone());
        let help = "Streams reset because their client did not read the response within response_timeout; a rise means \
                    that clients do not read";
        r.register("grpc_streams_reset", help, self.grpc_streams_reset.clone());
        r.register("redis_commands", "Commands and scripts sent to Redis, by result", self.redis_commands.clone());
        seconds(r, "redis_command_duration", "Time until Redis answers a command", &self.redis_command_seconds);
        let help = "1 if every Redis node answered its last heartbeat, else 0";
        r.register("redis_up", help, self.redis_up.clone());
        let help = "Problems with Redis that /readyz and the log name; a rise needs an operator";
        r.register("store_problems", help, self.store_problems.clone());
        let help = "Tasks of the runtime that have not ended; a rise without more connections or watches is a leak";
        r.register("tasks", help, self.tasks.clone());
        let help = "Open watches, including evicted ones until their stream ends";
        r.register("watches", help, self.watches.clone());
        let help =
            "Watches evicted because their client read nothing; a rise means that clients do not read their streams";
        r.register("watches_evicted", help, self.watches_evicted.clone());
        r.register("events_received", "Log entries received from Redis", self.events_received.clone());
        r.register("events_delivered", "Events delivered to watches", self.events_delivered.clone());
        let help = "Reads of the log because channel messages were missing; a rise means lost connections or a backlog";
        r.register("feed_gaps", help, self.feed_gaps.clone());
        let help = "Time from a change in Redis to its arrival here; a rise means that this instance is behind";
        seconds(r, "feed_lag", help, &self.feed_lag_seconds);
        r.register(
            "resyncs",
            "Resync responses sent to watches; a rise means failovers, restarts, or watchers that are behind the log",
            self.resyncs.clone(),
        );
        let help = "Bytes of all log entries, of all partitions";
        r.register_with_unit("log", help, Unit::Bytes, self.log_bytes.clone());
        let help =
            "Maximum of log_bytes: log_max_bytes of all partitions, or 20 % of the maxmemory of Redis if that is less";
        r.register_with_unit("log_limit", help, Unit::Bytes, self.log_limit_bytes.clone());
        let help =
            "Log entries dropped early because Redis was short of memory; a rise means that Redis needs more memory";
        r.register("log_entries_trimmed_early", help, self.log_entries_trimmed_early.clone());
        let help = "Sessions ended because their key was deleted or evicted directly in Redis";
        r.register("sessions_deleted_out_of_band", help, self.sessions_deleted_out_of_band.clone());
        let help = "Keyspace notifications: 1 if every node publishes them, 0 if one does not, -1 if unknown";
        r.register("keyspace_notifications", help, self.keyspace_notifications.clone());
        self.register_cache(r);
        self.network.register(r);
        let help = "Sessions ended by this instance at their deadline";
        r.register("sessions_expired", help, self.sessions_expired.clone());
        let help = "Time from the deadline of a session to its end; a rise means that expiry is behind";
        seconds(r, "expiry_lag", help, &self.expiry_lag_seconds);
        let help = "Bytes of attribute values written, before (plain) and after (stored) compression";
        let attribute_bytes = Family::default();
        self.attribute_bytes_plain = attribute_bytes.get_or_create_owned(&FormLabel { form: "plain" });
        self.attribute_bytes_stored = attribute_bytes.get_or_create_owned(&FormLabel { form: "stored" });
        r.register_with_unit("attribute", help, Unit::Bytes, attribute_bytes);
        let help = "Records that could not be read; any rise means damaged data in Redis";
        r.register("corrupt_records", help, self.corrupt_records.clone());
        let help = "Subject index entries added or removed by a reconciliation; a rise follows crashes and failovers";
        r.register("index_repairs", help, self.index_repairs.clone());
        let help = "Log lines dropped because standard error did not accept them; a rise means that its reader is slow or gone";
        r.register("log_lines_dropped", help, log_writer::dropped());
        r.register("sessions", "Live sessions of each namespace that the configuration lists", self.sessions.clone());
        Metrics { registry, ..self }
    }

    fn register_cache(&self, r: &mut Registry) {
        let help = "Reads with min_revision, by result: hit, or why Redis was read; a rise of unverified means that this \
                    instance does not follow the logs in time";
        r.register("cache_reads", help, self.cache_reads.clone());
        r.register_with_unit("cache", "Bytes of the copies in the near cache", Unit::Bytes, self.cache_bytes.clone());
        r.register("cache_copies", "Sessions in the near cache", self.cache_copies.clone());
    }

    /// Counts one answered request.
    pub fn count_request(&self, method: &'static str, code: &'static str, took: Duration) {
        self.requests.get_or_create(&RequestLabels { method, code }).inc();
        self.request_seconds.get_or_create(&MethodLabel { method }).observe(took.as_secs_f64());
    }

    /// Counts one Redis command or script. `answered` is false if Redis failed or did not answer.
    pub fn count_redis_command(&self, command: &'static str, took: Duration, answered: bool) {
        let result = if answered { "ok" } else { "failed" };
        self.redis_commands.get_or_create(&CommandLabels { command, result }).inc();
        self.redis_command_seconds.observe(took.as_secs_f64());
    }

    /// Counts the bytes of all attribute values of one write, before and after compression.
    pub fn count_attribute_bytes(&self, plain: usize, stored: usize) {
        self.attribute_bytes_plain.inc_by(plain as u64);
        self.attribute_bytes_stored.inc_by(stored as u64);
    }

    /// Counts a read with `min_revision`.
    pub fn count_cache_read(&self, result: &'static str) {
        self.cache_reads.get_or_create(&ResultLabel { result }).inc();
    }

    /// Sets the size of the near cache.
    pub fn set_cache_size(&self, bytes: u64, copies: usize) {
        self.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.cache_copies.set(i64::try_from(copies).unwrap_or(i64::MAX));
    }

    /// Sets the number of live sessions of a namespace that the configuration lists.
    pub fn set_sessions(&self, namespace: &str, count: u64) {
        let labels = NamespaceLabel { namespace: namespace.to_owned() };
        self.sessions.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Returns all metrics in the OpenMetrics text format.
    #[expect(clippy::expect_used, reason = "a String accepts every write")]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String accepts every write");
        text
    }
}
