//! Replicas of a Redis Cluster take the place of their primaries: killed ones, hanging ones, and such as are well.

mod harness;

use std::{collections::BTreeSet, time::Duration};

use harness::{
    Client, Redis, Server,
    client::*,
    cluster::{Cluster, MANY, PREFIX, Promotion, many, on},
    eventually,
    servers::aside,
    writers::{assert_reliable, many_are_acknowledged, now, write_to},
};
use sessiond_client::v1::{EventType, GetSessionRequest, ResyncReason, Session};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_killed_and_its_replica_goes_on_with_all_that_was_confirmed() {
    const REPLICATED: &str = "[default_policy]\ndurability = 'replicated'\nreplicas = 1\n";
    let cluster = aside(|| Cluster::start(1)).await;
    let servers = [
        Server::start(&cluster.url(), PREFIX, REPLICATED).await,
        Server::start(&cluster.url(), PREFIX, REPLICATED).await,
    ];
    let clients = [servers[0].client().await, servers[1].client().await];
    let sessions = many(&clients[0]).await;
    let primary = cluster.primaries().remove(1);
    let hurt = on(&primary, &sessions);
    assert!(!hurt.is_empty());
    let (mut from, mut until) = (0, 0);
    let fault = async {
        many_are_acknowledged(&servers).await;
        let replica = cluster.replicas_of(&primary).remove(0);
        from = now();
        let of = cluster.clone();
        aside(move || {
            primary.kill();
            of.wait_for_primary(&replica);
            // Else what follows has nobody to confirm it.
            primary.restart();
            of.wait_until_well();
        })
        .await;
        let (client, id) = (&clients[1], &hurt[0].id);
        eventually("it is served again", async || client.set(by_id(id), &[("z", text("1"))]).await.ok()).await;
        until = now();
        many_are_acknowledged(&servers).await;
    };
    let written = write_to(&clients, &sessions, 0, fault).await;
    assert!(!written.refused.is_empty(), "the primary went while it was written to");
    written.assert_many_around(&hurt, from, until);
    written.assert_kept(&clients[0]).await;
    // Watches over the new primary go on.
    let mut watching = clients[0].watch_all().await;
    for session in &hurt {
        clients[1].delete(by_id(&session.id)).await.unwrap();
        watching.wait_for(EventType::Ended, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w9_a_history_that_was_rewound_on_one_node_is_told_and_the_others_go_on() {
    let cluster = aside(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = many(&client).await;
    let primary = cluster.primaries().remove(2);
    let replica = cluster.replicas_of(&primary).remove(0);
    let (hurt, others) = (on(&primary, &sessions), on(&cluster.primaries()[0], &sessions));
    let (mut open, mut left) = (client.watch_all().await, client.watch_all().await);
    primary.wait_for(&replica);
    primary.lose_touch_with(&replica);
    for session in &hurt {
        client.set(by_id(&session.id), &[("lost", text("1"))]).await.unwrap();
    }
    left.events(hurt.len()).await;
    let token = left.token.clone();
    drop(left);
    // So short that no connection of the server is given up: it hears the new branch where it heard the old one.
    let of = cluster.clone();
    aside(move || {
        primary.pause();
        replica.resume();
        of.promote(&replica, Promotion::TakenOver);
        primary.resume();
        of.wait_until_well();
    })
    .await;
    let mut named = BTreeSet::new();
    while !hurt.iter().all(|session| named.contains(&session.id)) {
        let resync = open.resync().await;
        assert_eq!(resync.reason(), ResyncReason::Rollback);
        if resync.ids.is_empty() {
            break;
        }
        named.extend(resync.ids);
    }
    assert!(others.iter().all(|session| !named.contains(&session.id)), "nothing of theirs was lost");
    assert_eq!(client.resume(&token).await.resync().await.reason(), ResyncReason::Rollback);
    for session in hurt.iter().chain(&others) {
        let now = client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        assert!(!now.attributes.contains_key("lost"), "it was lost with its primary");
        assert!(now.revision > session.revision);
        open.wait_for(EventType::Updated, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_and_replica_change_places_under_load_and_nothing_is_lost() {
    let cluster = aside(|| Cluster::start(1)).await;
    let (a, b) = (Server::start(&cluster.url(), PREFIX, "").await, Server::start(&cluster.url(), PREFIX, "").await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let sessions = many(&clients[0]).await;
    let fault = {
        let cluster = cluster.clone();
        aside(move || {
            for primary in cluster.primaries() {
                let replica = cluster.replicas_of(&primary).remove(0);
                cluster.promote(&replica, Promotion::Agreed);
                cluster.wait_until_well();
            }
        })
    };
    let written = write_to(&clients, &sessions, 0, fault).await;
    written.assert_kept(&clients[0]).await;
    assert_reliable(&watching.everything_so_far().await, &written.acknowledged);
    for session in &sessions {
        assert!(clients[0].delete(by_id(&session.id)).await.unwrap());
    }
    assert_eq!(watching.everything_so_far().await.len(), MANY);
}

/// Writes each of them; all that is read from then on has it.
async fn mark(client: &Client, sessions: &[Session], mark: &str) {
    for session in sessions {
        client.set(by_id(&session.id), &[("mark", text(mark))]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_primary_says_that_hung_and_was_replaced_counts_for_nothing() {
    let cluster = aside(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = many(&client).await;
    let old = cluster.primaries().remove(1);
    let replica = cluster.replicas_of(&old).remove(0);
    let hurt = on(&old, &sessions);
    mark(&client, &sessions, "before").await;
    old.wait_for(&replica);
    old.pause();
    let of = cluster.clone();
    aside(move || of.wait_for_primary(&replica)).await;
    eventually("it is served again", async || client.set(by_id(&hurt[0].id), &[("z", text("1"))]).await.ok()).await;
    let mut watching = client.watch_all().await;
    mark(&client, &hurt, "after").await;
    watching.events(hurt.len()).await;
    // It wakes, and takes itself for the primary until it hears otherwise.
    old.resume();
    let of = cluster.clone();
    let mut well = std::pin::pin!(aside(move || of.wait_until_well()));
    let another = Server::start(&cluster.url(), PREFIX, "").await;
    let other = another.client().await;
    let mut rounds = 0;
    while rounds < 20 || futures_util::poll!(&mut well).is_pending() {
        rounds += 1;
        for session in &hurt {
            for client in [&client, &other] {
                let read = client.get(by_id(&session.id)).await.unwrap();
                assert_eq!(read.attributes["mark"], text("after"), "round {rounds}");
            }
        }
    }
    for (n, session) in hurt.iter().enumerate() {
        let kept = if n % 2 == 0 { &client } else { &other };
        assert!(kept.delete(by_id(&session.id)).await.unwrap());
        watching.wait_for(EventType::Ended, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_primary_that_hangs_holds_up_no_other_failover() {
    // Nobody takes its place while this lasts.
    let cluster = aside(|| Cluster::start_with(1, &["--cluster-node-timeout", "60000"])).await;
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '3s'").await;
    let client = server.client().await;
    let sessions = many(&client).await;
    let primaries = cluster.primaries();
    let [hanging, next] = [0, 1].map(|of| cluster.replicas_of(&primaries[of]).remove(0));
    let [hurt, moving] = [0, 1].map(|of| on(&primaries[of], &sessions));
    let mut watching = client.watch_all().await;
    let promote = async |replica: &Redis, of: &Redis| {
        let (cluster, replica, of) = (cluster.clone(), replica.clone(), of.clone());
        aside(move || {
            of.wait_for(&replica);
            cluster.promote(&replica, Promotion::TakenOver);
        })
        .await;
    };
    promote(&hanging, &primaries[0]).await;
    hanging.pause();
    // Nobody has them who answers: by then it is being connected to.
    let (namespace, key) = (client.namespace.clone(), by_id(&hurt[0].id));
    let mut request = tonic::Request::new(GetSessionRequest { namespace, key, ..Default::default() });
    request.set_timeout(Duration::from_millis(300));
    client.grpc.clone().get_session(request).await.unwrap_err();
    promote(&next, &primaries[1]).await;
    for session in &moving {
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        watching.wait_for(EventType::Updated, &session.id).await;
    }
    hanging.resume();
    for session in &hurt {
        eventually("it is served again", async || client.set(by_id(&session.id), &[("a", text("1"))]).await.ok()).await;
        watching.wait_for(EventType::Updated, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_is_enough_to_find_the_others_and_may_go_then() {
    let cluster = aside(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url_of_one(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = many(&client).await;
    let first = cluster.primaries().remove(0);
    let replica = cluster.replicas_of(&first).remove(0);
    let hurt = on(&first, &sessions);
    first.wait_for(&replica);
    first.kill();
    let of = cluster.clone();
    aside(move || of.wait_for_primary(&replica)).await;
    for session in &hurt {
        eventually("it is served by another", async || client.set(by_id(&session.id), &[("a", text("1"))]).await.ok())
            .await;
    }
}
