//! `sessiond watch`: prints every change, across lost streams.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use data_encoding::BASE64;
use sessiond_client::{
    v1::{EventType, SessionEvent, SessionView, WatchRequest, WatchResponse, watch_response::Control},
    watch::{self, Lost, Update, event_type},
};

use super::{
    arguments::{duration, id_key, labels, pair, token_key},
    connection::Common,
    failure::Failure,
    fields::{attribute, time},
    output::{Format, print_error},
    table::Table,
};

const COLUMNS: [&str; 7] = ["TIME", "TYPE", "ID", "SUBJECT", "REVISION", "CAUSE", "CHANGED"];
/// Widths of the longest values, because rows are printed as they arrive. SUBJECT: the width of most subjects.
const MIN_WIDTHS: [usize; 7] = [27, 12, 26, 12, 16, 16, 0];

/// Arguments of `sessiond watch`.
#[derive(Args)]
pub struct Watch {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    scope: Scope,
    /// Watches only sessions with this label; repeated: with all of them.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Prints only events of this type; may be repeated [default: all].
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<Type>,
    /// Prints the values of attributes.
    #[arg(long)]
    full: bool,
    /// Starts with a snapshot of the current sessions, and prints one after each resync.
    #[arg(long)]
    initial_state: bool,
    /// Resumes after the response that had this resume token; it is not a secret.
    #[arg(long, value_name = "BASE64")]
    resume_token: Option<String>,
    /// Longest time without a response from a working server; the watch reconnects after twice this time.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    bookmark_interval: Duration,
}

/// Sessions to watch: at most one of ids, token file and subject. None of them: the whole namespace.
#[derive(Args)]
#[group(multiple = false)]
struct Scope {
    /// Public ids; the watch ends when all these sessions have ended.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// File with a session's token in its first line; - = standard input.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// All sessions of this subject.
    #[arg(long)]
    subject: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    Created,
    Updated,
    Rotated,
    Ended,
    Left,
    TokenReused,
}

impl From<Type> for EventType {
    fn from(kind: Type) -> Self {
        match kind {
            Type::Created => EventType::Created,
            Type::Updated => EventType::Updated,
            Type::Rotated => EventType::Rotated,
            Type::Ended => EventType::Ended,
            Type::Left => EventType::Left,
            Type::TokenReused => EventType::TokenReused,
        }
    }
}

impl Watch {
    /// Watches until all watched ids have ended or a call fails. A lost stream fails only before the first response.
    pub async fn run(self) -> Result<(), Failure> {
        let (request, endpoint, url) = (self.request()?, self.common.endpoint()?, self.common.url()?);
        let mut watch = watch::Watch::new(request, move || endpoint.clone())
            .with_open_timeout(self.common.timeout)
            .with_metadata(self.common.credential()?.metadata());
        let mut printer = Printer { format: self.common.output, table: Table::new(COLUMNS, MIN_WIDTHS) };
        let mut has_response = false;
        while let Some(update) = watch.next().await? {
            match update {
                Update::Opening { .. } => {}
                Update::Response(response) => {
                    has_response = true;
                    printer.print(&response)?;
                }
                Update::Lost { reason, delay } => {
                    let failure = lost_failure(reason, &url);
                    if !has_response {
                        return Err(failure);
                    }
                    let reason = failure.text().unwrap_or_default();
                    print_error(&format!("{reason}; reopening the watch in {} ms", delay.as_millis()));
                }
            }
        }
        Ok(())
    }

    fn request(&self) -> Result<WatchRequest, Failure> {
        let keys = match &self.scope {
            Scope { token_file: Some(path), .. } => vec![token_key(path)?],
            Scope { ids, .. } => ids.iter().map(|id| id_key(id)).collect::<Result<_, _>>()?,
        };
        let resume_token = BASE64.decode(self.resume_token.as_deref().unwrap_or_default().as_bytes());
        let interval = self.bookmark_interval.try_into();
        Ok(WatchRequest {
            namespace: self.common.namespace.clone(),
            whole_namespace: keys.is_empty() && self.scope.subject.is_none(),
            keys,
            subject: self.scope.subject.clone(),
            labels: labels(&self.label)?,
            types: self.types.iter().map(|kind| EventType::from(*kind).into()).collect(),
            view: if self.full { SessionView::Full } else { SessionView::Basic }.into(),
            resume_token: resume_token.map_err(|_| Failure::Usage("--resume-token: not base64".to_owned()))?,
            initial_state: self.initial_state,
            bookmark_interval: Some(
                interval.map_err(|_| Failure::Usage("--bookmark-interval: duration is too long".to_owned()))?,
            ),
        })
    }
}

fn lost_failure(lost: Lost, url: &str) -> Failure {
    match lost {
        Lost::Unreachable(error) => Failure::unreachable(url, &*error),
        Lost::Status(status) => status.into(),
        Lost::NotOpened(limit) => Failure::Interrupted(format!("no response for {limit:?} (--timeout)")),
        Lost::Silent(_) | Lost::SlowConsumer | Lost::Closed => Failure::Interrupted(lost.to_string()),
    }
}

struct Printer {
    format: Format,
    table: Table<7>,
}

impl Printer {
    /// Prints a response. The first one prints the header of the table even if it has no events.
    fn print(&mut self, response: &WatchResponse) -> Result<(), Failure> {
        self.format.print("WatchResponse", response, |response| self.table.lines(rows(response)))
    }
}

fn rows(response: &WatchResponse) -> Vec<[String; 7]> {
    let mut rows: Vec<_> = response.events.iter().map(event_row).collect();
    match &response.control {
        Some(Control::Resync(resync)) => {
            let reason = resync.reason().as_str_name().trim_start_matches("RESYNC_REASON_");
            let all = ["(all)".to_owned()];
            let ids = if resync.ids.is_empty() { &all[..] } else { &resync.ids };
            rows.extend(ids.iter().map(|id| {
                let id = id.clone();
                [String::new(), "RESYNC".into(), id, String::new(), String::new(), reason.into(), String::new()]
            }));
        }
        Some(Control::Synced(_)) => {
            let mut row: [String; 7] = Default::default();
            row[1] = "SYNCED".into();
            rows.push(row);
        }
        Some(Control::Bookmark(_)) | None => {}
    }
    rows
}

fn event_row(event: &SessionEvent) -> [String; 7] {
    let session = event.session.clone().unwrap_or_default();
    let is_new = matches!(event.r#type(), EventType::Created | EventType::Snapshot);
    let names: Vec<_> =
        if is_new { session.attributes.keys().collect() } else { event.changed_attributes.iter().collect() };
    let changed = names.into_iter().map(|name| match session.attributes.get(name) {
        Some(value) => format!("{name}={}", attribute(value).1),
        None => name.clone(),
    });
    let changed = changed.collect::<Vec<_>>().join(",");
    let cause = event.cause().as_str_name().trim_start_matches("CAUSE_");
    [
        time(event.event_time.as_ref()),
        event_type(event).as_str_name().trim_start_matches("EVENT_TYPE_").to_owned(),
        event.id.clone(),
        session.subject.clone(),
        event.revision.to_string(),
        if cause == "UNSPECIFIED" { String::new() } else { cause.to_owned() },
        changed,
    ]
}
