//! Cost of TLS, keys and the audit log, and the latency of a known caller while others attack the server.
//!
//! All servers of the first table use one Redis and the same sessions. A round runs each row for a short slice and starts with a
//! different row than the previous round. In the second table, a slice without attack precedes each slice with one; ratios are
//! computed within the pair.

mod support;

use std::time::Duration;

use clap::Parser;

use harness::{
    ConfigFile, Redis,
    callers::{Caller, CallersFile, Key},
    pki::Pki,
    process::{self, Process},
};
use support::{
    attack::{Attack, Victim},
    figures::{Quartiles, print_table},
    generator::{Access, Calls},
    load::CONNECTIONS,
    measure::{Slice, Target, in_rounds, start_redis},
    memory::resident,
    requests::{self, CONFIGURATION, Get, QUIET, Sessions, response_size},
    sessiond::create,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the cost of the network part.
#[derive(Parser)]
struct Arguments {
    /// Number of rounds: slices of each row.
    #[arg(long, default_value_t = 16)]
    rounds: usize,
    /// Length of a slice of the first table, in ms.
    #[arg(long, default_value_t = 400)]
    slice: u64,
    /// Number of rounds of the second table.
    #[arg(long, default_value_t = 16)]
    attack_rounds: usize,
    /// Length of a slice of the second table, in ms.
    #[arg(long, default_value_t = 1_500)]
    attack: u64,
    /// Cargo passes this flag.
    #[arg(long, hide = true)]
    bench: bool,
}

const MIB: f64 = 1024.0 * 1024.0;
/// Number of sessions.
const SESSIONS: usize = 1_000;

/// Server with TLS and two callers.
struct Servers {
    redis: Redis,
    pki: Pki,
    callers: CallersFile,
    key: Key,
    other_key: Key,
    directory: tempfile::TempDir,
}

impl Servers {
    fn new() -> Self {
        let [key, other_key] = [(); 2].map(|()| Key::generate());
        let caller = |name: &str, key: &Key| Caller::new(name, &[("*", "full")]).key(key);
        let callers = CallersFile::new(&[caller("shop", &key), caller("other", &other_key)]);
        let directory = tempfile::tempdir().expect("a temporary directory");
        Servers { redis: start_redis(), pki: Pki::generate(), callers, key, other_key, directory }
    }

    /// Starts a server with these lines in its configuration.
    fn start(&self, lines: &str) -> Process {
        let config = ConfigFile::new(&format!("{lines}\n{CONFIGURATION}"));
        Process::start_program(&process::program(), &[format!("--redis={}", self.redis.url()), config.flag()])
    }

    fn target(&self, process: &Process, access: Access) -> Target {
        Target { access, ..Target::new(process.pid(), process.address.clone(), Some(self.redis.clone())) }
    }

    fn tls(&self) -> Access {
        Access { tls: Some(self.pki.rustls_config(None, &["h2"]).into()), key: None }
    }

    fn tls_and_key(&self, key: &Key) -> Access {
        Access { key: Some(key.text.clone()), ..self.tls() }
    }

    fn secured(&self) -> String {
        format!("{}{}", self.pki.toml(), self.callers.toml())
    }

    fn with_audit_log(&self) -> String {
        let path = self.directory.path().join("audit.jsonl");
        format!("audit_file = {:?}\naudit_required = true\n{}", path.to_str().expect("UTF-8"), self.secured())
    }
}

/// Calls to one server, of which each round measures a slice.
struct Row {
    title: &'static str,
    target: Target,
    calls: Calls,
    /// Index of the row that its ratios refer to.
    reference: usize,
    slices: Vec<Slice>,
}

fn print_costs(servers: &Servers, sessions: &Sessions, plain: &Process, rounds: usize, length: Duration) {
    let [tls, secured, logged] =
        [servers.pki.toml(), servers.secured(), servers.with_audit_log()].map(|lines| servers.start(&lines));
    let get = |form| requests::get(form, QUIET, sessions, response_size(1));
    let row = |title, target, form, reference| Row { title, target, calls: get(form), reference, slices: Vec::new() };
    let with_key = || servers.tls_and_key(&servers.key);
    let mut rows = [
        row("by token, without TLS", servers.target(plain, Access::default()), Get::Token, 0),
        row("by token, TLS", servers.target(&tls, servers.tls()), Get::Token, 0),
        row("by token, TLS and key", servers.target(&secured, with_key()), Get::Token, 0),
        row("by token, TLS, key, audit log", servers.target(&logged, with_key()), Get::Token, 0),
        row("by id, TLS and key", servers.target(&secured, with_key()), Get::Id, 4),
        row("by id, TLS, key, audit log: one line each", servers.target(&logged, with_key()), Get::Id, 4),
    ];
    in_rounds(&mut rows, rounds, |row| Slice::run(&row.target, CONNECTIONS, &row.calls, length), |row| &mut row.slices);
    let figure = |row: &Row, of: fn(&Slice) -> f64| format!("{:.3}", Quartiles::of(row.slices.iter().map(of)));
    let ratio = |row: &Row, of: fn(&Slice) -> f64| {
        let pairs = row.slices.iter().zip(&rows[row.reference].slices);
        format!("{:.3}", Quartiles::of(pairs.map(|(slice, reference)| of(slice) / of(reference))))
    };
    let lines = rows.iter().map(|row| {
        let reference = if row.reference == 0 { "without TLS" } else { "by id, TLS and key" };
        vec![
            row.title.to_owned(),
            figure(row, |slice| slice.rate),
            figure(row, |slice| slice.server),
            ratio(row, |slice| slice.rate),
            ratio(row, |slice| slice.server),
            reference.to_owned(),
        ]
    });
    let head = ["GetSession", "calls per second", "server CPU, µs", "rate, ratio", "server CPU, ratio", "ratio to"];
    print_table(&head, &lines.collect::<Vec<_>>());
}

fn print_attacks(servers: &Servers, sessions: &Sessions, rounds: usize, length: Duration) {
    let server = servers.start(&servers.secured());
    let target = servers.target(&server, servers.tls_and_key(&servers.key));
    let attacks = Attack::all(&server.address, servers.tls(), servers.tls_and_key(&servers.other_key), sessions);
    let victim = Victim::new(target, requests::get(Get::Token, QUIET, sessions, response_size(1)));
    let mut ratios: Vec<[Vec<f64>; 4]> = attacks.iter().map(|_| Default::default()).collect();
    for round in 0..=rounds {
        for (attack, ratios) in attacks.iter().zip(&mut ratios) {
            let calm = victim.measure(length);
            let attacked = attack.during(|| victim.measure(length));
            if round > 0 {
                ratios[0].push(attacked[0] / calm[0]);
                ratios[1].push(attacked[1] / calm[1]);
                ratios[2].push(attacked[1]);
                ratios[3].push(resident(server.pid()) as f64 / MIB);
            }
        }
    }
    let lines = attacks.iter().zip(ratios).map(|(attack, figures)| {
        let cells = figures.map(|values| format!("{:.3}", Quartiles::of(values.into_iter())));
        [vec![attack.title.to_owned()], cells.into()].concat()
    });
    let head =
        ["attack", "median latency to that before", "p99 to that before", "p99, ms", "resident memory after, MiB"];
    print_table(&head, &lines.collect::<Vec<_>>());
}

fn main() {
    let arguments = Arguments::parse();
    let servers = Servers::new();
    let plain = servers.start("");
    let sessions = create(&servers.target(&plain, Access::default()), QUIET, 1, SESSIONS);
    print_costs(&servers, &sessions, &plain, arguments.rounds, Duration::from_millis(arguments.slice));
    print_attacks(&servers, &sessions, arguments.attack_rounds, Duration::from_millis(arguments.attack));
}
