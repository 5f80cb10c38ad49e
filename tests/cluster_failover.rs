//! Failovers in a Redis Cluster: of killed, hanging and healthy primaries.

use std::{collections::BTreeSet, time::Duration};

use harness::{
    Client, Redis, Server,
    client::*,
    cluster::{Cluster, MANY, PREFIX, Promotion, create_many, key_of, sessions_on},
    eventually,
    servers::run_blocking,
    writers::{assert_complete_in_order, now, wait_for_many_writes, write_sessions_during},
};
use sessiond_client::v1::{EventType, GetSessionRequest, ResyncReason, Session, TokenState};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_after_a_primary_is_killed_keeps_confirmed_writes() {
    const REPLICATED: &str = "[default_policy]\ndurability = 'replicated'\nreplicas = 1\n";
    let cluster = run_blocking(|| Cluster::start(1)).await;
    let servers = [
        Server::start(&cluster.url(), PREFIX, REPLICATED).await,
        Server::start(&cluster.url(), PREFIX, REPLICATED).await,
    ];
    let clients = [servers[0].client().await, servers[1].client().await];
    let sessions = create_many(&clients[0]).await;
    let primary = cluster.primaries().remove(1);
    let hurt = sessions_on(&primary, &sessions);
    assert!(!hurt.is_empty());
    let (mut from, mut until) = (0, 0);
    let fault = async {
        wait_for_many_writes(&servers).await;
        let replica = cluster.replicas_of(&primary).remove(0);
        from = now();
        let of = cluster.clone();
        run_blocking(move || {
            primary.kill();
            of.wait_for_primary(&replica);
            // Without a replica the writes that follow could not be confirmed.
            primary.restart();
            of.wait_until_healthy();
        })
        .await;
        let (client, id) = (&clients[1], &hurt[0].id);
        eventually("the session is served again", async || client.set(by_id(id), &[("z", text("1"))]).await.ok()).await;
        until = now();
        wait_for_many_writes(&servers).await;
    };
    let written = write_sessions_during(&clients, &sessions, 0, fault).await;
    assert!(!written.errors.is_empty(), "no write failed: the primary was killed outside the load");
    written.assert_writes_around(&hurt, from, until);
    written.assert_acknowledged_kept(&clients[0]).await;
    // A watch receives events of the new primary.
    let mut watching = clients[0].watch_all().await;
    for session in &hurt {
        clients[1].delete(by_id(&session.id)).await.unwrap();
        watching.wait_for(EventType::Ended, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w9_rollback_on_one_node_sends_resync_for_its_sessions_only() {
    let cluster = run_blocking(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = create_many(&client).await;
    let primary = cluster.primaries().remove(2);
    let replica = cluster.replicas_of(&primary).remove(0);
    let (hurt, others) = (sessions_on(&primary, &sessions), sessions_on(&cluster.primaries()[0], &sessions));
    let (mut open, mut left) = (client.watch_all().await, client.watch_all().await);
    primary.wait_for(&replica);
    primary.isolate_replica(&replica);
    for session in &hurt {
        client.set(by_id(&session.id), &[("lost", text("1"))]).await.unwrap();
    }
    left.events(hurt.len()).await;
    let token = left.token.clone();
    drop(left);
    // The pause is too short for the server to close a connection: the subscription stays on the old primary.
    let of = cluster.clone();
    run_blocking(move || {
        primary.pause();
        replica.resume();
        of.promote(&replica, Promotion::Takeover);
        primary.resume();
        of.wait_until_healthy();
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
    assert!(others.iter().all(|session| !named.contains(&session.id)), "a session that lost nothing is named");
    assert_eq!(client.resume(&token).await.resync().await.reason(), ResyncReason::Rollback);
    for session in hurt.iter().chain(&others) {
        let now = client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        assert!(!now.attributes.contains_key("lost"), "a lost write is back");
        assert!(now.revision > session.revision);
        open.wait_for(EventType::Updated, &session.id).await;
    }
}

/// Whether a write of a server under test waits for the end of a write pause.
fn holds_a_write(node: &Redis) -> bool {
    let clients = node.list(&["CLIENT", "LIST"]).concat();
    clients.lines().any(|line| line.contains(" flags=b ") && line.contains(" user=sessiond "))
}

/// Between the read and the write of an update, a replica that lacks the last change becomes the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_update_across_a_failover_changes_the_new_record() {
    let cluster = run_blocking(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '10s'").await;
    let client = server.client().await;
    let (session, token) = client.create(&[("a", text("old"))]).await;
    let primary = cluster.primary_of_slot(cluster.slot_of(&key_of(&cluster, &session)));
    let replica = cluster.replicas_of(&primary).remove(0);
    primary.wait_for(&replica);
    primary.isolate_replica(&replica);
    client.set(by_id(&session.id), &[("a", text("new"))]).await.unwrap();
    primary.must(&["CLIENT", "PAUSE", "600000", "WRITE"]);
    let fail_over = async {
        eventually("the write is held back", async || holds_a_write(&primary).then_some(())).await;
        let (of, old) = (cluster.clone(), primary.clone());
        run_blocking(move || {
            old.pause();
            replica.resume();
            of.promote(&replica, Promotion::Takeover);
            old.resume();
            of.wait_until_healthy();
        })
        .await;
        assert!(holds_a_write(&primary), "the write was executed before the failover");
        primary.must(&["CLIENT", "UNPAUSE"]);
    };
    let changed = [("b", text("1"))];
    let (updated, ()) = tokio::join!(client.set(by_token(&token), &changed), fail_over);
    let expected = [("a".to_owned(), text("old")), ("b".into(), text("1"))].into();
    assert_eq!(updated.unwrap().attributes, expected);
    assert_eq!(client.get(by_token(&token)).await.unwrap().attributes, expected);
    // The session goes on as usual.
    let second = client.rotate(&token).await.unwrap();
    assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_failovers_under_load_lose_no_write() {
    let cluster = run_blocking(|| Cluster::start(1)).await;
    let (a, b) = (Server::start(&cluster.url(), PREFIX, "").await, Server::start(&cluster.url(), PREFIX, "").await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let sessions = create_many(&clients[0]).await;
    let fault = {
        let cluster = cluster.clone();
        run_blocking(move || {
            for primary in cluster.primaries() {
                let replica = cluster.replicas_of(&primary).remove(0);
                cluster.promote(&replica, Promotion::Coordinated);
                cluster.wait_until_healthy();
            }
        })
    };
    let written = write_sessions_during(&clients, &sessions, 0, fault).await;
    written.assert_acknowledged_kept(&clients[0]).await;
    assert_complete_in_order(&watching.events_until_now().await, &written.acknowledged);
    for session in &sessions {
        assert!(clients[0].delete(by_id(&session.id)).await.unwrap());
    }
    assert_eq!(watching.events_until_now().await.len(), MANY);
}

/// Writes the attribute `mark` of each session; later reads must return it.
async fn mark(client: &Client, sessions: &[Session], mark: &str) {
    for session in sessions {
        client.set(by_id(&session.id), &[("mark", text(mark))]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_primary_that_resumes_is_never_read_from() {
    let cluster = run_blocking(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = create_many(&client).await;
    let old = cluster.primaries().remove(1);
    let replica = cluster.replicas_of(&old).remove(0);
    let hurt = sessions_on(&old, &sessions);
    mark(&client, &sessions, "before").await;
    old.wait_for(&replica);
    old.pause();
    let of = cluster.clone();
    run_blocking(move || of.wait_for_primary(&replica)).await;
    eventually("the session is served again", async || client.set(by_id(&hurt[0].id), &[("z", text("1"))]).await.ok())
        .await;
    let mut watching = client.watch_all().await;
    mark(&client, &hurt, "after").await;
    watching.events(hurt.len()).await;
    // The old primary considers itself the primary until it learns of the failover.
    old.resume();
    let of = cluster.clone();
    let mut recovery = std::pin::pin!(run_blocking(move || of.wait_until_healthy()));
    let another = Server::start(&cluster.url(), PREFIX, "").await;
    let other = another.client().await;
    let mut rounds = 0;
    while rounds < 20 || futures_util::poll!(&mut recovery).is_pending() {
        rounds += 1;
        for session in &hurt {
            for client in [&client, &other] {
                let read = client.get(by_id(&session.id)).await.unwrap();
                assert_eq!(read.attributes["mark"], text("after"), "round {rounds}");
            }
        }
    }
    for (n, session) in hurt.iter().enumerate() {
        let client = if n % 2 == 0 { &client } else { &other };
        assert!(client.delete(by_id(&session.id)).await.unwrap());
        watching.wait_for(EventType::Ended, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_new_primary_does_not_delay_other_failovers() {
    // The long node timeout prevents an automatic failover during the test.
    let cluster = run_blocking(|| Cluster::start_with(1, &["--cluster-node-timeout", "60000"])).await;
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '3s'").await;
    let client = server.client().await;
    let sessions = create_many(&client).await;
    let primaries = cluster.primaries();
    let [hanging, next] = [0, 1].map(|of| cluster.replicas_of(&primaries[of]).remove(0));
    let [hurt, moving] = [0, 1].map(|of| sessions_on(&primaries[of], &sessions));
    let mut watching = client.watch_all().await;
    let promote = async |replica: &Redis, of: &Redis| {
        let (cluster, replica, of) = (cluster.clone(), replica.clone(), of.clone());
        run_blocking(move || {
            of.wait_for(&replica);
            cluster.promote(&replica, Promotion::Takeover);
        })
        .await;
    };
    promote(&hanging, &primaries[0]).await;
    hanging.pause();
    // No node that answers has these sessions. When this call has failed, the server is connecting to the hanging node.
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
        eventually("the session is served again", async || {
            client.set(by_id(&session.id), &[("a", text("1"))]).await.ok()
        })
        .await;
        watching.wait_for(EventType::Updated, &session.id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_seed_node_may_fail_after_the_start() {
    let cluster = run_blocking(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url_of_first_node(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = create_many(&client).await;
    let first = cluster.primaries().remove(0);
    let replica = cluster.replicas_of(&first).remove(0);
    let hurt = sessions_on(&first, &sessions);
    first.wait_for(&replica);
    first.kill();
    let of = cluster.clone();
    run_blocking(move || of.wait_for_primary(&replica)).await;
    for session in &hurt {
        eventually("the session is served by the new primary", async || {
            client.set(by_id(&session.id), &[("a", text("1"))]).await.ok()
        })
        .await;
    }
}
