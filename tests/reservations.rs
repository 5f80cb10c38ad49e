//! Places in a subject's index that a call before took and never filled.

mod harness;

use harness::{World, client::*};
use sessiond_client::v1::CreateSessionRequest;

const ONE: &str = "partitions = 1\n[default_policy]\nsession_limit = 1";

/// Puts an id into the index by hand, as a create that was never finished leaves it, `seconds` ago.
fn reserve(world: &World, subject: &str, id: &str, seconds: u64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    let key = index_key(world, subject);
    world.redis.command(&["ZADD", &key, &(now - seconds * 1_000_000).to_string(), id]);
}

fn index_key(world: &World, subject: &str) -> String {
    world.redis.keys(&format!("{}*:u:web:{subject}", world.prefix)).remove(0)
}

#[tokio::test]
async fn a_create_that_is_repeated_late_takes_its_own_place_and_makes_its_session() {
    let world = World::shared();
    let server = world.server_with(ONE).await;
    let client = server.client().await;
    let (first, _) = client.create_of("alice").await;
    let token = new_token();
    reserve(&world, "alice", &id_of(&token), 60);
    let create = CreateSessionRequest {
        subject: "alice".into(),
        token: token.clone(),
        request_id: "request-0000000001".into(),
        ..Default::default()
    };
    client.create_as(create).await.unwrap();
    let listed: Vec<_> = client.list_of("alice").await.into_iter().map(|session| session.id).collect();
    assert_eq!(listed, [id_of(&token)]);
    assert_ne!(first.id, id_of(&token));
}

#[tokio::test]
async fn an_old_place_that_nobody_fills_replaces_nobody() {
    let world = World::shared();
    let server = world.server_with("partitions = 1\n[default_policy]\nsession_limit = 2").await;
    let client = server.client().await;
    let (first, _) = client.create_of("alice").await;
    reserve(&world, "alice", &id_of(&new_token()), 60);
    client.create_of("alice").await;
    assert!(client.get(by_id(&first.id)).await.is_ok(), "the second of two replaces nobody");
    assert_eq!(world.redis.number(&["ZCARD", &index_key(&world, "alice")]), 2);
}
