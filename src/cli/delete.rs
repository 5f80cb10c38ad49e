//! `sessiond delete`: ends sessions by id, by token or by subject.

use std::path::PathBuf;

use clap::Args;
use prost_types::Timestamp;
use sessiond_client::v1::{DeleteSessionRequest, DeleteSubjectSessionsRequest, SessionKey};

use super::{
    arguments::{Cause, id_key, token_key, valid_id},
    connection::Common,
    failure::Failure,
    output::{self, Format},
};

/// Arguments of `sessiond delete`.
#[derive(Args)]
pub struct Delete {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    target: Target,
    /// With --subject: id of the session to keep.
    #[arg(long, value_name = "ID", requires = "subject")]
    except: Option<String>,
    /// With --subject: ends only sessions created before this time (RFC 3339).
    #[arg(long, value_name = "TIME", requires = "subject", value_parser = instant)]
    created_before: Option<Timestamp>,
    /// Cause recorded for the sessions [default: logout; with --subject: revoked].
    #[arg(long)]
    cause: Option<Cause>,
}

/// Sessions to end: exactly one of ids, token file and subject.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Public ids of the sessions.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// File with the session's token in its first line; - = standard input.
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
    /// Calls DeleteSession for each key, or DeleteSubjectSessions, and prints the number of ended sessions.
    pub async fn run(self) -> Result<(), Failure> {
        match &self.target {
            Target { subject: Some(subject), .. } => self.delete_subject(subject).await,
            Target { token_file: Some(path), .. } => self.delete_each(vec![token_key(path)?]).await,
            Target { ids, .. } => self.delete_each(ids.iter().map(|id| id_key(id)).collect::<Result<_, _>>()?).await,
        }
    }

    async fn delete_each(&self, keys: Vec<SessionKey>) -> Result<(), Failure> {
        let mut client = self.common.connect().await?;
        let mut deleted = 0;
        let mut result = Ok(());
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
                    result = Err(status.into());
                    break;
                }
            }
        }
        // After a failure too: the sessions before the failed one have ended.
        if self.common.output == Format::Table && (result.is_ok() || deleted > 0) {
            output::print(&[count_line(deleted)])?;
        }
        result
    }

    async fn delete_subject(&self, subject: &str) -> Result<(), Failure> {
        let request = DeleteSubjectSessionsRequest {
            namespace: self.common.namespace.clone(),
            subject: subject.to_owned(),
            except_id: self.except.as_deref().map(valid_id).transpose()?.unwrap_or_default(),
            cause: Cause::number(self.cause),
            created_before: self.created_before,
        };
        let mut client = self.common.connect().await?;
        let response = client.delete_subject_sessions(self.common.request(request)).await?.into_inner();
        self.common
            .output
            .print("DeleteSubjectSessionsResponse", &response, |response| vec![count_line(response.deleted_count)])
    }
}

fn count_line(count: i32) -> String {
    format!("{count} deleted")
}
