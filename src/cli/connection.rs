//! Connection to a server with its credential, and the deadline of every call.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use sessiond_client::v1::session_service_client::SessionServiceClient;
use tonic::{
    Request, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use zeroize::Zeroizing;

use super::{arguments::duration, failure::Failure, output::Format, token_file};

/// Stub of the service on one connection.
pub(super) type Client = SessionServiceClient<InterceptedService<Channel, Credential>>;

/// Arguments of every command.
#[derive(Args)]
pub(super) struct Common {
    /// URL of the server: http://HOST:PORT, or https:// for TLS.
    #[arg(long, env = "SESSIOND_ENDPOINT", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    endpoint: String,
    /// Authorities that may have issued the server's certificate, in PEM [default: those of the system].
    #[arg(long, env = "SESSIOND_CA", value_name = "PATH")]
    ca: Option<PathBuf>,
    /// Client certificate with its chain, in PEM.
    #[arg(long, env = "SESSIOND_CERT", value_name = "PATH", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of the client certificate, in PEM.
    #[arg(long, env = "SESSIOND_KEY", value_name = "PATH", requires = "cert")]
    key: Option<PathBuf>,
    /// File with the API key in its first line; - = standard input.
    #[arg(long, env = "SESSIOND_API_KEY_FILE", value_name = "PATH")]
    api_key_file: Option<PathBuf>,
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

/// Adds an API key to every request. None: adds nothing.
#[derive(Clone)]
pub(super) struct Credential(Option<AsciiMetadataValue>);

impl Credential {
    /// Headers of every request.
    pub(super) fn metadata(&self) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        self.add_to(&mut metadata);
        metadata
    }

    fn add_to(&self, metadata: &mut MetadataMap) {
        if let Some(value) = &self.0 {
            metadata.insert("authorization", value.clone());
        }
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.add_to(request.metadata_mut());
        Ok(request)
    }
}

impl Common {
    /// URL of the server, with its scheme.
    pub(super) fn url(&self) -> Result<String, Failure> {
        match self.endpoint.split_once("://") {
            None => Ok(format!("http://{}", self.endpoint)),
            Some(("http" | "https", _)) => Ok(self.endpoint.clone()),
            Some(_) => Err(Failure::Usage("--endpoint: must start with http:// or https://".to_owned())),
        }
    }

    /// Returns the endpoint of the server, not connected.
    pub(super) fn endpoint(&self) -> Result<Endpoint, Failure> {
        let url = self.url()?;
        let invalid = |error: tonic::transport::Error| Failure::unusable_endpoint(&url, &error);
        let endpoint = Endpoint::from_shared(url.clone()).map_err(invalid)?;
        let endpoint = match self.tls()? {
            Some(tls) => endpoint.tls_config(tls).map_err(invalid)?,
            None => endpoint,
        };
        Ok(endpoint.connect_timeout(self.timeout))
    }

    /// Returns the options of TLS. None: the URL is without TLS.
    fn tls(&self) -> Result<Option<ClientTlsConfig>, Failure> {
        if !self.url()?.starts_with("https://") {
            return match self.ca.is_some() || self.cert.is_some() {
                true => Err(Failure::Usage("--ca, --cert and --key need an --endpoint with https://".to_owned())),
                false => Ok(None),
            };
        }
        let tls = match &self.ca {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--ca", path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                Ok(Some(tls.identity(Identity::from_pem(read("--cert", cert)?, read("--key", key)?))))
            }
            _ => Ok(Some(tls)),
        }
    }

    /// Reads the API key, if there is one.
    pub(super) fn credential(&self) -> Result<Credential, Failure> {
        let Some(path) = &self.api_key_file else { return Ok(Credential(None)) };
        if !self.url()?.starts_with("https://") && !self.is_loopback()? {
            let text = "--api-key-file: the key would be sent without TLS; use an --endpoint with https://";
            return Err(Failure::Usage(text.to_owned()));
        }
        let key = token_file::read("--api-key-file", path)?;
        let header = Zeroizing::new(format!("Bearer {}", key.trim()));
        let value = AsciiMetadataValue::try_from(header.as_str());
        let mut value = value.map_err(|_| Failure::Usage("--api-key-file: the first line is not a key".to_owned()))?;
        value.set_sensitive(true);
        Ok(Credential(Some(value)))
    }

    /// Whether the URL has a loopback address.
    fn is_loopback(&self) -> Result<bool, Failure> {
        let url = self.url()?;
        let uri: http::Uri = url.parse().map_err(|error| Failure::Usage(format!("--endpoint: {url}: {error}")))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        Ok(host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
    }

    /// Connects to the server.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let (endpoint, credential) = (self.endpoint()?, self.credential()?);
        let url = self.url()?;
        let channel = endpoint.connect().await.map_err(|error| Failure::unreachable(&url, &error))?;
        Ok(SessionServiceClient::with_interceptor(channel, credential))
    }

    /// Returns the request with the deadline of the call.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::Usage(format!("{flag}: {}: {error}", path.display())))
}
