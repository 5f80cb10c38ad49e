//! `sessiond get`.

use clap::Args;
use sessiond_client::v1::{GetSessionRequest, TokenState};

use super::{arguments::Key, connection::Common, failure::Failure, fields::fields, table};

/// Arguments of `sessiond get`.
#[derive(Args)]
pub struct Get {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    key: Key,
    /// Touches the session: extends its idle deadline.
    #[arg(long)]
    touch: bool,
    /// Accepts an answer from the memory of the server that has at least this revision and is at most 1 s old. 0: any revision.
    /// Default: the server reads from Redis.
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(0..))]
    min_revision: Option<i64>,
}

impl Get {
    /// Calls GetSession and prints the response.
    pub async fn run(self) -> Result<(), Failure> {
        let request = GetSessionRequest {
            namespace: self.common.namespace.clone(),
            key: self.key.read()?,
            touch: self.touch,
            min_revision: self.min_revision,
            ..Default::default()
        };
        let mut client = self.common.connect().await?;
        let response = client.get_session(self.common.request(request)).await?.into_inner();
        self.common.output.print("GetSessionResponse", &response, |response| {
            let mut lines = response.session.as_ref().map(fields).unwrap_or_default();
            let state = response.token_state();
            if state != TokenState::Unspecified {
                let name = state.as_str_name().trim_start_matches("TOKEN_STATE_");
                lines.push(("token_state".to_owned(), name.to_owned()));
            }
            table::pairs(&lines)
        })
    }
}
