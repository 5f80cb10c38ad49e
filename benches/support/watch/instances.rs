//! A measured instance, and a second one on the same Redis that takes the writes.

use std::path::Path;

use futures_util::future::join_all;
use sessiond_client::v1::CreateSessionRequest;
use tokio::runtime::Runtime;

use harness::{ConfigFile, Redis, process::Process};

use crate::support::{load, measure::start_redis, requests::CONFIGURATION};

/// Two instances of sessiond with one store.
pub struct Instances {
    /// Instance whose watchers receive the events.
    pub measured: Process,
    /// Instance that executes the writes, so that the first one only takes in the log.
    pub writing: Process,
    _redis: Redis,
}

impl Instances {
    /// Starts this program twice. `limits` are added to the section `[limits]` of the configuration.
    pub fn start(program: &Path, limits: &str) -> Self {
        let redis = start_redis();
        let config = ConfigFile::new(&format!("{CONFIGURATION}\n[limits]\nwatches = 200_000\n{limits}"));
        let start = || Process::start_program(program, &[format!("--redis={}", redis.url()), config.flag()]);
        Instances { measured: start(), writing: start(), _redis: redis }
    }

    /// Creates sessions; returns their ids in the order of the requests.
    pub fn create(&self, runtime: &Runtime, requests: Vec<CreateSessionRequest>) -> Vec<String> {
        runtime.block_on(async {
            let clients = load::connect(&self.writing.address).await;
            let create = async |(index, request): (usize, CreateSessionRequest)| {
                let mut client = clients[index % clients.len()].clone();
                let created = client.create_session(request).await.expect("the session is created");
                created.into_inner().session.expect("the response has the session").id
            };
            join_all(requests.into_iter().enumerate().map(create)).await
        })
    }
}
