//! Calls of the service frame by frame: for what a client's library never sends, and for what it would hide.

use bytes::Bytes;
use prost::Message;
use tokio::{net::TcpStream, time::timeout};
use tonic::Status;

use super::PATIENCE;

/// One HTTP/2 connection.
#[derive(Clone)]
pub struct Raw(pub h2::client::SendRequest<Bytes>);

/// The message with the five bytes that gRPC puts before it.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat()
}

/// Before this many bytes, and compressed or not as the flag says.
pub fn header(compressed: bool, length: usize) -> Vec<u8> {
    [&[u8::from(compressed)][..], &(length as u32).to_be_bytes()].concat()
}

impl Raw {
    pub async fn connect(address: &str) -> Self {
        Raw::connect_with_windows(address, 8 << 20, 8 << 20).await
    }

    /// The server may send so many bytes on each stream, and on all together, before somebody reads.
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

    /// The answer to this body: its bytes, frame included, and the status.
    pub async fn call(&self, method: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> (Vec<u8>, Status) {
        let call = self.begin(method, headers, Some(body.into()));
        timeout(PATIENCE, answer(call.await.0)).await.expect("an answer comes")
    }

    /// Begins a call; without a body its message is still to come.
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
        let mut requests = timeout(PATIENCE, self.0.clone().ready()).await.expect("a stream is free").unwrap();
        let (response, mut stream) = requests.send_request(request.body(()).unwrap(), false).unwrap();
        if let Some(body) = body {
            stream.send_data(body, true).unwrap();
        }
        (response, stream)
    }
}

/// The whole answer of a call.
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
    let trailers = body.trailers().await.unwrap().expect("a status comes");
    (whole, Status::from_header_map(&trailers).expect("a status comes"))
}
