//! Initial snapshot of a watch under writes: its duration, the memory of the server, and its correctness.
//!
//! Memory is the resident memory of the server before the snapshot and its peak during the snapshot.

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

use harness::{
    WatchReader,
    client::{NAMESPACE, by_id, seconds, text, whole_namespace},
    process::Process,
};
use support::{
    figures::{now_us, print_table},
    load::{self, Client},
    start_redis,
};

/// Measures the initial snapshot of a watch.
#[derive(Parser)]
struct Arguments {
    /// Number of sessions of each row.
    #[arg(long, value_delimiter = ',', default_values_t = [50_000, 500_000])]
    sessions: Vec<u64>,
    /// Changes per second during the snapshot.
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Cargo passes this flag.
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
    let (mut rows, mut created) = (Vec::new(), 0);
    for sessions in arguments.sessions {
        create(&clients, sessions - created).await;
        created = sessions;
        rows.push(measure(&server, &clients, sessions, arguments.rate).await);
    }
    print_table(
        &["sessions", "changes during", "events", "s until synced", "events/s", "MiB before", "MiB peak"],
        &rows,
    );
}

/// Creates sessions of about 100 bytes.
async fn create(clients: &[Client], sessions: u64) {
    let left = Arc::new(AtomicU64::new(sessions));
    load::with_workers(clients, IN_FLIGHT, |mut client, _| {
        let left = left.clone();
        async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                client.create_session(request()).await.expect("the session is created");
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
        // The first changes happen before the snapshot.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = memory(server, "VmRSS");
        reset_peak(server);
        let started = Instant::now();
        let (namespace, view) = (NAMESPACE.to_owned(), SessionView::Basic.into());
        let request = WatchRequest { namespace, initial_state: true, view, ..whole_namespace() };
        let mut watching = WatchReader::new(clients[0].clone().watch(request).await.expect("it opens").into_inner());
        let mut held = BTreeMap::new();
        let mut count = 0;
        loop {
            let response = watching.response().await.expect("the watch is open").expect("the watch is open");
            count += response.events.len();
            apply(&mut held, response.events);
            match response.control {
                Some(Control::Synced(_)) => break,
                None => {}
                other => panic!("{other:?}"),
            }
        }
        let took = started.elapsed();
        let peak = memory(server, "VmHWM");
        stop.store(true, Ordering::Relaxed);
        (watching, held, count, took, before, peak)
    };
    let (changes, (mut watching, mut held, count, took, before, peak)) = tokio::join!(changing, watching);
    read_until_now(&mut watching, &mut held).await;
    assert_eq!(held, list_all(&clients[0]).await, "snapshot and events differ from ListSessions");
    let mib = |kib: u64| format!("{:.0}", kib as f64 / 1024.0);
    vec![
        sessions.to_string(),
        changes.to_string(),
        count.to_string(),
        format!("{:.1}", took.as_secs_f64()),
        format!("{:.0}", count as f64 / took.as_secs_f64()),
        mib(before),
        mib(peak),
    ]
}

/// Creates, updates and deletes sessions at about this rate until `stop` is set; returns the number of changes.
async fn change(mut client: Client, rate: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut tick = tokio::time::interval(Duration::from_micros(3_000_000 / rate));
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let created = client.create_session(request()).await.expect("created").into_inner().session.unwrap();
        let set_attributes = [("name".to_owned(), text("changed"))].into();
        let (namespace, key) = (NAMESPACE.to_owned(), by_id(&created.id));
        let update = UpdateSessionRequest { namespace, key, set_attributes, ..Default::default() };
        client.update_session(update).await.expect("updated");
        let delete =
            DeleteSessionRequest { namespace: NAMESPACE.into(), key: by_id(&created.id), ..Default::default() };
        client.delete_session(delete).await.expect("deleted");
        changes += 3;
    }
    changes
}

fn apply(held: &mut BTreeMap<String, i64>, events: Vec<SessionEvent>) {
    for event in events {
        match event.r#type() {
            EventType::Ended => drop(held.remove(&event.id)),
            _ => drop(held.insert(event.id, event.revision)),
        }
    }
}

async fn read_until_now(watching: &mut WatchReader, held: &mut BTreeMap<String, i64>) {
    let now = now_us();
    loop {
        let response = watching.response().await.expect("the watch is open").expect("the watch is open");
        apply(held, response.events);
        if let Some(Control::Bookmark(bookmark)) = response.control {
            let as_of = bookmark.as_of.unwrap();
            if as_of.seconds as u64 * 1_000_000 + as_of.nanos as u64 / 1_000 > now {
                return;
            }
        }
    }
}

async fn list_all(client: &Client) -> BTreeMap<String, i64> {
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

/// Returns a field of `/proc/<pid>/status`, in KiB.
fn memory(server: &Process, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the process runs");
    let line =
        status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("the status has the field");
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn reset_peak(server: &Process) {
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").expect("the process belongs to this user");
}
