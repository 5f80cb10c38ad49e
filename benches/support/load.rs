//! Clients on several connections, and workers that make calls with them.

use sessiond_client::v1::session_service_client::SessionServiceClient;
use tonic::transport::{Channel, Endpoint};

pub const CONNECTIONS: usize = 4;

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
