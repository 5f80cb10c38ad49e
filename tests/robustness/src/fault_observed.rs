//! Checks that the fault had an effect. A history whose fault had none proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tokio::time::sleep;

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
    /// The fault has verified its own effect.
    Confirmed,
}

/// State of the environment before the fault.
pub struct StateBeforeFault {
    subscribers: BTreeSet<String>,
    gaps: f64,
    /// Errors and resyncs that calls and watches had received, with their number.
    reported: BTreeMap<String, usize>,
}

/// Maximum time after the recovery until the effects of a fault are observed: a reader that was stalled reads the buffered
/// responses first.
const TIMEOUT: Duration = Duration::from_secs(10);

async fn feed_gaps(env: &Environment) -> f64 {
    let mut gaps = 0.0;
    for instance in &env.instances {
        gaps += instance.metric("sessiond_feed_gaps_total").await;
    }
    gaps
}

impl StateBeforeFault {
    /// Reads the state from the first Redis server, the instances and the recorder.
    pub async fn of(env: &Environment) -> Self {
        let (subscribers, reported) = (env.redis.subscribers(), env.recorder.reported());
        StateBeforeFault { subscribers, gaps: feed_gaps(env).await, reported }
    }

    /// Returns the errors and resyncs since this state, with their number.
    pub fn reported_since(&self, env: &Environment) -> BTreeMap<String, usize> {
        let before = |text: &String| self.reported.get(text).copied().unwrap_or(0);
        let counts = env.recorder.reported().into_iter().map(|(text, count)| (count - before(&text), text));
        counts.filter(|(count, _)| *count > 0).map(|(count, text)| (text, count)).collect()
    }

    /// Returns the expected evidence that is missing. Waits for it at most `TIMEOUT`.
    pub async fn missing_evidence(&self, expected: &[Evidence], env: &Environment) -> Vec<Evidence> {
        let started = Instant::now();
        loop {
            let mut missing = Vec::new();
            for evidence in expected {
                if !self.is_found(*evidence, env).await {
                    missing.push(*evidence);
                }
            }
            if missing.is_empty() || started.elapsed() > TIMEOUT {
                return missing;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn is_found(&self, evidence: Evidence, env: &Environment) -> bool {
        match evidence {
            Evidence::Reported(texts) => {
                let reported = self.reported_since(env);
                texts.iter().any(|text| reported.keys().any(|key| key.contains(text)))
            }
            Evidence::Resubscribed => !self.subscribers.is_subset(&env.redis.subscribers()),
            Evidence::FeedGaps => feed_gaps(env).await > self.gaps,
            Evidence::NewPrimary => has_new_primary_with_subscribers(env).await,
            Evidence::KeysDeleted => !env.trace.deleted_keys.is_empty(),
            Evidence::Confirmed => env.confirmed > 0,
        }
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
