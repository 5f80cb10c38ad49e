//! A wrong token: the response and the cost in Redis are the same as for a session that does not exist.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

use harness::{World, client::*};
use sessiond_client::v1::{
    Authentication, GetSessionRequest, RotateSessionRequest, TouchSessionRequest, UpdateSessionRequest, WatchRequest,
};
use tonic::Code;

/// Reads the commands that Redis runs from MONITOR.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn start(world: &World) -> Self {
        let mut stream = UnixStream::connect(world.redis.socket()).unwrap();
        stream.write_all(b"*1\r\n$7\r\nMONITOR\r\n").unwrap();
        let mut monitor = Monitor(BufReader::new(stream));
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Returns the commands that scripts ran on the session's key since the previous call, without the key.
    fn commands_on(&mut self, world: &World, id: &str) -> Vec<String> {
        let marker = format!("marker-{id}-{}", new_token());
        world.redis.command(&["ECHO", &marker]);
        let key = format!(":s:web:{id}\"");
        let mut commands = Vec::new();
        loop {
            let line = self.line();
            if line.contains(&marker) {
                return commands;
            }
            if line.contains(" lua] ") && line.contains(&key) {
                let (_, command) = line.split_once(" lua] ").unwrap();
                commands
                    .push(command.split('"').enumerate().filter(|(at, _)| *at != 3).map(|(_, part)| part).collect());
            }
        }
    }
}

/// Makes every call that takes a token; returns the error of each.
async fn present(client: &Client, token: &str) -> Vec<(&'static str, tonic::Status)> {
    let namespace = || client.namespace.clone();
    let key = || by_token(token);
    let grpc = || client.grpc.clone();
    let update = |update: UpdateSessionRequest| async move {
        let update = UpdateSessionRequest { namespace: client.namespace.clone(), key: by_token(token), ..update };
        client.grpc.clone().update_session(update).await.unwrap_err()
    };
    let set = UpdateSessionRequest { set_attributes: [("a".into(), text("1"))].into(), ..Default::default() };
    let log_in = UpdateSessionRequest {
        subject: Some("eve".into()),
        authentication: Some(Authentication { level: 3, ..Default::default() }),
        ..Default::default()
    };
    let stale = UpdateSessionRequest { if_revision: Some(1), ..Default::default() };
    let get = |touch| GetSessionRequest { namespace: namespace(), key: key(), touch, ..Default::default() };
    let rotate = RotateSessionRequest { namespace: namespace(), token: token.into(), ..Default::default() };
    let touch = TouchSessionRequest { namespace: namespace(), key: key() };
    let watch = WatchRequest { namespace: namespace(), keys: key().into_iter().collect(), ..Default::default() };
    vec![
        ("get", grpc().get_session(get(false)).await.unwrap_err()),
        ("get with touch", grpc().get_session(get(true)).await.unwrap_err()),
        ("touch", grpc().touch_session(touch).await.unwrap_err()),
        ("set", update(set).await),
        ("log in", update(log_in).await),
        ("with a stale revision", update(stale).await),
        ("rotate", grpc().rotate_session(rotate).await.unwrap_err()),
        ("watch", grpc().watch(watch).await.unwrap_err()),
    ]
}

#[tokio::test]
async fn wrong_token_is_answered_and_costs_the_same_as_no_session() {
    let world = World::dedicated();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let (_, plain) = client.create(&[("large", text(&incompressible(10_000)))]).await;
    let (_, rotated) = client.create(&[]).await;
    client.rotate(&rotated).await.unwrap();
    let (_, ended) = client.create(&[]).await;
    assert!(client.delete(by_token(&ended)).await.unwrap());
    let unknown = new_token();
    let mut monitor = Monitor::start(&world);

    let mut expected = None;
    for (what, token) in [("unknown", unknown), ("live", plain), ("rotated", rotated), ("ended", ended)] {
        let id = id_of(&token);
        let mut errors = Vec::new();
        for (call, status) in present(&client, &successor_of(&token)).await {
            assert_eq!((status.code(), &status.reason()[..]), (Code::NotFound, "SESSION_NOT_FOUND"), "{what}: {call}");
            errors.push((status.message().to_owned(), status.details().to_vec()));
        }
        let commands = monitor.commands_on(&world, &id);
        assert!(!commands.is_empty(), "{what}");
        let expected = expected.get_or_insert_with(|| (errors.clone(), commands.clone()));
        assert_eq!(expected, &(errors, commands), "{what}");
    }
}
