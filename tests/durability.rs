//! Durability "replicated": an answer waits until replicas have what it tells.

mod harness;

use harness::{Redis, Server, World, client::*, eventually, proxy::Proxy};
use sessiond_client::v1::{CreateSessionRequest, DeleteSessionRequest, RotateSessionRequest, UpdateSessionRequest};
use tonic::Code;

const REPLICATED: &str = "[namespace.safe]\ndurability = 'replicated'\nreplicas = 1\n[limits]\ncall_timeout = '3s'";

/// A primary, and a replica that has caught up with it.
struct Pair {
    primary: World,
    replica: Redis,
}

impl Pair {
    async fn start(primary: &[&str]) -> Self {
        // A replica speaks TCP: some port that is free now.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let arguments = [&["--port", &port, "--repl-diskless-sync-delay", "0"], primary].concat();
        let primary = World { redis: Redis::start_with(&arguments), prefix: "sessiond:".into() };
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]);
        let pair = Pair { primary, replica };
        eventually("the replica is there", async || pair.has_replica().then_some(())).await;
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
async fn what_was_answered_is_on_the_replica() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    for round in 0..50 {
        let (session, token) = client.create(&[("round", text(&round.to_string()))]).await;
        let key = pair.replica.keys(&format!("*:s:safe:{}", session.id)).remove(0);
        let field = |name: &str| pair.replica.command(&["HGET", &key, name]);
        let before = field("m");
        client.set(by_id(&session.id), &[("a", text("1"))]).await.unwrap();
        assert_ne!(field("m"), before, "the update");
        let successor = client.rotate(&token).await.unwrap();
        assert_ne!(field("g"), "$-1\r\n", "the rotation");
        assert!(client.delete(by_token(&successor)).await.unwrap());
        assert_ne!(field("x"), "$-1\r\n", "the end");
    }
}

#[tokio::test]
async fn without_its_replica_an_outcome_is_unknown_and_a_repeat_waits_too() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    let (kept, kept_token) = client.create(&[]).await;
    let confirmed = create(&new_token(), "request-0000000001");
    client.create_as(confirmed.clone()).await.unwrap();

    pair.replica.pause();
    let token = new_token();
    let made = create(&token, "request-0000000002");
    let status = expect_error(client.create_as(made.clone()).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    assert!(status.message().contains("0 of 1 replicas"), "{}", status.message());
    // The primary has it; whether anybody else has is what is not known.
    client.get(by_token(&token)).await.unwrap();
    // Nor is that known again of what was known when it was first answered.
    for repeat in [&made, &confirmed] {
        expect_error(client.create_as(repeat.clone()).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
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
    expect_error(client.rotate_as(rotate.clone()).await, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    // What is refused wrote nothing that could be lost, and reads do not wait.
    let stale = UpdateSessionRequest { key: by_id(&kept.id), if_revision: Some(1), ..Default::default() };
    expect_error(client.update(stale).await, Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(client.get(by_id(&kept.id)).await.unwrap().attributes.len(), 1);
    // Other namespaces do not either.
    client.in_namespace("other").create(&[]).await;

    pair.replica.resume();
    eventually("the replica is back", async || pair.has_replica().then_some(())).await;
    for repeat in [made, confirmed] {
        client.create_as(repeat).await.unwrap();
    }
    assert_eq!(client.update(update).await.unwrap().token_generation, 2);
    assert_eq!(client.rotate_as(rotate).await.unwrap().0.token_generation, 2);
}

#[tokio::test]
async fn the_end_of_a_session_waits_and_so_does_its_repeat() {
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
        let answer = client.grpc.clone().delete_session(delete.clone()).await;
        expect_error(answer, Code::DeadlineExceeded, "OUTCOME_UNKNOWN");
    }
    pair.replica.resume();
    eventually("the replica is back", async || pair.has_replica().then_some(())).await;
    assert!(client.grpc.clone().delete_session(delete).await.unwrap().into_inner().deleted, "the same as the first");
}

#[tokio::test]
async fn a_primary_that_counts_its_replicas_refuses_and_nothing_is_applied() {
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
    // Until the primary notices that its replica lags, the write goes to it alone.
    eventually("the primary refuses", async || {
        let status =
            client.update(UpdateSessionRequest { request_id: request_id.clone(), ..update.clone() }).await.err();
        status.filter(|status| status.code() == Code::Unavailable && status.reason() == "STORE_UNAVAILABLE")
    })
    .await;
    let before = client.get(by_id(&session.id)).await.unwrap();
    expect_error(client.set(by_id(&session.id), &[("b", text("1"))]).await, Code::Unavailable, "STORE_UNAVAILABLE");
    assert_eq!(client.get(by_id(&session.id)).await.unwrap(), before);
}

#[tokio::test]
async fn a_connection_that_is_cut_between_script_and_wait_leaves_the_outcome_unknown() {
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
        eventually("the script ran", async || {
            direct.get(by_id(&session.id)).await.unwrap().attributes.contains_key("a").then_some(())
        })
        .await;
        proxy.cut();
    };
    let (answer, ()) = tokio::join!(update, cut);
    let status = answer.unwrap_err();
    assert_eq!(status.reason(), "OUTCOME_UNKNOWN", "{status:?}");
    pair.replica.resume();
    eventually("it connects anew", async || client.set(by_id(&session.id), &[("a", text("2"))]).await.ok()).await;
}

#[tokio::test]
async fn calls_whose_turn_does_not_come_are_not_applied_and_the_others_go_on_to_be() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    client.create(&[]).await;
    pair.replica.pause();
    let creates = async || {
        let creates = (0..60).map(async |_| {
            let token = new_token();
            let create = CreateSessionRequest { token: token.clone(), ..Default::default() };
            (token, client.create_as(create).await.unwrap_err())
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
                    assert!(!lives, "it was said not to be applied");
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(applied > 0 && refused > 0, "{applied} applied, {refused} refused");
    }
    pair.replica.resume();
    eventually("the replica is back", async || pair.has_replica().then_some(())).await;
    client.create(&[]).await;
}

#[tokio::test]
async fn many_calls_wait_side_by_side() {
    let pair = Pair::start(&[]).await;
    let server = pair.server().await;
    let client = server.client().await.in_namespace("safe");
    let creates = (0..200).map(async |_| client.create(&[]).await.0.id);
    let ids = futures_util::future::join_all(creates).await;
    for id in ids {
        assert_eq!(pair.replica.keys(&format!("*:s:safe:{id}")).len(), 1);
    }
}
