//! Collects what h2 writes to the socket of a connection, and writes it with few system calls.
//!
//! h2 writes and flushes each DATA frame by itself. Responses of many streams are ready at the same time, for example when a
//! change is delivered to many watches: one system call per frame would be the greatest part of their cost. The buffer
//! therefore keeps what h2 writes, and the task of the connection writes it after h2 has processed all streams that are ready.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::frame_meter::ControlFrames;

/// Number of bytes from which on they are written at once.
const MAX_BYTES: usize = 32 * 1024;
/// Maximum capacity of an empty buffer in bytes: idle connections keep no more.
const MAX_IDLE_BYTES: usize = 4 * 1024;

/// Why a socket can no longer be used.
#[derive(Debug)]
pub(super) enum SocketFailure {
    /// A write failed.
    Io(io::Error),
    /// The client has sent too many control frames.
    TooManyControlFrames,
}

/// Socket of a connection with its unwritten bytes.
struct Buffered<S> {
    socket: S,
    /// Bytes that were read from the socket before hyper reads it.
    unread: Bytes,
    unwritten: BytesMut,
    frames: ControlFrames,
    has_too_many_control_frames: bool,
    /// Whether the socket itself holds nothing that was written to it. TLS holds what the network does not accept.
    is_flushed: bool,
}

impl<S: AsyncWrite + Unpin> Buffered<S> {
    /// Writes all unwritten bytes to the socket.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(context, &self.unwritten))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unwritten.advance(written);
            self.is_flushed = false;
        }
        if !self.is_flushed {
            ready!(Pin::new(&mut self.socket).poll_flush(context))?;
            self.is_flushed = true;
        }
        if self.unwritten.capacity() > MAX_IDLE_BYTES {
            self.unwritten = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until there is room for at least one byte.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unwritten.len() < MAX_BYTES { Poll::Ready(Ok(())) } else { self.poll_drain(context) }
    }
}

/// The socket as hyper uses it. A flush does nothing: [`WriteBuffer::run`] writes.
pub(super) struct BufferedSocket<S>(Arc<Mutex<Buffered<S>>>);

impl<S: AsyncRead + Unpin> AsyncRead for BufferedSocket<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut buffered = self.0.lock();
        if !buffered.unread.is_empty() {
            let count = buffered.unread.len().min(into.remaining());
            into.put_slice(&buffered.unread.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut buffered.socket).poll_read(context, into))?;
        buffered.has_too_many_control_frames |= buffered.frames.add_read(&into.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BufferedSocket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut buffered = self.0.lock();
        ready!(buffered.poll_room(context))?;
        let before = buffered.unwritten.len();
        for part in parts {
            buffered.frames.add_written(part);
            buffered.unwritten.extend_from_slice(part);
        }
        Poll::Ready(Ok(buffered.unwritten.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffered = self.0.lock();
        ready!(buffered.poll_drain(context))?;
        Pin::new(&mut buffered.socket).poll_shutdown(context)
    }
}

/// The unwritten bytes of a connection.
pub(super) struct WriteBuffer<S> {
    buffered: Arc<Mutex<Buffered<S>>>,
    /// Whether the task has given way to other tasks since the last write.
    has_yielded: bool,
}

impl<S: AsyncWrite + Unpin> WriteBuffer<S> {
    /// Returns a buffer in front of this socket, and the socket for hyper, which first reads the bytes that were read before.
    pub(super) fn new(socket: S, unread: Bytes) -> (Self, BufferedSocket<S>) {
        let frames = ControlFrames::new(Instant::now());
        let buffered = Buffered {
            socket,
            unread,
            unwritten: BytesMut::new(),
            frames,
            has_too_many_control_frames: false,
            is_flushed: true,
        };
        let buffered = Arc::new(Mutex::new(buffered));
        (WriteBuffer { buffered: buffered.clone(), has_yielded: false }, BufferedSocket(buffered))
    }

    /// Polls the connection that uses the socket, then writes what it has written. Fails if the socket can no longer be used.
    ///
    /// Before it writes, the task gives way once to the tasks that are ready, such as those of other streams of the connection:
    /// their frames go with the same system call.
    pub(super) fn poll<T>(
        &mut self,
        connection: Pin<&mut impl Future<Output = T>>,
        context: &mut Context<'_>,
    ) -> Poll<Result<T, SocketFailure>> {
        let ended = connection.poll(context);
        let mut buffered = self.buffered.lock();
        if let Poll::Ready(result) = ended {
            // hyper has shut the socket down, unless it failed.
            let _ = buffered.poll_drain(context);
            return Poll::Ready(Ok(result));
        }
        if buffered.has_too_many_control_frames {
            return Poll::Ready(Err(SocketFailure::TooManyControlFrames));
        }
        if buffered.unwritten.is_empty() && buffered.is_flushed {
            return Poll::Pending;
        }
        self.has_yielded = !self.has_yielded;
        if self.has_yielded {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match buffered.poll_drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(SocketFailure::Io(error))),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Runs a connection that uses the socket, until it ends.
    async fn run<T, S: AsyncWrite + Unpin>(
        buffer: &mut WriteBuffer<S>,
        connection: impl Future<Output = T>,
    ) -> Result<T, SocketFailure> {
        let mut connection = std::pin::pin!(connection);
        poll_fn(|context| buffer.poll(connection.as_mut(), context)).await
    }

    #[tokio::test]
    async fn write_buffer_writes_what_pending_connection_has_written() {
        let (socket, mut peer) = duplex(1 << 20);
        let (mut buffer, mut socket) = WriteBuffer::new(socket, Bytes::new());
        let connection = async {
            socket.write_all(b"one").await.unwrap();
            socket.flush().await.unwrap();
            socket.write_all(b"two").await.unwrap();
            std::future::pending::<()>().await
        };
        let mut received = [0; 6];
        tokio::select! {
            _ = run(&mut buffer, connection) => unreachable!(),
            read = peer.read_exact(&mut received) => drop(read.unwrap()),
        }
        assert_eq!(&received, b"onetwo");
    }

    #[tokio::test]
    async fn bytes_that_were_read_before_are_read_first() {
        let (socket, mut peer) = duplex(100);
        let (_buffer, mut socket) = WriteBuffer::new(socket, Bytes::from_static(b"be"));
        peer.write_all(b"fore").await.unwrap();
        let mut read = [0; 6];
        socket.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"before");
    }

    #[tokio::test]
    async fn socket_that_holds_written_bytes_is_flushed() {
        let (socket, mut peer) = duplex(100);
        let (mut buffer, mut socket) = WriteBuffer::new(tokio::io::BufWriter::new(socket), Bytes::new());
        let connection = async {
            socket.write_all(b"held").await.unwrap();
            std::future::pending::<()>().await
        };
        let mut received = [0; 4];
        tokio::select! {
            _ = run(&mut buffer, connection) => unreachable!(),
            read = peer.read_exact(&mut received) => drop(read.unwrap()),
        }
        assert_eq!(&received, b"held");
    }

    #[tokio::test]
    async fn write_buffer_full_waits_for_the_peer_and_keeps_order() {
        let (socket, mut peer) = duplex(1_000);
        let (mut buffer, mut socket) = WriteBuffer::new(socket, Bytes::new());
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        let connection = async {
            for part in sent.chunks(3_000) {
                socket.write_all(part).await.unwrap();
            }
            socket.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (ended, read) = tokio::join!(run(&mut buffer, connection), peer.read_to_end(&mut received));
        ended.unwrap();
        read.unwrap();
        assert!(received == sent);
    }

    #[tokio::test]
    async fn write_buffer_holds_at_most_its_size_and_one_write() {
        let (socket, _peer) = duplex(1_000);
        let (mut buffer, mut socket) = WriteBuffer::new(socket, Bytes::new());
        let connection = async { while socket.write_all(&[7; 16 * 1024]).await.is_ok() {} };
        let waits = tokio::time::timeout(std::time::Duration::from_millis(50), run(&mut buffer, connection)).await;
        assert!(waits.is_err());
        assert!(buffer.buffered.lock().unwritten.len() < MAX_BYTES + 16 * 1024);
    }

    #[tokio::test]
    async fn write_buffer_failed_socket_ends_the_connection() {
        let (socket, peer) = duplex(10);
        drop(peer);
        let (mut buffer, mut socket) = WriteBuffer::new(socket, Bytes::new());
        let connection = async {
            socket.write_all(b"lost").await.unwrap();
            std::future::pending::<()>().await
        };
        let failure = run(&mut buffer, connection).await.unwrap_err();
        assert!(matches!(failure, SocketFailure::Io(error) if error.kind() == io::ErrorKind::BrokenPipe));
    }
}
