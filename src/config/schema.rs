//! Every setting: its meaning, the places in which it can be given, its default and its range.

use std::{collections::BTreeMap, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{
    kind::{address, boolean, choice, optional, path, text},
    quantity::{any_duration, bytes, duration, integer, timeout},
    redis::{Secret, key_prefix, password, redis_url},
    setting::{Section, Setting, Source, about, settings},
};
use crate::{
    observe::LogFormat,
    session::{Durability, Namespace, Policy, Preset, SessionLimitPolicy, TokenReuse},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const KEEPALIVES: RangeInclusive<Duration> = Duration::from_millis(100)..=HOUR;

settings! {
    /// Effective configuration of a server.
    #[derive(Clone, Debug)]
    pub struct Config {
        /// IP address and port of the gRPC server. Port 0 lets the system choose one, which the log line `listening`
        /// names. An address other than loopback needs `tls_cert`, `tls_key` and `callers`, or `insecure`.
        Flag listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 50051)), address();
        /// IP address and port of `/metrics` (Prometheus), `/healthz` and `/readyz`.
        Flag metrics_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9464)), address();
        /// Path of the certificate of the gRPC server with its chain, in PEM. With it the server accepts TLS only.
        Flag tls_cert: Option<PathBuf> = None, optional(path(), "no TLS");
        /// Path of the private key of `tls_cert`, in PEM.
        Flag tls_key: Option<PathBuf> = None, optional(path(), "no TLS");
        /// Path of the authorities of client certificates, in PEM. With it the server requests a client certificate, and
        /// accepts an API key instead.
        Flag client_ca: Option<PathBuf> = None, optional(path(), "no client certificates");
        /// Path of the revocation lists of the issuers of client certificates, in PEM. With it a certificate whose issuer has
        /// none is refused.
        Flag client_crl: Option<PathBuf> = None, optional(path(), "revocation is not checked");
        /// Path of the file with the callers, their credentials and their grants ([callers](callers.md)). With it every call
        /// needs a credential.
        Flag callers: Option<PathBuf> = None, optional(path(), "every caller may do everything");
        /// Path of the [audit log](audit.md), or `stderr`.
        Flag audit_file: Option<PathBuf> = None, optional(path(), "no audit log");
        /// Whether calls that need a line in the audit log are refused while it cannot be written.
        Flag audit_required: bool = false, boolean();
        /// Whether the server offers reflection, with which grpcurl needs no proto files.
        Flag reflection: Option<bool> = None, optional(boolean(), "true on a loopback address, false on others");
        /// URL of Redis: `redis://[user:password@]host:port[/db]`, `rediss://` for TLS, `redis+unix:///path`,
        /// `redis-cluster://host:port` or `redis-sentinel://host:port?sentinelServiceName=NAME`. Set a password in
        /// SESSIOND_REDIS_PASSWORD instead, because other processes can read the command line.
        Flag redis: Option<String> = None, optional(redis_url(), "an embedded Redis is started");
        /// Password of Redis. It replaces a password in the URL.
        Environment redis_password: Option<Secret> = None, optional(password(), "none");
        /// Path of the file with the password of Redis, in one line. It replaces a password in the URL.
        Flag redis_password_file: Option<PathBuf> = None, optional(path(), "none");
        /// Path of the authorities of Redis and its Sentinels, in PEM, instead of those that the system trusts.
        Flag redis_ca: Option<PathBuf> = None, optional(path(), "the authorities of the system");
        /// Path of the certificate that sessiond shows to Redis and its Sentinels, with its chain, in PEM.
        Flag redis_cert: Option<PathBuf> = None, optional(path(), "none");
        /// Path of the private key of `redis_cert`, in PEM.
        Flag redis_key: Option<PathBuf> = None, optional(path(), "none");
        /// Prefix of all keys, so that several applications can share one Redis.
        Flag key_prefix: String = "ses:".into(), key_prefix();
        /// Data directory of the embedded Redis.
        Flag data_dir: PathBuf = "sessiond-data".into(), path();
        /// Format of log lines.
        Flag log_format: LogFormat = LogFormat::Text,
            choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]);
        /// Log level: error, warn, info, debug, trace, or filter directives such as `sessiond=debug`. The Redis client logs
        /// errors only, unless a directive such as `fred=debug` names it.
        Flag log_level: String = "info".into(), text();
        /// Time that the start waits for a Redis that cannot be reached, loads its data, or has no memory left for a new
        /// store. Then the server exits with code 1. 0s: one attempt.
        Flag start_timeout: Duration = MINUTE, any_duration();
        /// Time after a shutdown signal in which the server reports that it is not ready, and still serves new connections
        /// and calls, so that load balancers can stop using it. Then the drain starts.
        Flag drain_delay: Duration = Duration::ZERO, any_duration();
        /// Time that open calls may still take after the start of the drain. Then their connections are closed.
        Flag drain_timeout: Duration = 10 * SECOND, any_duration();
        /// Age, plus or minus 10 %, at which a gRPC connection is closed to new calls (GOAWAY). Clients then open a new one,
        /// so that they spread over all instances. Open calls and watches continue until they end.
        Flag max_connection_age: Option<Duration> = Some(HOUR), timeout();
        /// Permission to serve addresses other than loopback without TLS or without callers.
        Flag insecure: bool = false, boolean();
        /// Permission to use a Redis that may evict keys. Sessions then end early (OUT_OF_BAND), or silently if their
        /// entries in the sorted sets of deadlines are evicted.
        Flag allow_eviction: bool = false, boolean();
        /// Whether namespaces without a section `[namespace.<name>]` are served, with `[default_policy]`. If false,
        /// their calls fail with NAMESPACE_UNKNOWN.
        Key allow_unlisted_namespaces: bool = true, boolean();
        /// Maximum age of log entries. A watch that resumes from before the oldest entry receives `resync` COMPACTED. The
        /// log of one partition also has at most 1,000,000 entries.
        Key log_max_age: Duration = 15 * MINUTE, any_duration();
        /// Maximum size of the log of one partition. All logs on one Redis server together have at most 20 % of its
        /// `maxmemory`, and less while Redis is short of memory ([sizing](sizing.md)).
        Key log_max_bytes: u64 = 64 * MIB, bytes(64 * KIB..=u64::MAX >> 11);
        /// Maximum size of the copies with which this instance answers GetSession with `min_revision` from its memory. A session
        /// above a sixteenth of it has no copy. 0: the instance always reads from Redis.
        Key cache_bytes: u64 = 64 * MIB, bytes(0..=u64::MAX >> 11);
        /// Time between two reconciliations of the subject indexes, of the sets of deadlines, and of sessions whose keys
        /// were deleted without a notification.
        Key reconcile_interval: Duration = 10 * MINUTE, duration(SECOND..=Duration::MAX);
        /// Number of partitions, a power of two. Fixed when the store is created: a server with another number does not
        /// start.
        Key partitions: u16 = 16, integer(1..=64);
    }
    sections {
        /// Limits of the process.
        limits: Limits;
        /// Policy of namespaces without a section of their own.
        default_policy: Policy;
        /// Policies of the namespaces that have a section.
        namespaces: BTreeMap<Namespace, Policy>;
    }
}

settings! {
    /// Limits of the process.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Limits {
        /// Maximum number of gRPC connections. Further ones are closed at once. The maximum is lower if the process may
        /// open too few [file descriptors](README.md#file-descriptors).
        Key connections: usize = 10_000, integer(1..=1_000_000);
        /// Maximum number of gRPC connections that have not presented a valid credential, on a server with callers. A further
        /// one closes the oldest of them.
        Key unauthenticated_connections: usize = 1_000, integer(1..=1_000_000);
        /// Maximum number of calls in flight, of all connections; a watch counts until it is open. Further ones fail with
        /// OVERLOADED. One caller gets at most half.
        Key calls: usize = 10_000, integer(2..=1_000_000);
        /// Maximum number of concurrent calls on one connection. Further ones wait in the client, by HTTP/2.
        Key streams_per_connection: u32 = 1_000, integer(1..=100_000);
        /// Maximum number of open watches. Further ones fail with RESOURCE_EXHAUSTED WATCH_LIMIT. One caller gets at most half.
        Key watches: usize = 10_000, integer(1..=1_000_000);
        /// Maximum duration of a unary call and of the opening of a watch. It replaces a later deadline, or none, of the
        /// client. After it the call fails with DEADLINE_EXCEEDED.
        Key call_timeout: Duration = 10 * SECOND, duration(Duration::from_millis(100)..=10 * SECOND);
        /// Time, in addition to one bookmark interval, after which a watch whose client reads nothing is closed
        /// (`resync` SLOW_CONSUMER).
        Key slow_consumer_timeout: Duration = 60 * SECOND, duration(SECOND..=Duration::MAX);
        /// Time in which a client must read a response that is ready, or the final response of an evicted watch. After it the
        /// stream is reset: the client receives CANCELLED.
        Key response_timeout: Duration = MINUTE, duration(SECOND..=Duration::MAX);
        /// Maximum size of the responses to unary calls that are being made or are not read yet. A call that gets no place
        /// for its largest response before its deadline fails with OVERLOADED and is not executed. One connection gets at
        /// most one eighth, and at least the largest response.
        Key response_bytes: u64 = 256 * MIB, bytes(8 * MIB..=u64::MAX >> 11);
        /// Number of recent events kept in memory, and at most 64 MiB of them. A watch that is further behind reads the
        /// log in Redis.
        Key ring_slots: usize = 65_536, integer(1..=1_000_000);
        /// Number of channel messages of one Redis node that may wait, and at most 32 MiB of them. If there are more, they
        /// are dropped, and their events are read from the log.
        Key feed_buffer: usize = 8_192, integer(1..=1_000_000);
        /// Time between two HTTP/2 pings on a connection.
        Key keepalive_interval: Duration = 15 * SECOND, duration(KEEPALIVES);
        /// Time after which a connection whose peer has not answered a ping is closed, with its watches.
        Key keepalive_timeout: Duration = 10 * SECOND, duration(KEEPALIVES);
    }
}

settings! {
    Policy {
        /// Name of a set of values from published guidance ([list of presets](policies.md)). The section starts from
        /// these values; its other keys replace single ones.
        Key preset: optional(choice(&Preset::NAMED), "none");
        /// Time after its last touch at which a session ends.
        Key idle_timeout: timeout();
        /// Maximum idle timeout that a call can request. "never": no maximum, and a call can request no idle timeout.
        Key max_idle_timeout: timeout();
        /// Time after its creation at which a session ends, also if it is in use.
        Key absolute_timeout: timeout();
        /// Maximum absolute timeout that a call can request. "never": no maximum, and a call can request no absolute
        /// timeout.
        Key max_absolute_timeout: timeout();
        /// Minimum time between two recorded touches of a session; a twentieth of its idle timeout if that is shorter. A touch
        /// within it is not written to Redis and does not extend the idle deadline.
        Key touch_interval: optional(any_duration(), "60s");
        /// Time that the tombstone of an ended session is kept, from which calls learn the cause of its end.
        Key tombstone: duration(MINUTE..=30 * DAY);
        /// Time that a `request_id` is stored, at most `tombstone`. After 15 s only the last 64 request ids of a session are
        /// stored. The default is `tombstone` if that is shorter.
        Key retry_window: any_duration();
        /// Age of a token from which GetSession returns ROTATION_DUE.
        Key renewal_timeout: timeout();
        /// Grace period of a superseded token: its default and its maximum. Token reuse is detected only after this time.
        Key rotation_grace: any_duration();
        /// Result of token reuse (see RotateSession): "end" ends the session, "report" delivers the event TOKEN_REUSED.
        Key token_reuse: choice(&[("end", TokenReuse::End), ("report", TokenReuse::Report)]);
        /// Whether tokens that do not have the form of the server are accepted by CreateSession and RotateSession.
        Key client_tokens: boolean();
        /// Maximum number of sessions of one subject. 0: no limit.
        Key session_limit: integer(0..=1_000);
        /// Result of a create or login beyond `session_limit`: "replace-oldest" ends the oldest sessions of the subject,
        /// "reject" fails the call.
        Key session_limit_policy: choice(&[
            ("replace-oldest", SessionLimitPolicy::ReplaceOldest),
            ("reject", SessionLimitPolicy::Reject),
        ]);
        /// Condition for the response to a write: "local" waits for the primary, "replicated" also waits until
        /// `replicas` replicas have the write.
        Key durability: choice(&[("local", Durability::Local), ("replicated", Durability::Replicated)]);
        /// Number of replicas that must have a write if `durability` is "replicated".
        Key replicas: integer(1..=16);
        /// Maximum size of all attribute names and values of one session, before compression.
        Key max_payload_bytes: bytes(1..=MIB);
        /// Maximum number of attributes of one session.
        Key max_attributes: integer(1..=1_024);
    }
}
