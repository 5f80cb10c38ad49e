//! Redis that accepts no writes for now: reads are served, and what they would note is noted by the next presentation.

use harness::{
    Client, Redis, Server, Setup, World, client::*, cluster::Cluster, eventually, sentinel::Sentinels,
    servers::run_blocking, tokens::*,
};
use sessiond_client::v1::{Session, TokenState, TouchSessionRequest};
use tonic::Code;

/// Policies under which each touch is due, or none.
const POLICIES: &str =
    "[default_policy]\ntouch_interval = '0s'\n[namespace.rare]\nidle_timeout = '12h'\ntouch_interval = '30m'";

/// Sessions of one namespace, each with a note that its next read makes.
struct Unnoted {
    client: Client,
    /// Session that a read with `touch` touches.
    session: Session,
    token: String,
    /// Token whose first use makes its predecessor unable to rotate.
    predecessor: String,
    successor: String,
    /// Superseded token that was not presented yet.
    superseded: String,
}

impl Unnoted {
    async fn create(client: &Client) -> Self {
        let (session, token) = client.create(&[("a", text("1"))]).await;
        let (_, predecessor) = client.create(&[]).await;
        let successor = client.rotate(&predecessor).await.unwrap();
        let (_, superseded) = client.create(&[]).await;
        client.rotate(&superseded).await.unwrap();
        Unnoted { client: client.clone(), session, token, predecessor, successor, superseded }
    }

    /// Reads every session in every way.
    async fn read(&self) {
        let Unnoted { client, session, token, .. } = self;
        for key in [by_token(token), by_id(&session.id)] {
            for read in [client.get(key.clone()).await, client.touch(key.clone()).await] {
                let read = read.unwrap_or_else(|status| panic!("{}: {status:?}", client.namespace));
                assert_eq!((read.revision, &read.attributes), (session.revision, &session.attributes));
            }
        }
        for (token, state) in [(&self.successor, TokenState::Current), (&self.superseded, TokenState::Superseded)] {
            client.touch(by_token(token)).await.unwrap();
            assert_eq!(client.token_state(token).await.unwrap(), state);
            client.watch(token_watch_request(token)).await.unwrap().bookmark().await;
        }
        let touch = TouchSessionRequest { namespace: client.namespace.clone(), key: by_token(token) };
        let touched = client.grpc.clone().touch_session(touch).await.unwrap().into_inner();
        assert!(unix_ms(touched.expire_time) >= unix_ms(session.expire_time));
    }

    /// Presents the tokens again after writes are accepted, until their use is noted.
    async fn note(&self) {
        let Unnoted { client, predecessor, successor, .. } = self;
        eventually("the first use is noted", async || {
            client.get(by_token(successor)).await.unwrap();
            client.rotate(predecessor).await.err().map(|status| assert_eq!(status.reason(), "TOKEN_ROTATED"))
        })
        .await;
        if client.namespace == NAMESPACE {
            eventually("the touch is stored", async || {
                let touched = client.touch(by_token(&self.token)).await.unwrap();
                (touched.access_time != self.session.access_time).then_some(())
            })
            .await;
        }
    }
}

/// Checks reads while `refuse` is in effect, then that they make their notes after `accept`.
async fn reads_are_served(
    client: &Client,
    code: Code,
    reason: &str,
    refuse: impl AsyncFnOnce(),
    accept: impl AsyncFnOnce(),
) {
    let sessions = [Unnoted::create(client).await, Unnoted::create(&client.in_namespace("rare")).await];
    refuse().await;
    for _ in 0..2 {
        for sessions in &sessions {
            sessions.read().await;
        }
        let key = by_id(&sessions[0].session.id);
        expect_error(client.set(key, &[("a", text("2"))]).await, code, reason);
    }
    accept().await;
    for sessions in &sessions {
        sessions.note().await;
    }
    let Unnoted { session, token, .. } = &sessions[0];
    assert_eq!(
        client.get(by_token(token)).await.unwrap().attributes,
        session.attributes,
        "a refused write was applied"
    );
    eventually("writes succeed again", async || client.set(by_id(&session.id), &[("a", text("2"))]).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_served_while_redis_cannot_save_or_is_full() {
    let Setup { world, client, .. } = &World::dedicated().setup_with(POLICIES).await;
    let redis = &world.redis;
    let (refuse, accept) = (async || redis.refuse_saves().await, async || redis.permit_saves().await);
    reads_are_served(client, Code::Unavailable, "STORE_UNAVAILABLE", refuse, accept).await;
    // Without memory Redis accepts some writes, and refuses those of clients.
    let limit = |bytes: &str| drop(redis.must(&["CONFIG", "SET", "maxmemory", bytes]));
    reads_are_served(client, Code::ResourceExhausted, "STORE_FULL", async || limit("1"), async || limit("0")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_served_while_replicas_are_missing() {
    let sentinels = run_blocking(|| Sentinels::start(1)).await;
    let server = Server::start(&sentinels.url(), "ses:", POLICIES).await;
    let client = server.client().await;
    // The Sentinels confirm the primary, which has one replica.
    let primary = sentinels.primary();
    let set = |replicas: &str| drop(primary.must(&["CONFIG", "SET", "min-replicas-to-write", replicas]));
    reads_are_served(&client, Code::Unavailable, "STORE_UNAVAILABLE", async || set("2"), async || set("0")).await;
}

/// It may be cut off, and another server may be the primary. There is nothing to ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_without_replicas_is_not_read() {
    let Setup { world, client, .. } = &World::dedicated().setup_with(POLICIES).await;
    let (session, token) = client.create_for("alice").await;
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    for key in [by_id(&session.id), by_token(&token)] {
        expect_error(client.get(key.clone()).await, Code::Unavailable, "STORE_UNAVAILABLE");
        expect_error(client.touch(key).await, Code::Unavailable, "STORE_UNAVAILABLE");
    }
    assert_eq!(client.list_subject("alice").await.len(), 1);
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
}

/// It may be cut off, and another server may be the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary_without_replicas_and_sentinels_is_not_read() {
    let sentinels = run_blocking(|| Sentinels::start(1)).await;
    let server = Server::start(&sentinels.url(), "ses:", POLICIES).await;
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    sentinels.primary().must(&["CONFIG", "SET", "min-replicas-to-write", "2"]);
    client.get(by_id(&session.id)).await.expect("the Sentinels confirm the primary");
    sentinels.sentinels().iter().for_each(Redis::pause);
    let refused = eventually("the read is refused", async || client.get(by_id(&session.id)).await.err()).await;
    assert_eq!((refused.code(), &refused.reason()[..]), (Code::Unavailable, "STORE_UNAVAILABLE"));
    sentinels.sentinels().iter().for_each(Redis::resume);
    eventually("the read succeeds", async || client.get(by_id(&session.id)).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_served_while_replicas_of_a_cluster_are_missing() {
    let cluster = run_blocking(|| Cluster::start(0)).await;
    let server = Server::start(&cluster.url(), "ses:", POLICIES).await;
    let client = server.client().await;
    let set = |replicas: &str| {
        for primary in cluster.primaries() {
            primary.must(&["CONFIG", "SET", "min-replicas-to-write", replicas]);
        }
    };
    reads_are_served(&client, Code::Unavailable, "STORE_UNAVAILABLE", async || set("1"), async || set("0")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_reuse_is_not_ignored_while_redis_cannot_save() {
    let toml = "[default_policy]\nrotation_grace = '0s'";
    let Setup { world, client, .. } = &World::dedicated().setup_with(toml).await;
    let redis = &world.redis;
    let (session, first) = client.create(&[]).await;
    let second = client.rotate(&first).await.unwrap();
    redis.refuse_saves().await;
    // The first use of the successor cannot be noted yet, so the old token is late, but not reused.
    assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
    expect_error(client.get(by_token(&first)).await, Code::NotFound, "TOKEN_ROTATED");
    redis.permit_saves().await;
    eventually("the first use is noted", async || {
        client.get(by_token(&second)).await.unwrap();
        client.set(by_token(&second), &[]).await.ok()
    })
    .await;
    redis.refuse_saves().await;
    // Now it is reuse, whose consequence is not optional.
    expect_error(client.get(by_token(&first)).await, Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(client.lives(&session.id).await);
    redis.permit_saves().await;
    let ended = eventually("the reuse ends the session", async || {
        client.get(by_token(&first)).await.err().filter(|status| status.code() == Code::NotFound)
    })
    .await;
    assert_eq!((&ended.reason()[..], &ended.metadata_of("cause")[..]), ("SESSION_ENDED", "TOKEN_REUSE"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delete_of_a_subject_refused_by_redis_is_not_applied() {
    let Setup { world, client, .. } = &World::dedicated().setup().await;
    for _ in 0..3 {
        client.create_for("alice").await;
    }
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    expect_error(client.delete_subject("alice").await, Code::Unavailable, "STORE_UNAVAILABLE");
    world.redis.must(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    assert_eq!(client.delete_subject("alice").await.unwrap(), 3);
}
