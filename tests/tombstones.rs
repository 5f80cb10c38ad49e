//! Lifetime of the tombstone that a delete writes or finds.

use harness::{Setup, World, client::*, setup};
use sessiond_client::v1::{CreateSessionRequest, DeleteSessionRequest};
use tonic::Code;

/// Longest lifetime in ms of the tombstone of an id that had no session.
const OF_UNKNOWN_ID: i64 = 15_000;

/// Returns the remaining lifetime in ms of the key of a session; -1: it has no TTL.
fn ttl(world: &World, id: &str) -> i64 {
    let key = world.redis.keys(&format!("{}*:s:*:{id}", world.prefix)).pop().expect("the key exists");
    world.redis.number(&["PTTL", &key])
}

fn set_ttl(world: &World, id: &str, ms: u64) {
    let key = world.redis.keys(&format!("{}*:s:*:{id}", world.prefix)).pop().expect("the key exists");
    world.redis.must(&["PEXPIRE", &key, &ms.to_string()]);
}

#[tokio::test]
async fn tombstone_of_an_unknown_id_lives_for_15_s() {
    let Setup { world, client, .. } = &setup().await;
    for request_id in ["", "request-0000000001"] {
        for by_its_token in [true, false] {
            let token = new_token();
            let key = if by_its_token { by_token(&token) } else { by_id(&id_of(&token)) };
            let namespace = NAMESPACE.to_owned();
            let delete = DeleteSessionRequest { namespace, key, request_id: request_id.into(), ..Default::default() };
            // The retry finds no session either.
            for _ in 0..2 {
                let reply = client.grpc.clone().delete_session(delete.clone()).await.unwrap();
                assert!(!reply.into_inner().deleted);
            }
            let left = ttl(world, &id_of(&token));
            assert!((1..=OF_UNKNOWN_ID).contains(&left), "{left} ms, request id {request_id:?}");
            let create = CreateSessionRequest { token: token.clone(), ..Default::default() };
            expect_error(client.create_with(create).await, Code::NotFound, "SESSION_ENDED");
        }
    }
}

/// Each delete promises that no create in flight at that time applies later.
#[tokio::test]
async fn s3_every_delete_extends_a_tombstone_about_to_expire() {
    let Setup { world, client, .. } = &setup().await;
    let token = new_token();
    let id = id_of(&token);
    client.delete(by_token(&token)).await.unwrap();
    let (ended, ended_token) = client.create(&[]).await;
    let namespace = NAMESPACE.to_owned();
    let key = by_id(&ended.id);
    let delete = DeleteSessionRequest { namespace, key, request_id: "request-0000000001".into(), ..Default::default() };
    assert!(client.grpc.clone().delete_session(delete.clone()).await.unwrap().into_inner().deleted);
    for (id, key) in [(&id, by_token(&token)), (&id, by_id(&id)), (&ended.id, by_token(&ended_token))] {
        set_ttl(world, id, 5_000);
        assert!(!client.delete(key.clone()).await.unwrap());
        assert!(ttl(world, id) > 5_000, "{key:?}");
    }
    set_ttl(world, &ended.id, 5_000);
    let retried = client.grpc.clone().delete_session(delete).await.unwrap().into_inner();
    assert!(retried.deleted && ttl(world, &ended.id) > 5_000);
}

#[tokio::test]
async fn delete_shortens_no_tombstone_of_an_ended_session() {
    let Setup { world, client, .. } = &setup().await;
    let (session, token) = client.create(&[]).await;
    // A wrong token changes nothing.
    let wrong = successor_of(&token);
    assert!(!client.delete(by_token(&wrong)).await.unwrap());
    assert_eq!(ttl(world, &session.id), -1);
    assert!(client.delete(by_token(&token)).await.unwrap());
    for key in [by_token(&token), by_token(&wrong), by_id(&session.id)] {
        client.delete(key).await.unwrap();
        assert!(ttl(world, &session.id) > 500_000);
    }
}
