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
}

impl Get {
    /// Calls GetSession and prints the response.
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
