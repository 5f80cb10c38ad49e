//! Connection to a server, and the deadline of every call.

use std::time::Duration;

use clap::Args;
use sessiond_client::v1::session_service_client::SessionServiceClient;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use super::{arguments::duration, failure::Failure, output::Format};

/// Stub of the service on one connection.
pub(super) type Client = SessionServiceClient<Channel>;

/// Arguments of every command.
#[derive(Args)]
pub(super) struct Common {
    /// URL of the server.
    #[arg(long, env = "SESSIOND_ENDPOINT", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    endpoint: String,
    /// Namespace of the sessions: one application or tenant.
    #[arg(short, long, env = "SESSIOND_NAMESPACE")]
    pub namespace: String,
    /// Output format.
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
    /// Time limit for connecting, and again for each call.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = call_timeout)]
    pub timeout: Duration,
}

/// Parses --timeout. The server ends a call after 10 s at most; connecting may take longer.
fn call_timeout(text: &str) -> Result<Duration, String> {
    const MAX_TIMEOUT: Duration = Duration::from_secs(60 * 60);
    let timeout = duration(text)?;
    if timeout > MAX_TIMEOUT { Err("must be at most 1h".to_owned()) } else { Ok(timeout) }
}

impl Common {
    /// URL of the server, with its scheme.
    pub(super) fn url(&self) -> Result<String, Failure> {
        match self.endpoint.split_once("://") {
            None => Ok(format!("http://{}", self.endpoint)),
            Some(("http", _)) => Ok(self.endpoint.clone()),
            Some(_) => Err(Failure::Usage("--endpoint: this version supports only http://".to_owned())),
        }
    }

    /// Returns the endpoint of the server, not connected.
    pub(super) fn endpoint(&self) -> Result<Endpoint, Failure> {
        let url = self.url()?;
        let endpoint = Endpoint::from_shared(url.clone());
        let endpoint = endpoint.map_err(|error| Failure::Usage(format!("--endpoint: {url}: {error}")))?;
        Ok(endpoint.connect_timeout(self.timeout))
    }

    /// Connects to the server.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let connected = self.endpoint()?.connect().await;
        let url = self.url()?;
        Ok(Client::new(connected.map_err(|error| Failure::unreachable(&url, &error))?))
    }

    /// Returns the request with the deadline of the call.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}
