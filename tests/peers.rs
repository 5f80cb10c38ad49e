//! What users of other session services rely on, in our words: SuperTokens' rules of rotation, and the scenarios of Spring
//! Session's indexed Redis repository.

mod harness;

use futures_util::future::join_all;
use harness::{World, client::*, tokens::*};
use sessiond_client::v1::{CreateSessionRequest, EventType, RotateSessionRequest, TokenState, UpdateSessionRequest};
use tonic::Code;

/// Every token is late as soon as it is superseded, as SuperTokens' refresh tokens are.
const AT_ONCE: &str = "[default_policy]\nrotation_grace = '0s'";

// ---- SuperTokens: a refresh token, its children, and theft ----

#[tokio::test]
async fn supertokens_the_previous_token_is_remembered_until_its_child_is_used() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (_, parent) = client.create(&[]).await;
    let lost = client.rotate(&parent).await.unwrap();
    // The client that never got the answer refreshes again, and goes on with what it gets.
    let child = client.rotate(&parent).await.unwrap();
    client.get(by_token(&child)).await.unwrap();
    let grandchild = client.rotate_and_use(&child).await;
    assert_eq!(client.standing(&grandchild).await.unwrap(), TokenState::Current);
    for old in [&parent, &lost, &child] {
        expect_error(client.rotate(old).await, Code::NotFound, "TOKEN_ROTATED");
    }
}

#[tokio::test]
async fn supertokens_a_parent_that_refreshes_after_its_child_was_used_is_stolen() {
    let world = World::shared();
    let server = world.server_with(AT_ONCE).await;
    let client = server.client().await;
    let (_, parent) = client.create(&[]).await;
    let child = client.rotate_and_use(&parent).await;
    let theft = expect_error(client.rotate(&parent).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(theft.metadata_of("cause"), "TOKEN_REUSE");
    let victim = expect_error(client.rotate(&child).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(victim.metadata_of("cause"), "TOKEN_REUSE", "thief and victim are out alike");
}

#[tokio::test]
async fn supertokens_parallel_refreshes_of_honest_tabs_are_no_theft() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let (session, parent) = clients[0].create(&[]).await;
    let tabs = join_all((0..8).map(async |n: usize| {
        let client = &clients[n % 2];
        // A tab that lost the race goes on with the token it has.
        let token = client.rotate(&parent).await.unwrap_or_else(|_| parent.clone());
        client.get(by_token(&token)).await.map(|session| session.id)
    }));
    for answer in tabs.await {
        assert_eq!(answer.unwrap(), session.id);
    }
}

#[tokio::test]
async fn supertokens_an_orphaned_branch_that_comes_back_is_stolen() {
    let world = World::shared();
    let (server, at_once) = (world.server().await, world.server_with(AT_ONCE).await);
    let (client, at_once) = (server.client().await, at_once.client().await);
    let (_, parent) = client.create(&[]).await;
    // Who caught the first answer has a branch of its own; the second one is the branch that lives on.
    let orphan = client.rotate(&parent).await.unwrap();
    let (_, child) = client.rotate_as(graceless(&parent)).await.unwrap();
    let grandchild = client.rotate_and_use(&child).await;
    expect_error(client.rotate(&orphan).await, Code::NotFound, "TOKEN_ROTATED");
    let theft = expect_error(at_once.rotate(&orphan).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(theft.metadata_of("cause"), "TOKEN_REUSE");
    expect_error(client.get(by_token(&grandchild)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn supertokens_a_token_generations_back_is_stolen_and_ends_the_whole_lineage() {
    let world = World::shared();
    let server = world.server_with(AT_ONCE).await;
    let client = server.client().await;
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
async fn supertokens_another_session_of_the_same_user_is_not_touched_by_a_theft() {
    let world = World::shared();
    let server = world.server_with(AT_ONCE).await;
    let client = server.client().await;
    let (phone, on_phone) = client.create_of("alice").await;
    let (_, parent) = client.create_of("alice").await;
    client.rotate_and_use(&parent).await;
    expect_error(client.rotate(&parent).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(client.get(by_token(&on_phone)).await.unwrap(), phone);
    assert_eq!(client.list_of("alice").await.len(), 1);
}

// ---- Spring Session: changeSessionId is a rotation ----

#[tokio::test]
async fn spring_a_changed_session_keeps_its_content_and_changes_again() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, original) = client.create(&[("attrName", text("attrValue"))]).await;
    let first = client.rotate(&original).await.unwrap();
    assert_eq!(client.get(by_token(&first)).await.unwrap().attributes, session.attributes);
    // With a value of its own, and once more.
    let set_attributes = [("attrName2".to_owned(), text("attrValue2"))].into();
    let request = RotateSessionRequest { set_attributes, ..graceless(&first) };
    let (changed, second) = client.rotate_as(request).await.unwrap();
    assert_eq!((changed.id, changed.attributes.len()), (session.id, 2));
    assert_eq!(client.present(Call::Get, &first).await, "TOKEN_ROTATED");
    assert_eq!(client.present(Call::Get, &second).await, ACCEPTED);
}

#[tokio::test]
async fn spring_of_two_changes_at_once_both_leave_one_session() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[0].watch_all().await;
    for _ in 0..10 {
        let (session, original) = clients[0].create_of("alice").await;
        let changes = [&clients[0], &clients[1]].map(async |client| client.rotate(&original).await.unwrap());
        for token in join_all(changes).await {
            assert_eq!(clients[0].get(by_token(&token)).await.unwrap().id, session.id);
        }
        let listed: Vec<_> = clients[1].list_of("alice").await.into_iter().map(|session| session.id).collect();
        assert_eq!(listed, std::slice::from_ref(&session.id), "no second session");
        clients[0].delete(by_id(&session.id)).await.unwrap();
        let kinds: Vec<_> = watching.everything_so_far().await.iter().map(|event| event.r#type()).collect();
        assert_eq!(kinds, [EventType::Created, EventType::Rotated, EventType::Rotated, EventType::Ended]);
    }
}

#[tokio::test]
async fn spring_a_change_of_a_deleted_session_does_not_revive_it() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, original) = client.create_of("alice").await;
    client.delete(by_id(&session.id)).await.unwrap();
    expect_error(client.rotate(&original).await, Code::NotFound, "SESSION_ENDED");
    let named = RotateSessionRequest { new_token: successor_of(&original), ..rotation_of(&original) };
    expect_error(client.rotate_as(named.clone()).await, Code::NotFound, "SESSION_ENDED");
    for token in [&original, &named.new_token] {
        assert!(client.get(by_token(token)).await.is_err());
        let create = CreateSessionRequest { token: token.clone(), ..Default::default() };
        expect_error(client.create_as(create).await, Code::NotFound, "SESSION_ENDED");
    }
    assert!(client.list_of("alice").await.is_empty());
}

#[tokio::test]
async fn spring_the_subjects_list_follows_every_change() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let ids =
        async |subject: &str| client.list_of(subject).await.into_iter().map(|session| session.id).collect::<Vec<_>>();
    let (session, token) = client.create(&[]).await;
    let as_subject = |token: &str, subject: &str| {
        let request = RotateSessionRequest { subject: Some(subject.into()), ..rotation_of(token) };
        let client = client.clone();
        async move { client.rotate_as(request).await.unwrap().1 }
    };
    let token = as_subject(&token, "alice").await;
    assert_eq!(ids("alice").await, std::slice::from_ref(&session.id));
    // Neither a change of the token nor one of an attribute moves it.
    let token = client.rotate(&token).await.unwrap();
    client.set(by_token(&token), &[("a", text("1"))]).await.unwrap();
    assert_eq!(ids("alice").await, std::slice::from_ref(&session.id));
    let token = as_subject(&token, "").await;
    assert!(ids("alice").await.is_empty());
    let token = as_subject(&token, "bob").await;
    assert_eq!((ids("alice").await.len(), ids("bob").await), (0, vec![session.id]));
    // A session that is saved anew with an old name is not found by it.
    let back = UpdateSessionRequest { subject: Some("alice".into()), key: by_token(&token), ..Default::default() };
    expect_error(client.update(back).await, Code::FailedPrecondition, "SUBJECT_CHANGE");
    assert_eq!(client.delete_all("bob").await.unwrap(), 1);
    expect_error(client.get(by_token(&token)).await, Code::NotFound, "SESSION_ENDED");
}

#[tokio::test]
async fn spring_an_expired_session_leaves_the_subjects_list_under_its_last_token() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let create = CreateSessionRequest { subject: "alice".into(), idle_timeout: seconds(2), ..Default::default() };
    let (session, original) = client.create_as(create).await.unwrap();
    let changed = client.rotate(&original).await.unwrap();
    watching.wait_for(EventType::Ended, &session.id).await;
    assert!(client.list_of("alice").await.is_empty());
    for token in [&original, &changed] {
        let status = expect_error(client.rotate(token).await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(status.metadata_of("cause"), "IDLE_TIMEOUT");
    }
}
