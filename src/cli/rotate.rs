//! `sessiond rotate`.

use std::path::PathBuf;

use clap::Args;
use sessiond_client::v1::RotateSessionRequest;

use super::{
    arguments::{ChangeAttributes, proto_duration},
    connection::Common,
    failure::Failure,
    fields, token_file,
};

/// Arguments of `sessiond rotate`.
#[derive(Args)]
pub struct Rotate {
    #[command(flatten)]
    common: Common,
    /// File with the session's current token in its first line; - = standard input. An id cannot be rotated.
    #[arg(long, value_name = "PATH")]
    token_file: PathBuf,
    /// File with a client-generated successor: ses_<same id>_<new secret> [default: the server generates one].
    #[arg(long, value_name = "PATH")]
    new_token_file: Option<PathBuf>,
    /// New subject of an anonymous session; empty makes the session anonymous.
    #[arg(long)]
    subject: Option<String>,
    /// Time for which the old token stays valid [default: the policy's, or 0s with --subject].
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    grace: Option<prost_types::Duration>,
    #[command(flatten)]
    attributes: ChangeAttributes,
    /// Fails unless the session has this revision.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<i64>,
    /// Request id, which makes a retry safe; needs --new-token-file.
    #[arg(long, requires = "new_token_file")]
    request_id: Option<String>,
}

impl Rotate {
    /// Calls RotateSession and prints the response.
    pub async fn run(self) -> Result<(), Failure> {
        let files = [Some(&self.token_file), self.new_token_file.as_ref()];
        if files.iter().flatten().filter(|path| token_file::is_standard_input(path)).count() > 1 {
            let text = "--token-file and --new-token-file cannot both be standard input";
            return Err(Failure::Usage(text.to_owned()));
        }
        let token = token_file::read("--token-file", &self.token_file)?;
        let new = self.new_token_file.as_deref().map(|path| token_file::read("--new-token-file", path)).transpose()?;
        let request = RotateSessionRequest {
            namespace: self.common.namespace.clone(),
            token: token.as_str().to_owned(),
            new_token: new.map(|token| token.as_str().to_owned()).unwrap_or_default(),
            subject: self.subject,
            authentication: None,
            set_attributes: self.attributes.set.values()?,
            remove_attributes: self.attributes.remove,
            clear_attributes: self.attributes.clear,
            grace_period: self.grace,
            if_revision: self.if_revision,
            request_id: self.request_id.unwrap_or_default(),
        };
        let mut client = self.common.connect().await?;
        let response = client.rotate_session(self.common.request(request)).await?.into_inner();
        self.common.output.print("RotateSessionResponse", &response, |response| {
            fields::lines_with_token(response.session.as_ref(), &response.token)
        })
    }
}
