//! Sessions in a Redis Cluster: every partition has its place, and the places change.

mod harness;

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use harness::{
    Client, Redis, Server, Status, Watching,
    client::*,
    cluster::{Cluster, MANY, PREFIX, PRIMARIES, key_of, many, on},
    eventually, prefix_of_its_own,
    process::Process,
    redis::CREDENTIALS,
    servers::aside,
    writers::{assert_reliable, now, write_to},
};
use sessiond_client::v1::{
    Cause, CreateSessionRequest, EventType, ListSessionsRequest, ResyncReason, Session, UpdateSessionRequest,
    WatchRequest, watch_response::Control,
};

/// A node that hangs is given up by nobody, and the others go on.
const PATIENT: [&str; 4] = ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "60000"];

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
async fn sessions_live_on_every_node_and_are_heard_on_every_server() {
    let (cluster, prefix) = (aside(Cluster::shared).await, prefix_of_its_own());
    let (a, b) = (Server::start(&cluster.url(), &prefix, "").await, Server::start(&cluster.url(), &prefix, "").await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = other.watch_all().await;
    let created = join_all((0..MANY).map(async |n| client.create_of(&format!("user{}", n % 8)).await)).await;
    for node in cluster.primaries() {
        assert!(!node.keys(&format!("{prefix}*:s:*")).is_empty(), "every node has sessions");
    }
    let ids: BTreeSet<String> = created.iter().map(|(session, _)| session.id.clone()).collect();
    assert_eq!(listed(&other).await, ids);
    assert_eq!(other.list_of("user3").await.len(), MANY / 8);
    let mut successors = Vec::new();
    for (session, token) in &created {
        other.set(by_token(token), &[("a", text("1"))]).await.unwrap();
        successors.push(client.rotate(token).await.unwrap());
        assert_eq!(other.get(by_id(&session.id)).await.unwrap().token_generation, 2);
    }
    let ended = MANY / 8;
    assert_eq!(client.delete_all("user3").await.unwrap(), ended as i32);
    for ((session, _), successor) in created.iter().zip(&successors) {
        let lived = !session.subject.ends_with('3');
        assert_eq!(other.delete(by_token(successor)).await.unwrap(), lived);
    }
    let events = watching.everything_so_far().await;
    let count = |kind: EventType| events.iter().filter(|event| event.r#type() == kind).count();
    let kinds = [EventType::Created, EventType::Updated, EventType::Rotated, EventType::Ended];
    assert_eq!(kinds.map(count), [MANY; 4]);
    assert_eq!(events.len(), 4 * MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_every_node_expire_and_each_ending_is_told_once() {
    let (cluster, prefix) = (aside(Cluster::shared).await, prefix_of_its_own());
    let (a, b) = (Server::start(&cluster.url(), &prefix, "").await, Server::start(&cluster.url(), &prefix, "").await);
    let client = a.client().await;
    let mut watching = b.client().await.watch_all().await;
    let brief = CreateSessionRequest { idle_timeout: millis(300), ..Default::default() };
    let created = join_all((0..MANY).map(async |_| client.create_as(brief.clone()).await.unwrap().0.id)).await;
    let mut expected: BTreeSet<String> = created.into_iter().collect();
    while !expected.is_empty() {
        let event = watching.event().await;
        if event.r#type() == EventType::Ended {
            assert_eq!(event.cause(), Cause::IdleTimeout);
            assert!(expected.remove(&event.id), "told twice");
        }
    }
    assert!(watching.everything_so_far().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_another_server_over_all_nodes() {
    let (cluster, prefix) = (aside(Cluster::shared).await, prefix_of_its_own());
    let mut a = Server::start(&cluster.url(), &prefix, "").await;
    let b = Server::start(&cluster.url(), &prefix, "").await;
    let client = b.client().await;
    let mut watching = a.client().await.watch_all().await;
    let before = many(&client).await;
    watching.events(MANY / 2).await;
    let token = watching.token.clone();
    let rest = watching.kept();
    a.stop().await;
    let after = many(&client).await;
    let mut resumed = client.resume(&token).await;
    let told = [rest, resumed.everything_so_far().await].concat();
    let told: BTreeSet<&String> = told.iter().map(|event| &event.id).collect();
    assert!(after.iter().all(|session| told.contains(&session.id)));
    assert!(told.len() >= after.len() + before.len() / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_under_load_and_nothing_is_lost_or_refused() {
    a_slot_moves_under_load(0, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_under_load_whose_answers_wait_for_replicas_and_nothing_is_lost_or_refused() {
    a_slot_moves_under_load(1, "[default_policy]\ndurability = 'replicated'\nreplicas = 1\n").await;
}

/// Watch after watch is opened while this lasts: none is refused.
async fn while_watches_open<T>(client: &Client, lasting: impl Future<Output = T>) -> T {
    let opening = async {
        loop {
            client.watch_all().await;
        }
    };
    tokio::select! {
        done = lasting => done,
        () = opening => unreachable!("it goes on for ever"),
    }
}

async fn a_slot_moves_under_load(replicas: usize, toml: &str) {
    let cluster = aside(move || Cluster::start(replicas)).await;
    let (a, b) = (Server::start(&cluster.url(), PREFIX, toml).await, Server::start(&cluster.url(), PREFIX, toml).await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let sessions = many(&clients[0]).await;
    let slot = cluster.slot_of(&key_of(&cluster, &sessions[0]));
    let fault = {
        let cluster = cluster.clone();
        aside(move || {
            for _ in 0..3 {
                let from = cluster.primary_of_slot(slot);
                let to = cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
                let moving = cluster.begin_to_move(slot, &to);
                while moving.step(1) > 0 {
                    std::thread::sleep(Duration::from_millis(20));
                }
                moving.finish();
                std::thread::sleep(Duration::from_millis(100));
            }
        })
    };
    let written = write_to(&clients, &sessions, 0, fault).await;
    assert!(written.refused.is_empty(), "{:?}", written.refused);
    written.assert_kept(&clients[0]).await;
    assert_reliable(&watching.everything_so_far().await, &written.acknowledged);
    // Where the slot is now, sessions expire and are ended too.
    for session in &sessions {
        assert!(clients[1].delete(by_id(&session.id)).await.unwrap());
    }
    let ended = watching.everything_so_far().await;
    assert_eq!(ended.len(), MANY);
}

/// The channel of the partition that this key is of.
fn channel_of(key: &str) -> String {
    format!("{}}}:events", key.split_once('}').expect("it has a hash tag").0)
}

/// How often a log had to be read for what its channel did not bring.
async fn gaps(servers: &[Server]) -> f64 {
    join_all(servers.iter().map(|server| server.metric("sessiond_feed_gaps_total"))).await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_channel_of_a_slot_that_has_moved_is_heard_where_it_is_now() {
    let cluster = aside(|| Cluster::start(0)).await;
    let servers = [Server::start(&cluster.url(), PREFIX, "").await, Server::start(&cluster.url(), PREFIX, "").await];
    let client = servers[0].client().await;
    let (session, _) = client.create(&[]).await;
    let mut watches = Vec::new();
    for server in &servers {
        // Whoever waits for a bookmark has the tails read, and would be told by that.
        let rarely = WatchRequest { bookmark_interval: seconds(30), ..whole_namespace() };
        watches.push(server.client().await.watch(rarely).await.unwrap());
    }
    let key = key_of(&cluster, &session);
    let (slot, channel) = (cluster.slot_of(&key), channel_of(&key));
    let write = async || client.set(by_id(&session.id), &[("n", text(&new_token()))]).await.unwrap().revision;
    // To another node; and back and there again so fast that nobody may have seen it.
    for moves in [1, 2] {
        let of = cluster.clone();
        let owner = aside(move || {
            for _ in 0..moves {
                let from = of.primary_of_slot(slot);
                let to = of.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
                of.move_slot(slot, &to);
            }
            of.primary_of_slot(slot)
        })
        .await;
        eventually("both servers listen to its owner", async || {
            write().await;
            owner.command(&["PUBSUB", "SHARDNUMSUB", &channel]).ends_with(":2\r\n").then_some(())
        })
        .await;
        // The tails are read once a second anyway, perhaps just before what the channel brings.
        eventually("what is written comes by the channel", async || {
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
async fn a_channel_that_is_refused_keeps_no_other_from_being_heard() {
    let cluster = aside(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    // Of all claims to a slot that of the last node counts.
    let [to, .., from] = &cluster.primaries()[..] else { unreachable!("there are three") };
    let mut channels = from.list(&["PUBSUB", "SHARDCHANNELS"]);
    channels.sort();
    let is_heard = |channel: &String| from.command(&["PUBSUB", "SHARDNUMSUB", channel]).ends_with(":1\r\n");
    // At least one of the two is not the last that is asked for.
    for refused in [channels.remove(0), channels.pop().unwrap()] {
        let moving = cluster.begin_to_move(cluster.slot_of(&refused), to);
        moving.renounce();
        from.must(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert!(channels.len() > 1);
        eventually("all others are heard", async || channels.iter().all(is_heard).then_some(())).await;
        assert!(!is_heard(&refused));
        aside(move || moving.finish()).await;
    }
    many(&client).await;
    watching.events(MANY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_under_load_and_takes_over_from_another_which_is_not_needed_any_more() {
    let cluster = aside(|| Cluster::start(0)).await;
    let (a, b) = (Server::start(&cluster.url(), PREFIX, "").await, Server::start(&cluster.url(), PREFIX, "").await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[1].watch_all().await;
    let sessions = many(&clients[0]).await;
    let old = cluster.primaries().remove(1);
    let moved = on(&old, &sessions);
    let fault = {
        let (cluster, old) = (cluster.clone(), old.clone());
        aside(move || {
            let (cluster, newcomer) = cluster.join();
            let slots: BTreeSet<u16> = old.keys("*").iter().map(|key| cluster.slot_of(key)).collect();
            assert!(slots.len() > 1);
            slots.into_iter().for_each(|slot| cluster.move_slot(slot, &newcomer));
            (cluster, newcomer)
        })
    };
    let mut grown = None;
    let fault = async { grown = Some(while_watches_open(&clients[0], fault).await) };
    let written = write_to(&clients, &sessions, 0, fault).await;
    assert!(written.refused.is_empty(), "{:?}", written.refused);
    let (cluster, newcomer) = grown.unwrap();
    assert_eq!(on(&newcomer, &sessions), moved);
    assert!(old.keys("*").is_empty());
    for node in cluster.nodes() {
        node.must(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    old.pause();
    for (session, client) in sessions.iter().flat_map(|session| clients.iter().map(move |client| (session, client))) {
        eventually("it is asked for elsewhere", async || client.get(by_id(&session.id)).await.ok()).await;
    }
    written.assert_kept(&clients[0]).await;
    assert_reliable(&watching.everything_so_far().await, &written.acknowledged);
    for session in &sessions {
        assert!(clients[1].delete(by_id(&session.id)).await.unwrap());
    }
    assert_eq!(watching.everything_so_far().await.len(), MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_stays_halfway_serves_what_it_can_and_all_of_it_afterwards() {
    let cluster = aside(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
    let client = server.client().await;
    let sessions = many(&client).await;
    let slot = cluster.slot_of(&key_of(&cluster, &sessions[0]));
    let from = cluster.primary_of_slot(slot);
    let to = cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
    let moving = cluster.begin_to_move(slot, &to);
    assert_eq!(moving.step(2), 2);
    let mut refused = Vec::new();
    for session in &sessions {
        // Of a partition that is in two places nothing can be done, and nothing is.
        if let Err(status) = client.set(by_id(&session.id), &[("n", text("1"))]).await {
            assert_eq!(cluster.slot_of(&key_on_its_way(&from, &to, session)), slot, "{status:?}");
            match &status.reason()[..] {
                "STORE_UNAVAILABLE" => refused.push(session),
                // Sent once more as the time was over.
                reason => assert_eq!(reason, "OUTCOME_UNKNOWN"),
            }
        }
    }
    assert!((1..MANY / 2).contains(&refused.len()), "{}", refused.len());
    aside(move || moving.finish()).await;
    for session in &sessions {
        eventually("it can be written again", async || client.set(by_id(&session.id), &[("m", text("1"))]).await.ok())
            .await;
    }
    for session in refused {
        assert!(!client.get(by_id(&session.id)).await.unwrap().attributes.contains_key("n"), "it was refused");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_bookmarks_and_new_watches_come_while_all_keys_of_a_slot_are_on_their_way() {
    let cluster = aside(|| Cluster::start(0)).await;
    let to = cluster.primaries().remove(0);
    all_goes_on_while_all_keys_of_a_slot_are_on_their_way(cluster, to).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_and_so_they_do_where_the_slot_is_the_first_that_a_node_is_given() {
    let (cluster, to) = aside(|| Cluster::start(0).join()).await;
    all_goes_on_while_all_keys_of_a_slot_are_on_their_way(cluster, to).await;
}

async fn all_goes_on_while_all_keys_of_a_slot_are_on_their_way(cluster: Cluster, to: Redis) {
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let sessions = many(&client).await;
    watching.events(sessions.len()).await;
    let from = cluster.primaries().remove(2);
    let there = on(&from, &sessions);
    let slot = cluster.slot_of(&key_of(&cluster, &there[0]));
    let is_elsewhere = |session: &&Session| cluster.slot_of(&key_of(&cluster, session)) != slot;
    let elsewhere = there.iter().find(is_elsewhere).expect("the node has more of them");
    let moving = cluster.begin_to_move(slot, &to);
    while moving.step(10) > 0 {}
    watching.everything_so_far().await;
    let mut opened = client.watch_all().await;
    // And who starts now starts.
    let another = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
    let mut elsewhere_opened = another.client().await.watch_all().await;
    client.delete(by_id(&elsewhere.id)).await.unwrap();
    for watching in [&mut watching, &mut opened, &mut elsewhere_opened] {
        assert_eq!(watching.event().await.r#type(), EventType::Ended);
    }
    aside(move || moving.finish()).await;
    client.delete(by_id(&there[0].id)).await.unwrap();
    for watching in [&mut watching, &mut opened] {
        watching.wait_for(EventType::Ended, &there[0].id).await;
    }
}

/// The key of a session on one of these.
fn key_on_its_way(from: &Redis, to: &Redis, session: &Session) -> String {
    let pattern = format!("{PREFIX}*:s:*:{}", session.id);
    [from.keys(&pattern), to.keys(&pattern)].concat().remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w3_a_log_is_read_while_it_lies_elsewhere_than_its_end() {
    for moved_first in [":meta", ":log"] {
        let cluster = aside(|| Cluster::start(0)).await;
        let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
        let client = server.client().await;
        let (session, _) = client.create(&[]).await;
        let mut watching = client.watch_all().await;
        watching.bookmark().await;
        let token = watching.token.clone();
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        let slot = cluster.slot_of(&key_of(&cluster, &session));
        let to = cluster.primaries().into_iter().find(|node| node.port() != cluster.primary_of_slot(slot).port());
        let moving = cluster.begin_to_move(slot, &to.unwrap());
        assert_eq!(moving.step_those(|key| key.ends_with(moved_first)), 1);
        let mut resumed = client.resume(&token).await;
        assert_eq!(resumed.event().await.r#type(), EventType::Updated);
        aside(move || moving.finish()).await;
        client.delete(by_id(&session.id)).await.unwrap();
        assert_eq!(resumed.event().await.r#type(), EventType::Ended);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_that_hangs_does_not_stall_calls_to_the_others() {
    let cluster = aside(|| Cluster::start_with(0, &PATIENT)).await;
    let server = Server::start(&cluster.url(), PREFIX, "limits.call_timeout = '1s'").await;
    let client = server.client().await;
    let sessions = many(&client).await;
    let nodes = cluster.primaries();
    assert_eq!(nodes.len(), PRIMARIES);
    let hanging = on(&nodes[1], &sessions);
    let others = [on(&nodes[0], &sessions), on(&nodes[2], &sessions)].concat();
    assert!(!hanging.is_empty() && !others.is_empty());
    let mut watching = client.watch_all().await;
    nodes[1].pause();
    for _ in 0..20 {
        let asked = client.get(by_id(&hanging[0].id));
        let answered = others.iter().map(async |session| {
            client.set(by_id(&session.id), &[("a", text(&new_token()))]).await.unwrap();
        });
        let (asked, _) = tokio::join!(asked, join_all(answered));
        let status = asked.unwrap_err();
        assert!(["STORE_UNAVAILABLE", "STORE_TIMEOUT"].contains(&&status.reason()[..]), "{status:?}");
    }
    // They are told too.
    let told = watching.events(20 * others.len()).await;
    assert!(told.iter().all(|event| others.iter().any(|session| session.id == event.id)));
    nodes[1].resume();
    for session in &hanging {
        eventually("the node is back", async || client.set(by_id(&session.id), &[("a", text("1"))]).await.ok()).await;
        watching.wait_for(EventType::Updated, &session.id).await;
    }
}

/// Sessions of as many subjects, whose indexes are lost; and these indexes, by node.
async fn without_indexes(cluster: &Cluster, client: &Client) -> (Vec<Session>, Vec<Vec<String>>) {
    let sessions = join_all((0..MANY).map(async |n| client.create_of(&format!("user{n}")).await.0)).await;
    let lose = |node: &Redis| {
        let indexes = node.keys(&format!("{PREFIX}*:u:*"));
        assert!(!indexes.is_empty(), "every node has indexes");
        indexes.iter().for_each(|index| drop(node.must(&["DEL", index])));
        indexes
    };
    (sessions, cluster.primaries().iter().map(lose).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_covers_every_node() {
    let cluster = aside(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "audit_interval = '1s'").await;
    let client = server.client().await;
    for session in without_indexes(&cluster, &client).await.0 {
        let listed = async || client.list_of(&session.subject).await.len();
        eventually("it is in its index again", async || (listed().await == 1).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_covers_the_nodes_that_answer() {
    let cluster = aside(|| Cluster::start_with(0, &PATIENT)).await;
    let server = Server::start(&cluster.url(), PREFIX, "audit_interval = '2s'").await;
    let client = server.client().await;
    let nodes = cluster.primaries();
    let (sessions, indexes) = without_indexes(&cluster, &client).await;
    // It would say as well whose turn it is to audit.
    nodes[0].pause();
    // Of a session of theirs, in an index of theirs.
    let theirs = [on(&nodes[1], &sessions), on(&nodes[2], &sessions)].concat();
    let is_theirs = |index: &&String| theirs.iter().any(|session| index.ends_with(&format!(":{}", session.subject)));
    let expected: BTreeSet<String> = indexes[1..].iter().flatten().filter(is_theirs).cloned().collect();
    assert!(!expected.is_empty());
    let is_there = |index: &String| nodes[1..].iter().any(|node| !node.keys(index).is_empty());
    eventually("they are there again", async || expected.iter().all(is_there).then_some(())).await;
    nodes[0].resume();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vanishes_on_any_node_is_told_as_ended_out_of_band() {
    let cluster = aside(|| Cluster::start_with(0, &["--notify-keyspace-events", "Egxe"])).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let sessions = many(&client).await;
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
        assert!(expected.remove(&event.id), "told twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_emptied_is_told_and_the_others_keep_their_sessions() {
    let cluster = aside(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), PREFIX, "").await;
    let client = server.client().await;
    let sessions = many(&client).await;
    let mut watching = client.watch_all().await;
    let nodes = cluster.primaries();
    let (gone, kept) = (on(&nodes[2], &sessions), on(&nodes[0], &sessions));
    nodes[2].must(&["FLUSHALL"]);
    assert_eq!(watching.resync().await.reason(), ResyncReason::Flushed);
    for session in &kept {
        assert!(client.lives(&session.id).await);
    }
    for session in &gone {
        eventually("it is gone", async || (!client.lives(&session.id).await).then_some(())).await;
    }
    eventually("new ones are made on every node", async || {
        let made = join_all((0..MANY).map(|_| client.create_as(CreateSessionRequest::default()))).await;
        made.iter().all(Result::is_ok).then_some(())
    })
    .await;
}

/// Takes what comes until a bookmark that is newer than this call: resyncs that say FLUSHED, and no others. How many.
async fn times_flushed(watching: &mut Watching) -> usize {
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
async fn a_cluster_that_was_emptied_is_told_to_open_and_to_resumed_watches_and_goes_on() {
    let cluster = aside(|| Cluster::start(0)).await;
    let (a, b) = (Server::start(&cluster.url(), PREFIX, "").await, Server::start(&cluster.url(), PREFIX, "").await);
    let clients = [a.client().await, b.client().await];
    let gone = many(&clients[0]).await;
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
        eventually("it is gone", async || (!clients[1].lives(&session.id).await).then_some(())).await;
    }
    eventually("new ones are made on every node", async || {
        let made = join_all((0..MANY).map(|_| clients[0].create_as(CreateSessionRequest::default()))).await;
        made.iter().all(Result::is_ok).then_some(())
    })
    .await;
    // One that comes later knows it too, though the new history is longer by now.
    let c = Server::start(&cluster.url(), PREFIX, "").await;
    let mut late = c.client().await.resume(&token).await;
    assert!(times_flushed(&mut late).await > 0);
    let mut all: Vec<Watching> = watches.into_iter().chain(resumed).chain([late]).collect();
    for watching in &mut all {
        times_flushed(watching).await;
        watching.kept();
    }
    let made: BTreeSet<String> = many(&clients[1]).await.into_iter().map(|session| session.id).collect();
    for watching in &mut all {
        let told = watching.events(MANY).await.into_iter().map(|event| event.id);
        assert_eq!(told.collect::<BTreeSet<_>>(), made);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_on_the_replica_of_its_partition() {
    const REPLICATED: &str =
        "[limits]\ncall_timeout = '3s'\n[default_policy]\ndurability = 'replicated'\nreplicas = 1\n";
    let cluster = aside(|| Cluster::start(1)).await;
    let server = Server::start(&cluster.url(), PREFIX, REPLICATED).await;
    let client = server.client().await;
    let pairs: Vec<(Redis, Redis)> =
        cluster.primaries().into_iter().map(|of| (of.clone(), cluster.replicas_of(&of).remove(0))).collect();
    let mut last = Vec::new();
    for _ in 0..MANY {
        let session = client.create(&[]).await.0;
        let pattern = format!("{PREFIX}*:s:*:{}", session.id);
        let place = pairs.iter().position(|(primary, _)| !primary.keys(&pattern).is_empty()).unwrap();
        assert_eq!(pairs[place].1.keys(&pattern).len(), 1, "it was answered, and is not on the replica");
        last.push((place, session));
    }
    // Where a replica hangs, the others' confirmations do not count.
    pairs[0].1.pause();
    for (place, session) in last.iter().filter(|(place, _)| *place != 0).take(8) {
        let set = client.set(by_id(&session.id), &[("a", text("1"))]).await;
        assert!(set.is_ok(), "{place}: {set:?}");
    }
    let (_, session) = last.iter().find(|(place, _)| *place == 0).unwrap();
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
fn a_node_by_itself_is_refused_with_the_remedy() {
    let cluster = Cluster::start(0);
    let node = cluster.url().replace("redis-cluster:", "redis:");
    let (log, code) = Process::start_in_vain(&[format!("--redis={node}")]);
    assert!(code == Some(1) && log.contains("redis-cluster://"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_all_nodes_may_come_from_the_environment() {
    let cluster = aside(Cluster::shared).await;
    let (user, password) = CREDENTIALS.split_once(':').unwrap();
    let arguments = [
        format!("--redis={}", cluster.url().replace(CREDENTIALS, user)),
        format!("--key-prefix={}", prefix_of_its_own()),
    ];
    let process = Process::start_in(&[("SESSIOND_REDIS_PASSWORD", password.to_owned())], &arguments);
    many(&process.client().await).await;
    assert!(!process.log.lock().unwrap().contains(password));
}
