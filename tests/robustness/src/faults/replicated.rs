//! Faults of Redis with Sentinel and of Redis Cluster.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use super::Fault;
use crate::history::Effect;
use crate::{
    environment::{Environment, Topology},
    fault_observed::Evidence,
};
use harness::{cluster::Promotion, eventually, servers::run_blocking};

/// A client requests a failover from Sentinel.
pub struct SentinelFailover;

impl Fault for SentinelFailover {
    fn name(&self) -> &'static str {
        "failover requested"
    }

    fn topology(&self) -> Topology {
        Topology::Sentinel
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::LosesWrites]
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::NewPrimary]
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let sentinels = env.sentinels.clone().expect("the topology has sentinels");
            run_blocking(move || drop(sentinels.fail_over())).await;
        })
    }
}

/// How the primary fails.
#[derive(Clone, Copy)]
pub enum PrimaryFailure {
    /// SIGKILL, then a restart.
    Killed,
    /// SIGSTOP, then SIGCONT.
    Stopped,
}

/// Sentinel promotes a replica because the primary does not answer; the old primary returns later.
pub struct SentinelPrimaryFails {
    pub failure: PrimaryFailure,
}

impl Fault for SentinelPrimaryFails {
    fn name(&self) -> &'static str {
        match self.failure {
            PrimaryFailure::Killed => "primary killed (SIGKILL), then restarted",
            PrimaryFailure::Stopped => "primary stopped (SIGSTOP), then resumed",
        }
    }

    fn topology(&self) -> Topology {
        Topology::Sentinel
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::LosesWrites]
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_UNAVAILABLE", "OUTCOME_UNKNOWN"]), Evidence::NewPrimary]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (sentinels, failure) = (env.sentinels.clone().expect("the topology has sentinels"), self.failure);
            run_blocking(move || {
                let primary = sentinels.primary();
                match failure {
                    PrimaryFailure::Killed => primary.kill(),
                    PrimaryFailure::Stopped => primary.pause(),
                }
                sentinels.wait_for_new_primary(&primary);
            })
            .await;
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (redis, failure) = (env.redis.clone(), self.failure);
            run_blocking(move || match failure {
                PrimaryFailure::Killed => redis.restart(),
                PrimaryFailure::Stopped => redis.resume(),
            })
            .await;
        })
    }
}

/// A primary is killed and its replica elected; the old primary returns as a replica.
pub struct ClusterPrimaryKilled;

impl Fault for ClusterPrimaryKilled {
    fn name(&self) -> &'static str {
        "one primary killed (SIGKILL), then restarted"
    }

    fn topology(&self) -> Topology {
        Topology::Cluster
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::LosesWrites]
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_UNAVAILABLE"])]
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (cluster, primary) = (env.cluster.clone().expect("the topology has a cluster"), env.redis.clone());
            run_blocking(move || {
                let replica = cluster.replicas_of(&primary).remove(0);
                primary.kill();
                cluster.wait_for_primary(&replica);
            })
            .await;
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let redis = env.redis.clone();
            run_blocking(move || redis.restart()).await;
        })
    }
}

/// A replica that is disconnected from its primary takes over; the old primary returns as its replica.
pub struct ClusterTakeover;

impl Fault for ClusterTakeover {
    fn name(&self) -> &'static str {
        "replica takes over without the last writes"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["resync ROLLBACK"])]
    }

    fn topology(&self) -> Topology {
        Topology::Cluster
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::LosesWrites]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (cluster, primary) = (env.cluster.clone().expect("the topology has a cluster"), env.redis.clone());
            let replica = {
                let (cluster, primary) = (cluster.clone(), primary.clone());
                run_blocking(move || {
                    let replica = cluster.replicas_of(&primary).remove(0);
                    primary.isolate_replica(&replica);
                    replica
                })
                .await
            };
            let logs = primary.keys("ses:*:log");
            let entries = || logs.iter().map(|log| primary.number(&["XLEN", log])).sum::<i64>();
            let before = entries();
            eventually("entries that the replica does not have", async || (entries() >= before + 20).then_some(()))
                .await;
            env.reader.read().await;
            primary.pause();
            run_blocking(move || {
                replica.resume();
                cluster.promote(&replica, Promotion::Takeover);
            })
            .await;
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let redis = env.redis.clone();
            run_blocking(move || {
                redis.resume();
                redis.wait_until_replica();
            })
            .await;
        })
    }
}

/// The slots of two partitions migrate to another primary, key by key.
pub struct SlotsMigrated;

impl Fault for SlotsMigrated {
    fn name(&self) -> &'static str {
        "slots migrated under load"
    }

    fn topology(&self) -> Topology {
        Topology::Cluster
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::RestartsOrMoves]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let cluster = env.cluster.clone().expect("the topology has a cluster");
            let chosen = [env.rng.below(16), env.rng.below(16)];
            run_blocking(move || {
                let partitions = cluster.keys("*:meta");
                for chosen in chosen {
                    let slot = cluster.slot_of(&partitions[chosen]);
                    let owner = cluster.primary_of_slot(slot).port();
                    let to = cluster
                        .primaries()
                        .into_iter()
                        .find(|node| node.port() != owner)
                        .expect("the cluster has three primaries");
                    let moving = cluster.start_slot_move(slot, &to);
                    while moving.step(1) > 0 {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    moving.finish();
                }
            })
            .await;
        })
    }
}
