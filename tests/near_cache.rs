//! Near cache: which reads are answered from memory, and what ends that.

use std::time::Duration;

use harness::{Client, Server, Setup, World, client::*, eventually, process::Process, tokens::*};
use sessiond_client::v1::{
    AttributeValue, GetSessionRequest, GetSessionResponse, SessionKey, SessionView, TokenState, UpdateSessionRequest,
};
use tokio::time::sleep;
use tonic::Code;

/// Sends GetSession with `min_revision`.
pub async fn get(client: &Client, request: GetSessionRequest) -> CallResult<GetSessionResponse> {
    Ok(client.grpc.clone().get_session(request).await?.into_inner())
}

/// A read of any revision, from memory if possible.
pub fn any_revision(key: Option<SessionKey>) -> GetSessionRequest {
    GetSessionRequest { namespace: NAMESPACE.into(), key, min_revision: Some(0), ..Default::default() }
}

/// Number of reads with this result.
async fn count(server: &Server, result: &str) -> f64 {
    server.metric(&format!(r#"sessiond_cache_reads_total{{result="{result}"}}"#)).await
}

/// Sends the read until it is answered from memory; returns that response.
async fn read_from_memory(server: &Server, client: &Client, request: &GetSessionRequest) -> GetSessionResponse {
    eventually("a read is answered from memory", async || {
        let before = count(server, "hit").await;
        let response = get(client, request.clone()).await.unwrap();
        (count(server, "hit").await > before).then_some(response)
    })
    .await
}

/// Statistics of the reads that Redis executed, which change with each of them.
fn executed_reads(world: &World) -> String {
    world.redis.info("commandstats", "cmdstat_getex")
}

/// Value of attribute `a` of a read of any revision. None: no such attribute.
async fn value(client: &Client, id: &str) -> Option<AttributeValue> {
    get(client, any_revision(by_id(id))).await.unwrap().session.unwrap().attributes.get("a").cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_from_memory_equals_a_read_from_redis() {
    let Setup { server, client, .. } = &World::dedicated().setup().await;
    let (session, token) = client.create(&[("a", text("1")), ("b", text(&"long ".repeat(2_000)))]).await;
    for key in [by_token(&token), by_id(&session.id)] {
        for view in [SessionView::Full, SessionView::Basic] {
            let request = GetSessionRequest { view: view.into(), ..any_revision(key.clone()) };
            let from_redis = get(client, GetSessionRequest { min_revision: None, ..request.clone() }).await.unwrap();
            assert_eq!(read_from_memory(server, client, &request).await, from_redis);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_from_memory_sends_nothing_to_redis() {
    let Setup { server, client, .. } = &World::dedicated().setup().await;
    let (_, token) = client.create(&[]).await;
    let request = any_revision(by_token(&token));
    read_from_memory(server, client, &request).await;
    let reads = r#"sessiond_redis_commands_total{command="GETEX",result="ok"}"#;
    let (hits_before, reads_before) = (count(server, "hit").await, server.metric(reads).await);
    for _ in 0..100 {
        get(client, request.clone()).await.unwrap();
    }
    let (hits, reads) = (count(server, "hit").await - hits_before, server.metric(reads).await - reads_before);
    assert!(hits > 0.0 && hits + reads == 100.0, "{hits} from memory, {reads} from Redis");
    // Without min_revision the session is read from Redis.
    get(client, GetSessionRequest { min_revision: None, ..request }).await.unwrap();
    assert_eq!(count(server, "hit").await, hits_before + hits);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_of_zero_bytes_answers_nothing() {
    let Setup { server, client, .. } = &World::dedicated().setup_with("cache_bytes = 0").await;
    let (session, token) = client.create(&[]).await;
    for _ in 0..20 {
        let read = get(client, any_revision(by_token(&token))).await.unwrap();
        assert_eq!(read.session.as_ref(), Some(&session));
    }
    assert_eq!(count(server, "hit").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_stays_within_its_bytes() {
    const BYTES: f64 = 1_048_576.0;
    let Setup { server, client, .. } = &World::dedicated().setup_with("cache_bytes = '1 MiB'").await;
    let mut tokens = Vec::new();
    for _ in 0..600 {
        tokens.push(client.create(&[("a", text(&incompressible(4_000)))]).await.1);
    }
    for token in &tokens {
        get(client, any_revision(by_token(token))).await.unwrap();
    }
    let sizes = async || [server.metric("sessiond_cache_bytes").await, server.metric("sessiond_cache_copies").await];
    eventually("the cache is full", async || (sizes().await[0] > BYTES / 2.0).then_some(())).await;
    for _ in 0..10 {
        sleep(Duration::from_millis(100)).await;
        let [bytes, copies] = sizes().await;
        assert!(bytes <= BYTES && copies * 4_000.0 < bytes, "{copies} copies of {bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_read_with_the_revision_of_a_write_includes_it() {
    let world = World::dedicated();
    let (servers, [a, b]) = world.pair_with("").await;
    let (session, _) = a.create(&[]).await;
    let request = any_revision(by_id(&session.id));
    read_from_memory(&servers[0], &a, &request).await;
    for n in 0..200 {
        let written = b.set(by_id(&session.id), &[("a", text(&n.to_string()))]).await.unwrap();
        let request = GetSessionRequest { min_revision: Some(written.revision), ..request.clone() };
        assert_eq!(get(&a, request).await.unwrap().session.unwrap(), written);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_own_writes_are_read_without_a_revision() {
    let Setup { server, client, .. } = &World::dedicated().setup().await;
    for n in 0..50 {
        let (session, token) = client.create_for("alice").await;
        let by_id_of = any_revision(by_id(&session.id));
        read_from_memory(server, client, &by_id_of).await;
        let written = client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        assert_eq!(get(client, by_id_of.clone()).await.unwrap().session.unwrap(), written);
        let second = client.rotate(&token).await.unwrap();
        let read = get(client, any_revision(by_token(&token))).await.unwrap();
        assert_eq!(read.token_state(), TokenState::Superseded);
        get(client, any_revision(by_token(&second))).await.unwrap();
        match n % 2 {
            0 => assert!(client.delete(by_token(&second)).await.unwrap()),
            _ => assert_eq!(client.delete_subject("alice").await.unwrap(), 1),
        }
        expect_error(get(client, by_id_of).await, Code::NotFound, "SESSION_ENDED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_of_another_server_is_read_from_memory_soon() {
    let world = World::dedicated();
    let (servers, [a, b]) = world.pair_with("").await;
    let (session, _) = a.create(&[]).await;
    for n in 0..20 {
        read_from_memory(&servers[0], &a, &any_revision(by_id(&session.id))).await;
        let new = text(&n.to_string());
        b.set(by_id(&session.id), &[("a", new.clone())]).await.unwrap();
        eventually("the change is read", async || (value(&a, &session.id).await == Some(new.clone())).then_some(()))
            .await;
        // Then no older value is read.
        for _ in 0..5 {
            assert_eq!(value(&a, &session.id).await, Some(new.clone()));
        }
    }
    assert!(b.delete(by_id(&session.id)).await.unwrap());
    eventually("the end is read", async || get(&a, any_revision(by_id(&session.id))).await.err()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_and_unused_tokens_are_not_answered_from_memory() {
    let Setup { server, client, .. } = &World::dedicated().setup().await;
    let (session, first) = client.create(&[]).await;
    read_from_memory(server, client, &any_revision(by_token(&first))).await;
    let wrong = get(client, any_revision(by_token(&successor_of(&first)))).await;
    expect_error(wrong, Code::NotFound, "SESSION_NOT_FOUND");
    let second = client.rotate(&first).await.unwrap();
    // By id it is in memory, with a token that was not presented.
    read_from_memory(server, client, &any_revision(by_id(&session.id))).await;
    let read = get(client, any_revision(by_token(&first))).await.unwrap();
    assert_eq!(read.token_state(), TokenState::Superseded);
    let read = get(client, any_revision(by_token(&second))).await.unwrap();
    assert_eq!(read.token_state(), TokenState::Current);
    // Its first use was recorded: the old token no longer rotates.
    expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
    read_from_memory(server, client, &any_revision(by_token(&second))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn due_touch_is_written() {
    let Setup { server, client, .. } = &World::dedicated().setup_with("[default_policy]\ntouch_interval = '0s'").await;
    let (session, token) = client.create(&[]).await;
    read_from_memory(server, client, &any_revision(by_token(&token))).await;
    sleep(Duration::from_millis(2)).await;
    let request = GetSessionRequest { touch: true, ..any_revision(by_token(&token)) };
    let touched = get(client, request).await.unwrap().session.unwrap();
    assert_ne!(touched.access_time, session.access_time);
    assert_eq!(count(server, "touch").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn touch_that_is_not_due_is_answered_from_memory() {
    let Setup { server, client, .. } = &World::dedicated().setup().await;
    let (_, token) = client.create(&[]).await;
    let request = GetSessionRequest { touch: true, ..any_revision(by_token(&token)) };
    read_from_memory(server, client, &request).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_session_past_its_deadline_is_not_answered_from_memory() {
    let Setup { world, server, client, .. } = &World::dedicated().setup().await;
    let short = sessiond_client::v1::CreateSessionRequest { idle_timeout: millis(4_000), ..Default::default() };
    let (session, _) = client.create_with(short).await.unwrap();
    read_from_memory(server, client, &any_revision(by_id(&session.id))).await;
    world.redis.wait_for_time(unix_ms(session.expire_time)).await;
    expect_error(get(client, any_revision(by_id(&session.id))).await, Code::NotFound, "SESSION_ENDED");
}

/// The reply to a read is on its way while the event of a newer change arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reply_that_an_event_overtook_is_not_kept() {
    let world = World::dedicated();
    let (proxy, servers, [slow, client]) = world.proxied_pair().await;
    let (session, _) = client.create(&[]).await;
    get(&slow, any_revision(by_id(&session.id))).await.unwrap();
    let mut overtaken = 0;
    eventually("replies were overtaken", async || {
        let new = text(&overtaken.to_string());
        let received = servers[0].metric("sessiond_events_received_total").await;
        let has_received = async |events: f64| {
            eventually("the event arrives", async || {
                (servers[0].metric("sessiond_events_received_total").await >= received + events).then_some(())
            })
            .await;
        };
        client.set(by_id(&session.id), &[("b", text(&overtaken.to_string()))]).await.unwrap();
        has_received(1.0).await;
        let executed = executed_reads(&world);
        // The first connection is that of calls; the feed has others.
        proxy.hold_replies_of(1);
        let reading = value(&slow, &session.id);
        let changing = async {
            eventually("Redis has read the session", async || (executed_reads(&world) != executed).then_some(())).await;
            client.set(by_id(&session.id), &[("a", new.clone())]).await.unwrap();
            has_received(2.0).await;
            proxy.release_replies();
        };
        let (read, ()) = tokio::join!(reading, changing);
        if read != Some(new.clone()) {
            overtaken += 1;
        }
        for _ in 0..3 {
            assert_eq!(value(&slow, &session.id).await, Some(new.clone()), "an old value was kept");
        }
        (overtaken >= 5).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_cut_off_from_redis_stops_answering() {
    let world = World::dedicated();
    let (proxy, servers, [slow, client]) = world.proxied_pair().await;
    let (session, _) = client.create(&[]).await;
    let request = any_revision(by_id(&session.id));
    read_from_memory(&servers[0], &slow, &request).await;
    proxy.hold_replies();
    client.set(by_id(&session.id), &[("a", text("new"))]).await.unwrap();
    // The proof that the copy is current is at most a second old.
    sleep(Duration::from_millis(1_100)).await;
    let hits = count(&servers[0], "hit").await;
    get(&slow, request).await.expect_err("Redis cannot be read");
    assert_eq!(count(&servers[0], "hit").await, hits);
    proxy.release_replies();
    eventually("the change is read", async || {
        let read = get(&slow, any_revision(by_id(&session.id))).await.ok()?;
        (read.session?.attributes.get("a") == Some(&text("new"))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_stood_still_answers_nothing_old() {
    let world = World::dedicated();
    let process = Process::start(&[format!("--redis={}", world.redis.url())]);
    let server = Server::start(&world.redis.url(), "ses:", "").await;
    let (slow, client) = (process.client().await, server.client().await);
    let (session, _) = client.create(&[("a", text("old"))]).await;
    for round in 0..5 {
        for _ in 0..10 {
            value(&slow, &session.id).await;
        }
        let new = text(&round.to_string());
        process.suspend().await;
        client.set(by_id(&session.id), &[("a", new.clone())]).await.unwrap();
        sleep(Duration::from_millis(1_050)).await;
        // Received while the process stands still.
        let (read, ()) = tokio::join!(value(&slow, &session.id), async {
            sleep(Duration::from_millis(50)).await;
            process.resume();
        });
        assert_eq!(read, Some(new), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_store_is_not_answered_from_memory() {
    let Setup { world, server, client, .. } = &World::dedicated().setup().await;
    let (session, _) = client.create(&[]).await;
    let mut watching = client.watch_all().await;
    read_from_memory(server, client, &any_revision(by_id(&session.id))).await;
    world.redis.must(&["FLUSHALL"]);
    watching.resync().await;
    expect_error(get(client, any_revision(by_id(&session.id))).await, Code::NotFound, "SESSION_NOT_FOUND");
}

/// Redis restarts without the last change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_ends_copies_of_lost_changes() {
    let Setup { world, server, client, .. } = &World::dedicated().setup().await;
    let (session, _) = client.create(&[("a", text("old"))]).await;
    let mut watching = client.watch_all().await;
    world.redis.must(&["SAVE"]);
    client.set(by_id(&session.id), &[("a", text("lost"))]).await.unwrap();
    watching.event().await;
    read_from_memory(server, client, &any_revision(by_id(&session.id))).await;
    world.redis.kill();
    world.redis.restart();
    watching.resync().await;
    let request = any_revision(by_id(&session.id));
    let read = eventually("the session is read", async || get(client, request.clone()).await.ok()).await;
    assert_eq!(read.session.unwrap().attributes["a"], text("old"));
}

/// Redis restarts without the last touch, which the log does not show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_of_redis_ends_all_copies() {
    let Setup { world, server, client, .. } =
        &World::dedicated().setup_with("[default_policy]\ntouch_interval = '0s'").await;
    let (session, _) = client.create(&[]).await;
    world.redis.must(&["SAVE"]);
    sleep(Duration::from_millis(2)).await;
    let lost = client.touch(by_id(&session.id)).await.unwrap();
    assert_ne!(lost.access_time, session.access_time);
    let from_memory = read_from_memory(server, client, &any_revision(by_id(&session.id))).await;
    assert_eq!(from_memory.session.unwrap().access_time, lost.access_time);
    world.redis.kill();
    world.redis.restart();
    // A watch opens after a read of the ends of the logs, with which the server notices the restart.
    eventually("a watch opens", async || Some(client.watch(whole_namespace()).await.ok()?.bookmark().await)).await;
    let request = any_revision(by_id(&session.id));
    let read = eventually("the session is read", async || get(client, request.clone()).await.ok()).await;
    assert_eq!(read.session.unwrap().access_time, session.access_time);
}

/// Nothing reports the deletion, so the copy is answered until it is too old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreported_deletion_is_found_when_the_copy_is_old() {
    let Setup { world, server, client, .. } = &World::dedicated().setup_with("reconcile_interval = '1h'").await;
    let (session, _) = client.create(&[]).await;
    world.redis.must(&["CONFIG", "SET", "notify-keyspace-events", ""]);
    read_from_memory(server, client, &any_revision(by_id(&session.id))).await;
    let key = world.redis.keys(&format!("*:s:*{}", session.id)).remove(0);
    world.redis.must(&["DEL", &key]);
    eventually("the deletion is found", async || get(client, any_revision(by_id(&session.id))).await.err()).await;
}

/// Threads that read, change and end the same sessions at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn reads_and_changes_in_many_threads_do_not_block() {
    let Setup { client, .. } = &World::dedicated().setup().await;
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(client.create(&[]).await.0);
    }
    let work = (0..64).map(|n| {
        let (client, id) = (client.clone(), sessions[n % sessions.len()].id.clone());
        async move {
            for round in 0..50 {
                if (n + round) % 10 == 0 {
                    let set_attributes = [("a".to_owned(), text(&round.to_string()))].into();
                    let update = UpdateSessionRequest { key: by_id(&id), set_attributes, ..Default::default() };
                    client.update(UpdateSessionRequest { namespace: NAMESPACE.into(), ..update }).await.unwrap();
                } else {
                    get(&client, any_revision(by_id(&id))).await.unwrap();
                }
            }
        }
    });
    futures_util::future::join_all(work).await;
}
