//! Behaviour that users of other session services rely on: SuperTokens' rules of rotation, and the scenarios of Spring
//! Session's indexed Redis repository.

use futures_util::future::join_all;
use harness::{Setup, World, client::*, setup, setup_with, tokens::*};
use sessiond_client::v1::{CreateSessionRequest, EventType, RotateSessionRequest, TokenState, UpdateSessionRequest};
use tonic::Code;

/// No grace period: a superseded token is token reuse at once, as with SuperTokens' refresh tokens.
const NO_GRACE: &str = "[default_policy]\nrotation_grace = '0s'";

// ---- SuperTokens: a refresh token, its children, and token reuse ----

#[tokio::test]
async fn supertokens_parent_can_refresh_again_until_its_child_is_used() {
    let Setup { client, .. } = &setup().await;
    let (_, parent) = client.create(&[]).await;
    let lost = client.rotate(&parent).await.unwrap();
    // The client did not receive the response, refreshes again and uses the new token.
    let child = client.rotate(&parent).await.unwrap();
    assert_eq!(child, lost, "a second branch");
    client.get(by_token(&child)).await.unwrap();
    let grandchild = client.rotate_and_use(&child).await;
    assert_eq!(client.token_state(&grandchild).await.unwrap(), TokenState::Current);
    for old in [&parent, &child] {
        expect_error(client.rotate(old).await, Code::NotFound, "TOKEN_ROTATED");
    }
}

#[tokio::test]
async fn supertokens_parent_that_refreshes_after_its_child_is_reuse() {
    let Setup { client, .. } = &setup_with(NO_GRACE).await;
    let (_, parent) = client.create(&[]).await;
    let child = client.rotate_and_use(&parent).await;
    let reuse = expect_error(client.rotate(&parent).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(reuse.metadata_of("cause"), "TOKEN_REUSE");
    let victim = expect_error(client.rotate(&child).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(victim.metadata_of("cause"), "TOKEN_REUSE", "both tokens end");
}

#[tokio::test]
async fn supertokens_parallel_refreshes_are_not_token_reuse() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let (session, parent) = clients[0].create(&[]).await;
    let tabs = join_all((0..8).map(async |n: usize| {
        let client = &clients[n % 2];
        // A tab that lost the race keeps using its token.
        let token = client.rotate(&parent).await.unwrap_or_else(|_| parent.clone());
        client.get(by_token(&token)).await.map(|session| session.id)
    }));
    for answer in tabs.await {
        assert_eq!(answer.unwrap(), session.id);
    }
}

#[tokio::test]
async fn supertokens_reuse_of_any_generation_ends_all_tokens() {
    let Setup { client, .. } = &setup_with(NO_GRACE).await;
    for generations_back in [1, 5, 16] {
        let mut lineage = vec![client.create(&[]).await.1];
        for n in 0..16 {
            lineage.push(client.rotate_and_use(&lineage[n]).await);
        }
        expect_error(client.rotate(&lineage[16 - generations_back]).await, Code::NotFound, "SESSION_ENDED");
        for token in &lineage {
            let status = expect_error(client.get(by_token(token)).await, Code::NotFound, "SESSION_ENDED");
            assert_eq!(status.metadata_of("cause"), "TOKEN_REUSE", "{generations_back} back");
        }
    }
}

#[tokio::test]
async fn supertokens_token_reuse_keeps_the_users_other_sessions() {
    let Setup { client, .. } = &setup_with(NO_GRACE).await;
    let (phone, on_phone) = client.create_for("alice").await;
    let (_, parent) = client.create_for("alice").await;
    client.rotate_and_use(&parent).await;
    expect_error(client.rotate(&parent).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(client.get(by_token(&on_phone)).await.unwrap(), phone);
    assert_eq!(client.list_subject("alice").await.len(), 1);
}

// ---- Spring Session: changeSessionId is a rotation ----

#[tokio::test]
async fn spring_rotated_session_keeps_its_content_and_rotates_again() {
    let Setup { client, .. } = &setup().await;
    let (session, original) = client.create(&[("attrName", text("attrValue"))]).await;
    let first = client.rotate(&original).await.unwrap();
    assert_eq!(client.get(by_token(&first)).await.unwrap().attributes, session.attributes);
    // The second rotation also sets an attribute.
    let set_attributes = [("attrName2".to_owned(), text("attrValue2"))].into();
    let request = RotateSessionRequest { set_attributes, ..rotation_without_grace(&first) };
    let (changed, second) = client.rotate_with(request).await.unwrap();
    assert_eq!((changed.id, changed.attributes.len()), (session.id, 2));
    assert_eq!(client.present(Call::Get, &first).await, "TOKEN_ROTATED");
    assert_eq!(client.present(Call::Get, &second).await, ACCEPTED);
}

#[tokio::test]
async fn spring_two_parallel_rotations_leave_one_session() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[0].watch_all().await;
    for _ in 0..10 {
        let (session, original) = clients[0].create_for("alice").await;
        let changes = [&clients[0], &clients[1]].map(async |client| client.rotate(&original).await.unwrap());
        let tokens = join_all(changes).await;
        assert_eq!(tokens[0], tokens[1], "a second branch");
        for token in tokens {
            assert_eq!(clients[0].get(by_token(&token)).await.unwrap().id, session.id);
        }
        let listed: Vec<_> = clients[1].list_subject("alice").await.into_iter().map(|session| session.id).collect();
        assert_eq!(listed, std::slice::from_ref(&session.id), "a second session exists");
        clients[0].delete(by_id(&session.id)).await.unwrap();
        let kinds: Vec<_> = watching.events_until_now().await.iter().map(|event| event.r#type()).collect();
        assert_eq!(kinds, [EventType::Created, EventType::Rotated, EventType::Ended]);
    }
}

#[tokio::test]
async fn spring_rotation_of_a_deleted_session_does_not_revive_it() {
    let Setup { client, .. } = &setup().await;
    let (session, original) = client.create_for("alice").await;
    client.delete(by_id(&session.id)).await.unwrap();
    expect_error(client.rotate(&original).await, Code::NotFound, "SESSION_ENDED");
    let named = RotateSessionRequest { new_token: successor_of(&original), ..rotation_of(&original) };
    expect_error(client.rotate_with(named.clone()).await, Code::NotFound, "SESSION_ENDED");
    for token in [&original, &named.new_token] {
        assert!(client.get(by_token(token)).await.is_err());
        let create = CreateSessionRequest { token: token.clone(), ..Default::default() };
        expect_error(client.create_with(create).await, Code::NotFound, "SESSION_ENDED");
    }
    assert!(client.list_subject("alice").await.is_empty());
}

#[tokio::test]
async fn spring_list_by_subject_follows_every_change() {
    let Setup { client, .. } = &setup().await;
    let ids = async |subject: &str| {
        client.list_subject(subject).await.into_iter().map(|session| session.id).collect::<Vec<_>>()
    };
    let (session, token) = client.create(&[]).await;
    let as_subject = |token: &str, subject: &str| {
        let request = RotateSessionRequest { subject: Some(subject.into()), ..rotation_of(token) };
        let client = client.clone();
        async move { client.rotate_with(request).await.unwrap().1 }
    };
    let token = as_subject(&token, "alice").await;
    assert_eq!(ids("alice").await, std::slice::from_ref(&session.id));
    // Neither a rotation nor a changed attribute removes it from the list.
    let token = client.rotate(&token).await.unwrap();
    client.set(by_token(&token), &[("a", text("1"))]).await.unwrap();
    assert_eq!(ids("alice").await, std::slice::from_ref(&session.id));
    let token = as_subject(&token, "").await;
    assert!(ids("alice").await.is_empty());
    let token = as_subject(&token, "bob").await;
    assert_eq!((ids("alice").await.len(), ids("bob").await), (0, vec![session.id]));
    // A session of one subject cannot be saved under its previous subject.
    let back = UpdateSessionRequest { subject: Some("alice".into()), key: by_token(&token), ..Default::default() };
    expect_error(client.update(back).await, Code::FailedPrecondition, "SUBJECT_CHANGE");
    assert_eq!(client.delete_subject("bob").await.unwrap(), 1);
    expect_error(client.get(by_token(&token)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn spring_expired_session_that_was_rotated_leaves_the_list() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let create = CreateSessionRequest { subject: "alice".into(), idle_timeout: seconds(2), ..Default::default() };
    let (session, original) = client.create_with(create).await.unwrap();
    let changed = client.rotate(&original).await.unwrap();
    watching.wait_for(EventType::Ended, &session.id).await;
    assert!(client.list_subject("alice").await.is_empty());
    for token in [&original, &changed] {
        let status = expect_error(client.rotate(token).await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(status.metadata_of("cause"), "IDLE_TIMEOUT");
    }
}
