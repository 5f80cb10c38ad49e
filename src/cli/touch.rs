//! `sessiond touch`.

use clap::Args;
use sessiond_client::v1::{TouchSessionRequest, TouchSessionResponse};

use super::{arguments::Key, connection::Common, failure::Failure, fields::deadline};

/// Arguments of `sessiond touch`.
#[derive(Args)]
pub struct Touch {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    key: Key,
}

impl Touch {
    /// Calls TouchSession and prints the response.
    pub async fn run(self) -> Result<(), Failure> {
        let request = TouchSessionRequest { namespace: self.common.namespace.clone(), key: self.key.read()? };
        let mut client = self.common.connect().await?;
        let response = client.touch_session(self.common.request(request)).await?.into_inner();
        self.common.output.print("TouchSessionResponse", &response, |response: &TouchSessionResponse| {
            vec![deadline(response.expire_time.as_ref())]
        })
    }
}
