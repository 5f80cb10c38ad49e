//! Sessions in a Redis Cluster: partitions on several nodes, slot migrations, hanging and flushed nodes.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use harness::{
    Client, Redis, Server, Status, WatchReader,
    client::*,
    cluster::{Cluster, MANY, PREFIX, PRIMARIES, create_many, key_of, sessions_on},
    eventually,
    process::Process,
    redis::CREDENTIALS,
    servers::run_blocking,
    unique_prefix,
    writers::{assert_complete_in_order, now, write_sessions_during},
};
use sessiond_client::v1::{
    Cause, CreateSessionRequest, EventType, ListSessionsRequest, ResyncReason, Session, UpdateSessionRequest,
    WatchRequest, watch_response::Control,
};

/// Node arguments with which a hanging node is not failed over and the other slots stay available.
const NO_FAILOVER: [&str; 4] = ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "60000"];

/// Returns the ids of all sessions in the client's namespace.
async fn listed(client: &Client) -> BTreeSet<String> {
    let (mut ids, mut page_token) = (BTreeSet::new(), String::new());
    loop {
        let request = ListSessionsRequest { namespace: client.namespace.clone(), page_token, ..Default::default() };
        let page = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
        ids.extend(page.sessions.into_iter().map(|session| session.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_on_all_nodes_are_served_and_watched_on_all_servers() {
    let (cluster, prefix) = (run_blocking(Cluster::shared).await, unique_prefix());
    let (a, b) = (Server::start(&cluster.url(), &prefix, "").await, Server::start(&cluster.url(), &prefix, "").await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = other.watch_all().await;
    let created = join_all((0..MANY).map(async |n| client.create_for(&format!("user{}", n % 8)).await)).await;
    for node in cluster.primaries() {
        assert!(!node.keys(&format!("{prefix}*:s:*")).is_empty(), "every node has sessions");
    }
    let ids: BTreeSet<String> = created.iter().map(|(session, _)| session.id.clone()).collect();
    assert_eq!(listed(&other).await, ids);
    assert_eq!(other.list_subject("user3").await.len(), MANY / 8);
    let mut successors = Vec::new();
    for (session, token) in &created {
        other.set(by_token(token), &[("a", text("1"))]).await.unwrap();
        successors.push(client.rotate(token).await.unwrap());
        assert_eq!(other.get(by_id(&session.id)).await.unwrap().token_generation, 2);
    }
    let ended = MANY / 8;
    assert_eq!(client.delete_subject("user3").await.unwrap(), ended as i32);
    for ((session, _), successor) in created.iter().zip(&successors) {
        let lived = !session.subject.ends_with('3');
        assert_eq!(other.delete(by_token(successor)).await.unwrap(), lived);
    }
    let events = watching.events_until_now().await;
    let count = |kind: EventType| events.iter().filter(|event| event.r#type() == kind).count();
    let kinds = [EventType::Created, EventType::Updated, EventType::Rotated, EventType::Ended];
    assert_eq!(kinds.map(count), [MANY; 4]);
    assert_eq!(events.len(), 4 * MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_on_every_node_expire_and_each_end_is_sent_once() {
    let (cluster, prefix) = (run_blocking(Cluster::shared).await, unique_prefix());
    let (a, b) = (Server::start(&cluster.url(), &prefix, "").await, Server::start(&cluster.url(), &prefix, "").await);
    let client = a.client().await;
    let mut watching = b.client().await.watch_all().await;
    let brief = CreateSessionRequest { idle_timeout: millis(300), ..Default::default() };
    let created = join_all((0..MANY).map(async |_| client.create_with(brief.clone()).await.unwrap().0.id)).await;
    let mut expected: BTreeSet<String> = created.into_iter().collect();
    while !expected.is_empty() {
        let event = watching.event().await;
        if event.r#type() == EventType::Ended {
            assert_eq!(event.cause(), Cause::IdleTimeout);
            assert!(expected.remove(&event.id), "sent twice");
        }
    }
    assert!(watching.events_until_now().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_resumes_on_another_server_with_events_of_all_nodes() {
    let (cluster, prefix) = (run_blocking(Cluster::shared).await, unique_prefix());
    let mut a = Server::start(&cluster.url(), &prefix, "").await;
    let b = Server::start(&cluster.url(), &prefix, "").await;
    let client = b.client().await;
    let mut watching = a.client().await.watch_all().await;
    let before = create_many(&client).await;
    watching.events(MANY / 2).await;
    let token = watching.token.clone();
    let rest = watching.buffered();
    a.stop().await;
    let after = create_many(&client).await;
    let mut resumed = client.resume(&token).await;
    let received = [rest, resumed.events_until_now().await].concat();
    let received: BTreeSet<&String> = received.iter().map(|event| &event.id).collect();
    assert!(after.iter().all(|session| received.contains(&session.id)));
    assert!(received.len() >= after.len() + before.len() / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_migration_under_load_loses_and_refuses_no_write() {
    migrate_a_slot_under_load(0, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_migration_under_load_loses_no_replicated_write() {
    migrate_a_slot_under_load(1, "[default_policy]\ndurability = 'replicated'\nreplicas = 1\n").await;
}

/// Opens one watch after another until the future completes; panics if a watch is refused.
async fn while_watches_open<T>(client: &Client, fault: impl Future<Output = T>) -> T {
    let opening = async {
        loop {
            client.watch_all().await;
        }
    };
    tokio::select! {
        done = fault => done,
        () = opening => unreachable!("the loop never ends"),
    }
}

async fn migrate_a_slot_under_load(replicas: usize, toml: &str) {
    let cluster = run_blocking(move || Cluster::start(replicas)).await;
    let (a, b) = (Server::start(&cluster.url(), PREFIX, toml).await, Server::start(&cluster.url(), PREFIX, toml).await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let sessions = create_many(&clients[0]).await;
    let slot = cluster.slot_of(&key_of(&cluster, &sessions[0]));
    let fault = {
        let cluster = cluster.clone();
        run_blocking(move || {
            for _ in 0..3 {
                let from = cluster.primary_of_slot(slot);
                let to = cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
                let moving = cluster.start_slot_move(slot, &to);
                while moving.step(1) > 0 {
                    std::thread::sleep(Duration::from_millis(20));
                }
                moving.finish();
                std::thread::sleep(Duration::from_millis(100));
            }
        })
    };
    let written = write_sessions_during(&clients, &sessions, 0, fault).await;
    assert!(written.errors.is_empty(), "{:?}", written.errors);
    written.assert_acknowledged_kept(&clients[0]).await;
    assert_complete_in_order(&watching.events_until_now().await, &written.acknowledged);
    // Sessions can be ended on the node that owns the slot now.
    for session in &sessions {
        assert!(clients[1].delete(by_id(&session.id)).await.unwrap());
    }
    let ended = watching.events_until_now().await;
    assert_eq!(ended.len(), MANY);
}

/// Returns the channel of the key's partition.
fn channel_of(key: &str) -> String {
    format!("{}}}:events", key.split_once('}').expect("the key has a hash tag").0)
}

/// Returns how often the servers read a log because the channel did not deliver an entry.
async fn gaps(servers: &[Server]) -> f64 {
    join_all(servers.iter().map(|server| server.metric("sessiond_feed_gaps_total"))).await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channel_of_a_migrated_slot_is_subscribed_on_its_new_node() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let servers = [Server::start(&cluster.url(), PREFIX, "").await, Server::start(&cluster.url(), PREFIX, "").await];
    let client = servers[0].client().await;
    let (session, _) = client.create(&[]).await;
    let mut watches = Vec::new();
    for server in &servers {
        // A bookmark makes the server read the tails, which would deliver the events without the channel.
        let rare_bookmarks = WatchRequest { bookmark_interval: seconds(30), ..whole_namespace() };
        watches.push(server.client().await.watch(rare_bookmarks).await.unwrap());
    }
    let key = key_of(&cluster, &session);
    let (slot, channel) = (cluster.slot_of(&key), channel_of(&key));
    let write = async || client.set(by_id(&session.id), &[("n", text(&new_token()))]).await.unwrap().revision;
    // One migration, then two in quick succession, which the servers may not notice.
    for moves in [1, 2] {
        let of = cluster.clone();
        let owner = run_blocking(move || {
            for _ in 0..moves {
                let from = of.primary_of_slot(slot);
                let to = of.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
                of.move_slot(slot, &to);
            }
            of.primary_of_slot(slot)
        })
        .await;
        eventually("both servers are subscribed on the owner", async || {
            write().await;
            owner.command(&["PUBSUB", "SHARDNUMSUB", &channel]).ends_with(":2\r\n").then_some(())
        })
        .await;
        // A server reads the tails once a second, sometimes just before the message arrives: hence the retries.
        eventually("all writes arrive through the channel", async || {
            let before = gaps(&servers).await;
            for _ in 0..50 {
                let revision = write().await;
                for watching in &mut watches {
                    while watching.event().await.revision != revision {}
                }
            }
            (gaps(&servers).await == before).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_channel_subscription_does_not_prevent_the_others() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    // If two nodes claim a slot, the claim with the higher epoch counts: that of the last node.
    let [to, .., from] = &cluster.primaries()[..] else { unreachable!("the cluster has three primaries") };
    let mut channels = from.list(&["PUBSUB", "SHARDCHANNELS"]);
    channels.sort();
    let is_subscribed = |channel: &String| from.command(&["PUBSUB", "SHARDNUMSUB", channel]).ends_with(":1\r\n");
    // The server subscribes one by one: at least one of the two channels is not the last.
    for refused in [channels.remove(0), channels.pop().unwrap()] {
        let moving = cluster.start_slot_move(cluster.slot_of(&refused), to);
        moving.assign_source_only();
        from.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert!(channels.len() > 1);
        eventually("all other channels are subscribed", async || channels.iter().all(is_subscribed).then_some(()))
            .await;
        assert!(!is_subscribed(&refused));
        run_blocking(move || moving.finish()).await;
    }
    create_many(&client).await;
    watching.events(MANY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_node_that_replaces_another_under_load_loses_no_write() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let (a, b) = (Server::start(&cluster.url(), PREFIX, "").await, Server::start(&cluster.url(), PREFIX, "").await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let sessions = create_many(&clients[0]).await;
    let old = cluster.primaries().remove(1);
    let moved = sessions_on(&old, &sessions);
    let fault = {
        let (cluster, old) = (cluster.clone(), old.clone());
        run_blocking(move || {
            let (cluster, new_node) = cluster.join();
            let slots: BTreeSet<u16> = old.keys("*").iter().map(|key| cluster.slot_of(key)).collect();
            assert!(slots.len() > 1);
            slots.into_iter().for_each(|slot| cluster.move_slot(slot, &new_node));
            (cluster, new_node)
        })
    };
    let mut grown = None;
    let fault = async { grown = Some(while_watches_open(&clients[0], fault).await) };
    let written = write_sessions_during(&clients, &sessions, 0, fault).await;
    assert!(written.errors.is_empty(), "{:?}", written.errors);
    let (cluster, new_node) = grown.unwrap();
    assert_eq!(sessions_on(&new_node, &sessions), moved);
    assert!(old.keys("*").is_empty());
    for node in cluster.nodes() {
        node.must(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    old.pause();
    for (session, client) in sessions.iter().flat_map(|session| clients.iter().map(move |client| (session, client))) {
        eventually("the new node answers", async || client.get(by_id(&session.id)).await.ok()).await;
    }
    written.assert_acknowledged_kept(&clients[0]).await;
    assert_complete_in_order(&watching.events_until_now().await, &written.acknowledged);
    for session in &sessions {
        assert!(clients[1].delete(by_id(&session.id)).await.unwrap());
    }
    assert_eq!(watching.events_until_now().await.len(), MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_migrated_slot_refuses_some_writes_and_recovers() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
    let client = server.client().await;
    let sessions = create_many(&client).await;
    let slot = cluster.slot_of(&key_of(&cluster, &sessions[0]));
    let from = cluster.primary_of_slot(slot);
    let to = cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
    let moving = cluster.start_slot_move(slot, &to);
    assert_eq!(moving.step(2), 2);
    let mut refused = Vec::new();
    for session in &sessions {
        // Redis refuses every script for a slot whose keys are on two nodes, so nothing is applied.
        if let Err(status) = client.set(by_id(&session.id), &[("n", text("1"))]).await {
            assert_eq!(cluster.slot_of(&key_on_either(&from, &to, session)), slot, "{status:?}");
            match &status.reason()[..] {
                "STORE_UNAVAILABLE" => refused.push(session),
                // The deadline passed just after the call was sent again.
                reason => assert_eq!(reason, "OUTCOME_UNKNOWN"),
            }
        }
    }
    assert!((1..MANY / 2).contains(&refused.len()), "{}", refused.len());
    run_blocking(move || moving.finish()).await;
    for session in &sessions {
        eventually("the session can be written again", async || {
            client.set(by_id(&session.id), &[("m", text("1"))]).await.ok()
        })
        .await;
    }
    for session in refused {
        assert!(
            !client.get(by_id(&session.id)).await.unwrap().attributes.contains_key("n"),
            "a refused write was applied"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_watches_continue_while_all_keys_of_a_slot_are_migrating() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let to = cluster.primaries().remove(0);
    watch_while_all_keys_of_a_slot_are_migrating(cluster, to).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_watches_continue_while_a_slot_migrates_to_an_empty_node() {
    let (cluster, to) = run_blocking(|| Cluster::start(0).join()).await;
    watch_while_all_keys_of_a_slot_are_migrating(cluster, to).await;
}

/// Migrates all keys of a slot but not its ownership; open, new and other servers' watches still receive events.
async fn watch_while_all_keys_of_a_slot_are_migrating(cluster: Cluster, to: Redis) {
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let sessions = create_many(&client).await;
    watching.events(sessions.len()).await;
    let from = cluster.primaries().remove(2);
    let on_node = sessions_on(&from, &sessions);
    let slot = cluster.slot_of(&key_of(&cluster, &on_node[0]));
    let has_other_slot = |session: &&Session| cluster.slot_of(&key_of(&cluster, session)) != slot;
    let other = on_node.iter().find(has_other_slot).expect("the node has sessions in two slots");
    let moving = cluster.start_slot_move(slot, &to);
    while moving.step(10) > 0 {}
    watching.events_until_now().await;
    let mut opened = client.watch_all().await;
    // A server can start during the migration too.
    let another = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
    let mut opened_on_another = another.client().await.watch_all().await;
    client.delete(by_id(&other.id)).await.unwrap();
    for watching in [&mut watching, &mut opened, &mut opened_on_another] {
        assert_eq!(watching.event().await.r#type(), EventType::Ended);
    }
    run_blocking(move || moving.finish()).await;
    client.delete(by_id(&on_node[0].id)).await.unwrap();
    for watching in [&mut watching, &mut opened] {
        watching.wait_for(EventType::Ended, &on_node[0].id).await;
    }
}

/// Returns the key of a session that is on one of the two nodes.
fn key_on_either(from: &Redis, to: &Redis, session: &Session) -> String {
    let pattern = format!("{PREFIX}*:s:*:{}", session.id);
    [from.keys(&pattern), to.keys(&pattern)].concat().remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w3_log_on_another_node_than_its_meta_key_is_read() {
    for moved_first in [":meta", ":log"] {
        let cluster = run_blocking(|| Cluster::start(0)).await;
        let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
        let client = server.client().await;
        let (session, _) = client.create(&[]).await;
        let mut watching = client.watch_all().await;
        watching.bookmark().await;
        let token = watching.token.clone();
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        let slot = cluster.slot_of(&key_of(&cluster, &session));
        let to = cluster.primaries().into_iter().find(|node| node.port() != cluster.primary_of_slot(slot).port());
        let moving = cluster.start_slot_move(slot, &to.unwrap());
        assert_eq!(moving.step_where(|key| key.ends_with(moved_first)), 1);
        let mut resumed = client.resume(&token).await;
        assert_eq!(resumed.event().await.r#type(), EventType::Updated);
        run_blocking(move || moving.finish()).await;
        client.delete(by_id(&session.id)).await.unwrap();
        assert_eq!(resumed.event().await.r#type(), EventType::Ended);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_node_does_not_delay_calls_to_the_others() {
    let cluster = run_blocking(|| Cluster::start_with(0, &NO_FAILOVER)).await;
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
    let client = server.client().await;
    let sessions = create_many(&client).await;
    let nodes = cluster.primaries();
    assert_eq!(nodes.len(), PRIMARIES);
    let hanging = sessions_on(&nodes[1], &sessions);
    let others = [sessions_on(&nodes[0], &sessions), sessions_on(&nodes[2], &sessions)].concat();
    assert!(!hanging.is_empty() && !others.is_empty());
    let mut watching = client.watch_all().await;
    nodes[1].pause();
    for _ in 0..20 {
        let stalled = client.get(by_id(&hanging[0].id));
        let writes = others.iter().map(async |session| {
            client.set(by_id(&session.id), &[("a", text(&new_token()))]).await.unwrap();
        });
        let (stalled, _) = tokio::join!(stalled, join_all(writes));
        let status = stalled.unwrap_err();
        assert!(["STORE_UNAVAILABLE", "STORE_TIMEOUT"].contains(&&status.reason()[..]), "{status:?}");
    }
    // The watch receives the writes to the other nodes too.
    let events = watching.events(20 * others.len()).await;
    assert!(events.iter().all(|event| others.iter().any(|session| session.id == event.id)));
    nodes[1].resume();
    for session in &hanging {
        eventually("the node is back", async || client.set(by_id(&session.id), &[("a", text("1"))]).await.ok()).await;
        watching.wait_for(EventType::Updated, &session.id).await;
    }
}

/// Creates one session for each of many subjects and deletes the subject indexes. Returns the sessions and the deleted
/// index keys by node.
async fn without_indexes(cluster: &Cluster, client: &Client) -> (Vec<Session>, Vec<Vec<String>>) {
    let sessions = join_all((0..MANY).map(async |n| client.create_for(&format!("user{n}")).await.0)).await;
    let delete_indexes = |node: &Redis| {
        let indexes = node.keys(&format!("{PREFIX}*:u:*"));
        assert!(!indexes.is_empty(), "every node has indexes");
        indexes.iter().for_each(|index| drop(node.must(&["DEL", index])));
        indexes
    };
    (sessions, cluster.primaries().iter().map(delete_indexes).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconciliation_covers_every_node() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "reconcile_interval = '1s'").await;
    let client = server.client().await;
    for session in without_indexes(&cluster, &client).await.0 {
        let listed = async || client.list_subject(&session.subject).await.len();
        eventually("the session is in its index again", async || (listed().await == 1).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconciliation_with_a_hanging_node_covers_the_others() {
    let cluster = run_blocking(|| Cluster::start_with(0, &NO_FAILOVER)).await;
    let server = Server::start(&cluster.url(), PREFIX, "reconcile_interval = '2s'").await;
    let client = server.client().await;
    let nodes = cluster.primaries();
    let (sessions, indexes) = without_indexes(&cluster, &client).await;
    // The claim that decides which instance reconciles is on this node too.
    nodes[0].pause();
    // The reconciler needs both the session and its index on nodes that answer.
    let reachable = [sessions_on(&nodes[1], &sessions), sessions_on(&nodes[2], &sessions)].concat();
    let is_reachable =
        |index: &&String| reachable.iter().any(|session| index.ends_with(&format!(":{}", session.subject)));
    let expected: BTreeSet<String> = indexes[1..].iter().flatten().filter(is_reachable).cloned().collect();
    assert!(!expected.is_empty());
    let exists = |index: &String| nodes[1..].iter().any(|node| !node.keys(index).is_empty());
    eventually("the indexes exist again", async || expected.iter().all(exists).then_some(())).await;
    nodes[0].resume();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_deleted_on_any_node_end_their_sessions_out_of_band() {
    let cluster = run_blocking(|| Cluster::start_with(0, &["--notify-keyspace-events", "Egxe"])).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let sessions = create_many(&client).await;
    watching.events(MANY).await;
    for node in cluster.primaries() {
        let keys = node.keys(&format!("{PREFIX}*:s:*"));
        assert!(!keys.is_empty(), "every node has sessions");
        keys.iter().for_each(|key| drop(node.must(&["DEL", key])));
    }
    let mut expected: BTreeSet<String> = sessions.into_iter().map(|session| session.id).collect();
    while !expected.is_empty() {
        let event = watching.event().await;
        assert_eq!((event.r#type(), event.cause()), (EventType::Ended, Cause::OutOfBand));
        assert!(expected.remove(&event.id), "sent twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_of_one_node_sends_resync_and_keeps_other_sessions() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = create_many(&client).await;
    let mut watching = client.watch_all().await;
    let nodes = cluster.primaries();
    let (gone, kept) = (sessions_on(&nodes[2], &sessions), sessions_on(&nodes[0], &sessions));
    nodes[2].must(&["FLUSHALL"]);
    assert_eq!(watching.resync().await.reason(), ResyncReason::Flushed);
    for session in &kept {
        assert!(client.lives(&session.id).await);
    }
    for session in &gone {
        eventually("the session is gone", async || (!client.lives(&session.id).await).then_some(())).await;
    }
    eventually("every node accepts new sessions", async || {
        let made = join_all((0..MANY).map(|_| client.create_with(CreateSessionRequest::default()))).await;
        made.iter().all(Result::is_ok).then_some(())
    })
    .await;
}

/// Reads responses until a bookmark newer than this call. Returns the number of resyncs; panics if the reason of one is
/// not FLUSHED.
async fn times_flushed(watching: &mut WatchReader) -> usize {
    let (since, mut times) = (now(), 0);
    loop {
        match watching.response().await.unwrap().expect("the watch is open").control {
            Some(Control::Resync(resync)) => {
                assert_eq!(resync.reason(), ResyncReason::Flushed);
                times += 1;
            }
            Some(Control::Bookmark(bookmark)) => {
                let as_of = bookmark.as_of.unwrap();
                if as_of.seconds * 1_000_000 + i64::from(as_of.nanos) / 1_000 > since {
                    return times;
                }
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_of_all_nodes_sends_resync_to_open_and_resumed_watches() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let (a, b) = (Server::start(&cluster.url(), PREFIX, "").await, Server::start(&cluster.url(), PREFIX, "").await);
    let clients = [a.client().await, b.client().await];
    let gone = create_many(&clients[0]).await;
    let mut watches = [clients[0].watch_all().await, clients[1].watch_all().await];
    let token = watches[0].token.clone();
    for node in cluster.primaries() {
        node.must(&["FLUSHALL"]);
    }
    for watching in &mut watches {
        assert_eq!(watching.resync().await.reason(), ResyncReason::Flushed);
    }
    let mut resumed = Vec::new();
    for client in &clients {
        let mut watching = client.resume(&token).await;
        assert_eq!(watching.resync().await.reason(), ResyncReason::Flushed);
        resumed.push(watching);
    }
    for session in &gone {
        eventually("the session is gone", async || (!clients[1].lives(&session.id).await).then_some(())).await;
    }
    eventually("every node accepts new sessions", async || {
        let made = join_all((0..MANY).map(|_| clients[0].create_with(CreateSessionRequest::default()))).await;
        made.iter().all(Result::is_ok).then_some(())
    })
    .await;
    // A server that starts later detects the flush too, although the new log is longer than the old one by now.
    let c = Server::start(&cluster.url(), PREFIX, "").await;
    let mut late = c.client().await.resume(&token).await;
    assert!(times_flushed(&mut late).await > 0);
    let mut all: Vec<WatchReader> = watches.into_iter().chain(resumed).chain([late]).collect();
    for watching in &mut all {
        times_flushed(watching).await;
        watching.buffered();
    }
    let made: BTreeSet<String> = create_many(&clients[1]).await.into_iter().map(|session| session.id).collect();
    for watching in &mut all {
        let received = watching.events(MANY).await.into_iter().map(|event| event.id);
        assert_eq!(received.collect::<BTreeSet<_>>(), made);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicated_write_is_on_the_replica_of_its_partition() {
    const REPLICATED: &str =
        "[limits]\ncall_timeout = '3s'\n[default_policy]\ndurability = 'replicated'\nreplicas = 1\n";
    let cluster = run_blocking(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url(), PREFIX, REPLICATED).await;
    let client = server.client().await;
    let pairs: Vec<(Redis, Redis)> =
        cluster.primaries().into_iter().map(|of| (of.clone(), cluster.replicas_of(&of).remove(0))).collect();
    let mut last = Vec::new();
    for _ in 0..MANY {
        let session = client.create(&[]).await.0;
        let pattern = format!("{PREFIX}*:s:*:{}", session.id);
        let shard = pairs.iter().position(|(primary, _)| !primary.keys(&pattern).is_empty()).unwrap();
        assert_eq!(pairs[shard].1.keys(&pattern).len(), 1, "the write was confirmed and is not on the replica");
        last.push((shard, session));
    }
    // If a replica hangs, the acknowledgements of other shards' replicas do not count.
    pairs[0].1.pause();
    for (shard, session) in last.iter().filter(|(shard, _)| *shard != 0).take(8) {
        let set = client.set(by_id(&session.id), &[("a", text("1"))]).await;
        assert!(set.is_ok(), "shard {shard}: {set:?}");
    }
    let (_, session) = last.iter().find(|(shard, _)| *shard == 0).unwrap();
    let update = UpdateSessionRequest {
        key: by_id(&session.id),
        set_attributes: [("a".into(), text("1"))].into(),
        ..Default::default()
    };
    let status = client.update(update).await.unwrap_err();
    assert_eq!(status.reason(), "OUTCOME_UNKNOWN", "{status:?}");
    pairs[0].1.resume();
}

#[test]
fn cluster_node_with_a_plain_url_is_refused_with_a_hint() {
    let cluster = Cluster::start(0);
    let node = cluster.url().replace("redis-cluster:", "redis:");
    let (log, code) = Process::expect_start_failure(&[format!("--redis={node}")]);
    assert!(code == Some(1) && log.contains("redis-cluster://"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_from_the_environment_is_used_for_all_nodes() {
    let cluster = run_blocking(Cluster::shared).await;
    let (user, password) = CREDENTIALS.split_once(':').unwrap();
    let arguments =
        [format!("--redis={}", cluster.url().replace(CREDENTIALS, user)), format!("--key-prefix={}", unique_prefix())];
    let process = Process::start_with_env(&[("SESSIOND_REDIS_PASSWORD", password.to_owned())], &arguments);
    create_many(&process.client().await).await;
    assert!(!process.log.lock().unwrap().contains(password));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_without_all_slots_is_not_ready() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let owner = cluster.primary_of_slot(1);
    for node in cluster.primaries() {
        node.must(&["CLUSTER", "DELSLOTS", "1"]);
    }
    eventually("the server is not ready", async || {
        let text = server.http("/readyz").await?;
        (text.starts_with("HTTP/1.1 503") && text.contains("CLUSTERDOWN")).then_some(())
    })
    .await;
    owner.must(&["CLUSTER", "ADDSLOTS", "1"]);
    eventually("all nodes have learned that the Cluster is complete", async || {
        let text = server.http("/readyz").await?;
        (text.starts_with("HTTP/1.1 200") && !text.contains("CLUSTERDOWN")).then_some(())
    })
    .await;
    server.client().await.create(&[]).await;
}
