//! The calls on one session: create, get, update, touch.

use std::path::PathBuf;

use clap::Args;
use sessiond_client::v1::{
    CreateSessionRequest, GetSessionRequest, Session, SessionView, TokenState, TouchSessionRequest,
    UpdateSessionRequest,
};

use super::{
    arguments::{ChangeAttributes, Key, SetAttributes, Timeouts, labels, pair},
    connection::Common,
    detail,
    failure::Failure,
    secrets, table,
};

#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    common: Common,
    /// Whose session it is [default: nobody's].
    #[arg(long)]
    subject: Option<String>,
    #[command(flatten)]
    attributes: SetAttributes,
    /// Small value to filter by.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    timeouts: Timeouts,
    /// File with a token of the caller's own in its first line; - = standard input [default: the server makes one].
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Makes a repeat safe; needs --token-file.
    #[arg(long, requires = "token_file")]
    request_id: Option<String>,
}

impl Create {
    pub async fn run(self) -> Result<(), Failure> {
        let token = self.token_file.as_deref().map(|path| secrets::read("--token-file", path)).transpose()?;
        let request = CreateSessionRequest {
            namespace: self.common.namespace.clone(),
            subject: self.subject.unwrap_or_default(),
            attributes: self.attributes.values()?,
            labels: labels(&self.label)?,
            idle_timeout: self.timeouts.idle_timeout,
            absolute_timeout: self.timeouts.absolute_timeout,
            token: token.map(|token| token.as_str().to_owned()).unwrap_or_default(),
            request_id: self.request_id.unwrap_or_default(),
            ..Default::default()
        };
        let mut client = self.common.connect().await?;
        let response = client.create_session(self.common.request(request)).await?.into_inner();
        self.common.output.print("CreateSessionResponse", &response, |response| {
            with_token(response.session.as_ref(), &response.token)
        })
    }
}

/// The session's lines, and one with the token if the server made it.
pub fn with_token(session: Option<&Session>, token: &str) -> Vec<String> {
    let mut lines = session.map(detail::lines).unwrap_or_default();
    if !token.is_empty() {
        eprintln!("the token is told this once: keep it");
        lines.push(("token".to_owned(), token.to_owned()));
    }
    table::pairs(&lines)
}

#[derive(Args)]
pub struct Get {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    key: Key,
    /// Counts as a use of the session.
    #[arg(long)]
    touch: bool,
}

impl Get {
    pub async fn run(self) -> Result<(), Failure> {
        let request = GetSessionRequest {
            namespace: self.common.namespace.clone(),
            key: self.key.read()?,
            touch: self.touch,
            ..Default::default()
        };
        let mut client = self.common.connect().await?;
        let response = client.get_session(self.common.request(request)).await?.into_inner();
        self.common.output.print("GetSessionResponse", &response, |response| {
            let mut lines = response.session.as_ref().map(detail::lines).unwrap_or_default();
            let state = response.token_state();
            if state != TokenState::Unspecified {
                let name = state.as_str_name().trim_start_matches("TOKEN_STATE_");
                lines.push(("token_state".to_owned(), name.to_owned()));
            }
            table::pairs(&lines)
        })
    }
}

#[derive(Args)]
pub struct Update {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    attributes: ChangeAttributes,
    /// Sets a label.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Removes a label.
    #[arg(long, value_name = "NAME")]
    remove_label: Vec<String>,
    /// Whose session it becomes; empty = nobody's.
    #[arg(long)]
    subject: Option<String>,
    #[command(flatten)]
    timeouts: Timeouts,
    /// Only if the session's revision is this.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<i64>,
    /// Counts as a use of the session.
    #[arg(long)]
    touch: bool,
    /// Makes a repeat safe.
    #[arg(long)]
    request_id: Option<String>,
}

impl Update {
    pub async fn run(self) -> Result<(), Failure> {
        let request = UpdateSessionRequest {
            namespace: self.common.namespace.clone(),
            key: self.key.read()?,
            set_attributes: self.attributes.set.values()?,
            remove_attributes: self.attributes.remove,
            clear_attributes: self.attributes.clear,
            set_labels: labels(&self.label)?,
            remove_labels: self.remove_label,
            subject: self.subject,
            idle_timeout: self.timeouts.idle_timeout,
            absolute_timeout: self.timeouts.absolute_timeout,
            touch: self.touch,
            if_revision: self.if_revision,
            view: SessionView::Full.into(),
            request_id: self.request_id.unwrap_or_default(),
            authentication: None,
        };
        let mut client = self.common.connect().await?;
        let response = client.update_session(self.common.request(request)).await?.into_inner();
        self.common.output.print("UpdateSessionResponse", &response, |response| {
            table::pairs(&response.session.as_ref().map(detail::lines).unwrap_or_default())
        })
    }
}

#[derive(Args)]
pub struct Touch {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    key: Key,
}

impl Touch {
    pub async fn run(self) -> Result<(), Failure> {
        let request = TouchSessionRequest { namespace: self.common.namespace.clone(), key: self.key.read()? };
        let mut client = self.common.connect().await?;
        let response = client.touch_session(self.common.request(request)).await?.into_inner();
        let expires = |response: &_| {
            let sessiond_client::v1::TouchSessionResponse { expire_time } = response;
            vec![detail::deadline(expire_time.as_ref())]
        };
        self.common.output.print("TouchSessionResponse", &response, expires)
    }
}
