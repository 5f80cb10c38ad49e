//! A sessiond process with the sessions that the rows of the calls benchmark use.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use harness::{ConfigFile, process::Process};

use super::{
    generator::{Calls, Generator, IN_FLIGHT, Run},
    load::CONNECTIONS,
    measure::{Target, start_redis},
    requests::{self, CONFIGURATION, Get, Pool, QUIET, Sessions, TOUCHED, limited, response_size},
};

/// Sessions of a set that fits into the caches of the processor.
const HOT: usize = 1_000;
/// Sessions of a set whose creation takes many calls for each.
const FEW: usize = 200;
/// Number of request ids that each session with request ids receives. The server keeps at most as many.
const REQUEST_IDS: usize = 64;
/// Number of superseded tokens that the server keeps.
const SUPERSEDED: usize = 16;
/// Limit of a run that ends with its requests.
const UNLIMITED: Duration = Duration::from_secs(600);

/// Payloads of the sessions that are updated, in KiB.
pub const PAYLOADS: [usize; 3] = [1, 16, 64];

pub struct Sessiond {
    _process: Process,
    pub target: Target,
    pub hot: Sessions,
    pub cold: Sessions,
    pub with_request_ids: Sessions,
    pub with_superseded_tokens: Sessions,
    /// Sessions in the namespace in which every touch is due.
    pub touched: Sessions,
    /// Sessions of each size in [`PAYLOADS`].
    pub updated: [Sessions; 3],
    /// Sessions for calls that use one up.
    pub created: Pool,
}

impl Sessiond {
    /// Starts this program and creates its sessions, `cold` of them for the cold set.
    pub fn start(program: &Path, cold: usize) -> Self {
        let (process, target) = start(program);
        let with_request_ids = create(&target, QUIET, 1, FEW);
        run(&target, requests::update_with_request_ids(REQUEST_IDS, &with_request_ids));
        Sessiond {
            hot: create(&target, QUIET, 1, HOT),
            cold: create(&target, QUIET, 1, cold),
            with_superseded_tokens: with_superseded_tokens(&target),
            with_request_ids,
            touched: create(&target, TOUCHED, 1, HOT),
            updated: PAYLOADS.map(|kib| create(&target, QUIET, kib, HOT)),
            created: Pool::default(),
            target,
            _process: process,
        }
    }

    /// Returns the mean size of the response of a GetSession for the sessions of each size in [`PAYLOADS`].
    pub fn mean_responses(&self) -> [usize; 3] {
        std::array::from_fn(|size| mean_response(&self.target, PAYLOADS[size], &self.updated[size]))
    }

    /// Creates sessions until there are so many for calls that use one up.
    pub fn provide(&self, sessions: usize) {
        let missing = sessions.saturating_sub(self.created.lock().unwrap().len());
        run(&self.target, limited(missing, requests::create(1, QUIET, &self.created)));
    }
}

/// Starts this program with a Redis of its own.
pub fn start(program: &Path) -> (Process, Target) {
    let (redis, config) = (start_redis(), ConfigFile::new(CONFIGURATION));
    let process = Process::start_program(program, &[format!("--redis={}", redis.url()), config.flag()]);
    let target = Target::new(process.pid(), process.address.clone(), Some(redis));
    (process, target)
}

/// Makes all calls.
pub fn run(target: &Target, calls: Calls) -> Run {
    run_in_flight(target, calls, IN_FLIGHT)
}

/// Makes all calls, with this number in flight.
pub fn run_in_flight(target: &Target, calls: Calls, in_flight: usize) -> Run {
    Generator::open_with(&target.address, &target.access, CONNECTIONS, calls.method).run(&calls, in_flight, UNLIMITED)
}

/// Creates sessions with this payload.
pub fn create(target: &Target, namespace: &str, kib: usize, sessions: usize) -> Sessions {
    let created = Pool::default();
    run(target, limited(sessions, requests::create(kib, namespace, &created)));
    Arc::from(std::mem::take(&mut *created.lock().unwrap()))
}

/// Returns the mean size of the response of a GetSession for these sessions with this payload in KiB.
pub fn mean_response(target: &Target, kib: usize, sessions: &Sessions) -> usize {
    let sum = Arc::new(AtomicUsize::new(0));
    let get = requests::get(Get::Token, QUIET, sessions, response_size(kib));
    let run = run(target, limited(sessions.len(), requests::sized(Arc::clone(&sum), get)));
    sum.load(Ordering::Relaxed) / run.calls as usize
}

/// Creates sessions and rotates them. The server knows that their last tokens were presented.
fn with_superseded_tokens(target: &Target) -> Sessions {
    let mut tokens = Pool::new(Mutex::new(create(target, QUIET, 1, FEW).to_vec()));
    for _ in 0..SUPERSEDED {
        let successors = Pool::default();
        run(target, requests::rotate(&tokens, &successors));
        tokens = successors;
    }
    let sessions: Sessions = Arc::from(std::mem::take(&mut *tokens.lock().unwrap()));
    run(target, limited(FEW, requests::get(Get::Token, QUIET, &sessions, response_size(1))));
    sessions
}
