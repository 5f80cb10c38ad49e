//! `sessiond create`.

use std::path::PathBuf;

use clap::Args;
use sessiond_client::v1::CreateSessionRequest;

use super::{
    arguments::{SetAttributes, Timeouts, labels, pair},
    connection::Common,
    failure::Failure,
    fields, token_file,
};

/// Arguments of `sessiond create`.
#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    common: Common,
    /// Subject of the session [default: anonymous].
    #[arg(long)]
    subject: Option<String>,
    #[command(flatten)]
    attributes: SetAttributes,
    /// Sets a label: a small value to filter by.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    timeouts: Timeouts,
    /// File with a client-generated token in its first line; - = standard input [default: the server generates one].
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Request id, which makes a retry safe; needs --token-file.
    #[arg(long, requires = "token_file")]
    request_id: Option<String>,
}

impl Create {
    /// Calls CreateSession and prints the response.
    pub async fn run(self) -> Result<(), Failure> {
        let token = self.token_file.as_deref().map(|path| token_file::read("--token-file", path)).transpose()?;
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
            fields::lines_with_token(response.session.as_ref(), &response.token)
        })
    }
}
