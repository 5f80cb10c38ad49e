//! Repairs of lost keys, and the number of commands that they and the session limit use.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use harness::{Client, Server, Setup, World, client::*, eventually, redis::KEYSPACE_NOTIFICATIONS, setup, setup_with};
use sessiond::store::scripts;
use sessiond_client::v1::{Cause, CreateSessionRequest, EventType, ListSessionsRequest};

/// Names of the scripts and commands that read, list or end sessions.
fn of_sessions() -> Vec<&'static str> {
    let partition_only =
        [&scripts::INITIALISE, &scripts::TRIM, &scripts::PAGE, &scripts::PROBE].map(|script| script.name);
    let scripts = scripts::ALL.iter().map(|(script, _)| script.name).filter(|name| !partition_only.contains(name));
    scripts.chain(["GETEX", "GET", "GETRANGE", "ZRANGE", "ZSCAN", "SCAN"]).collect()
}

/// Returns how many of these scripts and commands the server has sent.
async fn sent(server: &Server, commands: &[&str]) -> u64 {
    let metrics = server.http("/metrics").await.expect("the server responds");
    let mut total = 0.0;
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("sessiond_redis_commands_total{command=\"") else { continue };
        let (command, rest) = rest.split_once('"').unwrap();
        if commands.contains(&command) {
            total += rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        }
    }
    total as u64
}

async fn create_many(client: &Client, sessions: usize, subject: &str) {
    for _ in 0..sessions / 50 {
        join_all((0..50).map(async |_| {
            let request = CreateSessionRequest { subject: subject.into(), ..Default::default() };
            client.create_with(request).await.unwrap()
        }))
        .await;
    }
}

/// Returns the ids of all sessions.
async fn listed(client: &Client) -> Vec<String> {
    let request = ListSessionsRequest { namespace: NAMESPACE.into(), page_size: 1_000, ..Default::default() };
    let listed = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
    listed.sessions.into_iter().map(|session| session.id).collect()
}

fn delete_keys(world: &World, pattern: &str) {
    let keys = world.redis.keys(&format!("{}{pattern}", world.prefix));
    assert!(!keys.is_empty(), "{pattern}");
    keys.iter().for_each(|key| drop(world.redis.must(&["DEL", key])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_at_a_limit_of_1000_uses_few_scripts() {
    const PARTITIONS: u64 = 16;
    let Setup { world, server, client } = &setup_with("[default_policy]\nsession_limit = 1_000").await;
    create_many(client, 1_000, "alice").await;
    for is_aged in [false, true] {
        if is_aged {
            // No entry is a reservation any more.
            world.age_index("alice");
        }
        let before = sent(server, &of_sessions()).await;
        client.create_for("alice").await;
        let scripts = sent(server, &of_sessions()).await - before;
        assert!(scripts <= 2 * PARTITIONS, "{scripts} scripts");
        assert_eq!(world.index("alice").len(), 1_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_subscriber_costs_few_commands_and_finds_deleted_keys() {
    const SESSIONS: usize = 4_000;
    let world = World::dedicated_with(&KEYSPACE_NOTIFICATIONS);
    let servers = [world.server().await, world.server().await];
    let client = servers[0].client().await;
    create_many(&client, SESSIONS, "").await;
    let mut watching = client.watch_all().await;
    let mut before = 0;
    for server in &servers {
        before += sent(server, &of_sessions()).await;
    }
    let (session, _) = client.create(&[]).await;
    let key = world.redis.keys(&format!("*:s:*:{}", session.id)).remove(0);
    world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    world.redis.command(&["DEL", &key]);
    assert_eq!(watching.wait_for(EventType::Ended, &session.id).await.cause(), Cause::OutOfBand);
    let mut after = 0;
    // Until all partitions are checked.
    eventually("each partition is checked", async || {
        after = 0;
        let (mut surveys, mut claims) = (0, 0);
        for server in &servers {
            after += sent(server, &of_sessions()).await;
            surveys += sent(server, &[scripts::SURVEY.name]).await;
            claims += sent(server, &[scripts::CLAIM.name]).await;
        }
        (surveys >= 16 && claims >= 32).then_some(())
    })
    .await;
    // One command for 100 sessions, and some for each partition; on a busy machine up to 114 were counted.
    assert!(after - before <= SESSIONS as u64 / 20, "{} commands", after - before);
}

const RECONCILING: &str = "reconcile_interval = '1s'\npartitions = 2\n";

#[tokio::test]
async fn sessions_of_a_deleted_due_set_are_listed_and_end() {
    let Setup { world, client, .. } = &setup_with(RECONCILING).await;
    let mut watching = client.watch_all().await;
    let (long, _) = client.create_for("alice").await;
    let (guest, _) = client.create(&[]).await;
    let short = CreateSessionRequest { idle_timeout: seconds(2), ..Default::default() };
    let (short, _) = client.create_with(short).await.unwrap();
    delete_keys(world, "*:due:*");
    eventually("the sessions are listed", async || {
        let listed = listed(client).await;
        (listed.contains(&long.id) && listed.contains(&guest.id)).then_some(())
    })
    .await;
    assert_eq!(watching.wait_for(EventType::Ended, &short.id).await.cause(), Cause::IdleTimeout);
    assert!(client.lives(&long.id).await && client.lives(&guest.id).await);
}

#[tokio::test]
async fn session_that_never_expires_returns_to_a_deleted_due_set() {
    let toml = "[default_policy]\nidle_timeout = 'never'\nabsolute_timeout = 'never'\nmax_idle_timeout = 'never'\n\
                max_absolute_timeout = 'never'";
    let Setup { world, client, .. } = &setup_with(&(RECONCILING.to_owned() + toml)).await;
    let (session, _) = client.create(&[]).await;
    assert!(session.expire_time.is_none());
    delete_keys(world, "*:due:*");
    eventually("the session is listed", async || listed(client).await.contains(&session.id).then_some(())).await;
}

#[tokio::test]
async fn sessions_of_a_deleted_namespace_set_end_in_time() {
    let Setup { world, client, .. } = &setup_with(RECONCILING).await;
    let mut watching = client.watch_all().await;
    let short = || CreateSessionRequest { idle_timeout: seconds(2), ..Default::default() };
    for _ in 0..2 {
        let mut left = BTreeSet::new();
        for _ in 0..4 {
            left.insert(client.create_with(short()).await.unwrap().0.id);
        }
        delete_keys(world, "*:ns");
        while !left.is_empty() {
            let event = watching.event().await;
            if event.r#type() == EventType::Ended {
                assert_eq!(event.cause(), Cause::IdleTimeout);
                left.remove(&event.id);
            }
        }
    }
}

/// The reconciliation would find nothing: the namespace is in the set again.
#[tokio::test]
async fn create_after_a_lost_namespace_set_hides_no_deadline() {
    let Setup { world, client, .. } = &setup_with("partitions = 1\nreconcile_interval = '1h'").await;
    let mut watching = client.watch_all().await;
    let short = CreateSessionRequest { idle_timeout: seconds(1), ..Default::default() };
    let (session, _) = client.create_with(short).await.unwrap();
    delete_keys(world, "*:ns");
    client.create(&[]).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), watching.wait_for(EventType::Ended, &session.id)).await;
    assert_eq!(ended.expect("the session ends").cause(), Cause::IdleTimeout);
}

#[tokio::test]
async fn id_of_an_ended_session_leaves_the_due_set() {
    let Setup { world, client, .. } = &setup().await;
    let (session, _) = client.create(&[]).await;
    let due = world.redis.keys(&format!("{}*:due:{NAMESPACE}", world.prefix)).remove(0);
    let namespaces = due.replace(&format!(":due:{NAMESPACE}"), ":ns");
    assert!(client.delete(by_id(&session.id)).await.unwrap());
    world.redis.must(&["ZADD", &due, "1", &session.id]);
    world.redis.must(&["ZADD", &namespaces, "1", NAMESPACE]);
    // Reads the due sets when it starts.
    let _another = world.server().await;
    eventually("the due set is empty", async || world.redis.keys(&due).is_empty().then_some(())).await;
}
