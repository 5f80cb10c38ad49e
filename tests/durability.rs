//! Durability "replicated": the server acknowledges a write only when the replicas have it.

use harness::{Redis, Server, World, client::*, eventually, proxy::Proxy};
use sessiond_client::v1::{CreateSessionRequest, DeleteSessionRequest, RotateSessionRequest, UpdateSessionRequest};
use tonic::Code;

const REPLICATED: &str = "[namespace.safe]\ndurability = 'replicated'\nreplicas = 1\n[limits]\ncall_timeout = '3s'";

/// A primary and a replica that has caught up with it.
struct Pair {
    primary: World,
    replica: Redis,
}

impl Pair {
    async fn start(primary: &[&str]) -> Self {
        // Replicas connect by TCP, so the primary gets a free port.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let arguments = [&["--port", &port, "--repl-diskless-sync-delay", "0"], primary].concat();
        let primary = World::dedicated_with(&arguments);
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
        let pair = Pair { primary, replica };
        eventually("the replica has caught up", async || pair.has_replica().then_some(())).await;
        pair
    }

    fn has_replica(&self) -> bool {
        self.primary.redis.number(&["WAIT", "1", "100"]) == 1
    }

    async fn server(&self) -> Server {
        self.primary.server_with(REPLICATED).await
    }
}

fn create(token: &str, request_id: &str) -> CreateSessionRequest {
    CreateSessionRequest { token: token.into(), request_id: request_id.into(), ..Default::default() }
}

#[tokio::test]
async fn acknowledged_write_is_on_the_replica() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    for round in 0..50 {
        let (session, token) = client.create(&[("round", text(&round.to_string()))]).await;
        let key = pair.replica.keys(&format!("*:s:safe:{}", session.id)).remove(0);
        let on_replica = || pair.replica.command_bytes(&[b"GET", key.as_bytes()]);
        let created = on_replica();
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        let updated = on_replica();
        assert_ne!(updated, created, "the update");
        let successor = client.rotate(&token).await.unwrap();
        let rotated = on_replica();
        assert_ne!(rotated, updated, "the rotation");
        assert!(client.delete(by_token(&successor)).await.unwrap());
        assert_ne!(on_replica(), rotated, "the end");
    }
}

#[tokio::test]
async fn write_without_replica_and_its_retry_are_unknown() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    let (kept, kept_token) = client.create(&[]).await;
    let confirmed = create(&new_token(), "request-0000000001");
    client.create_with(confirmed.clone()).await.unwrap();

    pair.replica.pause();
    let token = new_token();
    let unconfirmed = create(&token, "request-0000000002");
    let status = expect_error(client.create_with(unconfirmed.clone()).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    assert!(status.message().contains("0 of 1 replicas"), "{}", status.message());
    // The primary has the session; only its replication is unknown.
    client.get(by_token(&token)).await.unwrap();
    // Retries wait for the replica too, even if the first request was acknowledged.
    for retry in [&unconfirmed, &confirmed] {
        expect_error(client.create_with(retry.clone()).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    }
    let update = UpdateSessionRequest {
        key: by_id(&kept.id),
        set_attributes: [("a".into(), text("1"))].into(),
        request_id: "request-0000000003".into(),
        ..Default::default()
    };
    expect_error(client.update(update.clone()).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    let rotate = RotateSessionRequest {
        token: kept_token.clone(),
        new_token: successor_of(&kept_token),
        request_id: "request-0000000004".into(),
        ..Default::default()
    };
    expect_error(client.rotate_with(rotate.clone()).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    // Rejected writes and reads do not wait, because they have written nothing that could be lost.
    let stale = UpdateSessionRequest { key: by_id(&kept.id), if_revision: Some(1), ..Default::default() };
    expect_error(client.update(stale).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(client.get(by_id(&kept.id)).await.unwrap().attributes.len(), 1);
    // Namespaces with another durability do not wait either.
    client.in_namespace("other").create(&[]).await;

    pair.replica.resume();
    eventually("the replica has caught up again", async || pair.has_replica().then_some(())).await;
    for retry in [unconfirmed, confirmed] {
        client.create_with(retry).await.unwrap();
    }
    assert_eq!(client.update(update).await.unwrap().token_generation, 2);
    assert_eq!(client.rotate_with(rotate).await.unwrap().0.token_generation, 2);
}

#[tokio::test]
async fn delete_without_replica_and_its_retry_are_unknown() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    let (session, _) = client.create(&[]).await;
    let delete = DeleteSessionRequest {
        namespace: "safe".into(),
        key: by_id(&session.id),
        request_id: "request-0000000001".into(),
        ..Default::default()
    };
    pair.replica.pause();
    for _ in 0..2 {
        let result = client.grpc.clone().delete_session(delete.clone()).await;
        expect_error(result, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    }
    pair.replica.resume();
    eventually("the replica has caught up again", async || pair.has_replica().then_some(())).await;
    assert!(
        client.grpc.clone().delete_session(delete).await.unwrap().into_inner().deleted,
        "the retry has the result of the first call"
    );
}

/// The responses depend on writes that the replica may lack: a tombstone, an end, a value that another call has set.
#[tokio::test]
async fn calls_that_change_nothing_wait_for_the_replica() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    let (session, _) = client.create(&[("a", text("1"))]).await;
    let (ended, token) = client.create(&[]).await;
    client.delete(by_id(&ended.id)).await.unwrap();
    pair.replica.pause();
    let same = [("a", text("1"))];
    let unknown = by_id(&id_of(&new_token()));
    expect_error(client.set(by_id(&session.id), &same).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    expect_error(client.delete(unknown).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    expect_error(client.set(by_id(&ended.id), &same).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    expect_error(client.rotate(&token).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    pair.replica.resume();
}

#[tokio::test]
async fn repeated_rotation_waits_for_the_replica() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    let (_, token) = client.create(&[]).await;
    let rotation = RotateSessionRequest { token, ..Default::default() };
    let issued = client.rotate_with(rotation.clone()).await.unwrap();
    pair.replica.pause();
    // The token was issued before; the response still proves that the replica has the rotation.
    expect_error(client.rotate_with(rotation.clone()).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    pair.replica.resume();
    eventually("the replica has caught up again", async || pair.has_replica().then_some(())).await;
    assert_eq!(client.rotate_with(rotation).await.unwrap(), issued);
}

#[tokio::test]
async fn primary_below_min_replicas_rejects_unapplied() {
    let pair = Pair::start(&["--min-replicas-to-write", "1", "--min-replicas-max-lag", "1"]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    let (session, _) = client.create(&[]).await;
    pair.replica.pause();
    let request_id = "request-0000000001".to_owned();
    let update = UpdateSessionRequest {
        key: by_id(&session.id),
        set_attributes: [("a".into(), text("1"))].into(),
        ..Default::default()
    };
    // Polled, because the primary accepts writes until it notices that its replica lags.
    eventually("the primary rejects writes", async || {
        let status =
            client.update(UpdateSessionRequest { request_id: request_id.clone(), ..update.clone() }).await.err();
        status.filter(|status| status.code() == Code::Unavailable && status.reason() == "STORE_UNAVAILABLE")
    })
    .await;
    expect_error(client.set(by_id(&session.id), &[("b", text("1"))]).await, Code::Unavailable, "STORE_UNAVAILABLE");
    pair.replica.resume();
    let read = eventually("the session is read", async || client.get(by_id(&session.id)).await.ok()).await;
    assert!(!read.attributes.contains_key("b"), "a rejected write was applied");
}

#[tokio::test]
async fn connection_cut_before_wait_is_outcome_unknown() {
    let pair = Pair::start(&[]).await;
    let proxy = Proxy::start(&pair.primary.redis);
    let server = Server::start(&proxy.url(), &pair.primary.prefix, REPLICATED).await;
    let client = server.client().await.in_namespace("safe");
    let (session, _) = client.create(&[]).await;
    pair.replica.pause();
    let change = [("a", text("1"))];
    let update = client.set(by_id(&session.id), &change);
    let cut = async {
        let direct = pair.primary.server().await;
        let direct = direct.client().await.in_namespace("safe");
        eventually("the script has run", async || {
            direct.get(by_id(&session.id)).await.unwrap().attributes.contains_key("a").then_some(())
        })
        .await;
        proxy.cut();
    };
    let (result, ()) = tokio::join!(update, cut);
    let status = result.unwrap_err();
    assert_eq!(status.reason(), "OUTCOME_UNKNOWN", "{status:?}");
    pair.replica.resume();
    eventually("the server reconnects", async || client.set(by_id(&session.id), &[("a", text("2"))]).await.ok()).await;
}

#[tokio::test]
async fn overloaded_calls_are_not_applied() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    client.create(&[]).await;
    pair.replica.pause();
    let creates = async || {
        let creates = (0..60).map(async |_| {
            let token = new_token();
            let create = CreateSessionRequest { token: token.clone(), ..Default::default() };
            (token, client.create_with(create).await.unwrap_err())
        });
        futures_util::future::join_all(creates).await
    };
    for _ in 0..2 {
        let (mut applied, mut refused) = (0, 0);
        for (token, status) in creates().await {
            let lives = client.get(by_token(&token)).await.is_ok();
            match (status.code(), &status.reason()[..]) {
                (Code::DeadlineExceeded, "OUTCOME_UNKNOWN") => applied += u32::from(lives),
                (Code::Unavailable, "OVERLOADED") => {
                    assert!(!lives, "an overloaded call was applied");
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(applied > 0 && refused > 0, "{applied} applied, {refused} refused");
    }
    pair.replica.resume();
    eventually("the replica has caught up again", async || pair.has_replica().then_some(())).await;
    client.create(&[]).await;
}

#[tokio::test]
async fn many_calls_wait_for_replicas_concurrently() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    let creates = (0..200).map(async |_| client.create(&[]).await.0.id);
    let ids = futures_util::future::join_all(creates).await;
    for id in ids {
        assert_eq!(pair.replica.keys(&format!("*:s:safe:{id}")).len(), 1);
    }
}
