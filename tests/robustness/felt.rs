//! Whether a fault was felt: a history in which it was not says nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{harness::servers::aside, scene::Scene};

/// What shows that a fault was felt.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    /// A call failed so, or a watch was told so; one of these is enough.
    Seen(&'static [&'static str]),
    /// A connection that brings the events is not the one from before.
    Resubscribed,
    /// The channels brought less than the logs have.
    Gaps,
    /// The events come from another server, which is the primary now.
    NewPrimary,
    ChangedByHand,
}

/// How things stood before the fault.
pub struct Before {
    subscribers: BTreeSet<String>,
    gaps: f64,
}

async fn gaps(scene: &Scene) -> f64 {
    let mut gaps = 0.0;
    for server in &scene.servers {
        gaps += server.metric("sessiond_feed_gaps_total").await;
    }
    gaps
}

impl Before {
    pub async fn of(scene: &Scene) -> Self {
        Before { subscribers: scene.redis.subscribers(), gaps: gaps(scene).await }
    }

    /// The marks that do not show.
    pub async fn missing(&self, marks: &[Mark], scene: &Scene, seen: &BTreeMap<String, usize>) -> Vec<Mark> {
        let mut missing = Vec::new();
        for mark in marks {
            let shows = match mark {
                Mark::Seen(any) => any.iter().any(|one| seen.keys().any(|seen| seen.contains(one))),
                Mark::Resubscribed => !self.subscribers.is_subset(&scene.redis.subscribers()),
                Mark::Gaps => gaps(scene).await > self.gaps,
                Mark::NewPrimary => is_followed_elsewhere(scene).await,
                Mark::ChangedByHand => !scene.by_hand.is_empty(),
            };
            if !shows {
                missing.push(*mark);
            }
        }
        missing
    }
}

/// Whether the primary is another one than at first, and brings the events.
async fn is_followed_elsewhere(scene: &Scene) -> bool {
    let (first, sentinels) = (scene.redis.port(), scene.sentinels.clone().expect("there are some"));
    aside(move || {
        let primary = sentinels.primary();
        primary.port() != first && !primary.list(&["PUBSUB", "SHARDCHANNELS"]).is_empty()
    })
    .await
}
