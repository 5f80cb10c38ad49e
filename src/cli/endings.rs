//! The end of one session, of several, or of all of a subject's.

use std::path::PathBuf;

use clap::Args;
use prost_types::Timestamp;
use sessiond_client::v1::{DeleteSessionRequest, DeleteSubjectSessionsRequest, SessionKey};

use super::{
    arguments::{Cause, by_id, by_token, checked_id},
    connection::Common,
    failure::Failure,
    output::{self, Format},
};

#[derive(Args)]
pub struct Delete {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    which: Which,
    /// With --subject: the id of the one to keep.
    #[arg(long, value_name = "ID", requires = "subject")]
    except: Option<String>,
    /// With --subject: only sessions made before this instant, in RFC 3339.
    #[arg(long, value_name = "TIME", requires = "subject", value_parser = instant)]
    created_before: Option<Timestamp>,
    /// Why they end [default: logout; with --subject: revoked].
    #[arg(long)]
    cause: Option<Cause>,
}

/// Exactly one of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Public ids.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// File with a session's token in its first line; - = standard input.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Ends all sessions of this subject.
    #[arg(long)]
    subject: Option<String>,
}

fn instant(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "expected RFC 3339, such as 2026-01-31T12:00:00Z".to_owned())
}

impl Delete {
    pub async fn run(self) -> Result<(), Failure> {
        match &self.which {
            Which { subject: Some(subject), .. } => self.all_of(subject).await,
            Which { token_file: Some(path), .. } => self.each(vec![by_token(path)?]).await,
            Which { ids, .. } => self.each(ids.iter().map(|id| by_id(id)).collect::<Result<_, _>>()?).await,
        }
    }

    async fn each(&self, keys: Vec<SessionKey>) -> Result<(), Failure> {
        let mut client = self.common.connect().await?;
        let mut deleted = 0;
        let mut ended = Ok(());
        for key in keys {
            let request = DeleteSessionRequest {
                namespace: self.common.namespace.clone(),
                key: Some(key),
                cause: Cause::number(self.cause),
                ..Default::default()
            };
            match client.delete_session(self.common.request(request)).await {
                Ok(response) => {
                    let response = response.into_inner();
                    deleted += i32::from(response.deleted);
                    self.common.output.print("DeleteSessionResponse", &response, |_| Vec::new())?;
                }
                Err(status) => {
                    ended = Err(status.into());
                    break;
                }
            }
        }
        // Those before the one that failed are ended all the same.
        if self.common.output == Format::Table && (ended.is_ok() || deleted > 0) {
            output::print(&[told(deleted)])?;
        }
        ended
    }

    async fn all_of(&self, subject: &str) -> Result<(), Failure> {
        let request = DeleteSubjectSessionsRequest {
            namespace: self.common.namespace.clone(),
            subject: subject.to_owned(),
            except_id: self.except.as_deref().map(checked_id).transpose()?.unwrap_or_default(),
            cause: Cause::number(self.cause),
            created_before: self.created_before,
        };
        let mut client = self.common.connect().await?;
        let response = client.delete_subject_sessions(self.common.request(request)).await?.into_inner();
        self.common
            .output
            .print("DeleteSubjectSessionsResponse", &response, |response| vec![told(response.deleted_count)])
    }
}

fn told(count: i32) -> String {
    format!("{count} deleted")
}
