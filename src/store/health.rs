//! Health of the store: whether calls can be served, and the problems that an operator has to know of.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::{Store, routing::Server};
use crate::redis::{Condition, Node};

/// Time between two checks of the preconditions.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Time limit of one check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether calls can be served, and why not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether calls can be served. With several Redis servers: the calls of at least one of them.
    pub is_ready: bool,
    /// Known problems, each with its cause; empty if there is none.
    pub problems: Vec<String>,
}

impl Store {
    /// Returns the health, and sets the metrics `redis_up` (1 if all servers serve calls) and `store_problems`.
    pub fn health(&self) -> Health {
        let nodes = self.router.nodes();
        let (mut up, mut problems) = (0, Vec::new());
        for node in &nodes {
            let name = node.name();
            match node.condition() {
                Condition::Healthy => up += 1,
                Condition::WritesPaused => {
                    up += 1;
                    problems.push(format!("Redis {name} holds back writes (CLIENT PAUSE): they wait"));
                }
                Condition::WritesRefused(reply) => {
                    up += 1;
                    problems.push(format!("Redis {name} refuses writes: {reply}"));
                }
                Condition::Down(cause) => {
                    problems.push(format!("Redis {name} is unavailable: {cause}"));
                    // Its other problems follow from this one.
                    continue;
                }
            }
            problems.extend(node.problems());
        }
        problems.extend(self.broken_keys());
        self.metrics.redis_up.set((up == nodes.len()).into());
        self.metrics.store_problems.set(i64::try_from(problems.len()).unwrap_or(i64::MAX));
        Health { is_ready: up > 0, problems }
    }

    /// Checks the preconditions of every server periodically, and at once when the topology changes; never returns.
    pub async fn check_preconditions(&self) {
        let mut map = self.router.map();
        loop {
            let nodes = map.borrow_and_update().nodes.clone();
            join_all(nodes.iter().map(|node| self.check_node(node))).await;
            let _ = timeout(CHECK_INTERVAL, map.changed()).await;
        }
    }

    async fn check_node(&self, node: &Node) {
        let Ok(checked) = self.preconditions.check(node, Instant::now() + CHECK_TIMEOUT).await else { return };
        let mut problems: Vec<String> = checked.unmet.iter().map(ToString::to_string).collect();
        if checked.is_full {
            let name = node.name();
            problems
                .push(format!("Redis {name} has reached maxmemory: it refuses new sessions, updates and rotations"));
        }
        node.report_problems("checks", problems);
    }

    /// Records why the feed cannot receive the events of a server. None: it can.
    pub fn note_feed_problem(&self, server: &Server, cause: Option<String>) {
        let problem = |cause| format!("events from Redis {} are late: {cause}", server.name());
        server.node.report_problems("events", cause.into_iter().map(problem).collect());
    }
}
