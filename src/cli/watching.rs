//! A watch that goes on across reconnects, from where it had got to.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use data_encoding::BASE64;
use sessiond_client::v1::{
    EventType, ResyncReason, SessionEvent, SessionView, WatchRequest, WatchResponse, watch_response::Control,
};
use tokio::time::{sleep, timeout};

use super::{
    arguments::{by_id, by_token, duration, labels, pair},
    connection::Common,
    detail::{attribute, time},
    failure::Failure,
    table::Table,
};

const COLUMNS: [&str; 7] = ["TIME", "TYPE", "ID", "SUBJECT", "REVISION", "CAUSE", "CHANGED"];
/// As wide as what they hold, for rows are printed as they come; a subject has the width that most have.
const WIDTHS: [usize; 7] = [27, 12, 26, 12, 16, 16, 0];

#[derive(Args)]
pub struct Watch {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    whose: Whose,
    /// Only sessions with this label; all that are given must match.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Only changes of this type [default: all].
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<Type>,
    /// With the values of attributes.
    #[arg(long)]
    full: bool,
    /// Tells what lives first, and again after a resync.
    #[arg(long)]
    initial_state: bool,
    /// Goes on after that response, which told this token; it is no secret.
    #[arg(long, value_name = "BASE64")]
    resume_token: Option<String>,
    /// Longest silence of a healthy watch; after twice as long it is opened again.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    bookmark_interval: Duration,
}

/// One of these, or the whole namespace.
#[derive(Args)]
#[group(multiple = false)]
struct Whose {
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
    fn from(of: Type) -> Self {
        match of {
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
    pub async fn run(self) -> Result<(), Failure> {
        let request = self.request()?;
        let mut following = Following {
            is_whole: !request.initial_state || !request.resume_token.is_empty(),
            may_end: !self.whose.ids.is_empty(),
            request,
            silence: self.bookmark_interval.saturating_mul(2),
            common: self.common,
            table: Table::new(COLUMNS, WIDTHS),
            is_under_way: false,
            backoff: Backoff::default(),
        };
        loop {
            let Err(failure) = following.follow().await else { return Ok(()) };
            if !following.is_under_way || !failure.may_pass() {
                return Err(failure);
            }
            let delay = following.backoff.next();
            let why = failure.text().unwrap_or_default();
            eprintln!("{why}; the watch is opened again in {} ms", delay.as_millis());
            sleep(delay).await;
        }
    }

    fn request(&self) -> Result<WatchRequest, Failure> {
        let keys = match &self.whose {
            Whose { token_file: Some(path), .. } => vec![by_token(path)?],
            Whose { ids, .. } => ids.iter().map(|id| by_id(id)).collect::<Result<_, _>>()?,
        };
        let resume_token = BASE64.decode(self.resume_token.as_deref().unwrap_or_default().as_bytes());
        let interval = self.bookmark_interval.try_into();
        Ok(WatchRequest {
            namespace: self.common.namespace.clone(),
            whole_namespace: keys.is_empty() && self.whose.subject.is_none(),
            keys,
            subject: self.whose.subject.clone(),
            labels: labels(&self.label)?,
            types: self.types.iter().map(|of| EventType::from(*of).into()).collect(),
            view: if self.full { SessionView::Full } else { SessionView::Basic }.into(),
            resume_token: resume_token.map_err(|_| Failure::Usage("--resume-token is not base64".to_owned()))?,
            initial_state: self.initial_state,
            bookmark_interval: Some(
                interval.map_err(|_| Failure::Usage("--bookmark-interval is too long".to_owned()))?,
            ),
        })
    }
}

struct Following {
    common: Common,
    /// With the position after the last response, once the state was told as a whole.
    request: WatchRequest,
    /// Whether it was, or was not asked for.
    is_whole: bool,
    /// It is for ids alone: all may have ended.
    may_end: bool,
    /// After so long without a response the watch is opened again.
    silence: Duration,
    table: Table<7>,
    /// Whether there has been a response: before, an error is the end.
    is_under_way: bool,
    backoff: Backoff,
}

impl Following {
    /// One stream, from where the last one had got to; Ok = there is nothing more to tell.
    async fn follow(&mut self) -> Result<(), Failure> {
        let mut client = self.common.connect().await?;
        let opened = timeout(self.common.timeout, client.watch(self.request.clone())).await;
        let mut stream = opened.map_err(|_| silent(self.common.timeout, "--timeout"))??.into_inner();
        let mut is_too_slow = false;
        loop {
            let response = timeout(self.silence, stream.message()).await;
            match response.map_err(|_| silent(self.silence, "two bookmark intervals"))?? {
                Some(response) => is_too_slow = self.take(response)?,
                None if is_too_slow => {
                    return Err(Failure::Interrupted("the server found this watch too slow".to_owned()));
                }
                None if self.may_end => return Ok(()),
                None => return Err(Failure::Interrupted("the server closed the watch".to_owned())),
            }
        }
    }

    /// Prints the response, keeps its position, and answers whether it says that this watch is too slow.
    fn take(&mut self, response: WatchResponse) -> Result<bool, Failure> {
        // The first response brings the table's header, with or without events.
        self.common.output.print("WatchResponse", &response, |response| self.table.lines(rows(response)))?;
        let (mut is_too_slow, mut is_well) = (false, false);
        match &response.control {
            Some(Control::Resync(resync)) if resync.reason() == ResyncReason::SlowConsumer => is_too_slow = true,
            Some(Control::Resync(_)) => self.is_whole = !self.request.initial_state,
            Some(Control::Synced(_)) => (self.is_whole, is_well) = (true, true),
            Some(Control::Bookmark(_)) => is_well = self.is_whole,
            None => {}
        }
        self.request.resume_token = if self.is_whole { response.resume_token } else { Default::default() };
        self.is_under_way = true;
        if is_well {
            self.backoff = Backoff::default();
        }
        Ok(is_too_slow)
    }
}

fn silent(time: Duration, name: &str) -> Failure {
    Failure::Interrupted(format!("nothing has come for {}, {name}", humantime::format_duration(time)))
}

fn rows(response: &WatchResponse) -> Vec<[String; 7]> {
    let mut rows: Vec<_> = response.events.iter().map(row).collect();
    match &response.control {
        Some(Control::Resync(resync)) => {
            let reason = resync.reason().as_str_name().trim_start_matches("RESYNC_REASON_");
            let everything = ["(all)".to_owned()];
            let ids = if resync.ids.is_empty() { &everything[..] } else { &resync.ids };
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

/// Its name; types that came later than this client stand for one that it knows.
fn kind(event: &SessionEvent) -> &'static str {
    let kind = match EventType::try_from(event.r#type) {
        Ok(known) => known,
        Err(_) if event.cause == 0 => EventType::Updated,
        Err(_) => EventType::Ended,
    };
    kind.as_str_name().trim_start_matches("EVENT_TYPE_")
}

fn row(event: &SessionEvent) -> [String; 7] {
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
        kind(event).to_owned(),
        event.id.clone(),
        session.subject.clone(),
        event.revision.to_string(),
        if cause == "UNSPECIFIED" { String::new() } else { cause.to_owned() },
        changed,
    ]
}

/// Doubles from 100 ms to 5 s; each wait is between nothing and all of that, so that many watchers come back apart.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Backoff(Duration::from_millis(100))
    }
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(5);

    fn next(&mut self) -> Duration {
        let longest = self.0;
        self.0 = (longest * 2).min(Backoff::LONGEST);
        // Without randomness all wait alike, which is no reason to give up.
        let random = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        longest.mul_f64(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_doubles_up_to_five_seconds() {
        let mut backoff = Backoff::default();
        for longest in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let longest = Duration::from_millis(longest);
            assert_eq!(backoff.0, longest);
            assert!(backoff.next() <= longest);
        }
    }
}
