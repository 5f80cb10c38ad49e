//! Calls as they are on the wire, and their answers.

use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, GetSessionRequest, ListSessionsRequest,
    RotateSessionRequest, Session, TokenState, TouchSessionRequest, UpdateSessionRequest, session_key::Key,
};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{Client, Status, client::*};

#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Create(CreateSessionRequest),
    Get(GetSessionRequest),
    Update(UpdateSessionRequest),
    Touch(TouchSessionRequest),
    Rotate(RotateSessionRequest),
    Delete(DeleteSessionRequest),
    DeleteSubject(DeleteSubjectSessionsRequest),
    List(ListSessionsRequest),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A session; the token that the server made; how the presented one stands, of GetSession.
    Session(Box<Session>, String, TokenState),
    /// When it ends now: seconds and nanoseconds.
    Touched((i64, i32)),
    Deleted(bool),
    DeletedCount(i32),
    /// All pages.
    Listed(Vec<Session>),
    /// Reason, and what the metadata tell of it.
    Refused(String, String),
}

impl Answer {
    /// The session's, if the answer tells it.
    pub fn revision(&self) -> Option<i64> {
        match self {
            Answer::Session(session, ..) => Some(session.revision),
            Answer::Refused(reason, metadata) if reason == "REVISION_MISMATCH" => metadata.parse().ok(),
            _ => None,
        }
    }
}

/// What a call names its session by.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    ById(&'a str),
    ByToken(&'a str),
}

impl Call {
    /// None = it is not for one session, or the server is to make that.
    pub fn key(&self) -> Option<Named<'_>> {
        let key = match self {
            Call::Create(request) => return Some(Named::ByToken(&request.token)).filter(|_| !request.token.is_empty()),
            Call::Rotate(request) => return Some(Named::ByToken(&request.token)),
            Call::Get(request) => &request.key,
            Call::Update(request) => &request.key,
            Call::Touch(request) => &request.key,
            Call::Delete(request) => &request.key,
            Call::DeleteSubject(_) | Call::List(_) => return None,
        };
        match key.as_ref()?.key.as_ref()? {
            Key::Id(id) => Some(Named::ById(id)),
            Key::Token(token) => Some(Named::ByToken(token)),
        }
    }

    pub fn id(&self) -> Option<String> {
        self.key().map(|named| match named {
            Named::ById(id) => id.to_owned(),
            Named::ByToken(token) => id_of(token),
        })
    }

    /// Empty = none.
    pub fn request_id(&self) -> &str {
        match self {
            Call::Create(request) => &request.request_id,
            Call::Update(request) => &request.request_id,
            Call::Rotate(request) => &request.request_id,
            Call::Delete(request) => &request.request_id,
            Call::Get(_) | Call::Touch(_) | Call::DeleteSubject(_) | Call::List(_) => "",
        }
    }

    pub async fn send(&self, client: &Client) -> Answer {
        let refused =
            |status: tonic::Status| refusal(&status).unwrap_or_else(|| panic!("nothing here leads to {status:?}"));
        self.clone().try_send(client).await.unwrap_or_else(refused)
    }

    /// The answer, or the status as it comes.
    pub async fn try_send(self, client: &Client) -> Result<Answer, tonic::Status> {
        let mut grpc = client.grpc.clone();
        let session = |session: Option<Session>, token| {
            Answer::Session(session.expect("an answer has its session").into(), token, TokenState::Unspecified)
        };
        Ok(match self {
            Call::Create(request) => {
                let response = grpc.create_session(request).await?.into_inner();
                session(response.session, response.token)
            }
            Call::Get(request) => {
                let response = grpc.get_session(request).await?.into_inner();
                let state = response.token_state();
                Answer::Session(response.session.expect("an answer has its session").into(), String::new(), state)
            }
            Call::Update(request) => session(grpc.update_session(request).await?.into_inner().session, String::new()),
            Call::Touch(request) => {
                let expires = grpc.touch_session(request).await?.into_inner().expire_time.expect("it will end");
                Answer::Touched((expires.seconds, expires.nanos))
            }
            Call::Rotate(request) => {
                let response = grpc.rotate_session(request).await?.into_inner();
                session(response.session, response.token)
            }
            Call::Delete(request) => Answer::Deleted(grpc.delete_session(request).await?.into_inner().deleted),
            Call::DeleteSubject(request) => {
                Answer::DeletedCount(grpc.delete_subject_sessions(request).await?.into_inner().deleted_count)
            }
            Call::List(mut request) => {
                let mut all = Vec::new();
                loop {
                    let page = grpc.list_sessions(request.clone()).await?.into_inner();
                    all.extend(page.sessions);
                    request.page_token = page.next_page_token;
                    if request.page_token.is_empty() {
                        break Answer::Listed(all);
                    }
                }
            }
        })
    }
}

/// The answer in a status by which the contract refuses a call; None = it is a failure. Every reason has its code.
pub fn refusal(status: &tonic::Status) -> Option<Answer> {
    let reason = status.get_details_error_info()?.reason;
    let (code, metadata) = match &reason[..] {
        "SESSION_NOT_FOUND" | "TOKEN_ROTATED" => (Code::NotFound, ""),
        "SESSION_ENDED" => (Code::NotFound, "cause"),
        "SESSION_EXISTS" => (Code::AlreadyExists, ""),
        "REVISION_MISMATCH" => (Code::Aborted, "current_revision"),
        "SUBJECT_CHANGE" | "SUBJECT_SESSION_LIMIT" => (Code::FailedPrecondition, ""),
        "FIELD_INVALID" | "REQUEST_ID_REUSED" => (Code::InvalidArgument, ""),
        _ => return None,
    };
    assert_eq!(status.code(), code, "{status:?}");
    Some(Answer::Refused(reason, status.metadata_of(metadata)))
}
