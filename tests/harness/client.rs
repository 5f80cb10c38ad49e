//! A client with short ways to say what tests say often.

use std::{collections::BTreeMap, time::Duration};

use sessiond_client::v1::{
    AttributeValue, CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, GetSessionRequest,
    ListSessionsRequest, RotateSessionRequest, Session, SessionKey, SessionView, TokenState, UpdateSessionRequest,
    WatchRequest, attribute_value::Kind, session_key::Key, session_service_client::SessionServiceClient,
};
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt;

use super::Watching;

pub const NAMESPACE: &str = "web";

pub fn by_id(id: &str) -> Option<SessionKey> {
    Some(SessionKey { key: Some(Key::Id(id.to_owned())) })
}

pub fn by_token(token: &str) -> Option<SessionKey> {
    Some(SessionKey { key: Some(Key::Token(token.to_owned())) })
}

pub fn text(text: &str) -> AttributeValue {
    AttributeValue { kind: Some(Kind::StringValue(text.to_owned())) }
}

pub fn json(text: &str) -> AttributeValue {
    AttributeValue { kind: Some(Kind::JsonValue(text.to_owned())) }
}

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub fn millis(millis: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 })
}

/// A new token in the server's form.
pub fn new_token() -> String {
    sessiond::session::Token::generate(|bytes| getrandom::fill(bytes).unwrap()).reveal()
}

/// A new token in the server's form for the session of this one.
pub fn successor_of(token: &str) -> String {
    format!("{}{}", &token[..31], &new_token()[31..])
}

/// The id in a token of the server's form.
pub fn id_of(token: &str) -> String {
    token[4..30].to_owned()
}

/// What tests ask of an error.
pub trait Status {
    fn reason(&self) -> String;
    fn metadata_of(&self, name: &str) -> String;
    /// Paths of the bad fields, in order.
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

#[derive(Clone)]
pub struct Client {
    pub grpc: SessionServiceClient<Channel>,
    pub namespace: String,
}

pub type Answer<T> = Result<T, tonic::Status>;

/// A call of this kind that is expected to fail in this way.
#[track_caller]
pub fn expect_error<T>(answer: Answer<T>, code: Code, reason: &str) -> tonic::Status {
    match answer {
        Ok(_) => panic!("expected {code:?} {reason}, got an answer"),
        Err(status) => {
            assert_eq!((status.code(), &status.reason()[..]), (code, reason), "{status:?}");
            status
        }
    }
}

impl Client {
    pub async fn connect(address: &str) -> Self {
        Client::try_connect(address).await.unwrap()
    }

    pub async fn try_connect(address: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap().timeout(Duration::from_secs(30));
        let grpc = SessionServiceClient::new(endpoint.connect().await?);
        Ok(Client { grpc, namespace: NAMESPACE.to_owned() })
    }

    pub fn in_namespace(&self, namespace: &str) -> Self {
        Client { grpc: self.grpc.clone(), namespace: namespace.to_owned() }
    }

    /// A session with these attributes; the server makes its token.
    pub async fn create(&self, attributes: &[(&str, AttributeValue)]) -> (Session, String) {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.create_as(CreateSessionRequest { attributes, ..Default::default() }).await.unwrap()
    }

    /// As the request says, in this client's namespace.
    pub async fn create_as(&self, request: CreateSessionRequest) -> Answer<(Session, String)> {
        let request = CreateSessionRequest { namespace: self.namespace.clone(), ..request };
        let response = self.grpc.clone().create_session(request).await?.into_inner();
        Ok((response.session.unwrap(), response.token))
    }

    pub async fn get(&self, key: Option<SessionKey>) -> Answer<Session> {
        let request = GetSessionRequest { namespace: self.namespace.clone(), key, ..Default::default() };
        Ok(self.grpc.clone().get_session(request).await?.into_inner().session.unwrap())
    }

    /// How this token stands.
    pub async fn standing(&self, token: &str) -> Answer<TokenState> {
        let request =
            GetSessionRequest { namespace: self.namespace.clone(), key: by_token(token), ..Default::default() };
        Ok(self.grpc.clone().get_session(request).await?.into_inner().token_state())
    }

    /// A session of this subject; the server makes its token.
    pub async fn create_of(&self, subject: &str) -> (Session, String) {
        self.create_as(CreateSessionRequest { subject: subject.into(), ..Default::default() }).await.unwrap()
    }

    /// The successor that the server makes.
    pub async fn rotate(&self, token: &str) -> Answer<String> {
        self.rotate_as(RotateSessionRequest { token: token.into(), ..Default::default() }).await.map(|(_, token)| token)
    }

    /// As the request says, in this client's namespace.
    pub async fn rotate_as(&self, request: RotateSessionRequest) -> Answer<(Session, String)> {
        let request = RotateSessionRequest { namespace: self.namespace.clone(), ..request };
        let response = self.grpc.clone().rotate_session(request).await?.into_inner();
        Ok((response.session.unwrap(), response.token))
    }

    /// All sessions of a subject, in the order they are told.
    pub async fn list_of(&self, subject: &str) -> Vec<Session> {
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

    /// Ends all sessions of a subject; how many there were.
    pub async fn delete_all(&self, subject: &str) -> Answer<i32> {
        self.delete_all_as(DeleteSubjectSessionsRequest { subject: subject.into(), ..Default::default() }).await
    }

    /// As the request says, in this client's namespace.
    pub async fn delete_all_as(&self, request: DeleteSubjectSessionsRequest) -> Answer<i32> {
        let request = DeleteSubjectSessionsRequest { namespace: self.namespace.clone(), ..request };
        Ok(self.grpc.clone().delete_subject_sessions(request).await?.into_inner().deleted_count)
    }

    /// Sets these attributes.
    pub async fn set(&self, key: Option<SessionKey>, attributes: &[(&str, AttributeValue)]) -> Answer<Session> {
        let set_attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.update(UpdateSessionRequest { key, set_attributes, ..Default::default() }).await
    }

    /// As the request says, in this client's namespace; answers the full session.
    pub async fn update(&self, request: UpdateSessionRequest) -> Answer<Session> {
        let view = SessionView::Full.into();
        let request = UpdateSessionRequest { namespace: self.namespace.clone(), view, ..request };
        Ok(self.grpc.clone().update_session(request).await?.into_inner().session.unwrap())
    }

    /// Makes an anonymous session this subject's; with an empty one: makes it anonymous.
    pub async fn login(&self, key: Option<SessionKey>, subject: &str) -> Answer<Session> {
        self.update(UpdateSessionRequest { key, subject: Some(subject.into()), ..Default::default() }).await
    }

    /// The same, with a new token; answers it.
    pub async fn login_by_rotation(&self, token: &str, subject: &str) -> Answer<(Session, String)> {
        let subject = Some(subject.into());
        self.rotate_as(RotateSessionRequest { token: token.into(), subject, ..Default::default() }).await
    }

    /// Whether a session of this id lives.
    pub async fn lives(&self, id: &str) -> bool {
        match self.get(by_id(id)).await {
            Ok(_) => true,
            Err(status) if status.code() == Code::NotFound => false,
            Err(status) => panic!("{status:?}"),
        }
    }

    pub async fn delete(&self, key: Option<SessionKey>) -> Answer<bool> {
        let request = DeleteSessionRequest { namespace: self.namespace.clone(), key, ..Default::default() };
        Ok(self.grpc.clone().delete_session(request).await?.into_inner().deleted)
    }

    /// As the request says, in this client's namespace.
    pub async fn watch(&self, request: WatchRequest) -> Answer<Watching> {
        let request = WatchRequest { namespace: self.namespace.clone(), ..request };
        Ok(Watching::new(self.grpc.clone().watch(request).await?.into_inner()))
    }

    /// Everything in the namespace, in full, with a bookmark every 100 ms; its first bookmark has come.
    pub async fn watch_all(&self) -> Watching {
        let mut watching = self.watch(whole_namespace()).await.unwrap();
        watching.bookmark().await;
        watching
    }

    /// The same, from where that watch had got to.
    pub async fn resume(&self, resume_token: &[u8]) -> Watching {
        self.watch(WatchRequest { resume_token: resume_token.to_vec(), ..whole_namespace() }).await.unwrap()
    }
}

pub fn whole_namespace() -> WatchRequest {
    WatchRequest {
        whole_namespace: true,
        view: SessionView::Full.into(),
        bookmark_interval: millis(100),
        ..Default::default()
    }
}

/// A text of so many bytes that LZ4 makes no smaller.
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

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
