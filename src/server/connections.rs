//! Accepts gRPC connections, applies the limits of each, and drains them at shutdown.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use super::{
    accept::Acceptor,
    services::{GatedServices, Services},
    socket::{self, Opened},
    streams::Streams,
    tls::{CurrentTls, HandshakeFailure},
    write_buffer::{SocketFailure, WriteBuffer},
};
use crate::{
    audit_log::{Actor, AuditLog, Event, Refusal, Source, Target},
    auth::Peer,
    config::Limits,
    grpc::{Admission, Gate},
    observe::Metrics,
    tasks::ConnectionTasks,
    workers::jitter,
};

/// Time after which a connection is closed whose handshake and whole preface have not arrived.
const OPENING_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of the headers of a request above which h2 answers with HTTP status 431. Above 16 KiB the call fails with an error
/// status.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// Bytes of one stream that may be unsent before the stream waits for its reader.
const SEND_BUFFER: usize = 256 * 1024;
/// Flow-control window of one stream; that of a connection has four times the size.
const WINDOW: u32 = 1024 * 1024;
/// Part of `limits.response_bytes` that one connection may use, so that the calls of others go on while its client does not
/// read.
const RESPONSE_SHARE: usize = 8;
/// Number of streams that a peer may reset, or break, before its connection is closed.
const MAX_RESET_STREAMS: usize = 100;

/// Accepts and serves the gRPC connections of one listener.
pub(super) struct Connections {
    /// Listening socket.
    pub acceptor: Acceptor,
    /// Services that every connection offers.
    pub services: Services,
    /// What decides which connections and calls are admitted.
    pub admission: Arc<Admission>,
    /// TLS of the last reload. None: connections have no TLS.
    pub tls: Option<Arc<CurrentTls>>,
    /// Limits of the process.
    pub limits: Limits,
    /// Size of the largest response to a unary call, in bytes.
    pub largest_response: usize,
    /// Age at which a connection is closed to new calls, plus or minus 10 %. None: never.
    pub max_age: Option<Duration>,
    /// Metrics with the gauge of open connections.
    pub metrics: Arc<Metrics>,
}

impl Connections {
    /// Accepts connections until `stop` is cancelled, then waits until their calls have ended, at most for
    /// `drain_timeout`.
    pub(super) async fn serve(self, stop: CancellationToken, drain_timeout: Duration) {
        let mut tasks = ConnectionTasks::default();
        loop {
            let (stream, address) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.acceptor.accept(&mut tasks) => accepted,
            };
            tasks.spawn(self.connection(stream, address, stop.clone()));
        }
        drop(self.acceptor);
        if !tasks.drain(Instant::now() + drain_timeout).await {
            crate::observe::warning!("drain timeout reached; remaining connections closed");
        }
    }

    /// Serves one connection. At its maximum age, at the end of its client certificate, or after `stop` is cancelled, it sends
    /// GOAWAY, accepts no new calls, and ends with the last open call.
    fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let limit = usize::try_from(self.limits.response_bytes).unwrap_or(usize::MAX);
        let response_bytes = (limit / RESPONSE_SHARE).max(self.largest_response);
        let streams = Streams::new(self.limits.streams_per_connection, response_bytes, self.metrics.clone());
        let mut builder = hyper::server::conn::http2::Builder::new(streams);
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(self.limits.keepalive_interval)
            .keep_alive_timeout(self.limits.keepalive_timeout)
            .max_concurrent_streams(self.limits.streams_per_connection)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_send_buf_size(SEND_BUFFER)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
            .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
            .max_local_error_reset_streams(MAX_RESET_STREAMS);
        let services = self.services.clone();
        let (admission, metrics) = (self.admission.clone(), self.metrics.clone());
        let write_timeout = self.limits.keepalive_interval.saturating_add(self.limits.keepalive_timeout);
        // Connections that were opened at the same time close at different times.
        let age = self.max_age.map(|age| age.mul_f64(0.9).saturating_add(jitter(age.mul_f64(0.2))));
        let tls = self.tls.as_ref().map(|tls| tls.current());
        let (place, close) = match admission.authenticator.requires_credentials() {
            true => {
                let (place, close) = admission.unauthenticated.add();
                (Some(place), close)
            }
            false => (None, CancellationToken::new()),
        };
        async move {
            let _gauge = ConnectionGauge::new(metrics.clone());
            let _ = stream.set_nodelay(true);
            let opening = timeout(OPENING_TIMEOUT, socket::open(stream, tls.as_deref()));
            let opened = stop.run_until_cancelled(close.run_until_cancelled(opening)).await;
            let Some(Some(opened)) = opened else { return };
            let opened = opened.unwrap_or(Err(HandshakeFailure("timeout")));
            if tls.is_some() {
                note_handshake(&metrics, &admission.audit_log, address, opened.as_ref().err());
            }
            let Ok(Opened { socket, certificate, first_bytes }) = opened else { return };
            let peer = Arc::new(Peer::new(address, certificate, place));
            let age = [age, peer.remaining_validity(SystemTime::now())].into_iter().flatten().min();
            // hyper cannot close a connection whose peer reads nothing of its socket: it would first write a GOAWAY.
            let mut stream = TimeoutStream::new(socket);
            stream.set_write_timeout(Some(write_timeout));
            let (mut buffer, socket) = WriteBuffer::new(Box::pin(stream), first_bytes);
            let gate = Gate { admission, peer, metrics: metrics.clone() };
            let services = GatedServices { gate, services };
            let connection = builder.serve_connection(TokioIo::new(socket), services);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                () = close.cancelled() => {
                    metrics.network.count_closed_connection("no_credential");
                    return;
                }
                ended = poll_fn(|context| buffer.poll(connection.as_mut(), context)) => ended,
                _ = stop.run_until_cancelled(pass(age)) => {
                    connection.as_mut().graceful_shutdown();
                    poll_fn(|context| buffer.poll(connection.as_mut(), context)).await
                }
            };
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "connection failed"),
                Err(SocketFailure::TooManyControlFrames) => {
                    metrics.network.count_closed_connection("control_frames");
                }
                Err(SocketFailure::Io(error)) => tracing::debug!(%error, "socket of a connection failed"),
            }
        }
    }
}

/// Waits for this time. None: never returns.
async fn pass(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Counts a handshake; one with a client certificate that is not accepted in the audit log, too.
fn note_handshake(metrics: &Metrics, audit_log: &AuditLog, address: SocketAddr, failure: Option<&HandshakeFailure>) {
    let result = failure.map_or("ok", |failure| failure.0);
    metrics.network.count_handshake(result);
    if result.starts_with("certificate_") || result == "crl_unknown" {
        let (source, reason, apart) = (Source::network_of(address.ip()), result.to_owned(), String::new());
        audit_log.refuse(Refusal { source, event: Event::AuthnFail, reason, apart }, || {
            (Actor { peer: Some(address.to_string()), ..Actor::default() }, Target::default())
        });
    }
}

/// Counts an open connection in the metrics until it is dropped.
struct ConnectionGauge(Arc<Metrics>);

impl ConnectionGauge {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.grpc_connections.inc();
        ConnectionGauge(metrics)
    }
}

impl Drop for ConnectionGauge {
    fn drop(&mut self) {
        self.0.grpc_connections.dec();
    }
}
