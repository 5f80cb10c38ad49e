//! The socket of a new connection: its TLS handshake, and the first bytes of HTTP/2.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::tls::{HandshakeFailure, Tls};
use crate::auth::ClientCertificate;

/// First bytes that an HTTP/2 client sends.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Socket with or without TLS.
pub(super) type Socket = Either<TcpStream, TlsStream<TcpStream>>;

/// A client that has sent its first bytes.
pub(super) struct Opened {
    /// Socket after the first bytes.
    pub socket: Socket,
    /// Certificate of the client. None: it has shown none.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// First bytes that it sent.
    pub first_bytes: Bytes,
}

/// Performs the handshake and reads the first bytes: the whole preface of HTTP/2, or what differs from it.
pub(super) async fn open(stream: TcpStream, tls: Option<&Tls>) -> Result<Opened, HandshakeFailure> {
    let (mut socket, certificate) = match tls {
        None => (Either::Left(stream), None),
        Some(tls) => {
            let (stream, certificate) = tls.accept(stream).await?;
            (Either::Right(stream), certificate)
        }
    };
    let first_bytes = preface(&mut socket).await;
    Ok(Opened { socket, certificate, first_bytes })
}

/// Reads until the whole preface has arrived, other bytes have arrived, or the client has closed.
async fn preface(socket: &mut (impl AsyncRead + Unpin)) -> Bytes {
    let mut received = BytesMut::with_capacity(PREFACE.len());
    while received.len() < PREFACE.len() && PREFACE.starts_with(&received) {
        let missing = PREFACE.len() - received.len();
        match socket.take(missing as u64).read_buf(&mut received).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    received.freeze()
}
