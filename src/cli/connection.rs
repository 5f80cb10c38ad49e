//! The connection to a server, and the deadline of every call.

use std::time::Duration;

use clap::Args;
use sessiond_client::v1::session_service_client::SessionServiceClient;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use super::{arguments::duration, failure::Failure, output::Format};

pub type Client = SessionServiceClient<Channel>;

/// What every command takes.
#[derive(Args)]
pub struct Common {
    /// The server.
    #[arg(long, env = "SESSIOND_ENDPOINT", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    endpoint: String,
    /// One application or tenant.
    #[arg(short, long, env = "SESSIOND_NAMESPACE")]
    pub namespace: String,
    /// How answers are printed.
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
    /// How long a call, and connecting, may take.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = limited)]
    pub timeout: Duration,
}

/// The server gives no call more than 10 s; connecting may take longer.
fn limited(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(60 * 60);
    let timeout = duration(text)?;
    if timeout > LONGEST { Err("must be at most 1h".to_owned()) } else { Ok(timeout) }
}

impl Common {
    pub async fn connect(&self) -> Result<Client, Failure> {
        let url = match self.endpoint.split_once("://") {
            None => format!("http://{}", self.endpoint),
            Some(("http", _)) => self.endpoint.clone(),
            Some(_) => return Err(Failure::Usage("--endpoint: only http:// is available in this version".to_owned())),
        };
        let endpoint = Endpoint::from_shared(url.clone());
        let endpoint = endpoint.map_err(|error| Failure::Usage(format!("--endpoint: {url}: {error}")))?;
        let connected = endpoint.connect_timeout(self.timeout).connect().await;
        Ok(Client::new(connected.map_err(|error| Failure::unreachable(&url, &error))?))
    }

    /// The message with the call's deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}
