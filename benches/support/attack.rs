//! Attacks on a server, each with a bounded rate, and the latency of a known caller.

use std::{
    io::Write,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    frames::PING,
    generator::{Access, Calls, Connection, Generator},
    measure::Target,
    requests::{self, Get, QUIET, Sessions, response_size},
};

/// Pause of the victim between two calls.
const VICTIM_PAUSE: Duration = Duration::from_millis(1);
/// Time between two steps of an attack.
const STEP: Duration = Duration::from_millis(10);

/// A caller that makes one call after the other.
pub struct Victim {
    target: Target,
    calls: Calls,
}

impl Victim {
    pub fn new(target: Target, calls: Calls) -> Self {
        Victim { target, calls }
    }

    /// Makes calls for this time on a new connection; returns the median and the 99th percentile of their latency in ms.
    pub fn measure(&self, length: Duration) -> [f64; 2] {
        let mut connection = Connection::open(&self.target.address, &self.target.access, self.calls.method);
        let (mut message, mut latencies, end) = (Vec::new(), Vec::new(), Instant::now() + length);
        while Instant::now() < end {
            message.clear();
            (self.calls.next_request)(&mut message);
            let started = Instant::now();
            connection.start(&message);
            connection.send();
            while connection.open_calls() > 0 {
                connection.receive(&mut |message| (self.calls.on_response)(message));
            }
            latencies.push(started.elapsed().as_secs_f64() * 1e3);
            thread::sleep(VICTIM_PAUSE);
        }
        latencies.sort_by(f64::total_cmp);
        [latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]]
    }
}

/// What others do to the server.
pub struct Attack {
    pub title: &'static str,
    run: Box<dyn Fn(&AtomicBool) + Send + Sync>,
}

impl Attack {
    /// All attacks on the server at this address, over TLS. `other` is the access of another caller.
    pub fn all(address: &str, tls: Access, other: Access, sessions: &Sessions) -> Vec<Self> {
        let of = |title, run: fn(&str, &Access, &AtomicBool), access: &Access| {
            let (address, access) = (address.to_owned(), access.clone());
            Attack { title, run: Box::new(move |stop| run(&address, &access, stop)) }
        };
        let wrong = Access { key: Some(format!("sdk_aaaaaaaaaa_{}", "a".repeat(52))), ..tls.clone() };
        let calls = requests::get(Get::Token, QUIET, sessions, response_size(1));
        let (at, caller) = (address.to_owned(), other.clone());
        let busy = move |stop: &AtomicBool| {
            while !stop.load(Ordering::Relaxed) {
                Generator::open_with(&at, &caller, 1, calls.method).run(&calls, 8, Duration::from_millis(200));
            }
        };
        vec![
            of("none", |_, _, stop| wait(stop), &tls),
            of("200 stalled handshakes", stall, &tls),
            of("wrong keys, 10,000 a second", send_wrong_keys, &wrong),
            of("connections without a credential, 200 a second, 2,000 open", open_connections, &tls),
            of("PING floods, 20 connections a second", flood_with_pings, &other),
            Attack { title: "another caller, 8 calls in flight", run: Box::new(busy) },
        ]
    }

    /// Runs `measure` during the attack.
    pub fn during<T>(&self, measure: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // It runs on other machines in reality: server, Redis and victim have the processor first.
                let _ = rustix::process::nice(19);
                (self.run)(&stop);
            });
            // The attack has begun.
            thread::sleep(Duration::from_millis(300));
            let result = measure();
            stop.store(true, Ordering::Relaxed);
            result
        })
    }
}

fn wait(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(STEP);
    }
}

/// Opens connections with half of a ClientHello.
fn stall(address: &str, _: &Access, stop: &AtomicBool) {
    let stalled: Vec<_> = (0..200)
        .map(|_| {
            let mut socket = TcpStream::connect(address).expect("the server listens");
            socket.write_all(&[22, 3, 1, 2, 0, 1, 0]).expect("the server accepts");
            socket
        })
        .collect();
    wait(stop);
    drop(stalled);
}

/// Makes calls with a wrong key on one connection; their answers are read and dropped.
fn send_wrong_keys(address: &str, access: &Access, stop: &AtomicBool) {
    const PER_STEP: usize = 100;
    let mut connection = Connection::open(address, access, "GetSession");
    connection.drop_responses();
    let begun = Instant::now();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        (0..PER_STEP).for_each(|_| connection.start(&[]));
        connection.send();
        sent += PER_STEP;
        while connection.open_calls() > 0 {
            connection.receive(&mut |_| ());
        }
        let due = begun + STEP * (sent / PER_STEP) as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Opens connections that finish the handshake and send no call.
fn open_connections(address: &str, access: &Access, stop: &AtomicBool) {
    let mut open = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..2 {
            open.push_back(Connection::open(address, access, "GetSession"));
            if open.len() > 2_000 {
                open.pop_front();
            }
        }
        thread::sleep(STEP);
    }
}

/// Opens connections that send PING frames until the server closes them.
fn flood_with_pings(address: &str, access: &Access, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut connection = Connection::open(address, access, "GetSession");
        connection.flood(PING, 0, &[0; 8]);
        thread::sleep(5 * STEP);
    }
}
