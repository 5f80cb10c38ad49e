//! Load generator: connections, concurrent calls, and requests.

use std::collections::BTreeMap;

use prost::Message;
use sessiond_client::v1::{
    AttributeValue, CreateSessionRequest, GetSessionRequest, UpdateSessionRequest,
    session_service_client::SessionServiceClient,
};
use tonic::transport::{Channel, Endpoint};

use harness::client::{NAMESPACE, by_token, text};

pub const CONNECTIONS: usize = 4;
pub const IN_FLIGHT: usize = 32;
/// Number of attributes of a session: 1 KiB including their names.
const ATTRIBUTES: usize = 10;
const VALUE_BYTES: usize = 100;

pub type Client = SessionServiceClient<Channel>;

/// Opens the connections; returns one client for each.
pub async fn connect(address: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        clients.push(SessionServiceClient::new(endpoint.connect().await.expect("the server listens")));
    }
    clients
}

/// Runs `in_flight` workers on each connection. Each receives its number.
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

/// Returns a value of 100 bytes that depends on the number.
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

/// Creates sessions; returns their tokens.
pub async fn populate(clients: &[Client], sessions: u64) -> Vec<String> {
    let workers = (clients.len() * IN_FLIGHT) as u64;
    let created = with_workers(clients, IN_FLIGHT, |mut client, worker| async move {
        let mut tokens = Vec::new();
        for number in (worker..sessions).step_by(workers as usize) {
            tokens
                .push(client.create_session(create(number)).await.expect("the session is created").into_inner().token);
        }
        tokens
    });
    created.await.into_iter().flatten().collect()
}

/// Returns the size of the GetSession response, in bytes.
pub async fn response_bytes(client: &Client, token: &str) -> usize {
    client.clone().get_session(get(token)).await.expect("the session is live").into_inner().encoded_len()
}
