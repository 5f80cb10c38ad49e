//! Faults of several servers: Sentinel and Cluster.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use super::Fault;
use crate::{
    felt::Mark,
    harness::{cluster::Promotion, eventually, servers::aside},
    history::Effect,
    scene::{Scene, Topology},
};

/// The sentinels are asked to take another primary.
pub struct SentinelAsked;

impl Fault for SentinelAsked {
    fn name(&self) -> &'static str {
        "failover asked for"
    }

    fn topology(&self) -> Topology {
        Topology::Sentinel
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Loses]
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::NewPrimary]
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let sentinels = scene.sentinels.clone().expect("there are some");
            aside(move || drop(sentinels.fail_over())).await;
        })
    }
}

#[derive(Clone, Copy)]
pub enum Gone {
    Killed,
    Stopped,
}

/// The sentinels take another primary, for this one does not answer; it comes back.
pub struct SentinelPrimaryGone {
    pub way: Gone,
}

impl Fault for SentinelPrimaryGone {
    fn name(&self) -> &'static str {
        match self.way {
            Gone::Killed => "primary killed (SIGKILL), then back",
            Gone::Stopped => "primary stopped (SIGSTOP), then back",
        }
    }

    fn topology(&self) -> Topology {
        Topology::Sentinel
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Loses]
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["STORE_UNAVAILABLE", "OUTCOME_UNKNOWN"]), Mark::NewPrimary]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (sentinels, way) = (scene.sentinels.clone().expect("there are some"), self.way);
            aside(move || {
                let primary = sentinels.primary();
                match way {
                    Gone::Killed => primary.kill(),
                    Gone::Stopped => primary.pause(),
                }
                sentinels.wait_for_another_than(&primary);
            })
            .await;
        })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (redis, way) = (scene.redis.clone(), self.way);
            aside(move || match way {
                Gone::Killed => redis.restart(),
                Gone::Stopped => redis.resume(),
            })
            .await;
        })
    }
}

/// A primary is killed, its replica elected; it comes back as replica.
pub struct ClusterPrimaryKilled;

impl Fault for ClusterPrimaryKilled {
    fn name(&self) -> &'static str {
        "a primary killed (SIGKILL), then back"
    }

    fn topology(&self) -> Topology {
        Topology::Cluster
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Loses]
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["STORE_UNAVAILABLE"])]
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (cluster, primary) = (scene.cluster.clone().expect("there is one"), scene.redis.clone());
            aside(move || {
                let replica = cluster.replicas_of(&primary).remove(0);
                primary.kill();
                cluster.wait_for_primary(&replica);
            })
            .await;
        })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let redis = scene.redis.clone();
            aside(move || redis.restart()).await;
        })
    }
}

/// A replica that lost touch with its primary takes over; the old primary comes back as its replica.
pub struct ClusterReplicaTakesOver;

impl Fault for ClusterReplicaTakesOver {
    fn name(&self) -> &'static str {
        "a replica takes over without the last writes"
    }

    fn marks(&self) -> &'static [Mark] {
        &[Mark::Seen(&["resync ROLLBACK"])]
    }

    fn topology(&self) -> Topology {
        Topology::Cluster
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::Loses]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (cluster, primary) = (scene.cluster.clone().expect("there is one"), scene.redis.clone());
            let replica = {
                let (cluster, primary) = (cluster.clone(), primary.clone());
                aside(move || {
                    let replica = cluster.replicas_of(&primary).remove(0);
                    primary.lose_touch_with(&replica);
                    replica
                })
                .await
            };
            let before = scene.recorder.writes();
            eventually("writes are going to be lost", async || (scene.recorder.writes() > before + 50).then_some(()))
                .await;
            scene.reader.read().await;
            primary.pause();
            aside(move || {
                replica.resume();
                cluster.promote(&replica, Promotion::TakenOver);
            })
            .await;
        })
    }

    fn heal<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { scene.redis.resume() })
    }
}

/// The slots of some partitions move to another primary, key by key.
pub struct SlotsMoved;

impl Fault for SlotsMoved {
    fn name(&self) -> &'static str {
        "slots moved under load"
    }

    fn topology(&self) -> Topology {
        Topology::Cluster
    }

    fn effects(&self) -> &'static [Effect] {
        &[Effect::OtherRun]
    }

    fn inject<'a>(&'a mut self, scene: &'a mut Scene) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let cluster = scene.cluster.clone().expect("there is one");
            let chosen = [scene.chance.below(16), scene.chance.below(16)];
            aside(move || {
                let partitions = cluster.keys("*:meta");
                for chosen in chosen {
                    let slot = cluster.slot_of(&partitions[chosen]);
                    let owner = cluster.primary_of_slot(slot).port();
                    let to =
                        cluster.primaries().into_iter().find(|node| node.port() != owner).expect("there are three");
                    let moving = cluster.begin_to_move(slot, &to);
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
