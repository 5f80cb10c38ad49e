//! `sessiond list`: reads all pages.

use std::collections::HashSet;

use clap::Args;
use sessiond_client::v1::{ListSessionsRequest, ListSessionsResponse, Session};

use super::{
    arguments::{labels, pair},
    connection::Common,
    failure::Failure,
    fields::{deadline, time},
    output::{self, Format},
    table::Table,
};

/// Largest page size that a server accepts.
const MAX_PAGE_SIZE: u64 = 1_000;
const COLUMNS: [&str; 6] = ["ID", "SUBJECT", "CREATED", "ACCESSED", "EXPIRES", "LABELS"];
const MIN_WIDTHS: [usize; 6] = [26, 8, 24, 24, 24, 0];

/// Arguments of `sessiond list`.
#[derive(Args)]
pub struct List {
    #[command(flatten)]
    common: Common,
    /// Lists only the sessions of this subject, newest first.
    #[arg(long)]
    subject: Option<String>,
    /// Lists only sessions with this label; repeated: with all of them.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Maximum number of sessions [default: unlimited].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Prints only the number of sessions.
    #[arg(long)]
    count: bool,
}

impl List {
    /// Calls ListSessions until the last page, or the limit, and prints the sessions.
    pub async fn run(self) -> Result<(), Failure> {
        let limit = self.limit.unwrap_or(u64::MAX);
        let mut request = ListSessionsRequest {
            namespace: self.common.namespace.clone(),
            subject: self.subject,
            labels: labels(&self.label)?,
            page_size: limit.min(MAX_PAGE_SIZE) as i32,
            ..Default::default()
        };
        let mut client = self.common.connect().await?;
        let mut table = Table::new(COLUMNS, MIN_WIDTHS);
        let mut all = ListSessionsResponse::default();
        // Two pages may contain the same session.
        let mut ids = HashSet::new();
        loop {
            let page = client.list_sessions(self.common.request(request.clone())).await?.into_inner();
            let mut sessions = page.sessions;
            sessions.retain(|session| (ids.len() as u64) < limit && ids.insert(session.id.clone()));
            match self.common.output {
                _ if self.count => {}
                Format::Table => output::print(&table.lines(sessions.iter().map(row).collect()))?,
                Format::Json => all.sessions.extend(sessions),
            }
            if page.next_page_token.is_empty() || ids.len() as u64 == limit {
                break;
            }
            request.page_token = page.next_page_token;
        }
        match self.common.output {
            _ if self.count => output::print(&[ids.len().to_string()]),
            Format::Table => Ok(()),
            Format::Json => Format::Json.print("ListSessionsResponse", &all, |_| Vec::new()),
        }
    }
}

fn row(session: &Session) -> [String; 6] {
    let labels: Vec<_> = session.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    [
        session.id.clone(),
        session.subject.clone(),
        time(session.create_time.as_ref()),
        time(session.access_time.as_ref()),
        deadline(session.expire_time.as_ref()),
        labels.join(","),
    ]
}
