//! The command-line client: output, exit codes, and what it never prints.

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

/// Returns a client and its server. The server stops when it or the world is dropped.
async fn cli_and_server() -> (Cli, Server, World) {
    let world = World::shared();
    let server = world.server().await;
    (Cli::new(&server.address), server, world)
}

/// Writes this token to a file; returns the directory, which deletes it when dropped, and the path.
fn token_file(token: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, format!("{token}\n")).unwrap();
    (directory, path)
}

/// Returns the value of the field with this name.
#[track_caller]
fn field<'a>(name: &str, output: &'a str) -> &'a str {
    let line = output.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name} in:\n{output}"))[name.len()..].trim()
}

#[tokio::test]
async fn session_is_created_read_changed_touched_and_ended() {
    let (cli, _server, _world) = cli_and_server().await;
    let create = ["create", "--subject", "1", "--set", "name=Bob", "--set-json", "cart=[1, 2]", "--label", "on=web"];
    let created =
        cli.run(&[&create[..], &["--idle-timeout", "20m", "--absolute-timeout", "0s"]].concat()).await.succeeded();
    let (id, token) = (field("id", &created), field("token", &created));
    assert_eq!(id_of(token), id);
    assert_eq!((field("idle_timeout", &created), field("absolute_expire_time", &created)), ("20m", "never"));

    let read = cli.run(&["get", id]).await.succeeded();
    assert_eq!(cli.run(&["get", id, "--min-revision", "0"]).await.succeeded(), read);
    cli.run(&["get", id, "--min-revision=-1"]).await.failed(2);
    assert_eq!((field("subject", &read), field("label.on", &read)), ("1", "web"));
    assert_eq!(
        (field("attribute.name", &read), field("attribute.cart", &read)),
        ("string     Bob", "json       [1, 2]")
    );
    assert!(!read.contains("token_state") && !read.contains(token), "{read}");

    let change = ["--set", "name=Al=ice", "--remove", "cart", "--label", "a=b", "--remove-label", "on", "--touch"];
    let revision = field("revision", &read);
    let changed = cli.run(&[&["update", id, "--if-revision", revision][..], &change].concat()).await.succeeded();
    assert_eq!((field("attribute.name", &changed), field("label.a", &changed)), ("string     Al=ice", "b"));
    assert!(!changed.contains("cart") && !changed.contains("label.on"), "{changed}");

    let touched = cli.run(&["touch", id]).await.succeeded();
    assert_eq!(touched.trim(), field("expire_time", &cli.run(&["get", id]).await.succeeded()));

    assert_eq!(cli.run(&["delete", id, "--cause", "revoked"]).await.succeeded(), "1 deleted\n");
    assert_eq!(cli.run(&["delete", id]).await.succeeded(), "0 deleted\n");
    let ended = cli.run(&["get", id]).await.failed(1);
    assert_eq!(ended, "NOT_FOUND SESSION_ENDED: the session has ended: REVOKED (cause=REVOKED)\n");
}

#[tokio::test]
async fn json_output_is_canonical_proto3() {
    let (cli, _server, _world) = cli_and_server().await;
    let created = cli.run(&["create", "-o", "json", "--set", "a=b", "--set-json", "j={\"x\": 1.0}"]).await.json();
    let session = &created["session"];
    assert_eq!(session["attributes"]["a"]["stringValue"], "b");
    assert_eq!(session["attributes"]["j"]["jsonValue"], "{\"x\": 1.0}");
    assert!(session["revision"].as_str().unwrap().parse::<i64>().is_ok(), "64-bit integers are strings: {session}");
    assert!(session["expireTime"].as_str().unwrap().ends_with('Z'));
    assert_eq!(session["idleTimeout"], "1800s");
    assert_eq!(session["tokenGeneration"], 1);
    assert!(session.get("subject").is_none(), "empty fields are omitted");
    let (id, token) = (session["id"].as_str().unwrap(), created["token"].as_str().unwrap());

    let read = cli.run_with(&["get", "-o", "json", "--token-file", "-"], token).await.json();
    assert_eq!((&read["session"], read["tokenState"].as_str()), (session, Some("TOKEN_STATE_CURRENT")));
    assert_eq!(cli.run(&["update", id, "-o", "json"]).await.json()["session"], *session);
    let touched = cli.run(&["touch", id, "-o", "json"]).await.json();
    assert_eq!(touched["expireTime"], session["expireTime"]);
    assert_eq!(cli.run(&["list", "-o", "json"]).await.json()["sessions"][0]["id"], id);
    let deleted = cli.run(&["delete", "-o", "json", id, id]).await.succeeded();
    assert_eq!(deleted, "{\"deleted\":true}\n{}\n", "one response per line");
}

#[tokio::test]
async fn token_is_read_from_the_first_line_of_a_file_or_stdin() {
    let (cli, _server, _world) = cli_and_server().await;
    let token = new_token();
    let (_directory, path) = token_file(&token);
    let path = path.to_str().unwrap();

    let created = cli.run(&["create", "--token-file", path, "--request-id", "0123456789abcdef"]).await.succeeded();
    assert_eq!(field("id", &created), id_of(&token));
    assert!(!created.contains(&token), "a client-generated token is not printed");

    let read = cli.run(&["get", "--token-file", path, "--touch"]).await.succeeded();
    assert_eq!(field("token_state", &read), "CURRENT");
    for input in [token.clone(), format!("{token}\n"), format!("{token}\r\nmore\n")] {
        cli.run_with(&["touch", "--token-file", "-"], &input).await.succeeded();
    }
    let changed = cli.run_with(&["update", "--token-file", "-", "--set", "a=b"], &token).await.succeeded();
    assert_eq!(field("attribute.a", &changed), "string     b");
    assert_eq!(cli.run(&["delete", "--token-file", path]).await.succeeded(), "1 deleted\n");
    let ended = cli.run(&["get", "--token-file", path]).await.failed(1);
    assert!(ended.contains("SESSION_ENDED") && !ended.contains(&token), "{ended}");
}

#[tokio::test]
async fn token_file_without_a_token_fails_before_any_call() {
    let unreachable = Cli::new("127.0.0.1:1");
    for (input, reason) in [("", "is empty"), ("\nx", "is empty"), (&"x".repeat(2_000)[..], "is too long")] {
        let refused = unreachable.run_with(&["get", "--token-file", "-"], input).await.failed(2);
        assert!(refused.contains(reason) && refused.contains("--token-file"), "{refused}");
    }
    let missing = unreachable.run(&["get", "--token-file", "/nowhere/at-all"]).await.failed(2);
    assert!(missing.contains("No such file") && !missing.contains("at-all"), "{missing}");
    let both = unreachable.run(&["rotate", "--token-file", "-", "--new-token-file", "-"]).await.failed(2);
    assert!(both.contains("cannot both be standard input"), "{both}");
}

#[tokio::test]
async fn token_on_the_command_line_is_refused_and_not_printed() {
    // No server listens on this port: exit code 2 shows that the client refused before it connected.
    let unreachable = Cli::new("127.0.0.1:1");
    let (server_form, client_token) = (new_token(), "a-framework-made-this-0123456789".to_owned());
    for token in [&server_form[..], &client_token] {
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
            let refused = unreachable.run(arguments).await.failed(2);
            assert!(!refused.contains(token) && refused.contains("--token-file"), "{arguments:?}: {refused}");
        }
    }
    let tokens = [format!("--cause={server_form}"), format!("--limit={server_form}")];
    for (name, mistake) in [("delete", &tokens[0]), ("list", &tokens[1]), (&server_form[..], &server_form)] {
        let refused = unreachable.run(&[name, mistake]).await.failed(2);
        assert!(!refused.contains(&server_form), "{refused}");
    }
}

#[tokio::test]
async fn errors_name_code_reason_and_fields() {
    let world = World::dedicated();
    let server = world.server().await;
    let cli = Cli::new(&server.address);
    let (session, _) = server.client().await.create(&[]).await;
    let error = cli.run(&["update", &session.id, "--set", "a=b", "--if-revision", "1"]).await.failed(1);
    let revision = session.revision;
    assert!(error.starts_with("ABORTED REVISION_MISMATCH: ") && error.lines().count() == 1, "{error}");
    assert!(error.contains(&format!("(current_revision={revision})")), "{error}");

    let error = cli.run(&["create", "--label", "A=b", "--idle-timeout", "500d"]).await.failed(1);
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(lines[0], "INVALID_ARGUMENT FIELD_INVALID: invalid request");
    assert!(lines[1].starts_with("  labels[\"A\"]: ") && lines[2].starts_with("  idle_timeout: "), "{error}");

    let error = cli.run(&["get", "aaaaaaaaaaaaaaaaaaaaaaaaaa"]).await.failed(1);
    assert_eq!(error, "NOT_FOUND SESSION_NOT_FOUND: no live session for this key\n");
    let error = cli.run(&["get", "--token-file", "-"]).await.failed(2);
    assert!(error.contains("is empty"), "{error}");
    world.redis.pause();
    let error = cli.run(&["get", &session.id, "--timeout", "200ms"]).await.failed(1);
    assert!(error.starts_with("DEADLINE_EXCEEDED"), "{error}");
    world.redis.resume();

    let twice = [["--set", "a=b", "--set-json", "a=1"], ["--label", "a=b", "--label", "a=b"]];
    for twice in twice {
        let error = cli.run(&[&["create"][..], &twice].concat()).await.failed(2);
        assert!(error.ends_with(" \"a\" is set twice\n"), "{error}");
    }
    for usage in [&["get"][..], &["create", "--set", "a"], &["list", "--timeout", "2h"], &["watch", "--type", "x"]] {
        cli.run(usage).await.failed(2);
    }
}

#[tokio::test]
async fn refused_connection_names_the_endpoint() {
    let unreachable = Cli::new("127.0.0.1:1");
    for arguments in [&["list"][..], &["create"], &["watch"]] {
        let error = unreachable.run(arguments).await.failed(1);
        let parts = ["http://127.0.0.1:1", "Connection refused", "--endpoint", "SESSIOND_ENDPOINT"];
        assert!(parts.iter().all(|text| error.contains(text)) && error.lines().count() == 1, "{error}");
    }
}

#[tokio::test]
async fn endpoint_and_namespace_are_read_from_the_environment() {
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
async fn list_reads_all_pages() {
    const SESSIONS: usize = 1_030;
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    for number in 0..SESSIONS {
        let labels = labels(&[("half", if number % 2 == 0 { "even" } else { "odd" })]);
        client.create_with(CreateSessionRequest { labels, ..Default::default() }).await.unwrap();
    }
    assert_eq!(cli.run(&["list", "--count"]).await.succeeded(), format!("{SESSIONS}\n"));
    assert_eq!(cli.run(&["list", "--count", "--label", "half=odd"]).await.succeeded(), format!("{}\n", SESSIONS / 2));
    let table = cli.run(&["list"]).await.succeeded();
    assert_eq!(table.lines().count(), 1 + SESSIONS);
    let starts: Vec<_> = table.lines().map(|line| line.find("half=").or(line.find("LABELS")).unwrap()).collect();
    assert!(starts.iter().all(|start| *start == starts[0]), "columns are aligned");
    for limit in [1, 1_010] {
        let some = cli.run(&["list", "-o", "json", "--limit", &limit.to_string()]).await.json();
        assert_eq!(some["sessions"].as_array().unwrap().len(), limit);
    }
    cli.run(&["list", "--limit", "0"]).await.failed(2);
}

#[tokio::test]
async fn table_escapes_control_characters() {
    let (cli, server, _world) = cli_and_server().await;
    let request = CreateSessionRequest { subject: "a\u{1b}[2J\nb".into(), ..Default::default() };
    let (session, _) = server.client().await.create_with(request).await.unwrap();
    for arguments in [&["get", &session.id][..], &["list"]] {
        let table = cli.run(arguments).await.succeeded();
        assert!(table.contains("a\\u{1b}[2J\\nb") && !table.contains('\u{1b}'), "{table}");
    }
}

#[tokio::test]
async fn watch_prints_a_line_for_each_event() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let (mut table, mut full) =
        (cli.start(&["watch"], ""), cli.start(&["watch", "--full", "--type", "created", "--type", "updated"], ""));
    assert!(table.line_with("REVISION").await.starts_with("TIME"), "the header is printed when the watch is open");
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

/// Returns the events in a line of JSON.
fn events(line: &str) -> Vec<Value> {
    let response: Value = serde_json::from_str(line).unwrap();
    assert!(response["resumeToken"].is_string(), "{response}");
    response["events"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn watch_with_initial_state_prints_a_snapshot_first() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let (session, _) = client.create_for("anna").await;
    let mut watch = cli.start(&["watch", "--initial-state"], "");
    let row = watch.line_with("SNAPSHOT").await;
    assert!(row.contains(&session.id) && row.contains("anna"), "{row}");
    watch.line_with("SYNCED").await;
    client.delete(by_id(&session.id)).await.unwrap();
    assert!(watch.line_with("ENDED").await.contains(&session.id));
}

#[tokio::test]
async fn watch_with_a_resume_token_continues_after_it() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let mut first = cli.start(&["watch", "-o", "json"], "");
    let response: Value = serde_json::from_str(&first.line().await.unwrap()).unwrap();
    let position = response["resumeToken"].as_str().unwrap();
    let (session, _) = client.create(&[]).await;
    let mut second = cli.start(&["watch", "-o", "json", "--resume-token", position], "");
    let line = second.line_with("\"events\"").await;
    let event = &events(&line)[0];
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("EVENT_TYPE_CREATED"), Some(&session.id[..])));
    assert!(cli.run(&["watch", "--resume-token", "?"]).await.failed(2).contains("base64"));
}

#[tokio::test]
async fn watch_by_ids_or_token_ends_with_the_sessions() {
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
    let (status, errors) = by_ids.end().await;
    assert_eq!((status.code(), &errors[..]), (Some(0), ""));

    by_its_token.line_with("ENDED").await;
    let (status, errors) = by_its_token.end().await;
    assert_eq!(status.code(), Some(1));
    assert!(errors.starts_with("NOT_FOUND SESSION_ENDED: ") && !errors.contains(&token), "{errors}");
}

#[tokio::test]
async fn watch_resumes_after_its_server_is_lost() {
    let world = World::shared();
    let (mut first, second) = (world.server().await, world.server().await);
    let relay = Relay::start(&first.address).await;
    let mut watch = Cli::new(&relay.address).start(&["watch", "-o", "json"], "");
    watch.line().await.unwrap();
    let client = second.client().await;
    let (before, _) = client.create(&[]).await;
    let mut received = events(&watch.line_with("\"events\"").await);

    // Cut off: no connection succeeds until the relay leads to another server.
    relay.cut();
    watch.error_with("; reopening the watch in ").await;
    let (between, _) = client.create(&[]).await;
    relay.set_target(&second.address);
    received.extend(events(&watch.line_with("\"events\"").await));

    // Ended by a server that is being stopped.
    relay.cut();
    relay.set_target(&first.address);
    eventually("the watch is open on the first server", async || {
        (first.metric("sessiond_watches").await == 1.0).then_some(())
    })
    .await;
    relay.set_target(&second.address);
    first.stop().await;
    let draining = watch.error_with("DRAINING").await;
    assert!(draining.starts_with("UNAVAILABLE DRAINING: "), "{draining}");
    let (after, _) = client.create(&[]).await;
    while received.len() < 3 {
        received.extend(events(&watch.line().await.unwrap()));
    }
    let ids: Vec<_> = received.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [&before.id, &between.id, &after.id], "every event exactly once");
}

#[tokio::test]
async fn watch_prints_a_resync() {
    let world = World::dedicated();
    let server = world.server().await;
    let mut watch = Cli::new(&server.address).start(&["watch"], "");
    watch.line_with("TIME").await;
    world.redis.command(&["FLUSHALL"]);
    let line = watch.line_with("RESYNC").await;
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["-", "RESYNC", "(all)", "-", "-", "FLUSHED", "-"]);
}

#[tokio::test]
async fn watch_reconnects_after_silence() {
    let (_, server, _world) = cli_and_server().await;
    let relay = Relay::start(&server.address).await;
    let mut watch = Cli::new(&relay.address).start(&["watch", "--bookmark-interval", "500ms"], "");
    watch.line_with("TIME").await;
    relay.stall_connections();
    watch.error_with("no response for 1s (two bookmark intervals); ").await;
    let (session, _) = server.client().await.create(&[]).await;
    watch.line_with(&session.id).await;
}

#[tokio::test]
async fn watch_ends_on_interrupt_or_closed_output() {
    let (cli, server, _world) = cli_and_server().await;
    let (mut interrupted, mut unread) = (cli.start(&["watch"], ""), cli.start(&["watch"], ""));
    interrupted.line_with("TIME").await;
    unread.line_with("TIME").await;
    kill_process(Pid::from_raw(interrupted.pid() as i32).unwrap(), Signal::INT).unwrap();
    assert_eq!(interrupted.end().await.0.signal(), Some(2));
    unread.close_output();
    server.client().await.create(&[]).await;
    assert_eq!(unread.end().await.1, "");
}

/// Creates this number of sessions of the subject; returns their ids.
async fn sessions_of(client: &Client, subject: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let request = CreateSessionRequest { subject: subject.into(), ..Default::default() };
        ids.push(client.create_with(request).await.unwrap().0.id);
    }
    ids
}

#[tokio::test]
async fn sessions_of_a_subject_are_listed_counted_and_ended() {
    let (cli, server, _world) = cli_and_server().await;
    let client = server.client().await;
    let (ids, others) = (sessions_of(&client, "1", 3).await, sessions_of(&client, "2", 2).await);
    let listed = cli.run(&["list", "--subject", "1", "-o", "json"]).await.json();
    let listed: Vec<_> = listed["sessions"].as_array().unwrap().iter().map(|session| session["id"].clone()).collect();
    assert_eq!(listed, [&ids[2][..], &ids[1], &ids[0]], "newest first");
    assert_eq!(cli.run(&["list", "--subject", "1", "--count"]).await.succeeded(), "3\n");

    let long_ago = ["delete", "--subject", "1", "--created-before", "2020-01-01T00:00:00Z"];
    assert_eq!(cli.run(&long_ago).await.succeeded(), "0 deleted\n");
    assert_eq!(cli.run(&["delete", "--subject", "1", "--except", &ids[1]]).await.succeeded(), "2 deleted\n");
    let deleted = cli.run(&["delete", "--subject", "1", "--cause", "logout", "-o", "json"]).await.json();
    assert_eq!(deleted["deletedCount"], 1);
    assert_eq!(cli.run(&["list", "--count"]).await.succeeded(), format!("{}\n", others.len()));
    let ended = cli.run(&["get", &ids[0]]).await.failed(1);
    assert!(ended.contains("cause=REVOKED"), "{ended}");
}

#[tokio::test]
async fn watch_by_subject_prints_only_its_events() {
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
    let rotated = cli.run_with(&rotate, &old).await.succeeded();
    let new = field("token", &rotated);
    assert_eq!((field("id", &rotated), field("token_generation", &rotated)), (&session.id[..], "2"));
    assert_eq!(field("attribute.a", &rotated), "string     b");
    assert!(new != old && id_of(new) == session.id);
    watch.wait_for(EventType::Rotated, &session.id).await;
    let read = cli.run_with(&["get", "--token-file", "-"], &old).await.succeeded();
    assert_eq!(field("token_state", &read), "SUPERSEDED");
    let read = cli.run_with(&["get", "--token-file", "-"], new).await.succeeded();
    assert_eq!(field("token_state", &read), "CURRENT");
}

#[tokio::test]
async fn rotate_accepts_a_client_generated_token_without_printing_it() {
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
    cli.run(&["get", "--token-file", path.to_str().unwrap()]).await.succeeded();
}
