//! S6: a session's token rotates atomically; what becomes of the tokens before it.

mod harness;

use harness::{World, client::*};
use sessiond_client::v1::TokenState;
use tonic::Code;

#[tokio::test]
async fn s6_a_rotation_gives_the_same_session_a_new_token() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (created, first) = client.create(&[("cart", text("x"))]).await;
    assert_eq!(client.standing(&first).await.unwrap(), TokenState::Current);
    let second = client.rotate(&first).await.unwrap();
    assert_eq!(client.standing(&second).await.unwrap(), TokenState::Current);
    assert_eq!(client.standing(&first).await.unwrap(), TokenState::Superseded);
    let session = client.get(by_token(&second)).await.unwrap();
    assert_eq!((&session.id, session.token_generation), (&created.id, 2));
    assert_eq!(session.attributes, created.attributes);
    expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
}
