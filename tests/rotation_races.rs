//! S6 where rotations meet one another, a login, an ending, or a fault.

mod harness;

use std::{collections::HashSet, sync::Arc};

use futures_util::future::join_all;
use harness::{Client, Server, World, client::*, eventually, process::Process, proxy::Proxy, tokens::*};
use sessiond_client::v1::{
    CreateSessionRequest, EventType, RotateSessionRequest, SessionEvent, TokenState, UpdateSessionRequest,
};
use tokio::sync::Barrier;
use tonic::Code;

/// Runs both at the same moment.
async fn meet<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    let barrier = Barrier::new(2);
    let after = async || barrier.wait().await;
    tokio::join!(
        async {
            after().await;
            one.await
        },
        async {
            after().await;
            other.await
        }
    )
}

/// Two servers on one store, and a client of each.
async fn two(world: &World) -> ([Server; 2], [Client; 2]) {
    let servers = [world.server().await, world.server().await];
    let clients = [servers[0].client().await, servers[1].client().await];
    (servers, clients)
}

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_of_many_rotations_of_one_token_one_wins_and_at_most_one_is_issued_again() {
    let world = World::shared();
    let (_servers, clients) = two(&world).await;
    let mut watching = clients[0].watch_all().await;
    for round in 0..20 {
        let (session, first) = clients[0].create(&[]).await;
        let barrier = Arc::new(Barrier::new(64));
        let rotations = (0..64).map(|n| {
            let (client, token, barrier) = (clients[n % 2].clone(), first.clone(), barrier.clone());
            async move {
                barrier.wait().await;
                client.rotate_as(rotation_of(&token)).await
            }
        });
        let mut won = Vec::new();
        for answer in join_all(rotations).await {
            match answer {
                Ok((session, token)) => won.push((session.token_generation, token)),
                Err(status) => assert_eq!(status.reason(), "TOKEN_ROTATED", "round {round}"),
            }
        }
        won.sort();
        let generations: Vec<_> = won.iter().map(|(generation, _)| *generation).collect();
        // Nobody presents a successor meanwhile, so that the second comer's answer is taken for lost.
        assert_eq!(generations, [2, 3], "round {round}");
        let standing = async |token: &str| clients[round % 2].standing(token).await.unwrap();
        assert_eq!(standing(&won[1].1).await, TokenState::Current);
        assert_eq!(standing(&won[0].1).await, TokenState::Superseded);
        assert_eq!(standing(&first).await, TokenState::Superseded);
        let events = watching.everything_so_far().await;
        assert_eq!(kinds(&events), [EventType::Created, EventType::Rotated, EventType::Rotated]);
        assert!(events.iter().all(|event| event.id == session.id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_successor_that_is_presented_at_once_leaves_at_most_two_valid_branches() {
    let world = World::shared();
    let (_servers, clients) = two(&world).await;
    for round in 0..20 {
        let (session, first) = clients[0].create(&[]).await;
        let rotations = (0..16).map(async |n: usize| {
            let client = &clients[n % 2];
            let token = client.rotate(&first).await.ok()?;
            client.get(by_token(&token)).await.unwrap();
            Some(token)
        });
        let won: Vec<_> = join_all(rotations).await.into_iter().flatten().collect();
        assert!((1..=2).contains(&won.len()), "round {round}: {}", won.len());
        let generation = clients[0].get(by_id(&session.id)).await.unwrap().token_generation;
        assert_eq!(generation as usize, won.len() + 1);
        let mut standings = Vec::new();
        for token in &won {
            standings.push(clients[1].standing(token).await.unwrap());
        }
        assert_eq!(standings.iter().filter(|standing| **standing == TokenState::Current).count(), 1);
        assert_eq!(clients[0].present(Call::Rotate, &first).await, "TOKEN_ROTATED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_of_many_logins_with_one_token_one_wins() {
    let world = World::shared();
    let (_servers, clients) = two(&world).await;
    for round in 0..20 {
        let (session, first) = clients[0].create(&[]).await;
        let logins = (0..16).map(async |n: usize| {
            let subject = (!n.is_multiple_of(3)).then(|| format!("user{n}"));
            let request = RotateSessionRequest { subject, ..rotation_of(&first) };
            let request = RotateSessionRequest { authentication: by_password(), ..request };
            clients[n % 2].rotate_as(request).await
        });
        let won: Vec<_> = join_all(logins).await.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(clients[1].get(by_token(&won[0].1)).await.unwrap(), won[0].0);
        assert_eq!(clients[0].present(Call::Get, &first).await, "TOKEN_ROTATED");
        clients[0].delete(by_id(&session.id)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_rotation_that_meets_a_login_leaves_no_old_token_logged_in() {
    let world = World::shared();
    let (_servers, clients) = two(&world).await;
    let mut orders = HashSet::new();
    for round in 0..60 {
        let (session, first) = clients[0].create(&[]).await;
        let (one, other) = (&clients[round % 2], &clients[(round + 1) % 2]);
        let (rotated, logged_in) = meet(one.rotate(&first), other.update(login(&first, "alice"))).await;
        let second = rotated.unwrap();
        let subject = clients[0].get(by_id(&session.id)).await.unwrap().subject;
        match &logged_in {
            // The login came first; the rotation began a grace of its own after it.
            Ok(_) => assert_eq!(subject, "alice"),
            Err(status) => assert_eq!((status.reason().as_str(), subject.as_str()), ("TOKEN_ROTATED", "")),
        }
        assert_eq!(clients[0].standing(&second).await.unwrap(), TokenState::Current);
        assert_eq!(clients[0].standing(&first).await.unwrap(), TokenState::Superseded);
        orders.insert(logged_in.is_ok());
    }
    assert!(!orders.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_a_rotation_that_meets_a_delete_revives_nothing() {
    let world = World::shared();
    let (_servers, clients) = two(&world).await;
    let mut watching = clients[0].watch_all().await;
    for round in 0..60 {
        let (session, first) = clients[0].create_of("alice").await;
        let (one, other) = (&clients[round % 2], &clients[(round + 1) % 2]);
        let key = if round % 3 == 0 { by_id(&session.id) } else { by_token(&first) };
        let (rotated, deleted) = meet(one.rotate(&first), other.delete(key)).await;
        assert!(deleted.unwrap(), "the old token ends the session within its grace");
        let mut told = vec![EventType::Created, EventType::Ended];
        match rotated {
            Ok(second) => {
                expect_error(clients[0].get(by_token(&second)).await, Code::NotFound, "SESSION_ENDED");
                expect_error(clients[1].rotate(&second).await, Code::NotFound, "SESSION_ENDED");
                told.insert(1, EventType::Rotated);
            }
            Err(status) => assert_eq!(status.reason(), "SESSION_ENDED"),
        }
        expect_error(clients[1].get(by_id(&session.id)).await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(kinds(&watching.everything_so_far().await), told, "round {round}");
    }
    assert!(clients[0].list_of("alice").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_stolen_token_that_comes_many_times_at_once_ends_the_session_once() {
    let world = World::shared();
    let strict = "[default_policy]\nrotation_grace = '0s'";
    for (policy, kind) in
        [(strict.to_owned(), EventType::Ended), (format!("{strict}\ntoken_reuse = 'report'"), EventType::TokenReused)]
    {
        let servers = [world.server_with(&policy).await, world.server_with(&policy).await];
        let clients = [servers[0].client().await, servers[1].client().await];
        let mut watching = clients[0].watch_all().await;
        for round in 0..10 {
            let (_, first) = clients[0].create(&[]).await;
            clients[0].rotate_and_use(&first).await;
            let presented = (0..32).map(async |n: usize| clients[n % 2].present(EVERY_CALL[n % 7], &first).await);
            for answer in join_all(presented).await {
                assert!(["SESSION_ENDED", "TOKEN_ROTATED", "nothing deleted"].contains(&&answer[..]), "{answer}");
            }
            let told = watching.everything_so_far().await;
            assert_eq!(kinds(&told), [EventType::Created, EventType::Rotated, kind], "round {round}");
        }
    }
}

/// A session of a server whose Redis has done what it was told, and whose answer to that was lost.
struct Lost {
    _world: World,
    _server: Server,
    client: Client,
}

/// Loses the answer to this rotation, in this way.
async fn lose_the_answer(
    request: impl FnOnce(&str) -> RotateSessionRequest,
    cuts: bool,
) -> (Lost, RotateSessionRequest) {
    let world = World::own();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "[limits]\ncall_timeout = '700ms'").await;
    let client = server.client().await;
    let direct = world.server().await;
    let observer = direct.client().await;
    // Redis knows the scripts by now.
    client.rotate_and_use(&client.create(&[]).await.1).await;
    let (session, first) = client.create(&[]).await;
    let request = request(&first);
    proxy.mute();
    let rotation = client.rotate_as(request.clone());
    let fault = async {
        eventually("it is rotated", async || {
            (observer.get(by_id(&session.id)).await.unwrap().token_generation == 2).then_some(())
        })
        .await;
        if cuts {
            proxy.cut();
        }
    };
    let (answer, ()) = tokio::join!(rotation, fault);
    let status = answer.unwrap_err();
    assert_eq!(status.reason(), "OUTCOME_UNKNOWN", "{status:?}");
    proxy.go_on();
    eventually("the server is back", async || client.get(by_id(&session.id)).await.ok()).await;
    (Lost { _world: world, _server: server, client }, request)
}

#[tokio::test]
async fn s6_a_rotation_whose_answer_was_lost_is_made_good_without_a_request_id() {
    for cuts in [false, true] {
        let (lost, request) = lose_the_answer(rotation_of, cuts).await;
        let (session, second) = lost.client.rotate_as(request.clone()).await.unwrap();
        assert_eq!(session.token_generation, 3);
        assert_eq!(lost.client.standing(&second).await.unwrap(), TokenState::Current);
        expect_error(lost.client.rotate_as(request).await, Code::NotFound, "TOKEN_ROTATED");
    }
}

#[tokio::test]
async fn s5_a_rotation_whose_answer_was_lost_is_told_again_by_its_request_id() {
    for cuts in [false, true] {
        let request = |token: &str| RotateSessionRequest {
            new_token: successor_of(token),
            request_id: "request-0000000001".into(),
            authentication: by_password(),
            ..rotation_of(token)
        };
        let (lost, request) = lose_the_answer(request, cuts).await;
        let (session, _) = lost.client.rotate_as(request.clone()).await.unwrap();
        assert_eq!((session.token_generation, &session.authentication), (2, &by_password()));
        assert_eq!(lost.client.standing(&request.new_token).await.unwrap(), TokenState::Current);
        assert_eq!(lost.client.rotate_as(request).await.unwrap().0, session);
    }
}

#[tokio::test]
async fn s8_no_secret_of_any_generation_appears_anywhere() {
    let world = World::own();
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        config.path(),
        "[default_policy]\nrotation_grace = '0s'\ntoken_reuse = 'report'\n[namespace.ends]\ntoken_reuse = 'end'",
    )
    .unwrap();
    let redis = format!("--redis={}", world.redis.url());
    let process = Process::start(&[redis, format!("--config={}", config.path().display()), "--log-level=trace".into()]);
    let reports = process.client().await;
    let mut secrets = Vec::new();
    let (mut told, mut kinds_told) = (String::new(), Vec::new());
    for client in [&reports, &reports.in_namespace("ends")] {
        let mut watching = client.watch_all().await;
        let foreign = format!("a-foreign-token-in-namespace-{}", client.namespace);
        let create = CreateSessionRequest { token: foreign.clone(), ..Default::default() };
        let (session, _) = client.create_as(create).await.unwrap();
        let mut tokens = vec![foreign.clone()];
        tokens.push(client.rotate(&foreign).await.unwrap());
        // One that the caller made, and was told of by nobody.
        let new_token = successor_of(&tokens[1]);
        let request_id = "request-0000000001".to_owned();
        let request = RotateSessionRequest { new_token: new_token.clone(), request_id, ..rotation_of(&tokens[1]) };
        let (session, none) =
            client.rotate_as(request.clone()).await.map(|(now, token)| (now.id == session.id, token)).unwrap();
        assert!(session && none.is_empty());
        client.rotate_as(request).await.unwrap();
        tokens.push(new_token);
        tokens.push(client.rotate_and_use(&tokens[2]).await);
        // In the wrong fields, too; the last of all steals.
        for (token, other) in tokens.iter().zip(tokens.iter().rev()) {
            told += &format!("{:?}", client.get(by_id(token)).await.map(drop));
            let request = RotateSessionRequest { new_token: other.clone(), ..rotation_of(token) };
            told += &format!("{:?}", client.rotate_as(request).await.map(drop));
            let update = UpdateSessionRequest { request_id: token.clone(), ..login(other, "") };
            told += &format!("{:?}", client.update(update).await.map(drop));
        }
        for call in EVERY_CALL {
            for token in &tokens {
                told += &client.present(call, token).await;
            }
        }
        let events = watching.everything_so_far().await;
        kinds_told.extend(kinds(&events));
        told += &format!("{events:?}");
        secrets.extend(tokens);
    }
    for kind in [EventType::TokenReused, EventType::Rotated, EventType::Ended] {
        assert!(kinds_told.contains(&kind), "no {kind:?} among {kinds_told:?}");
    }
    told += &process.log.lock().unwrap();
    told += &process.metrics().await;
    told += &String::from_utf8_lossy(&world.redis.contents());
    assert!(told.len() > 10_000, "something was looked through");
    for secret in &secrets {
        let secret = if secret.starts_with("ses_") { &secret[31..] } else { secret };
        assert!(!told.contains(secret), "a secret stands in: {told}");
    }
}
