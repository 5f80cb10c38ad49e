//! Memory of a session in Redis without the log, compared with the same content as one JSON string with a TTL.
//!
//! Bytes are the difference of `used_memory` to the empty Redis, after all sessions are created, the server has stopped
//! and the logs are deleted, divided by the number of sessions. They include key names, dictionaries and allocator
//! overhead. docs/benchmarks.md describes the rows.

mod support;

use std::collections::BTreeMap;

use clap::Parser;
use sessiond_client::v1::CreateSessionRequest;

use harness::{Redis, client::NAMESPACE, process::Process};
use support::{
    content::{Content, Kind},
    figures::print_table,
    load, memory,
};

/// Measures the memory of sessions in Redis.
#[derive(Parser)]
struct Arguments {
    /// Number of sessions of each row, and of JSON strings.
    #[arg(long, default_value_t = 100_000)]
    sessions: u64,
    /// Runs only the rows whose title starts with this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
}

const IN_FLIGHT: usize = 32;

#[derive(Clone, Copy)]
enum Layout {
    OneAttribute,
    AttributePerField,
}

/// Upper limit of the memory of a session.
#[derive(Clone, Copy)]
enum Goal {
    None,
    /// Maximum ratios to the JSON string, without and with a subject.
    Ratio([f64; 2]),
    Bytes(f64),
}

#[derive(Clone, Copy)]
struct Row {
    title: &'static str,
    content: Kind,
    layout: Layout,
    goal: Goal,
}

const ROWS: [Row; 5] = [
    Row { title: "no content", content: Kind::Nothing, layout: Layout::OneAttribute, goal: Goal::Bytes(640.0) },
    Row {
        title: "1 KiB, one attribute",
        content: Kind::Session,
        layout: Layout::OneAttribute,
        goal: Goal::Ratio([1.0, 1.0]),
    },
    Row {
        title: "1 KiB, ten attributes",
        content: Kind::Session,
        layout: Layout::AttributePerField,
        goal: Goal::Ratio([0.95, 1.08]),
    },
    Row {
        title: "4 KiB, one attribute",
        content: Kind::LongSession,
        layout: Layout::OneAttribute,
        goal: Goal::Ratio([1.0, 1.0]),
    },
    Row {
        title: "1 KiB of random letters, one attribute",
        content: Kind::RandomLetters,
        layout: Layout::OneAttribute,
        goal: Goal::None,
    },
];

impl Row {
    fn request(self, number: u64, with_subject: bool) -> CreateSessionRequest {
        let content = Content::new(self.content, number);
        CreateSessionRequest {
            namespace: NAMESPACE.to_owned(),
            subject: if with_subject { format!("user-{number:07}") } else { String::new() },
            attributes: match self.layout {
                Layout::OneAttribute => content.as_one_attribute(),
                Layout::AttributePerField => content.as_attributes(),
            },
            ..Default::default()
        }
    }

    fn start_redis(self) -> Redis {
        Redis::start_with(&["--activedefrag", "no"])
    }
}

/// Bytes per session, event and kind of key.
struct Figures {
    all: f64,
    event: f64,
    kinds: BTreeMap<String, f64>,
}

#[tokio::main]
async fn main() {
    let Arguments { sessions, only, .. } = Arguments::parse();
    let (mut bytes, mut parts, mut strings) = (Vec::new(), Vec::new(), BTreeMap::new());
    for row in ROWS.into_iter().filter(|row| row.title.starts_with(&only)) {
        let string = *strings.entry(row.content).or_insert_with(|| as_strings(row, sessions));
        for with_subject in [false, true] {
            let figures = measure(row, with_subject, sessions).await;
            let subject = if with_subject { "yes" } else { "no" };
            let [goal, met] = compare_with_goal(row.goal, with_subject, &figures, string);
            bytes.push(vec![
                row.title.to_owned(),
                subject.to_owned(),
                format!("{:.0}", figures.all),
                format!("{string:.0}"),
                format!("{:.2}", figures.all / string),
                goal,
                met,
                format!("{:.0}", figures.event),
            ]);
            let session_and_due = ["s", "due"].map(|kind| figures.kinds.get(kind).copied().unwrap_or_default());
            let others = figures.kinds.values().sum::<f64>() - session_and_due.iter().sum::<f64>();
            let overhead = figures.all - figures.kinds.values().sum::<f64>();
            let cells = [session_and_due[0], session_and_due[1], others, overhead].map(|bytes| format!("{bytes:.0}"));
            parts.push([row.title.to_owned(), subject.to_owned()].into_iter().chain(cells).collect());
        }
    }
    let columns = ["content", "subject", "bytes per session", "JSON string", "ratio", "goal", "met", "log entry"];
    print_table(&columns, &bytes);
    print_table(&["content", "subject", "session key", "entry in `due`", "other keys", "overhead"], &parts);
    print_contents(sessions);
}

fn compare_with_goal(goal: Goal, with_subject: bool, figures: &Figures, string: f64) -> [String; 2] {
    let verdict = |met: bool| if met { "yes" } else { "**no**" }.to_owned();
    match goal {
        Goal::None => ["", ""].map(str::to_owned),
        Goal::Ratio(maxima) => {
            let max = maxima[usize::from(with_subject)];
            [format!("ratio ≤ {max:.2}"), verdict(figures.all <= max * string)]
        }
        Goal::Bytes(max) => [format!("≤ {max:.0} bytes"), verdict(figures.all <= max)],
    }
}

async fn measure(row: Row, with_subject: bool, sessions: u64) -> Figures {
    let redis = row.start_redis();
    let empty = memory::used(&redis);
    create(&redis, row, with_subject, sessions).await;
    let with_logs = memory::used(&redis);
    let events = memory::delete_logs(&redis);
    let all = memory::used(&redis);
    let each = |bytes: u64| bytes as f64 / sessions as f64;
    let kinds = memory::by_kind(&redis).into_iter().map(|(kind, bytes)| (kind, each(bytes))).collect();
    Figures { all: each(all - empty), event: (with_logs - all) as f64 / events as f64, kinds }
}

/// Creates the sessions through a separate server, which has stopped when this returns.
async fn create(redis: &Redis, row: Row, with_subject: bool, sessions: u64) {
    let server = Process::start(&[format!("--redis={}", redis.url())]);
    let clients = load::connect(&server.address).await;
    let workers = (clients.len() * IN_FLIGHT) as u64;
    load::with_workers(&clients, IN_FLIGHT, |mut client, worker| async move {
        for number in (worker..sessions).step_by(workers as usize) {
            client.create_session(row.request(number, with_subject)).await.expect("the session is created");
        }
    })
    .await;
}

/// Returns the bytes per JSON string.
fn as_strings(row: Row, sessions: u64) -> f64 {
    let redis = row.start_redis();
    let empty = memory::used(&redis);
    memory::populate_strings(&redis, (0..sessions).map(|number| Content::new(row.content, number).to_json()));
    (memory::used(&redis) - empty) as f64 / sessions as f64
}

/// Prints the sizes of the contents and their LZ4 ratios.
fn print_contents(sessions: u64) {
    let kinds = [("1 KiB", Kind::Session), ("4 KiB", Kind::LongSession), ("random letters", Kind::RandomLetters)];
    let rows = kinds.map(|(title, kind)| {
        let sample: Vec<String> = (0..sessions).map(|number| Content::new(kind, number).to_json()).collect();
        let lengths = || sample.iter().map(String::len);
        let compressed: usize = sample.iter().map(|text| lz4_flex::block::compress(text.as_bytes()).len()).sum();
        let all: usize = lengths().sum();
        vec![
            title.to_owned(),
            format!("{}", all / sample.len()),
            format!("{}–{}", lengths().min().unwrap(), lengths().max().unwrap()),
            format!("{:.2}", compressed as f64 / all as f64),
        ]
    });
    print_table(&["content", "bytes of JSON", "min–max", "LZ4 ratio"], &rows);
    println!("{}\n", Content::new(Kind::Session, 1).to_json());
}
