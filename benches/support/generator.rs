//! Load generator: runs calls of one method on several connections, with a fixed number in flight.
//!
//! Each connection has a thread that reads, checks the responses, and sends as many new requests with one system call.

mod connection;
mod fields;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::ClientConfig;

pub use self::connection::Connection;
use super::cpu;

/// Calls in flight on all connections together.
pub const IN_FLIGHT: usize = 128;
/// Number of responses that a connection reads with one system call, on average. Reading each as soon as it arrives costs
/// about three times as much CPU, most of it to wake the thread.
const BATCH: usize = 16;
/// Limits of the pause between two reads, which is adjusted so that they return [`BATCH`] responses.
const MIN_PAUSE: Duration = Duration::from_micros(20);
const MAX_PAUSE: Duration = Duration::from_millis(5);

/// Writes the next request message to an empty buffer; returns false if there is none.
pub type NextRequest = Box<dyn Fn(&mut Vec<u8>) -> bool + Send + Sync>;
/// Checks a response message and may use it.
pub type OnResponse = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Calls of one method. All connections share the source of requests.
pub struct Calls {
    pub method: &'static str,
    pub next_request: NextRequest,
    pub on_response: OnResponse,
}

/// Result of a run.
pub struct Run {
    /// Number of completed calls. All of them succeeded.
    pub calls: u64,
    /// Time from the first request to the last response.
    pub elapsed: Duration,
    /// CPU time of the generator.
    pub cpu: Duration,
}

/// Open connections to one server for one method.
pub struct Generator(Vec<Connection>);

/// How a connection reaches a server.
#[derive(Clone, Default)]
pub struct Access {
    /// Options of TLS. None: no TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// API key. None: none is sent.
    pub key: Option<String>,
}

impl Generator {
    pub fn open(address: &str, connections: usize, method: &str) -> Self {
        Generator::open_with(address, &Access::default(), connections, method)
    }

    pub fn open_with(address: &str, access: &Access, connections: usize, method: &str) -> Self {
        Generator((0..connections).map(|_| Connection::open(address, access, method)).collect())
    }

    /// Makes calls, with this number in flight, until `limit` has passed or there are no more requests, and waits for all
    /// responses.
    pub fn run(self, calls: &Calls, in_flight: usize, limit: Duration) -> Run {
        let started = Instant::now();
        let (end, in_flight) = (started + limit, in_flight / self.0.len());
        let results: Vec<_> = thread::scope(|scope| {
            let threads =
                self.0.into_iter().map(|connection| scope.spawn(move || work(connection, calls, in_flight, end)));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().expect("all calls succeed")).collect()
        });
        Run {
            calls: results.iter().map(|(calls, _)| calls).sum(),
            elapsed: started.elapsed(),
            cpu: results.iter().map(|(_, cpu)| cpu).sum(),
        }
    }
}

/// Makes calls on one connection until `end`; returns their number and the CPU time of this thread.
fn work(mut connection: Connection, calls: &Calls, in_flight: usize, end: Instant) -> (u64, Duration) {
    let (mut message, mut completed, mut free, mut pause) = (Vec::new(), 0, in_flight, MIN_PAUSE);
    loop {
        for _ in 0..free {
            message.clear();
            if !(calls.next_request)(&mut message) {
                break;
            }
            connection.start(&message);
        }
        if connection.open_calls() == 0 {
            return (completed, cpu::of_this_thread());
        }
        connection.send();
        let goes_on = Instant::now() < end;
        if goes_on {
            thread::sleep(pause);
        }
        let responses = connection.receive(&mut |message| (calls.on_response)(message));
        completed += responses as u64;
        free = if goes_on { responses } else { 0 };
        pause = if responses < BATCH { pause.mul_f64(1.2).min(MAX_PAUSE) } else { pause.mul_f64(0.8).max(MIN_PAUSE) };
    }
}
