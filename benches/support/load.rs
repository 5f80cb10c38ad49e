//! The load generator: connections, calls in flight, and the requests.

use std::collections::BTreeMap;

use prost::Message;
use sessiond_client::v1::{
    AttributeValue, CreateSessionRequest, GetSessionRequest, UpdateSessionRequest,
    session_service_client::SessionServiceClient,
};
use tonic::transport::{Channel, Endpoint};

use super::harness::client::{NAMESPACE, by_token, text};

pub const CONNECTIONS: usize = 4;
pub const IN_FLIGHT: usize = 32;
/// Of a session: together with their names 1 KiB.
const ATTRIBUTES: usize = 10;
const VALUE_BYTES: usize = 100;

pub type Client = SessionServiceClient<Channel>;

/// One client for each connection.
pub async fn connect(address: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        clients.push(SessionServiceClient::new(endpoint.connect().await.expect("the server listens")));
    }
    clients
}

/// Runs as many workers on each connection as calls are to be in flight; each is told its number.
pub async fn with_workers<F>(clients: &[Client], in_flight: usize, work: impl Fn(Client, u64) -> F) -> Vec<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut workers = Vec::new();
    for client in clients {
        for _ in 0..in_flight {
            let worker = work(client.clone(), workers.len() as u64);
            #[expect(clippy::disallowed_methods, reason = "awaited below")]
            workers.push(tokio::spawn(worker));
        }
    }
    let mut outputs = Vec::new();
    for worker in workers {
        outputs.push(worker.await.expect("no worker panics"));
    }
    outputs
}

/// A value of 100 bytes, another for every number.
fn value(number: u64) -> AttributeValue {
    text(&format!("{number:0VALUE_BYTES$}"))
}

pub fn create(number: u64) -> CreateSessionRequest {
    let attributes: BTreeMap<_, _> = (0..ATTRIBUTES as u64).map(|a| (format!("a{a}"), value(number + a))).collect();
    CreateSessionRequest { namespace: NAMESPACE.to_owned(), attributes, ..Default::default() }
}

pub fn get(token: &str) -> GetSessionRequest {
    GetSessionRequest { namespace: NAMESPACE.to_owned(), key: by_token(token), ..Default::default() }
}

pub fn update(token: &str, number: u64) -> UpdateSessionRequest {
    let set_attributes = BTreeMap::from([("a3".to_owned(), value(number))]);
    UpdateSessionRequest { namespace: NAMESPACE.to_owned(), key: by_token(token), set_attributes, ..Default::default() }
}

/// Makes sessions; answers their tokens.
pub async fn populate(clients: &[Client], sessions: u64) -> Vec<String> {
    let workers = (clients.len() * IN_FLIGHT) as u64;
    let made = with_workers(clients, IN_FLIGHT, |mut client, worker| async move {
        let mut tokens = Vec::new();
        for number in (worker..sessions).step_by(workers as usize) {
            tokens.push(client.create_session(create(number)).await.expect("a session is made").into_inner().token);
        }
        tokens
    });
    made.await.into_iter().flatten().collect()
}

/// Bytes of the message that answers GetSession of such a session.
pub async fn bytes_of_answer(client: &Client, token: &str) -> usize {
    client.clone().get_session(get(token)).await.expect("the session lives").into_inner().encoded_len()
}
