//! gRPC calls as single HTTP/2 frames, for requests that client libraries never send and responses that they hide.

use bytes::Bytes;
use prost::Message;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tonic::Status;

use super::WAIT_LIMIT;

/// One HTTP/2 connection.
#[derive(Clone)]
pub struct Raw(pub h2::client::SendRequest<Bytes>);

/// Returns the message with its gRPC length prefix of five bytes.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat()
}

/// Returns the gRPC length prefix of a message with this length and this compressed flag.
pub fn header(compressed: bool, length: usize) -> Vec<u8> {
    [&[u8::from(compressed)][..], &(length as u32).to_be_bytes()].concat()
}

/// Returns an HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

impl Raw {
    /// Connects with windows of 8 MiB.
    pub async fn connect(address: &str) -> Self {
        Raw::connect_with_windows(address, 8 << 20, 8 << 20).await
    }

    /// Connects with these flow-control windows: bytes that the server may send per stream and in total before a read.
    pub async fn connect_with_windows(address: &str, stream_window: u32, connection_window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut builder = h2::client::Builder::new();
        builder.max_header_list_size(1024 * 1024).initial_window_size(stream_window);
        builder.initial_connection_window_size(connection_window);
        let (requests, connection) = builder.handshake(stream).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test's runtime owns it")]
        tokio::spawn(connection);
        Raw(requests)
    }

    /// Sends whole calls on a socket that nothing reads, with the largest flow-control windows. The connection ends when the
    /// socket is dropped.
    pub async fn send_without_reading(address: &str, method: &str, message: &[u8], calls: u32) -> TcpStream {
        const WINDOW: u32 = (1 << 31) - 1;
        let path = format!("/sessiond.v1.SessionService/{method}");
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", &path),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let mut block = Vec::new();
        for (name, value) in headers {
            // A literal header field with a literal name.
            block.push(0);
            for text in [name, value] {
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = [&4u16.to_be_bytes()[..], &WINDOW.to_be_bytes()].concat();
        bytes.extend(frame(4, 0, 0, &settings));
        bytes.extend(frame(8, 0, 0, &(WINDOW - 65_535).to_be_bytes()));
        for call in 0..calls {
            bytes.extend(frame(1, 4, 2 * call + 1, &block));
            bytes.extend(frame(0, 1, 2 * call + 1, message));
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream
    }

    /// Sends a whole call; returns the body of the response, length prefix included, and the status.
    pub async fn call(&self, method: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> (Vec<u8>, Status) {
        let call = self.begin(method, headers, Some(body.into()));
        timeout(WAIT_LIMIT, answer(call.await.0)).await.expect("a response")
    }

    /// Starts a call. `body`: the whole request. None: the stream stays open, and the test sends the request.
    pub async fn begin(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let mut request = http::Request::post(format!("http://test/sessiond.v1.SessionService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(()).unwrap(), body).await
    }

    /// Sends a request of any form. `body`: the whole body. None: the stream stays open, and the test sends the body.
    pub async fn send(
        &self,
        request: http::Request<()>,
        body: Option<Bytes>,
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let mut requests = timeout(WAIT_LIMIT, self.0.clone().ready()).await.expect("a free stream").unwrap();
        let (response, mut stream) = requests.send_request(request, false).unwrap();
        if let Some(body) = body {
            stream.send_data(body, true).unwrap();
        }
        (response, stream)
    }
}

/// Reads the whole response of a call: its body and its status.
pub async fn answer(response: h2::client::ResponseFuture) -> (Vec<u8>, Status) {
    let response = response.await.unwrap();
    if let Some(status) = Status::from_header_map(response.headers()) {
        return (Vec::new(), status);
    }
    let mut body = response.into_body();
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        whole.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap().expect("a status");
    (whole, Status::from_header_map(&trailers).expect("a status"))
}
