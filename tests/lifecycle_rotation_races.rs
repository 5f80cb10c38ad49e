//! S6 under concurrency: rotations of one token that run together, arrive late, or lose their response.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use harness::{Client, Server, World, client::*, eventually, proxy::Proxy, tokens::*};
use sessiond::store::scripts;
use sessiond_client::v1::{EventType, RotateSessionRequest, Session, SessionEvent, TokenState};
use tonic::Code;

fn kinds(events: &[SessionEvent]) -> Vec<EventType> {
    events.iter().map(SessionEvent::r#type).collect()
}

/// Sends these rotations at the same time, in turn to both servers.
async fn rotate_together(
    clients: &[Client; 2],
    rotations: impl IntoIterator<Item = RotateSessionRequest>,
) -> Vec<CallResult<(Session, String)>> {
    let calls = rotations.into_iter().enumerate().map(|(n, rotation)| clients[n % 2].rotate_with(rotation));
    join_all(calls).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_parallel_rotations_return_one_successor() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    let mut watching = clients[0].watch_all().await;
    for round in 0..20 {
        let (session, first) = clients[0].create(&[]).await;
        let answers = rotate_together(&clients, vec![rotation_of(&first); 64]).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "round {round}: two successors");
        let (rotated, second) = &answers[0];
        assert_eq!((&rotated.id, rotated.token_generation), (&session.id, 2));
        assert_eq!(clients[round % 2].token_state(second).await.unwrap(), TokenState::Current);
        assert_eq!(clients[round % 2].token_state(&first).await.unwrap(), TokenState::Superseded);
        let events = watching.events_until_now().await;
        assert_eq!(kinds(&events), [EventType::Created, EventType::Rotated], "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_parallel_rotations_with_use_lead_to_one_token() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    for round in 0..20 {
        let (session, first) = clients[0].create(&[]).await;
        let tabs = join_all((0..16).map(async |n: usize| {
            let token = clients[n % 2].rotate(&first).await?;
            clients[(n + 1) % 2].get(by_token(&token)).await?;
            Ok::<_, tonic::Status>(token)
        }));
        let mut won = Vec::new();
        for answer in tabs.await {
            match answer {
                Ok(token) => won.push(token),
                // Another tab has presented the successor.
                Err(status) => assert_eq!(status.reason(), "TOKEN_ROTATED", "round {round}"),
            }
        }
        assert!(won.iter().all(|token| *token == won[0]), "round {round}: two branches");
        assert_eq!(clients[0].get(by_id(&session.id)).await.unwrap().token_generation, 2, "round {round}");
        assert_eq!(clients[1].token_state(&won[0]).await.unwrap(), TokenState::Current);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_parallel_rotations_apply_all_their_attributes() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    for round in 0..10 {
        let (_, first) = clients[0].create(&[]).await;
        let names = (0..24).map(|n| format!("n{n}"));
        let expected: BTreeMap<_, _> = names.map(|name| (name, text("1"))).collect();
        let rotations = expected.iter().map(|(name, value)| RotateSessionRequest {
            set_attributes: [(name.clone(), value.clone())].into(),
            ..rotation_of(&first)
        });
        let tokens: Vec<_> =
            rotate_together(&clients, rotations).await.into_iter().map(|answer| answer.unwrap().1).collect();
        assert!(tokens.iter().all(|token| *token == tokens[0]), "round {round}: two successors");
        let session = clients[0].get(by_token(&tokens[0])).await.unwrap();
        assert_eq!((session.token_generation, session.attributes), (2, expected), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_parallel_rotations_and_a_login_never_share_a_token() {
    let world = World::shared();
    let (_servers, clients) = world.pair_with("").await;
    for round in 0..30 {
        let (session, first) = clients[0].create(&[]).await;
        let login = RotateSessionRequest { subject: Some("alice".into()), ..rotation_of(&first) };
        let mut rotations = vec![rotation_of(&first); 8];
        rotations.insert(round % 9, login);
        let mut answers = rotate_together(&clients, rotations).await;
        let logged_in = answers.remove(round % 9);
        let rotated: Vec<_> = answers.iter().filter_map(|answer| Some(&answer.as_ref().ok()?.1)).collect();
        let current = match &logged_in {
            Ok((_, token)) => {
                assert!(rotated.is_empty(), "round {round}: a token from before the login led to one after it");
                token
            }
            Err(status) => {
                assert_eq!(status.reason(), "TOKEN_ROTATED", "round {round}");
                assert_eq!(rotated.len(), 8, "round {round}");
                assert!(rotated.iter().all(|token| *token == rotated[0]), "round {round}: two successors");
                rotated[0]
            }
        };
        let session = clients[0].get(by_id(&session.id)).await.unwrap();
        assert_eq!((session.token_generation, &session.subject[..] == "alice"), (2, logged_in.is_ok()));
        assert_eq!(clients[1].token_state(current).await.unwrap(), TokenState::Current);
    }
}

/// A server whose Redis a proxy holds back, and a client of another one.
struct Held {
    _world: World,
    proxy: Proxy,
    _servers: [Server; 2],
    held: Client,
    client: Client,
}

async fn held() -> Held {
    let world = World::dedicated();
    let (proxy, servers, [held, client]) = world.proxied_pair().await;
    // Loads the scripts into Redis, and gives the server an estimate of its clock.
    held.rotate_and_use(&held.create(&[]).await.1).await;
    Held { _world: world, proxy, _servers: servers, held, client }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_rotation_that_reaches_redis_late_changes_no_token() {
    for is_presented in [false, true] {
        let Held { proxy, held, client, .. } = &held().await;
        let (session, first) = client.create(&[]).await;
        proxy.hold_requests();
        let overtaking = async {
            // The held rotation has been sent, or will be held when it is sent.
            let second = client.rotate(&first).await.unwrap();
            if is_presented {
                client.get(by_token(&second)).await.unwrap();
            }
            proxy.release_requests();
            second
        };
        let (late, second) = tokio::join!(held.rotate(&first), overtaking);
        if is_presented {
            expect_error(late, Code::NotFound, "TOKEN_ROTATED");
            let late = client.rotate_with(rotation_of(&first)).await;
            expect_error(late, Code::NotFound, "TOKEN_ROTATED");
        } else {
            assert_eq!(late.unwrap(), second);
        }
        assert_eq!(client.token_state(&second).await.unwrap(), TokenState::Current);
        assert_eq!(client.get(by_id(&session.id)).await.unwrap().token_generation, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_rotation_with_a_lost_response_is_repeated() {
    for cuts in [false, true] {
        let Held { proxy, held, client, .. } = &held().await;
        let mut watching = client.watch_all().await;
        let (session, first) = client.create(&[]).await;
        proxy.hold_replies_after(&scripts::ROTATE, 1);
        let fault = async {
            eventually("the token is rotated", async || {
                (client.get(by_id(&session.id)).await.unwrap().token_generation == 2).then_some(())
            })
            .await;
            if cuts {
                proxy.cut();
            }
        };
        let (lost, ()) = tokio::join!(held.rotate(&first), fault);
        assert_eq!(lost.unwrap_err().reason(), "OUTCOME_UNKNOWN");
        proxy.release_replies();
        let issued = client.rotate_with(rotation_of(&first)).await.unwrap();
        assert_eq!(issued.0.token_generation, 2, "the repeated rotation issued another token");
        let again = eventually("the server is back", async || held.rotate_with(rotation_of(&first)).await.ok()).await;
        assert_eq!(again, issued);
        assert_eq!(client.token_state(&issued.1).await.unwrap(), TokenState::Current);
        assert_eq!(kinds(&watching.events_until_now().await), [EventType::Created, EventType::Rotated]);
    }
}
