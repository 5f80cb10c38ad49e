//! Accepts connections, bounds what each may take, and lets them go.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{config::Limits, observe::Metrics, tasks::Connected};

/// What a client sends first: a connection that has not sent it by then is dropped.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Bytes in flight for one stream before it waits for its reader.
const SEND_BUFFER: usize = 256 * 1024;
const WINDOW: u32 = 1024 * 1024;
/// Streams that a peer may reset, or break, before its connection is closed.
const MAX_RESET_STREAMS: usize = 100;

pub struct Connections {
    listener: TcpListener,
    routes: Routes,
    limits: Limits,
    metrics: Arc<Metrics>,
}

impl Connections {
    pub fn new(listener: TcpListener, routes: Routes, limits: Limits, metrics: Arc<Metrics>) -> Self {
        Connections { listener, routes, limits, metrics }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }

    /// Accepts until told to stop; then waits for the calls under way, but no longer than the drain time-out.
    pub async fn serve(self, stop: CancellationToken, drain_timeout: Duration) -> &'static str {
        let mut connected = Connected::default();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                () = connected.one_ended() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                // Closed at once: the peer sees why in its own log, and can try another instance.
                Ok(_) if connected.count() >= self.limits.connections => {
                    tracing::warn!(limit = self.limits.connections, "connection refused: limits.connections");
                }
                Ok((stream, _)) => connected.spawn(self.connection(stream, stop.clone())),
                Err(error) => {
                    // Out of file descriptors, most likely: give the others time to close.
                    tracing::warn!(%error, "accept failed");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.listener);
        let deadline = Instant::now() + drain_timeout;
        if !connected.all_ended(deadline).await {
            tracing::warn!("connections were cut: the drain time-out is over");
        }
        "accepting"
    }

    /// Serves one connection, and finishes its calls once told to stop.
    fn connection(&self, stream: TcpStream, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
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
        let service = TowerToHyperService::new(self.routes.clone().prepare());
        let metrics = self.metrics.clone();
        async move {
            let _counted = Counted::new(metrics);
            let _ = stream.set_nodelay(true);
            if timeout(PREFACE_TIMEOUT, preface(&stream)).await.is_err() {
                return;
            }
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        }
    }
}

/// Returns when the whole preface is there, or the peer has closed.
async fn preface(stream: &TcpStream) {
    let mut seen = [0; PREFACE.len()];
    loop {
        match stream.peek(&mut seen).await {
            Ok(0) | Err(_) => return,
            Ok(count) if count >= PREFACE.len() || !PREFACE.starts_with(&seen[..count]) => return,
            Ok(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Keeps the gauge of connections true however a connection ends.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Counted(metrics)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
