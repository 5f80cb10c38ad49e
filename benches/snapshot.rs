//! The state that a watch tells first: how long it takes, what it costs in memory, and that it is the truth, while writes go
//! on.
//!
//! Memory is the server's peak of resident memory while the state was told, beside what it had before.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, EventType, ListSessionsRequest, SessionEvent, SessionView,
    UpdateSessionRequest, WatchRequest, watch_response::Control,
};

use support::{
    figures::{now_us, print_table},
    harness::{
        Watching,
        client::{NAMESPACE, by_id, seconds, text, whole_namespace},
        process::Process,
    },
    load::{self, Client},
    start_redis,
};

/// Measures the state that a watch tells first.
#[derive(Parser)]
struct Arguments {
    /// Sessions of each row.
    #[arg(long, value_delimiter = ',', default_values_t = [50_000, 500_000])]
    sessions: Vec<u64>,
    /// Changes a second meanwhile.
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const IN_FLIGHT: usize = 32;

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let redis = start_redis();
    let server = Process::start(&[format!("--redis={}", redis.url())]);
    let clients = load::connect(&server.address).await;
    let (mut rows, mut made) = (Vec::new(), 0);
    for sessions in arguments.sessions {
        create(&clients, sessions - made).await;
        made = sessions;
        rows.push(measure(&server, &clients, sessions, arguments.rate).await);
    }
    print_table(
        &["sessions", "changes meanwhile", "told", "s until synced", "sessions/s", "MiB before", "MiB at most"],
        &rows,
    );
}

/// Makes sessions of some 100 bytes.
async fn create(clients: &[Client], sessions: u64) {
    let left = Arc::new(AtomicU64::new(sessions));
    load::with_workers(clients, IN_FLIGHT, |mut client, _| {
        let left = left.clone();
        async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                client.create_session(request()).await.expect("a session is made");
            }
        }
    })
    .await;
}

fn request() -> CreateSessionRequest {
    CreateSessionRequest {
        namespace: NAMESPACE.to_owned(),
        attributes: [("name".to_owned(), text("0123456789abcdef"))].into(),
        idle_timeout: seconds(3 * 3600),
        ..Default::default()
    }
}

async fn measure(server: &Process, clients: &[Client], sessions: u64, rate: u64) -> Vec<String> {
    let stop = Arc::new(AtomicBool::new(false));
    let changing = change(clients[1].clone(), rate, stop.clone());
    let watching = async {
        // What they do first is not told as a change of the state.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = memory(server, "VmRSS");
        forget_peak(server);
        let started = Instant::now();
        let (namespace, view) = (NAMESPACE.to_owned(), SessionView::Basic.into());
        let request = WatchRequest { namespace, initial_state: true, view, ..whole_namespace() };
        let mut watching = Watching::new(clients[0].clone().watch(request).await.expect("it opens").into_inner());
        let mut held = BTreeMap::new();
        let mut told = 0;
        loop {
            let response = watching.response().await.expect("the watch is open").expect("the watch is open");
            told += response.events.len();
            take(&mut held, response.events);
            match response.control {
                Some(Control::Synced(_)) => break,
                None => {}
                other => panic!("{other:?}"),
            }
        }
        let took = started.elapsed();
        let peak = memory(server, "VmHWM");
        stop.store(true, Ordering::Relaxed);
        (watching, held, told, took, before, peak)
    };
    let (changes, (mut watching, mut held, told, took, before, peak)) = tokio::join!(changing, watching);
    until_now(&mut watching, &mut held).await;
    assert_eq!(held, truth(&clients[0]).await, "state and changes together are not the truth");
    let mib = |kib: u64| format!("{:.0}", kib as f64 / 1024.0);
    vec![
        sessions.to_string(),
        changes.to_string(),
        told.to_string(),
        format!("{:.1}", took.as_secs_f64()),
        format!("{:.0}", told as f64 / took.as_secs_f64()),
        mib(before),
        mib(peak),
    ]
}

/// Makes, changes and ends sessions at about this rate until told to stop; how many changes.
async fn change(mut client: Client, rate: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut tick = tokio::time::interval(Duration::from_micros(3_000_000 / rate));
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let made = client.create_session(request()).await.expect("made").into_inner().session.unwrap();
        let set_attributes = [("name".to_owned(), text("changed"))].into();
        let (namespace, key) = (NAMESPACE.to_owned(), by_id(&made.id));
        let update = UpdateSessionRequest { namespace, key, set_attributes, ..Default::default() };
        client.update_session(update).await.expect("changed");
        let delete = DeleteSessionRequest { namespace: NAMESPACE.into(), key: by_id(&made.id), ..Default::default() };
        client.delete_session(delete).await.expect("ended");
        changes += 3;
    }
    changes
}

fn take(held: &mut BTreeMap<String, i64>, events: Vec<SessionEvent>) {
    for event in events {
        match event.r#type() {
            EventType::Ended => drop(held.remove(&event.id)),
            _ => drop(held.insert(event.id, event.revision)),
        }
    }
}

async fn until_now(watching: &mut Watching, held: &mut BTreeMap<String, i64>) {
    let now = now_us();
    loop {
        let response = watching.response().await.expect("the watch is open").expect("the watch is open");
        take(held, response.events);
        if let Some(Control::Bookmark(bookmark)) = response.control {
            let as_of = bookmark.as_of.unwrap();
            if as_of.seconds as u64 * 1_000_000 + as_of.nanos as u64 / 1_000 > now {
                return;
            }
        }
    }
}

async fn truth(client: &Client) -> BTreeMap<String, i64> {
    let (mut all, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let namespace = NAMESPACE.to_owned();
        let request = ListSessionsRequest { namespace, page_size: 1_000, page_token, ..Default::default() };
        let page = client.clone().list_sessions(request).await.expect("a list").into_inner();
        all.extend(page.sessions.into_iter().map(|session| (session.id, session.revision)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// A field of the process's status, in KiB.
fn memory(server: &Process, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("Linux tells");
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn forget_peak(server: &Process) {
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").expect("it is our own process");
}
