//! What a client may rely on of one session.

mod harness;

use harness::{client::*, *};

#[tokio::test]
async fn a_session_is_read_back_as_it_was_made() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, token) = client.create(&[("user_id", text("1")), ("cart", json(r#"["item1","item2"]"#))]).await;
    assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
    assert_eq!(client.get(by_id(&session.id)).await.unwrap(), session);
}
