//! The client on the command line, as people and scripts meet it.

mod harness;

use std::{os::unix::process::ExitStatusExt, path::PathBuf};

use harness::{
    cli::{Cli, command, run},
    client::*,
    relay::Relay,
    *,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sessiond_client::v1::{CreateSessionRequest, EventType};
use tempfile::TempDir;

/// A client of a server; the world goes on until it is dropped.
async fn cli_and_server() -> (Cli, Server, World) {
    let world = World::shared();
    let server = world.server().await;
    (Cli::of(&server.address), server, world)
}

/// A file with this token in it.
fn token_file(token: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, format!("{token}\n")).unwrap();
    (directory, path)
}

/// The value that stands beside this name.
#[track_caller]
fn beside<'a>(name: &str, output: &'a str) -> &'a str {
    let line = output.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name} in:\n{output}"))[name.len()..].trim()
}

#[tokio::test]
async fn a_session_is_made_read_changed_used_and_ended() {
    let (cli, _server, _world) = cli_and_server().await;
    let create = ["create", "--subject", "1", "--set", "name=Bob", "--set-json", "cart=[1, 2]", "--label", "on=web"];
    let made = cli.run(&[&create[..], &["--idle-timeout", "20m", "--absolute-timeout", "0s"]].concat()).await.good();
    let (id, token) = (beside("id", &made), beside("token", &made));
    assert_eq!(id_of(token), id);
    assert_eq!((beside("idle_timeout", &made), beside("absolute_expire_time", &made)), ("20m", "never"));

    let read = cli.run(&["get", id]).await.good();
    assert_eq!((beside("subject", &read), beside("label.on", &read)), ("1", "web"));
    assert_eq!(
        (beside("attribute.name", &read), beside("attribute.cart", &read)),
        ("string     Bob", "json       [1, 2]")
    );
    assert!(!read.contains("token_state") && !read.contains(token), "{read}");

    let change = ["--set", "name=Al=ice", "--remove", "cart", "--label", "a=b", "--remove-label", "on", "--touch"];
    let revision = beside("revision", &read);
    let changed = cli.run(&[&["update", id, "--if-revision", revision][..], &change].concat()).await.good();
    assert_eq!((beside("attribute.name", &changed), beside("label.a", &changed)), ("string     Al=ice", "b"));
    assert!(!changed.contains("cart") && !changed.contains("label.on"), "{changed}");

    let used = cli.run(&["touch", id]).await.good();
    assert_eq!(used.trim(), beside("expire_time", &cli.run(&["get", id]).await.good()));

    assert_eq!(cli.run(&["delete", id, "--cause", "revoked"]).await.good(), "1 deleted\n");
    assert_eq!(cli.run(&["delete", id]).await.good(), "0 deleted\n");
    let ended = cli.run(&["get", id]).await.failed(1);
    assert_eq!(ended, "NOT_FOUND SESSION_ENDED: the session has ended: REVOKED (cause=REVOKED)\n");
}

#[tokio::test]
async fn json_is_that_of_proto3() {
    let (cli, _server, _world) = cli_and_server().await;
    let made = cli.run(&["create", "-o", "json", "--set", "a=b", "--set-json", "j={\"x\": 1.0}"]).await.json();
    let session = &made["session"];
    assert_eq!(session["attributes"]["a"]["stringValue"], "b");
    assert_eq!(session["attributes"]["j"]["jsonValue"], "{\"x\": 1.0}");
    assert!(session["revision"].as_str().unwrap().parse::<i64>().is_ok(), "64 bits are a text: {session}");
    assert!(session["expireTime"].as_str().unwrap().ends_with('Z'));
    assert_eq!(session["idleTimeout"], "1800s");
    assert_eq!(session["tokenGeneration"], 1);
    assert!(session.get("subject").is_none(), "what is empty is left out");
    let (id, token) = (session["id"].as_str().unwrap(), made["token"].as_str().unwrap());

    let read = cli.run_with(&["get", "-o", "json", "--token-file", "-"], token).await.json();
    assert_eq!((&read["session"], read["tokenState"].as_str()), (session, Some("TOKEN_STATE_CURRENT")));
    assert_eq!(cli.run(&["update", id, "-o", "json"]).await.json()["session"], *session);
    let used = cli.run(&["touch", id, "-o", "json"]).await.json();
    assert_eq!(used["expireTime"], session["expireTime"]);
    assert_eq!(cli.run(&["list", "-o", "json"]).await.json()["sessions"][0]["id"], id);
    let deleted = cli.run(&["delete", "-o", "json", id, id]).await.good();
    assert_eq!(deleted, "{\"deleted\":true}\n{}\n", "one response a line");
}

#[tokio::test]
async fn a_token_is_read_from_the_first_line_of_a_file_or_of_standard_input() {
    let (cli, _server, _world) = cli_and_server().await;
    let token = new_token();
    let (_directory, path) = token_file(&token);
    let path = path.to_str().unwrap();

    let made = cli.run(&["create", "--token-file", path, "--request-id", "0123456789abcdef"]).await.good();
    assert_eq!(beside("id", &made), id_of(&token));
    assert!(!made.contains(&token), "who made a token is not told it");

    let read = cli.run(&["get", "--token-file", path, "--touch"]).await.good();
    assert_eq!(beside("token_state", &read), "CURRENT");
    for input in [token.clone(), format!("{token}\n"), format!("{token}\r\nmore\n")] {
        cli.run_with(&["touch", "--token-file", "-"], &input).await.good();
    }
    let changed = cli.run_with(&["update", "--token-file", "-", "--set", "a=b"], &token).await.good();
    assert_eq!(beside("attribute.a", &changed), "string     b");
    assert_eq!(cli.run(&["delete", "--token-file", path]).await.good(), "1 deleted\n");
    let ended = cli.run(&["get", "--token-file", path]).await.failed(1);
    assert!(ended.contains("SESSION_ENDED") && !ended.contains(&token), "{ended}");
}

#[tokio::test]
async fn what_holds_no_token_is_refused_before_anything_is_sent() {
    let nowhere = Cli::of("127.0.0.1:1");
    for (input, says) in [("", "is empty"), ("\nx", "is empty"), (&"x".repeat(2_000)[..], "is too long")] {
        let refused = nowhere.run_with(&["get", "--token-file", "-"], input).await.failed(2);
        assert!(refused.contains(says) && refused.contains("--token-file"), "{refused}");
    }
    let missing = nowhere.run(&["get", "--token-file", "/nowhere/at-all"]).await.failed(2);
    assert!(missing.contains("No such file") && !missing.contains("at-all"), "{missing}");
    let both = nowhere.run(&["rotate", "--token-file", "-", "--new-token-file", "-"]).await.failed(2);
    assert!(both.contains("cannot both be standard input"), "{both}");
}

#[tokio::test]
async fn a_token_on_the_command_line_is_refused_and_not_repeated() {
    // Nobody listens there: what is refused before has another exit code.
    let nowhere = Cli::of("127.0.0.1:1");
    let (server_form, foreign) = (new_token(), "a-framework-made-this-0123456789".to_owned());
    for token in [&server_form[..], &foreign] {
        let mistakes: [&[&str]; 13] = [
            &["get", token],
            &["touch", token],
            &["update", token, "--set", "a=b"],
            &["delete", token],
            &["delete", &server_form[4..30], token],
            &["delete", "--subject", "1", "--except", token],
            &["watch", token],
            &["rotate", token],
            &["rotate", "--token-file", "-", token],
            &["create", token],
            &["list", token],
            &["get", "--token-file", token],
            &["get", &server_form[4..30], token],
        ];
        for arguments in mistakes {
            let refused = nowhere.run(arguments).await.failed(2);
            assert!(!refused.contains(token) && refused.contains("--token-file"), "{arguments:?}: {refused}");
        }
    }
    let tokens = [format!("--cause={server_form}"), format!("--limit={server_form}")];
    for (name, mistake) in [("delete", &tokens[0]), ("list", &tokens[1]), (&server_form[..], &server_form)] {
        let refused = nowhere.run(&[name, mistake]).await.failed(2);
        assert!(!refused.contains(&server_form), "{refused}");
    }
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_what_to_do() {
    let world = World::own();
    let server = world.server().await;
    let cli = Cli::of(&server.address);
    let (session, _) = server.client().await.create(&[]).await;
    let told = cli.run(&["update", &session.id, "--set", "a=b", "--if-revision", "1"]).await.failed(1);
    let revision = session.revision;
    assert!(told.starts_with("ABORTED REVISION_MISMATCH: ") && told.lines().count() == 1, "{told}");
    assert!(told.contains(&format!("(current_revision={revision})")), "{told}");

    let told = cli.run(&["create", "--label", "A=b", "--idle-timeout", "500d"]).await.failed(1);
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines[0], "INVALID_ARGUMENT FIELD_INVALID: the request is refused");
    assert!(lines[1].starts_with("  labels[\"A\"]: ") && lines[2].starts_with("  idle_timeout: "), "{told}");

    let told = cli.run(&["get", "aaaaaaaaaaaaaaaaaaaaaaaaaa"]).await.failed(1);
    assert_eq!(told, "NOT_FOUND SESSION_NOT_FOUND: no live session for this key\n");
    let told = cli.run(&["get", "--token-file", "-"]).await.failed(2);
    assert!(told.contains("is empty"), "{told}");
    world.redis.pause();
    let told = cli.run(&["get", &session.id, "--timeout", "200ms"]).await.failed(1);
    assert!(told.starts_with("DEADLINE_EXCEEDED"), "{told}");
    world.redis.resume();

    let twice = [["--set", "a=b", "--set-json", "a=1"], ["--label", "a=b", "--label", "a=b"]];
    for twice in twice {
        let told = cli.run(&[&["create"][..], &twice].concat()).await.failed(2);
        assert!(told.ends_with(" \"a\" is given twice\n"), "{told}");
    }
    for usage in [&["get"][..], &["create", "--set", "a"], &["list", "--timeout", "2h"], &["watch", "--type", "x"]] {
        cli.run(usage).await.failed(2);
    }
}

#[tokio::test]
async fn where_no_server_is_the_endpoint_is_named() {
    let nowhere = Cli::of("127.0.0.1:1");
    for arguments in [&["list"][..], &["create"], &["watch"]] {
        let told = nowhere.run(arguments).await.failed(1);
        let says = ["http://127.0.0.1:1", "Connection refused", "--endpoint", "SESSIOND_ENDPOINT"];
        assert!(says.iter().all(|text| told.contains(text)) && told.lines().count() == 1, "{told}");
    }
    let told = run(command(&["list", "-n", "web", "--endpoint", "https://127.0.0.1:1"]), "").await.failed(2);
    assert!(told.contains("only http://"), "{told}");
}

#[tokio::test]
async fn endpoint_and_namespace_come_from_the_environment_too() {
    let (_, server, _world) = cli_and_server().await;
    let (session, _) = server.client().await.create(&[]).await;
    let mut list = command(&["list", "-o", "json"]);
    list.env("SESSIOND_ENDPOINT", &server.address).env("SESSIOND_NAMESPACE", NAMESPACE);
    assert_eq!(run(list, "").await.json()["sessions"][0]["id"], session.id);
    let mut list = command(&["list"]);
    list.env_remove("SESSIOND_NAMESPACE");
    assert!(run(list, "").await.failed(2).contains("--namespace"));
}

#[tokio::test]
async fn a_list_follows_all_pages() {
    const SESSIONS: usize = 1_030;
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    for number in 0..SESSIONS {
        let labels = labels(&[("half", if number % 2 == 0 { "even" } else { "odd" })]);
        client.create_as(CreateSessionRequest { labels, ..Default::default() }).await.unwrap();
    }
    assert_eq!(cli.run(&["list", "--count"]).await.good(), format!("{SESSIONS}\n"));
    assert_eq!(cli.run(&["list", "--count", "--label", "half=odd"]).await.good(), format!("{}\n", SESSIONS / 2));
    let table = cli.run(&["list"]).await.good();
    assert_eq!(table.lines().count(), 1 + SESSIONS);
    let starts: Vec<_> = table.lines().map(|line| line.find("half=").or(line.find("LABELS")).unwrap()).collect();
    assert!(starts.iter().all(|start| *start == starts[0]), "columns line up");
    for limit in [1, 1_010] {
        let some = cli.run(&["list", "-o", "json", "--limit", &limit.to_string()]).await.json();
        assert_eq!(some["sessions"].as_array().unwrap().len(), limit);
    }
    cli.run(&["list", "--limit", "0"]).await.failed(2);
}

#[tokio::test]
async fn a_table_gives_the_terminal_no_orders() {
    let (cli, server, _world) = cli_and_server().await;
    let request = CreateSessionRequest { subject: "a\u{1b}[2J\nb".into(), ..Default::default() };
    let (session, _) = server.client().await.create_as(request).await.unwrap();
    for arguments in [&["get", &session.id][..], &["list"]] {
        let table = cli.run(arguments).await.good();
        assert!(table.contains("a\\u{1b}[2J\\nb") && !table.contains('\u{1b}'), "{table}");
    }
}

#[tokio::test]
async fn a_watch_prints_a_line_for_each_change() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let (mut table, mut full) =
        (cli.start(&["watch"], ""), cli.start(&["watch", "--full", "--type", "created", "--type", "updated"], ""));
    assert!(table.line_with("REVISION").await.starts_with("TIME"), "the header says that the watch is open");
    full.line_with("REVISION").await;

    let (session, token) = client.create(&[("cart", text("1"))]).await;
    let created = table.line().await.unwrap();
    let columns: Vec<_> = created.split_whitespace().collect();
    let revision = session.revision.to_string();
    assert_eq!(columns[1..], ["CREATED", &session.id, "-", &revision, "-", "-"], "{created}");
    assert!(full.line_with("CREATED").await.ends_with("  cart=1"));
    client.set(by_id(&session.id), &[("cart", text("2"))]).await.unwrap();
    assert!(table.line_with("UPDATED").await.ends_with("  cart"));
    assert!(full.line_with("UPDATED").await.ends_with("  cart=2"));
    client.delete(by_token(&token)).await.unwrap();
    assert!(table.line_with("ENDED").await.contains("LOGOUT"));
}

/// The events in a line of JSON.
fn events(line: &str) -> Vec<Value> {
    let response: Value = serde_json::from_str(line).unwrap();
    assert!(response["resumeToken"].is_string(), "{response}");
    response["events"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_watch_tells_what_lives_first_where_that_is_asked_for() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let (session, _) = client.create_of("anna").await;
    let mut watch = cli.start(&["watch", "--initial-state"], "");
    let row = watch.line_with("SNAPSHOT").await;
    assert!(row.contains(&session.id) && row.contains("anna"), "{row}");
    watch.line_with("SYNCED").await;
    client.delete(by_id(&session.id)).await.unwrap();
    assert!(watch.line_with("ENDED").await.contains(&session.id));
}

#[tokio::test]
async fn a_watch_goes_on_from_a_resume_token() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let mut first = cli.start(&["watch", "-o", "json"], "");
    let response: Value = serde_json::from_str(&first.line().await.unwrap()).unwrap();
    let position = response["resumeToken"].as_str().unwrap();
    let (session, _) = client.create(&[]).await;
    let mut second = cli.start(&["watch", "-o", "json", "--resume-token", position], "");
    let line = second.line_with("\"events\"").await;
    let told = &events(&line)[0];
    assert_eq!((told["type"].as_str(), told["id"].as_str()), (Some("EVENT_TYPE_CREATED"), Some(&session.id[..])));
    assert!(cli.run(&["watch", "--resume-token", "?"]).await.failed(2).contains("base64"));
}

#[tokio::test]
async fn a_watch_ends_with_what_it_watches() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let ((session, token), (other, _)) = (client.create(&[]).await, client.create(&[]).await);
    let mut by_ids = cli.start(&["watch", &session.id, &other.id], "");
    let mut by_its_token = cli.start(&["watch", "--token-file", "-"], &token);
    by_ids.line_with("TIME").await;
    by_its_token.line_with("TIME").await;
    for id in [&session.id, &other.id] {
        client.delete(by_id(id)).await.unwrap();
        by_ids.line_with(id).await;
    }
    assert_eq!(by_ids.line().await, None);
    let (status, said) = by_ids.end().await;
    assert_eq!((status.code(), &said[..]), (Some(0), ""));

    by_its_token.line_with("ENDED").await;
    let (status, said) = by_its_token.end().await;
    assert_eq!(status.code(), Some(1));
    assert!(said.starts_with("NOT_FOUND SESSION_ENDED: ") && !said.contains(&token), "{said}");
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_after_its_server_has_gone() {
    let world = World::shared();
    let (mut first, second) = (world.server().await, world.server().await);
    let relay = Relay::start(&first.address).await;
    let mut watch = Cli::of(&relay.address).start(&["watch", "-o", "json"], "");
    watch.line().await.unwrap();
    let client = second.client().await;
    let (before, _) = client.create(&[]).await;
    let mut told = events(&watch.line_with("\"events\"").await);

    // It is cut off: nobody answers, until a server does that knows nothing of it.
    relay.cut();
    watch.error_with("; the watch is opened again in ").await;
    let (between, _) = client.create(&[]).await;
    relay.turn_to(&second.address);
    told.extend(events(&watch.line_with("\"events\"").await));

    // It is sent away by a server that stops.
    relay.cut();
    relay.turn_to(&first.address);
    eventually("it is with the first server again", async || {
        (first.metric("sessiond_watchers").await == 1.0).then_some(())
    })
    .await;
    relay.turn_to(&second.address);
    first.stop().await;
    let sent_away = watch.error_with("DRAINING").await;
    assert!(sent_away.starts_with("UNAVAILABLE DRAINING: "), "{sent_away}");
    let (after, _) = client.create(&[]).await;
    while told.len() < 3 {
        told.extend(events(&watch.line().await.unwrap()));
    }
    let ids: Vec<_> = told.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [&before.id, &between.id, &after.id], "each once, none missing");
}

#[tokio::test]
async fn a_watch_shows_that_changes_were_missed() {
    let world = World::own();
    let server = world.server().await;
    let mut watch = Cli::of(&server.address).start(&["watch"], "");
    watch.line_with("TIME").await;
    world.redis.command(&["FLUSHALL"]);
    let line = watch.line_with("RESYNC").await;
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["-", "RESYNC", "(all)", "-", "-", "FLUSHED", "-"]);
}

#[tokio::test]
async fn a_watch_of_which_nothing_is_heard_is_opened_again() {
    let (_, server, _world) = cli_and_server().await;
    let relay = Relay::start(&server.address).await;
    let mut watch = Cli::of(&relay.address).start(&["watch", "--bookmark-interval", "500ms"], "");
    watch.line_with("TIME").await;
    relay.silence();
    watch.error_with("nothing has come for 1s, two bookmark intervals; ").await;
    let (session, _) = server.client().await.create(&[]).await;
    watch.line_with(&session.id).await;
}

#[tokio::test]
async fn a_watch_ends_when_it_is_interrupted_or_nobody_reads_it() {
    let (cli, server, _world) = cli_and_server().await;
    let (mut interrupted, mut unread) = (cli.start(&["watch"], ""), cli.start(&["watch"], ""));
    interrupted.line_with("TIME").await;
    unread.line_with("TIME").await;
    kill_process(Pid::from_raw(interrupted.pid() as i32).unwrap(), Signal::INT).unwrap();
    assert_eq!(interrupted.end().await.0.signal(), Some(2));
    unread.stop_reading();
    server.client().await.create(&[]).await;
    assert_eq!(unread.end().await.1, "");
}

/// So many sessions of this subject.
async fn sessions_of(client: &Client, subject: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let request = CreateSessionRequest { subject: subject.into(), ..Default::default() };
        ids.push(client.create_as(request).await.unwrap().0.id);
    }
    ids
}

#[tokio::test]
async fn subject_sessions_are_listed_counted_and_ended() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let (ids, others) = (sessions_of(&client, "1", 3).await, sessions_of(&client, "2", 2).await);
    let listed = cli.run(&["list", "--subject", "1", "-o", "json"]).await.json();
    let listed: Vec<_> = listed["sessions"].as_array().unwrap().iter().map(|session| session["id"].clone()).collect();
    assert_eq!(listed, [&ids[2][..], &ids[1], &ids[0]], "newest first");
    assert_eq!(cli.run(&["list", "--subject", "1", "--count"]).await.good(), "3\n");

    let long_ago = ["delete", "--subject", "1", "--created-before", "2020-01-01T00:00:00Z"];
    assert_eq!(cli.run(&long_ago).await.good(), "0 deleted\n");
    assert_eq!(cli.run(&["delete", "--subject", "1", "--except", &ids[1]]).await.good(), "2 deleted\n");
    let deleted = cli.run(&["delete", "--subject", "1", "--cause", "logout", "-o", "json"]).await.json();
    assert_eq!(deleted["deletedCount"], 1);
    assert_eq!(cli.run(&["list", "--count"]).await.good(), format!("{}\n", others.len()));
    let ended = cli.run(&["get", &ids[0]]).await.failed(1);
    assert!(ended.contains("cause=REVOKED"), "{ended}");
}

#[tokio::test]
async fn subject_changes_are_watched() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let mut watch = cli.start(&["watch", "--subject", "1"], "");
    watch.line_with("TIME").await;
    sessions_of(&client, "2", 1).await;
    let ids = sessions_of(&client, "1", 1).await;
    let line = watch.line().await.unwrap();
    let columns: Vec<_> = line.split_whitespace().collect();
    assert_eq!(columns[1..4], ["CREATED", &ids[0], "1"]);
}

#[tokio::test]
async fn rotate_prints_the_session_with_its_new_token() {
    let (cli, server, _world) = cli_and_server().await;
    let mut watch = server.client().await.watch_all().await;
    let (session, old) = server.client().await.create(&[]).await;
    let rotate = ["rotate", "--token-file", "-", "--grace", "10s", "--set", "a=b"];
    let rotated = cli.run_with(&rotate, &old).await.good();
    let new = beside("token", &rotated);
    assert_eq!((beside("id", &rotated), beside("token_generation", &rotated)), (&session.id[..], "2"));
    assert_eq!(beside("attribute.a", &rotated), "string     b");
    assert!(new != old && id_of(new) == session.id);
    watch.wait_for(EventType::Rotated, &session.id).await;
    let read = cli.run_with(&["get", "--token-file", "-"], &old).await.good();
    assert_eq!(beside("token_state", &read), "SUPERSEDED");
    let read = cli.run_with(&["get", "--token-file", "-"], new).await.good();
    assert_eq!(beside("token_state", &read), "CURRENT");
}

#[tokio::test]
async fn rotate_takes_a_successor_that_the_caller_made_and_does_not_repeat_it() {
    let (cli, server, _world) = cli_and_server().await;
    let (session, old) = server.client().await.create(&[]).await;
    let new = format!("ses_{}_{}", session.id, &new_token()[31..]);
    let (_directory, path) = token_file(&new);
    let rotate = ["rotate", "--token-file", "-", "--new-token-file", path.to_str().unwrap(), "--subject", "1"];
    let again = [&rotate[..], &["--request-id", "0123456789abcdef", "-o", "json"]].concat();
    let rotated = cli.run_with(&again, &old).await.json();
    assert_eq!((rotated["session"]["subject"].as_str(), rotated.get("token")), (Some("1"), None));
    let gone = cli.run_with(&["get", "--token-file", "-"], &old).await.failed(1);
    assert!(gone.starts_with("NOT_FOUND TOKEN_ROTATED") && !gone.contains(&old), "{gone}");
    cli.run(&["get", "--token-file", path.to_str().unwrap()]).await.good();
}
