//! Keys of the store that another client has overwritten with another type: they are repaired or announced.

use harness::{Client, ConfigFile, Server, Setup, World, client::*, eventually, process::Process, setup_with};
use sessiond_client::v1::{Cause, CreateSessionRequest, EventType, ListSessionsRequest, ResyncReason};

const ONE: &str = "partitions = 1\n";

/// Overwrites the only key that matches the pattern with a string. Returns its name.
fn overwrite(world: &World, pattern: &str) -> String {
    let keys = world.redis.keys(&format!("{}{pattern}", world.prefix));
    assert_eq!(keys.len(), 1, "{keys:?}");
    world.redis.must(&["SET", &keys[0], "x"]);
    keys.into_iter().next().unwrap()
}

async fn wait_for_repair(world: &World, key: &str, to: &str) {
    eventually("the key is repaired", async || (world.redis.command(&["TYPE", key]).trim() == to).then_some(())).await;
}

async fn listed(client: &Client) -> Vec<String> {
    let request = ListSessionsRequest { namespace: NAMESPACE.into(), page_size: 1_000, ..Default::default() };
    let Ok(listed) = client.grpc.clone().list_sessions(request).await else { return Vec::new() };
    listed.into_inner().sessions.into_iter().map(|session| session.id).collect()
}

/// Checks that writes, lists, watches and expiry work.
async fn expect_service(server: &Server) {
    let client = server.client().await;
    let created = eventually("writes succeed", async || {
        let short = CreateSessionRequest { idle_timeout: millis(1_500), subject: "bob".into(), ..Default::default() };
        client.create_with(short).await.ok()
    })
    .await;
    assert!(listed(&client).await.contains(&created.0.id));
    assert_eq!(client.list_subject("bob").await.len(), 1);
    let mut watching = client.watch_all().await;
    let (session, _) = client.create(&[]).await;
    watching.wait_for(EventType::Created, &session.id).await;
    assert_eq!(watching.wait_for(EventType::Ended, &created.0.id).await.cause(), Cause::IdleTimeout);
}

#[tokio::test]
async fn overwritten_log_is_emptied_and_watchers_get_resync() {
    let Setup { world, server, client } = &setup_with(ONE).await;
    let old = client.watch_all().await.token;
    let (session, _) = client.create(&[]).await;
    let mut watching = client.watch_all().await;
    let log = overwrite(world, "*:log");
    eventually("the log is deleted", async || (world.redis.number(&["EXISTS", &log]) == 0).then_some(())).await;
    // An open watch has lost nothing; one that resumes from an entry that is gone has.
    client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
    watching.wait_for(EventType::Updated, &session.id).await;
    assert_eq!(client.resume(&old).await.resync().await.reason(), ResyncReason::Compacted);
    expect_service(server).await;
}

#[tokio::test]
async fn overwritten_meta_is_initialised_again() {
    let Setup { world, server, client } = &setup_with(ONE).await;
    let (session, _) = client.create(&[]).await;
    let mut watching = client.watch_all().await;
    let meta = overwrite(world, "*:meta");
    wait_for_repair(world, &meta, "+hash").await;
    watching.resync().await;
    expect_service(server).await;
    assert!(client.lives(&session.id).await);
}

#[tokio::test]
async fn overwritten_log_is_emptied_at_the_start() {
    let Setup { world, server, client } = &mut setup_with(ONE).await;
    let (session, _) = client.create(&[]).await;
    let token = client.watch_all().await.token;
    client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
    server.stop().await;
    overwrite(world, "*:log");
    let server = world.server_with(ONE).await;
    let client = server.client().await;
    assert_eq!(client.resume(&token).await.resync().await.reason(), ResyncReason::Compacted);
    assert!(client.lives(&session.id).await);
    expect_service(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overwritten_meta_is_named_at_the_start() {
    let world = World::dedicated();
    let config = ConfigFile::new(ONE);
    let arguments = [format!("--redis={}", world.redis.url()), config.flag(), "--start-timeout=1s".into()];
    let mut process = Process::start(&arguments);
    let (session, _) = process.client().await.create(&[]).await;
    process.stop().await;
    let meta = overwrite(&world, "*:meta");
    let (log, code) = Process::expect_start_failure(&arguments);
    assert!(code == Some(1) && log.contains(&format!("key {meta} has another Redis type")), "{log}");
    world.redis.must(&["DEL", &meta]);
    assert!(Process::start(&arguments).client().await.lives(&session.id).await);
}

#[tokio::test]
async fn overwritten_due_set_is_rebuilt_at_once() {
    let Setup { world, server, client } = &setup_with(ONE).await;
    let mut watching = client.watch_all().await;
    let (session, _) = client.create_for("alice").await;
    let short = CreateSessionRequest { idle_timeout: seconds(2), ..Default::default() };
    let (short, _) = client.create_with(short).await.unwrap();
    let due = overwrite(world, "*:due:*");
    wait_for_repair(world, &due, "+zset").await;
    eventually("the session is listed", async || listed(client).await.contains(&session.id).then_some(())).await;
    assert_eq!(watching.wait_for(EventType::Ended, &short.id).await.cause(), Cause::IdleTimeout);
    expect_service(server).await;
    assert!(client.lives(&session.id).await);
}

#[tokio::test]
async fn overwritten_namespace_set_is_rebuilt_at_once() {
    let Setup { world, server, client } = &setup_with(ONE).await;
    let mut watching = client.watch_all().await;
    let short = CreateSessionRequest { idle_timeout: seconds(2), ..Default::default() };
    let (short, _) = client.create_with(short).await.unwrap();
    let namespaces = overwrite(world, "*:ns");
    wait_for_repair(world, &namespaces, "+zset").await;
    assert_eq!(watching.wait_for(EventType::Ended, &short.id).await.cause(), Cause::IdleTimeout);
    expect_service(server).await;
}

#[tokio::test]
async fn all_keys_of_a_partition_overwritten_are_repaired() {
    let Setup { world, server, client } = &setup_with(ONE).await;
    let (session, _) = client.create(&[]).await;
    for pattern in ["*:log", "*:meta", "*:due:*", "*:ns"] {
        overwrite(world, pattern);
    }
    expect_service(server).await;
    eventually("the session is listed", async || listed(client).await.contains(&session.id).then_some(())).await;
}

#[tokio::test]
async fn overwritten_subject_index_is_announced_and_kept() {
    let world = World::dedicated();
    let config = ConfigFile::new("reconcile_interval = \"1s\"\npartitions = 1");
    let arguments = [format!("--redis={}", world.redis.url()), config.flag()];
    let mut process = Process::start(&arguments);
    let client = process.client().await;
    let (session, _) = client.create_for("alice").await;
    let log = overwrite(&world, "*:log");
    let index = overwrite(&world, "*:u:*:alice");
    let warnings = |text: &str| {
        let log = process.log.lock().unwrap().clone();
        // The line with all problems, which `/readyz` lists too, has others in it.
        let is_warning = |line: &&str| line.contains("WARN") && !line.contains("Redis has problems");
        log.lines().filter(is_warning).filter(|line| line.contains(text)).count()
    };
    for _ in 0..3 {
        let create = CreateSessionRequest { subject: "alice".into(), ..Default::default() };
        client.create_with(create).await.unwrap_err();
    }
    eventually("the index is announced", async || (warnings(&index) > 0).then_some(())).await;
    eventually("the log is repaired", async || (warnings(&log) > 0).then_some(())).await;
    assert_eq!(world.redis.command(&["GET", &index]).lines().last(), Some("x"), "the index is kept");
    client.delete_subject("alice").await.unwrap_err();
    // The operator deletes it.
    world.redis.must(&["DEL", &index]);
    eventually("the reconciliation adds the session", async || {
        (world.index("alice").contains(&session.id)).then_some(())
    })
    .await;
    assert_eq!(client.delete_subject("alice").await.unwrap(), 1);
    assert_eq!((warnings(&index), warnings(&log)), (1, 1), "one warning per change");
    process.stop().await;
}
