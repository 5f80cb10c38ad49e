//! A subject's sessions as a whole.

mod harness;

use harness::World;

#[tokio::test]
async fn a_subjects_sessions_are_listed_newest_first_and_ended_together() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.insert(0, client.create_of("alice").await.0.id);
    }
    client.create_of("bob").await;
    let listed: Vec<String> = client.list_of("alice").await.into_iter().map(|session| session.id).collect();
    assert_eq!(listed, ids);
    assert_eq!(client.delete_all("alice").await.unwrap(), 5);
    assert!(client.list_of("alice").await.is_empty());
    assert_eq!(client.list_of("bob").await.len(), 1);
}
