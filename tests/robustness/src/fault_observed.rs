//! Checks that the fault had an effect. A history whose fault had none proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::environment::Environment;
use harness::servers::run_blocking;

/// Evidence that a fault had an effect.
#[derive(Clone, Copy, Debug)]
pub enum Evidence {
    /// A call failed or a watch received a response with one of these texts.
    Reported(&'static [&'static str]),
    /// At least one subscriber connection is new.
    Resubscribed,
    /// The channels delivered fewer entries than the logs contain.
    FeedGaps,
    /// Another server is the primary and delivers the events.
    NewPrimary,
    /// The fault deleted at least one session key.
    KeysDeleted,
}

/// State of the environment before the fault.
pub struct StateBeforeFault {
    subscribers: BTreeSet<String>,
    gaps: f64,
}

async fn feed_gaps(env: &Environment) -> f64 {
    let mut gaps = 0.0;
    for server in &env.servers {
        gaps += server.metric("sessiond_feed_gaps_total").await;
    }
    gaps
}

impl StateBeforeFault {
    /// Reads the state from the first Redis server and from the instances in this process.
    pub async fn of(env: &Environment) -> Self {
        StateBeforeFault { subscribers: env.redis.subscribers(), gaps: feed_gaps(env).await }
    }

    /// Returns the expected evidence that is missing. `reported`: errors and resyncs with their number.
    pub async fn missing_evidence(
        &self,
        expected: &[Evidence],
        env: &Environment,
        reported: &BTreeMap<String, usize>,
    ) -> Vec<Evidence> {
        let mut missing = Vec::new();
        for evidence in expected {
            let is_found = match evidence {
                Evidence::Reported(texts) => texts.iter().any(|text| reported.keys().any(|key| key.contains(text))),
                Evidence::Resubscribed => !self.subscribers.is_subset(&env.redis.subscribers()),
                Evidence::FeedGaps => feed_gaps(env).await > self.gaps,
                Evidence::NewPrimary => has_new_primary_with_subscribers(env).await,
                Evidence::KeysDeleted => !env.deleted_keys.is_empty(),
            };
            if !is_found {
                missing.push(*evidence);
            }
        }
        missing
    }
}

async fn has_new_primary_with_subscribers(env: &Environment) -> bool {
    let (first, sentinels) = (env.redis.port(), env.sentinels.clone().expect("the topology has sentinels"));
    run_blocking(move || {
        let primary = sentinels.primary();
        primary.port() != first && !primary.list(&["PUBSUB", "SHARDCHANNELS"]).is_empty()
    })
    .await
}
