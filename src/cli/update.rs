//! `sessiond update`.

use clap::Args;
use sessiond_client::v1::{SessionView, UpdateSessionRequest};

use super::{
    arguments::{ChangeAttributes, Key, Timeouts, labels, pair},
    connection::Common,
    failure::Failure,
    fields::fields,
    table,
};

/// Arguments of `sessiond update`.
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
    /// New subject of the session; empty = anonymous.
    #[arg(long)]
    subject: Option<String>,
    #[command(flatten)]
    timeouts: Timeouts,
    /// Fails unless the session has this revision.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<i64>,
    /// Touches the session: extends its idle deadline.
    #[arg(long)]
    touch: bool,
    /// Request id, which makes a retry safe.
    #[arg(long)]
    request_id: Option<String>,
}

impl Update {
    /// Calls UpdateSession and prints the response.
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
            table::pairs(&response.session.as_ref().map(fields).unwrap_or_default())
        })
    }
}
