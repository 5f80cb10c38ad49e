//! S6 under concurrency: rotations next to other rotations, a login, a delete, or a fault.

use std::collections::HashSet;

use futures_util::future::join_all;
use harness::{Client, Server, World, client::*, eventually, process::Process, proxy::Proxy, tokens::*};
use sessiond::store::scripts;
use sessiond_client::v1::{
    CreateSessionRequest, EventType, RotateSessionRequest, SessionEvent, TokenState, UpdateSessionRequest,
};
use tokio::sync::Barrier;
use tonic::Code;

/// Starts both at the same moment.
async fn run_together<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
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

/// Two servers on one store, and a client for each.
async fn two(world: &World) -> ([Server; 2], [Client; 2]) {
    let servers = [world.server().await, world.server().await];
    let clients = [servers[0].client().await, servers[1].client().await];
    (servers, clients)
}

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_parallel_logins_with_one_token_succeed_once() {
    let world = World::shared();
    let (_servers, clients) = two(&world).await;
    for round in 0..20 {
        let (session, first) = clients[0].create(&[]).await;
        let logins = (0..16).map(async |n: usize| {
            let subject = (!n.is_multiple_of(3)).then(|| format!("user{n}"));
            let request = RotateSessionRequest { subject, ..rotation_of(&first) };
            let request = RotateSessionRequest { authentication: by_password(), ..request };
            clients[n % 2].rotate_with(request).await
        });
        let won: Vec<_> = join_all(logins).await.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(clients[1].get(by_token(&won[0].1)).await.unwrap(), won[0].0);
        assert_eq!(clients[0].present(Call::Get, &first).await, "TOKEN_ROTATED");
        clients[0].delete(by_id(&session.id)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_rotation_during_a_login_leaves_no_old_token_logged_in() {
    let world = World::shared();
    let (_servers, clients) = two(&world).await;
    let mut orders = HashSet::new();
    for round in 0..60 {
        let (session, first) = clients[0].create(&[]).await;
        let (one, other) = (&clients[round % 2], &clients[(round + 1) % 2]);
        let (rotated, logged_in) = run_together(one.rotate(&first), other.update(login(&first, "alice"))).await;
        let second = rotated.unwrap();
        let subject = clients[0].get(by_id(&session.id)).await.unwrap().subject;
        match &logged_in {
            // The login was first; the rotation after it started a new grace period.
            Ok(_) => assert_eq!(subject, "alice"),
            Err(status) => assert_eq!((status.reason().as_str(), subject.as_str()), ("TOKEN_ROTATED", "")),
        }
        assert_eq!(clients[0].token_state(&second).await.unwrap(), TokenState::Current);
        assert_eq!(clients[0].token_state(&first).await.unwrap(), TokenState::Superseded);
        orders.insert(logged_in.is_ok());
    }
    assert!(!orders.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_rotation_during_a_delete_does_not_revive_the_session() {
    let world = World::shared();
    let (_servers, clients) = two(&world).await;
    let mut watching = clients[0].watch_all().await;
    for round in 0..60 {
        let (session, first) = clients[0].create_for("alice").await;
        let (one, other) = (&clients[round % 2], &clients[(round + 1) % 2]);
        let key = if round % 3 == 0 { by_id(&session.id) } else { by_token(&first) };
        let (rotated, deleted) = run_together(one.rotate(&first), other.delete(key)).await;
        assert!(deleted.unwrap(), "the old token does not end the session within its grace period");
        let mut expected = vec![EventType::Created, EventType::Ended];
        match rotated {
            Ok(second) => {
                expect_error(clients[0].get(by_token(&second)).await, Code::NotFound, "SESSION_ENDED");
                expect_error(clients[1].rotate(&second).await, Code::NotFound, "SESSION_ENDED");
                expected.insert(1, EventType::Rotated);
            }
            Err(status) => assert_eq!(status.reason(), "SESSION_ENDED"),
        }
        expect_error(clients[1].get(by_id(&session.id)).await, Code::NotFound, "SESSION_ENDED");
        assert_eq!(kinds(&watching.events_until_now().await), expected, "round {round}");
    }
    assert!(clients[0].list_subject("alice").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_parallel_token_reuse_ends_or_reports_the_session_once() {
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
            let presented = (0..32).map(async |n: usize| clients[n % 2].present(REJECTING_CALLS[n % 6], &first).await);
            for answer in join_all(presented).await {
                assert!(["SESSION_ENDED", "TOKEN_ROTATED"].contains(&&answer[..]), "{answer}");
            }
            let events = watching.events_until_now().await;
            assert_eq!(kinds(&events), [EventType::Created, EventType::Rotated, kind], "round {round}");
        }
    }
}

/// A server whose Redis applied a rotation and whose response to it was lost.
struct LostResponse {
    _world: World,
    _server: Server,
    client: Client,
}

/// Loses the response to a rotation: by a cut connection, or by the call's deadline.
async fn lose_the_response(
    request: impl FnOnce(&str) -> RotateSessionRequest,
    cuts: bool,
) -> (LostResponse, RotateSessionRequest) {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, "[limits]\ncall_timeout = '700ms'").await;
    let client = server.client().await;
    let direct = world.server().await;
    let observer = direct.client().await;
    // Loads the scripts into Redis.
    client.rotate_and_use(&client.create(&[]).await.1).await;
    let (session, first) = client.create(&[]).await;
    let request = request(&first);
    proxy.hold_replies_after(&scripts::ROTATE, 1);
    let rotation = client.rotate_with(request.clone());
    let fault = async {
        eventually("the token is rotated", async || {
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
    proxy.release_replies();
    eventually("the server is back", async || client.get(by_id(&session.id)).await.ok()).await;
    (LostResponse { _world: world, _server: server, client }, request)
}

#[tokio::test]
async fn s5_lost_rotation_response_is_repeated_by_its_request_id() {
    for cuts in [false, true] {
        let request = |token: &str| RotateSessionRequest {
            new_token: successor_of(token),
            request_id: "request-0000000001".into(),
            authentication: by_password(),
            ..rotation_of(token)
        };
        let (lost, request) = lose_the_response(request, cuts).await;
        let (session, _) = lost.client.rotate_with(request.clone()).await.unwrap();
        assert_eq!((session.token_generation, &session.authentication), (2, &by_password()));
        assert_eq!(lost.client.token_state(&request.new_token).await.unwrap(), TokenState::Current);
        assert_eq!(lost.client.rotate_with(request).await.unwrap().0, session);
    }
}

#[tokio::test]
async fn s8_secrets_of_all_generations_appear_in_no_output() {
    let world = World::dedicated();
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
    let (mut output, mut all_kinds) = (String::new(), Vec::new());
    for client in [&reports, &reports.in_namespace("ends")] {
        let mut watching = client.watch_all().await;
        let client_token = format!("a-client-token-in-namespace-{}", client.namespace);
        let create = CreateSessionRequest { token: client_token.clone(), ..Default::default() };
        let (session, _) = client.create_with(create).await.unwrap();
        let mut tokens = vec![client_token.clone()];
        tokens.push(client.rotate(&client_token).await.unwrap());
        // A token that the caller makes and no response contains.
        let new_token = successor_of(&tokens[1]);
        let request_id = "request-0000000001".to_owned();
        let request = RotateSessionRequest { new_token: new_token.clone(), request_id, ..rotation_of(&tokens[1]) };
        let (rotated, returned) = client.rotate_with(request.clone()).await.unwrap();
        assert!(rotated.id == session.id && returned.is_empty());
        client.rotate_with(request).await.unwrap();
        tokens.push(new_token);
        tokens.push(client.rotate_and_use(&tokens[2]).await);
        // Tokens in the wrong fields too; the last call is token reuse.
        for (token, other) in tokens.iter().zip(tokens.iter().rev()) {
            output += &format!("{:?}", client.get(by_id(token)).await.map(drop));
            let request = RotateSessionRequest { new_token: other.clone(), ..rotation_of(token) };
            output += &format!("{:?}", client.rotate_with(request).await.map(drop));
            let update = UpdateSessionRequest { request_id: token.clone(), ..login(other, "") };
            output += &format!("{:?}", client.update(update).await.map(drop));
        }
        for call in EVERY_CALL {
            for token in &tokens {
                output += &client.present(call, token).await;
            }
        }
        let events = watching.events_until_now().await;
        all_kinds.extend(kinds(&events));
        output += &format!("{events:?}");
        secrets.extend(tokens);
    }
    for kind in [EventType::TokenReused, EventType::Rotated, EventType::Ended] {
        assert!(all_kinds.contains(&kind), "no {kind:?} among {all_kinds:?}");
    }
    output += &process.log.lock().unwrap();
    output += &process.metrics().await;
    output += &String::from_utf8_lossy(&world.redis.contents());
    assert!(output.len() > 10_000, "the output is complete");
    for secret in &secrets {
        let secret = if secret.starts_with("ses_") { &secret[31..] } else { secret };
        assert!(!output.contains(secret), "the output contains a secret: {output}");
    }
}
