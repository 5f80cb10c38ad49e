//! Reservations in a subject index that an earlier call made and never used.

use harness::{Setup, World, client::*, setup_with};
use sessiond_client::v1::{CreateSessionRequest, DeleteSubjectSessionsRequest};

const ONE: &str = "partitions = 1\n[default_policy]\nsession_limit = 1";

/// Adds an id to the index as an unfinished create of `seconds` ago would have left it.
fn reserve(world: &World, subject: &str, id: &str, seconds: u64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    let key = index_key(world, subject);
    world.redis.command(&["ZADD", &key, &(now - seconds * 1_000_000).to_string(), id]);
}

fn index_key(world: &World, subject: &str) -> String {
    world.redis.keys(&format!("{}*:u:web:{subject}", world.prefix)).remove(0)
}

#[tokio::test]
async fn create_retried_late_uses_its_own_reservation() {
    let Setup { world, client, .. } = &setup_with(ONE).await;
    let (first, _) = client.create_for("alice").await;
    let token = new_token();
    reserve(world, "alice", &id_of(&token), 60);
    let create = CreateSessionRequest {
        subject: "alice".into(),
        token: token.clone(),
        request_id: "request-0000000001".into(),
        ..Default::default()
    };
    client.create_with(create).await.unwrap();
    let listed: Vec<_> = client.list_subject("alice").await.into_iter().map(|session| session.id).collect();
    assert_eq!(listed, [id_of(&token)]);
    assert_ne!(first.id, id_of(&token));
}

#[tokio::test]
async fn unused_old_reservation_replaces_no_session() {
    let Setup { world, client, .. } = &setup_with("partitions = 1\n[default_policy]\nsession_limit = 2").await;
    let (first, _) = client.create_for("alice").await;
    reserve(world, "alice", &id_of(&new_token()), 60);
    client.create_for("alice").await;
    assert!(client.get(by_id(&first.id)).await.is_ok(), "the second of two sessions replaced the first");
    assert_eq!(world.redis.number(&["ZCARD", &index_key(world, "alice")]), 2);
}

#[tokio::test]
async fn delete_of_older_sessions_of_a_subject_stops_no_create() {
    let Setup { world, client, .. } = &setup_with("partitions = 1").await;
    let (kept, _) = client.create_for("alice").await;
    let token = new_token();
    reserve(world, "alice", &id_of(&token), 0);
    let delete = DeleteSubjectSessionsRequest {
        namespace: client.namespace.clone(),
        subject: "alice".into(),
        created_before: kept.create_time,
        ..Default::default()
    };
    assert_eq!(client.delete_subject_with(delete).await.unwrap(), 0);
    let create = CreateSessionRequest { subject: "alice".into(), token: token.clone(), ..Default::default() };
    assert_eq!(client.create_with(create).await.unwrap().0.id, id_of(&token));
}

#[tokio::test]
async fn unused_old_reservation_refuses_no_session() {
    let toml = "partitions = 1\n[default_policy]\nsession_limit = 2\nsession_limit_policy = 'reject'";
    let Setup { world, client, .. } = &setup_with(toml).await;
    client.create_for("alice").await;
    reserve(world, "alice", &id_of(&new_token()), 60);
    client.create_for("alice").await;
    assert_eq!(client.list_subject("alice").await.len(), 2);
}

/// A login as one subject has reserved the id, and a login as another one was first.
#[tokio::test]
async fn session_of_another_subject_is_not_ended_for_its_reservation() {
    let Setup { world, client, .. } = &setup_with(ONE).await;
    client.create_for("alice").await;
    let (session, _) = client.create_for("bob").await;
    reserve(world, "alice", &session.id, 0);
    client.create_for("alice").await;
    assert!(client.lives(&session.id).await);
    reserve(world, "alice", &session.id, 0);
    assert_eq!(client.delete_subject("alice").await.unwrap(), 1);
    assert!(client.lives(&session.id).await);
}

#[tokio::test]
async fn session_that_left_is_not_ended_for_an_earlier_reservation() {
    let Setup { world, client, .. } = &setup_with(ONE).await;
    let (kept, _) = client.create_for("alice").await;
    let (session, _) = client.create(&[]).await;
    client.login(by_id(&session.id), "bob").await.unwrap();
    client.login(by_id(&session.id), "").await.unwrap();
    // By the time of the entry, a call that gives the session the subject may still be on its way.
    reserve(world, "alice", &session.id, 1);
    assert_eq!(client.delete_subject("alice").await.unwrap(), 1);
    assert!(client.lives(&session.id).await && !client.lives(&kept.id).await);
}
