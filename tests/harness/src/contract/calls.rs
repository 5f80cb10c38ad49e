//! Calls as gRPC messages, and their replies.

use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, GetSessionRequest, ListSessionsRequest,
    RotateSessionRequest, Session, TokenState, TouchSessionRequest, UpdateSessionRequest, session_key::Key,
};
use tonic::Code;
use tonic_types::StatusExt;

use crate::{Client, Status, client::*};

/// A request to the service.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// CreateSession; the server generates the token if the request has none.
    Create(CreateSessionRequest),
    /// GetSession by id or token; a touch if the request sets `touch`.
    Get(GetSessionRequest),
    /// UpdateSession by id or token.
    Update(UpdateSessionRequest),
    /// TouchSession by id or token.
    Touch(TouchSessionRequest),
    /// RotateSession by the current token, or once more by a superseded one.
    Rotate(RotateSessionRequest),
    /// DeleteSession by id or token.
    Delete(DeleteSessionRequest),
    /// DeleteSubjectSessions: ends all sessions of a subject except `except_id`.
    DeleteSubject(DeleteSubjectSessionsRequest),
    /// ListSessions; sent once for each page.
    List(ListSessionsRequest),
}

/// The response to a call, or the error by which the contract rejects it.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Session; token that the server generated, else empty; state of the presented token (GetSession only).
    Session(Box<Session>, String, TokenState),
    /// Deadline after the touch, in seconds and nanoseconds since the epoch, Redis clock.
    Touched((i64, i32)),
    /// Whether this DeleteSession, or the first call that it retries, ended the session.
    Deleted(bool),
    /// Number of sessions that DeleteSubjectSessions ended.
    DeletedCount(i32),
    /// Sessions of all pages, in the order of the responses.
    Listed(Vec<Session>),
    /// `ErrorInfo` reason, and its metadata value `cause` or `current_revision`; empty for all other reasons.
    Rejected(String, String),
}

impl Reply {
    /// Returns the revision of the session. None: the reply does not contain it.
    pub fn revision(&self) -> Option<i64> {
        match self {
            Reply::Session(session, ..) => Some(session.revision),
            Reply::Rejected(reason, metadata) if reason == "REVISION_MISMATCH" => metadata.parse().ok(),
            _ => None,
        }
    }
}

/// The key by which a call addresses its session.
#[derive(Clone, Copy, Debug)]
pub enum KeyRef<'a> {
    /// Session id, which needs no token.
    Id(&'a str),
    /// Token in the server's form, which contains the id.
    Token(&'a str),
}

impl Call {
    /// Returns the key. None: the call addresses several sessions, or the server generates the token.
    pub fn key(&self) -> Option<KeyRef<'_>> {
        let key = match self {
            Call::Create(request) => return Some(KeyRef::Token(&request.token)).filter(|_| !request.token.is_empty()),
            Call::Rotate(request) => return Some(KeyRef::Token(&request.token)),
            Call::Get(request) => &request.key,
            Call::Update(request) => &request.key,
            Call::Touch(request) => &request.key,
            Call::Delete(request) => &request.key,
            Call::DeleteSubject(_) | Call::List(_) => return None,
        };
        match key.as_ref()?.key.as_ref()? {
            Key::Id(id) => Some(KeyRef::Id(id)),
            Key::Token(token) => Some(KeyRef::Token(token)),
        }
    }

    /// Returns the id of the session, read from the token if the key is a token. None: the call has no key.
    pub fn id(&self) -> Option<String> {
        self.key().map(|key| match key {
            KeyRef::Id(id) => id.to_owned(),
            KeyRef::Token(token) => id_of(token),
        })
    }

    /// Returns whether the call may be answered from the memory of the server, with the state of an earlier time.
    pub fn accepts_memory(&self) -> bool {
        matches!(self, Call::Get(request) if request.min_revision.is_some())
    }

    /// Returns the request id; empty if the call has none.
    pub fn request_id(&self) -> &str {
        match self {
            Call::Create(request) => &request.request_id,
            Call::Update(request) => &request.request_id,
            Call::Rotate(request) => &request.request_id,
            Call::Delete(request) => &request.request_id,
            Call::Get(_) | Call::Touch(_) | Call::DeleteSubject(_) | Call::List(_) => "",
        }
    }

    /// Sends the call; panics on a status that the contract does not define.
    pub async fn send(&self, client: &Client) -> Reply {
        let rejected =
            |status: tonic::Status| rejection(&status).unwrap_or_else(|| panic!("unexpected status: {status:?}"));
        self.clone().try_send(client).await.unwrap_or_else(rejected)
    }

    /// Sends the call; returns the reply or the status of the error.
    pub async fn try_send(self, client: &Client) -> Result<Reply, tonic::Status> {
        let mut grpc = client.grpc.clone();
        let session = |session: Option<Session>, token| {
            Reply::Session(session.expect("the response has a session").into(), token, TokenState::Unspecified)
        };
        Ok(match self {
            Call::Create(request) => {
                let response = grpc.create_session(request).await?.into_inner();
                session(response.session, response.token)
            }
            Call::Get(request) => {
                let response = grpc.get_session(request).await?.into_inner();
                let state = response.token_state();
                Reply::Session(response.session.expect("the response has a session").into(), String::new(), state)
            }
            Call::Update(request) => session(grpc.update_session(request).await?.into_inner().session, String::new()),
            Call::Touch(request) => {
                let expires =
                    grpc.touch_session(request).await?.into_inner().expire_time.expect("the session has a deadline");
                Reply::Touched((expires.seconds, expires.nanos))
            }
            Call::Rotate(request) => {
                let response = grpc.rotate_session(request).await?.into_inner();
                session(response.session, response.token)
            }
            Call::Delete(request) => Reply::Deleted(grpc.delete_session(request).await?.into_inner().deleted),
            Call::DeleteSubject(request) => {
                Reply::DeletedCount(grpc.delete_subject_sessions(request).await?.into_inner().deleted_count)
            }
            Call::List(mut request) => {
                let mut all = Vec::new();
                loop {
                    let page = grpc.list_sessions(request.clone()).await?.into_inner();
                    all.extend(page.sessions);
                    request.page_token = page.next_page_token;
                    if request.page_token.is_empty() {
                        break Reply::Listed(all);
                    }
                }
            }
        })
    }
}

/// Returns the rejection in a status. None: the status is a failure, not a rejection by the contract. Panics if the
/// code does not belong to the reason.
pub fn rejection(status: &tonic::Status) -> Option<Reply> {
    let reason = status.get_details_error_info()?.reason;
    let (code, metadata) = match &reason[..] {
        "SESSION_NOT_FOUND" | "TOKEN_ROTATED" => (Code::NotFound, ""),
        "SESSION_ENDED" => (Code::NotFound, "cause"),
        "SESSION_EXISTS" => (Code::AlreadyExists, ""),
        "REVISION_MISMATCH" => (Code::Aborted, "current_revision"),
        "SUBJECT_CHANGE" | "SUBJECT_SESSION_LIMIT" => (Code::FailedPrecondition, ""),
        "FIELD_INVALID" | "REQUEST_ID_REUSED" => (Code::InvalidArgument, ""),
        "REQUEST_ID_LIMIT" => (Code::ResourceExhausted, ""),
        _ => return None,
    };
    assert_eq!(status.code(), code, "{status:?}");
    Some(Reply::Rejected(reason, status.metadata_of(metadata)))
}
