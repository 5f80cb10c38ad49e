//! A gRPC client of one namespace with short methods for the calls that tests make often.

use std::{collections::BTreeMap, time::Duration};

use sessiond_client::v1::{
    AttributeValue, CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, GetSessionRequest,
    ListSessionsRequest, RotateSessionRequest, Session, SessionKey, SessionView, TokenState, UpdateSessionRequest,
    WatchRequest, attribute_value::Kind, session_key::Key, session_service_client::SessionServiceClient,
};
use tonic::{
    Code,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt;

use super::WatchReader;

/// Namespace of every test client, unless a test changes it.
pub const NAMESPACE: &str = "web";

/// Key of a session, by id.
pub fn by_id(id: &str) -> Option<SessionKey> {
    Some(SessionKey { key: Some(Key::Id(id.to_owned())) })
}

/// Key of a session, by token.
pub fn by_token(token: &str) -> Option<SessionKey> {
    Some(SessionKey { key: Some(Key::Token(token.to_owned())) })
}

/// Attribute value with this string.
pub fn text(text: &str) -> AttributeValue {
    AttributeValue { kind: Some(Kind::StringValue(text.to_owned())) }
}

/// Attribute value with this JSON text.
pub fn json(text: &str) -> AttributeValue {
    AttributeValue { kind: Some(Kind::JsonValue(text.to_owned())) }
}

/// Duration field with this many seconds.
pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Duration field with this many milliseconds.
pub fn millis(millis: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 })
}

/// Generates a token in the server's form, with a new id.
pub fn new_token() -> String {
    sessiond::session::Token::generate(|bytes| getrandom::fill(bytes).unwrap()).reveal()
}

/// Generates a token in the server's form with the id of this token and a new secret.
pub fn successor_of(token: &str) -> String {
    format!("{}{}", &token[..31], &new_token()[31..])
}

/// Returns the session id in a token of the server's form.
pub fn id_of(token: &str) -> String {
    token[4..30].to_owned()
}

/// Readers of the error details in a gRPC status.
pub trait Status {
    /// Returns the `ErrorInfo` reason; panics if it is absent or its domain is not `sessiond`.
    fn reason(&self) -> String;
    /// Returns an `ErrorInfo` metadata value; empty if it is absent.
    fn metadata_of(&self, name: &str) -> String;
    /// Returns the paths of the `BadRequest` violations, in order; panics if there is no `BadRequest`.
    fn bad_fields(&self) -> Vec<String>;
}

impl Status for tonic::Status {
    fn reason(&self) -> String {
        let info = self.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {self:?}"));
        assert_eq!(info.domain, "sessiond");
        info.reason
    }

    fn metadata_of(&self, name: &str) -> String {
        self.get_details_error_info().and_then(|info| info.metadata.get(name).cloned()).unwrap_or_default()
    }

    fn bad_fields(&self) -> Vec<String> {
        let bad = self.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest in {self:?}"));
        bad.field_violations.into_iter().map(|violation| violation.field).collect()
    }
}

/// The generated client, which sends an API key if it has one.
pub type Stub = SessionServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds an API key to every request. None: adds nothing.
#[derive(Clone, Default)]
pub struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// How a client connects and who it is.
#[derive(Clone, Default)]
pub struct ClientOptions {
    /// Options of TLS. None: no TLS.
    pub tls: Option<ClientTlsConfig>,
    /// API key. None: it sends none.
    pub key: Option<String>,
}

impl ClientOptions {
    /// A client with this key, without TLS.
    pub fn with_key(key: &str) -> Self {
        ClientOptions { tls: None, key: Some(key.to_owned()) }
    }

    /// Returns the endpoint of the server at this address.
    pub fn endpoint(&self, address: &str) -> Endpoint {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Channel::from_shared(format!("{scheme}://{address}")).unwrap().timeout(Duration::from_secs(30));
        match &self.tls {
            Some(tls) => endpoint.tls_config(tls.clone()).unwrap(),
            None => endpoint,
        }
    }

    /// Returns what adds the key to requests.
    pub fn bearer(&self) -> Bearer {
        Bearer(self.key.as_ref().map(|key| format!("Bearer {key}").parse().unwrap()))
    }
}

/// A gRPC client that sends all its requests to one namespace.
#[derive(Clone)]
pub struct Client {
    /// The generated client, for calls that have no method here.
    pub grpc: Stub,
    /// Namespace of all requests.
    pub namespace: String,
}

/// Result of one gRPC call.
pub type CallResult<T> = Result<T, tonic::Status>;

/// Checks that a call failed with this code and this `ErrorInfo` reason, and returns its status.
#[track_caller]
pub fn expect_error<T>(result: CallResult<T>, code: Code, reason: &str) -> tonic::Status {
    match result {
        Ok(_) => panic!("expected {code:?} {reason}, got a response"),
        Err(status) => {
            assert_eq!((status.code(), &status.reason()[..]), (code, reason), "{status:?}");
            status
        }
    }
}

impl Client {
    /// Connects to the server at this address.
    pub async fn connect(address: &str) -> Self {
        Client::try_connect(address).await.unwrap()
    }

    /// Connects to the server at this address; returns an error if the connection fails.
    pub async fn try_connect(address: &str) -> Result<Self, tonic::transport::Error> {
        Client::try_connect_with(address, &ClientOptions::default()).await
    }

    /// Connects to the server at this address with these options.
    pub async fn connect_with(address: &str, options: &ClientOptions) -> Self {
        Client::try_connect_with(address, options).await.unwrap()
    }

    /// Connects with these options; returns an error if the connection fails.
    pub async fn try_connect_with(address: &str, options: &ClientOptions) -> Result<Self, tonic::transport::Error> {
        let channel = options.endpoint(address).connect().await?;
        let grpc = SessionServiceClient::with_interceptor(channel, options.bearer());
        Ok(Client { grpc, namespace: NAMESPACE.to_owned() })
    }

    /// Returns a client of another namespace on the same connection.
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Client { grpc: self.grpc.clone(), namespace: namespace.to_owned() }
    }

    /// Creates an anonymous session with these attributes; returns it and the token that the server generated.
    pub async fn create(&self, attributes: &[(&str, AttributeValue)]) -> (Session, String) {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.create_with(CreateSessionRequest { attributes, ..Default::default() }).await.unwrap()
    }

    /// Sends this CreateSession request in this client's namespace; returns the session and the generated token.
    pub async fn create_with(&self, request: CreateSessionRequest) -> CallResult<(Session, String)> {
        let request = CreateSessionRequest { namespace: self.namespace.clone(), ..request };
        let response = self.grpc.clone().create_session(request).await?.into_inner();
        Ok((response.session.unwrap(), response.token))
    }

    /// Reads a session.
    pub async fn get(&self, key: Option<SessionKey>) -> CallResult<Session> {
        let request = GetSessionRequest { namespace: self.namespace.clone(), key, ..Default::default() };
        Ok(self.grpc.clone().get_session(request).await?.into_inner().session.unwrap())
    }

    /// Reads a session and touches it in the same call.
    pub async fn touch(&self, key: Option<SessionKey>) -> CallResult<Session> {
        let request = GetSessionRequest { namespace: self.namespace.clone(), key, touch: true, ..Default::default() };
        Ok(self.grpc.clone().get_session(request).await?.into_inner().session.unwrap())
    }

    /// Reads the state of this token.
    pub async fn token_state(&self, token: &str) -> CallResult<TokenState> {
        let request =
            GetSessionRequest { namespace: self.namespace.clone(), key: by_token(token), ..Default::default() };
        Ok(self.grpc.clone().get_session(request).await?.into_inner().token_state())
    }

    /// Creates a session of this subject; returns it and the token that the server generated.
    pub async fn create_for(&self, subject: &str) -> (Session, String) {
        self.create_with(CreateSessionRequest { subject: subject.into(), ..Default::default() }).await.unwrap()
    }

    /// Rotates this token and returns the successor that the server generated.
    pub async fn rotate(&self, token: &str) -> CallResult<String> {
        self.rotate_with(RotateSessionRequest { token: token.into(), ..Default::default() })
            .await
            .map(|(_, token)| token)
    }

    /// Sends this RotateSession request in this client's namespace; returns the session and the generated successor.
    pub async fn rotate_with(&self, request: RotateSessionRequest) -> CallResult<(Session, String)> {
        let request = RotateSessionRequest { namespace: self.namespace.clone(), ..request };
        let response = self.grpc.clone().rotate_session(request).await?.into_inner();
        Ok((response.session.unwrap(), response.token))
    }

    /// Lists all sessions of a subject, in the order of the responses.
    pub async fn list_subject(&self, subject: &str) -> Vec<Session> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListSessionsRequest {
                namespace: self.namespace.clone(),
                subject: Some(subject.into()),
                page_token,
                ..Default::default()
            };
            let page = self.grpc.clone().list_sessions(request).await.unwrap().into_inner();
            all.extend(page.sessions);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return all;
            }
        }
    }

    /// Ends all sessions of a subject and returns their number.
    pub async fn delete_subject(&self, subject: &str) -> CallResult<i32> {
        self.delete_subject_with(DeleteSubjectSessionsRequest { subject: subject.into(), ..Default::default() }).await
    }

    /// Sends this DeleteSubjectSessions request in this client's namespace; returns the number of ended sessions.
    pub async fn delete_subject_with(&self, request: DeleteSubjectSessionsRequest) -> CallResult<i32> {
        let request = DeleteSubjectSessionsRequest { namespace: self.namespace.clone(), ..request };
        Ok(self.grpc.clone().delete_subject_sessions(request).await?.into_inner().deleted_count)
    }

    /// Sets these attributes and returns the full session.
    pub async fn set(&self, key: Option<SessionKey>, attributes: &[(&str, AttributeValue)]) -> CallResult<Session> {
        let set_attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.update(UpdateSessionRequest { key, set_attributes, ..Default::default() }).await
    }

    /// Sends this UpdateSession request in this client's namespace and returns the full session.
    pub async fn update(&self, request: UpdateSessionRequest) -> CallResult<Session> {
        let view = SessionView::Full.into();
        let request = UpdateSessionRequest { namespace: self.namespace.clone(), view, ..request };
        Ok(self.grpc.clone().update_session(request).await?.into_inner().session.unwrap())
    }

    /// Sets the subject of an anonymous session. An empty subject makes the session anonymous.
    pub async fn login(&self, key: Option<SessionKey>, subject: &str) -> CallResult<Session> {
        self.update(UpdateSessionRequest { key, subject: Some(subject.into()), ..Default::default() }).await
    }

    /// Sets the subject with a rotation; returns the session and the generated successor.
    pub async fn login_by_rotation(&self, token: &str, subject: &str) -> CallResult<(Session, String)> {
        let subject = Some(subject.into());
        self.rotate_with(RotateSessionRequest { token: token.into(), subject, ..Default::default() }).await
    }

    /// Returns whether a live session has this id.
    pub async fn lives(&self, id: &str) -> bool {
        match self.get(by_id(id)).await {
            Ok(_) => true,
            Err(status) if status.code() == Code::NotFound => false,
            Err(status) => panic!("{status:?}"),
        }
    }

    /// Ends a session and returns whether it was live.
    pub async fn delete(&self, key: Option<SessionKey>) -> CallResult<bool> {
        let request = DeleteSessionRequest { namespace: self.namespace.clone(), key, ..Default::default() };
        Ok(self.grpc.clone().delete_session(request).await?.into_inner().deleted)
    }

    /// Sends this DeleteSession request in this client's namespace; returns whether it ended a live session.
    pub async fn delete_with(&self, request: DeleteSessionRequest) -> CallResult<bool> {
        let request = DeleteSessionRequest { namespace: self.namespace.clone(), ..request };
        Ok(self.grpc.clone().delete_session(request).await?.into_inner().deleted)
    }

    /// Opens this watch in this client's namespace.
    pub async fn watch(&self, request: WatchRequest) -> CallResult<WatchReader> {
        let request = WatchRequest { namespace: self.namespace.clone(), ..request };
        Ok(WatchReader::new(self.grpc.clone().watch(request).await?.into_inner()))
    }

    /// Watches the whole namespace ([`whole_namespace`]) and returns after the first bookmark.
    pub async fn watch_all(&self) -> WatchReader {
        let mut watch = self.watch(whole_namespace()).await.unwrap();
        watch.bookmark().await;
        watch
    }

    /// Watches the whole namespace from this resume token on.
    pub async fn resume(&self, resume_token: &[u8]) -> WatchReader {
        self.watch(WatchRequest { resume_token: resume_token.to_vec(), ..whole_namespace() }).await.unwrap()
    }
}

/// Request for a watch of the whole namespace: FULL view, a bookmark every 100 ms.
pub fn whole_namespace() -> WatchRequest {
    WatchRequest {
        whole_namespace: true,
        view: SessionView::Full.into(),
        bookmark_interval: millis(100),
        ..Default::default()
    }
}

/// Returns a text of this many bytes that LZ4 does not compress; always the same for one length.
pub fn incompressible(bytes: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'0' + (state % 64) as u8)
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Returns a label map.
pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
