//! The audit log: one line for each action, none with a secret; a file that is moved, deleted or full; calls that require it.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use harness::{
    Redis, World,
    callers::{Caller, CallersFile, Key},
    client::*,
    eventually,
    pki::{Pki, uri},
    process::Process,
    tokens::by_password,
};
use rustix::process::Signal;
use serde_json::Value;
use sessiond_client::v1::{
    Cause, CreateSessionRequest, DeleteSessionRequest, ListSessionsRequest, Session, SessionKey, UpdateSessionRequest,
    WatchRequest,
};
use tempfile::TempDir;
use tonic::{Code, transport::Channel};

const SECRET: &str = "secret-attribute";
const REQUEST_ID: &str = "request-id-0123456789";

/// An audit file in a directory of its own.
struct Audit(TempDir);

impl Audit {
    fn new() -> Self {
        Audit(tempfile::Builder::new().prefix("sessiond-audit-").tempdir().unwrap())
    }

    /// Path of the file, in a directory that a test can remove.
    fn path(&self) -> PathBuf {
        self.0.path().join("log/audit.jsonl")
    }

    fn toml(&self) -> String {
        std::fs::create_dir(self.path().parent().unwrap()).unwrap();
        format!("audit_file = {:?}\n", self.path().to_str().unwrap())
    }

    /// All lines so far.
    fn lines(&self) -> Vec<Value> {
        lines_of(&self.path())
    }

    /// Waits until there are lines with this event, as many as `count`, and returns them.
    async fn wait_for(&self, event: &str, count: usize) -> Vec<Value> {
        eventually("the lines are written", async || {
            let found: Vec<_> = self.lines().into_iter().filter(|line| line["event"] == event).collect();
            (found.len() >= count).then_some(found)
        })
        .await
    }
}

/// Reads the lines of a file that end; fails if one is not JSON.
fn lines_of(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Checks that the numbers of the lines have no gap.
#[track_caller]
fn assert_numbered(lines: &[Value]) {
    let numbers: Vec<_> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=lines.len() as u64).collect::<Vec<_>>());
}

/// Returns what a line says about its action: class, event, method and the present ones of the other fields.
fn summary(line: &Value) -> String {
    let value =
        |name: &str| line.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let first = ["class", "event", "method"].into_iter().filter_map(value);
    let fields = ["id", "subject", "cause", "count", "outcome", "reason"].into_iter();
    first.chain(fields.filter_map(|name| Some(format!("{name}={}", value(name)?)))).collect::<Vec<_>>().join(" ")
}

fn shop(key: &Key) -> Caller {
    Caller::new("shop", &[("web", "full")]).key(key)
}

/// Creates a session, uses its token, logs in, and does what has a line by its id and subject. Returns it with its token.
async fn act_on_one_session(client: &Client) -> (Session, String) {
    let (secret, token) = ([("cart", text(SECRET))], new_token());
    let create = CreateSessionRequest {
        token: token.clone(),
        request_id: REQUEST_ID.into(),
        attributes: secret.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        ..Default::default()
    };
    let (session, _) = client.create_with(create).await.unwrap();
    // By token: no line.
    client.get(by_token(&token)).await.unwrap();
    client.touch(by_token(&token)).await.unwrap();
    client.set(by_token(&token), &secret).await.unwrap();
    let (_, token) = client.login_by_rotation(&token, "alice").await.unwrap();
    let authenticated =
        UpdateSessionRequest { key: by_token(&token), authentication: by_password(), ..Default::default() };
    client.update(authenticated).await.unwrap();
    client.get(by_id(&session.id)).await.unwrap();
    client.set(by_id(&session.id), &secret).await.unwrap();
    client.list_subject("alice").await;
    let by_key = |key: Option<SessionKey>| WatchRequest { keys: key.into_iter().collect(), ..Default::default() };
    client.watch(by_key(by_id(&session.id))).await.unwrap();
    client.watch(WatchRequest { subject: Some("alice".into()), ..Default::default() }).await.unwrap();
    client.watch_all().await;
    client.watch(by_key(by_token(&token))).await.unwrap();
    (session, token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_action_has_its_line() {
    let (world, audit, key) = (World::shared(), Audit::new(), Key::generate());
    let file = CallersFile::new(&[shop(&key)]);
    let mut server = world.server_with(&format!("{}{}", audit.toml(), file.toml())).await;
    let client = Client::connect_with(&server.address, &ClientOptions::with_key(&key.text)).await;

    let (first, token) = act_on_one_session(&client).await;
    let absent = id_of(&new_token());
    expect_error(client.get(by_id(&absent)).await, Code::NotFound, "SESSION_NOT_FOUND");
    let (_, other) = client.create(&[]).await;
    let logout = DeleteSessionRequest { key: by_token(&other), cause: Cause::Logout.into(), ..Default::default() };
    client.delete_with(logout).await.unwrap();
    let (third, _) = client.create(&[]).await;
    client.delete(by_id(&third.id)).await.unwrap();
    client.delete_subject("alice").await.unwrap();
    // Uses of a token that is no longer valid.
    for _ in 0..3 {
        expect_error(client.get(by_token(&token)).await, Code::NotFound, "SESSION_ENDED");
    }
    server.stop().await;

    let lines = audit.lines();
    assert_numbered(&lines);
    let (id, other_id, third_id) = (&first.id, id_of(&other), &third.id);
    let expected = [
        "admin sys_startup outcome=ok".to_owned(),
        format!("login session_created CreateSession id={id} outcome=ok"),
        format!("login session_renewed RotateSession id={id} subject=alice outcome=ok"),
        format!("login privilege_permissions_changed UpdateSession id={id} outcome=ok"),
        format!("admin sensitive_read GetSession id={id} outcome=ok"),
        format!("admin sensitive_update UpdateSession id={id} outcome=ok"),
        "admin sensitive_read ListSessions subject=alice count=1 outcome=ok".to_owned(),
        format!("admin sensitive_read Watch id={id} outcome=ok"),
        "admin sensitive_read Watch subject=alice outcome=ok".to_owned(),
        "admin sensitive_read Watch outcome=ok".to_owned(),
        format!("admin sensitive_read GetSession id={absent} outcome=failed reason=SESSION_NOT_FOUND"),
        format!("login session_created CreateSession id={other_id} outcome=ok"),
        format!("login session_expired DeleteSession id={other_id} cause=LOGOUT count=1 outcome=ok"),
        format!("login session_created CreateSession id={third_id} outcome=ok"),
        format!("admin session_expired DeleteSession id={third_id} cause=LOGOUT count=1 outcome=ok"),
        "admin session_expired DeleteSubjectSessions subject=alice cause=REVOKED count=1 outcome=ok".to_owned(),
    ];
    let summaries: Vec<_> = lines.iter().map(summary).take(expected.len()).collect();
    assert_eq!(summaries, expected);
    for line in &lines[1..expected.len()] {
        assert_eq!((&line["namespace"], &line["caller"]), (&"web".into(), &"shop".into()), "{line}");
        assert_eq!(line["key"], key.id[..]);
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert!(line["user_agent"].as_str().unwrap().contains("tonic"), "{line}");
    }
    let refused: Vec<_> = lines.iter().filter(|line| line["event"] == "session_use_after_expire").collect();
    assert_eq!(refused.iter().map(|line| line["count"].as_u64().unwrap()).sum::<u64>(), 3);
    assert_eq!((&refused[0]["id"], &refused[0]["reason"]), (&Value::from(&id[..]), &Value::from("SESSION_ENDED")));
    assert!(lines[lines.len() - 2..].iter().any(|line| line["event"] == "sys_shutdown"));
    assert!(lines[1]["request_id_hash"].as_str().unwrap().len() == 32);
    let text = std::fs::read_to_string(audit.path()).unwrap();
    for secret in [&token, &other, &key.text, SECRET, "cart", REQUEST_ID] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert_eq!(std::fs::metadata(audit.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_counted_in_few_lines() {
    let (world, audit, key, pki) = (World::shared(), Audit::new(), Key::generate(), Pki::generate());
    let file = CallersFile::new(&[Caller::new("shop", &[("web", "token")]).key(&key)]);
    let server = world.server_with(&format!("{}{}{}", audit.toml(), file.toml(), pki.mutual_toml())).await;
    let with_key = |key: &str| ClientOptions { tls: Some(pki.client_options()), key: Some(key.to_owned()) };
    let wrong = Client::connect_with(&server.address, &with_key(&Key::generate().text)).await;
    for _ in 0..300 {
        expect_error(wrong.get(by_token(&new_token())).await, Code::Unauthenticated, "CREDENTIALS_INVALID");
    }
    let shop = Client::connect_with(&server.address, &with_key(&key.text)).await;
    for _ in 0..100 {
        expect_error(shop.get(by_id(&id_of(&new_token()))).await, Code::PermissionDenied, "GRANT_MISSING");
    }
    let unknown = harness::pki::Authority::generate("another").client(&[uri("spiffe://test/shop")]);
    let options = ClientOptions { tls: Some(pki.client_options_with(&unknown)), key: None };
    let refused = Client::connect_with(&server.address, &options).await;
    assert!(refused.get(by_token(&new_token())).await.is_err());

    let counted = async |event: &str, reason: &str, count: u64| {
        eventually("all refusals are counted", async || {
            let lines = audit.lines();
            let lines: Vec<_> =
                lines.into_iter().filter(|line| line["event"] == *event && line["reason"] == *reason).collect();
            let sum = lines.iter().map(|line| line["count"].as_u64().unwrap()).sum::<u64>();
            (sum >= count).then_some(lines)
        })
        .await
    };
    let lines = counted("authn_fail", "unknown_key", 300).await;
    assert!(lines.len() < 100, "{} lines", lines.len());
    assert!(lines[0].get("caller").is_none() && lines[0]["class"] == "refusal", "{}", lines[0]);
    let lines = counted("authz_fail", "GRANT_MISSING", 100).await;
    assert!(lines.len() < 50, "{} lines", lines.len());
    assert_eq!((&lines[0]["caller"], &lines[0]["namespace"]), (&Value::from("shop"), &Value::from("web")));
    counted("authn_fail", "certificate_unknown_ca", 1).await;
    assert!(server.metric("sessiond_refusals_total{reason=\"grant_missing\"}").await >= 100.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_or_deleted_file_is_opened_again() {
    let (world, audit) = (World::shared(), Audit::new());
    let mut server = world.server_with(&format!("{}audit_required = true\n", audit.toml())).await;
    let client = server.client().await;
    client.create(&[]).await;
    audit.wait_for("session_created", 1).await;
    let moved = audit.path().with_extension("1");
    std::fs::rename(audit.path(), &moved).unwrap();
    client.create(&[]).await;
    audit.wait_for("session_created", 1).await;
    std::fs::remove_file(audit.path()).unwrap();
    client.create(&[]).await;
    audit.wait_for("session_created", 1).await;
    let inode = std::fs::metadata(audit.path()).unwrap().ino();
    // Truncated in place, as copytruncate does.
    std::fs::File::options().write(true).open(audit.path()).unwrap().set_len(0).unwrap();
    client.create(&[]).await;
    audit.wait_for("session_created", 1).await;
    assert_eq!(std::fs::metadata(audit.path()).unwrap().ino(), inode);
    server.stop().await;
    let numbers: Vec<_> = audit.lines().iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [5, 6], "create and shutdown follow start and three creates");
    assert_eq!(lines_of(&moved).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn required_line_that_cannot_be_written_refuses_the_call() {
    let (world, audit) = (World::shared(), Audit::new());
    let server = world.server_with(&format!("{}audit_required = true\n", audit.toml())).await;
    let client = server.client().await;
    let (session, token) = client.create_for("alice").await;
    audit.wait_for("session_created", 1).await;
    let directory = audit.path().parent().unwrap().to_owned();
    std::fs::remove_dir_all(&directory).unwrap();
    eventually("the log is broken", async || (server.metric("sessiond_audit_healthy").await == 0.0).then_some(()))
        .await;
    let refused = |result: tonic::Status| expect_error::<()>(Err(result), Code::Unavailable, "AUDIT_UNAVAILABLE");
    refused(client.create_with(CreateSessionRequest::default()).await.unwrap_err());
    refused(client.get(by_id(&session.id)).await.unwrap_err());
    refused(client.rotate(&token).await.unwrap_err());
    refused(client.delete(by_id(&session.id)).await.unwrap_err());
    refused(client.delete(by_token(&token)).await.unwrap_err());
    refused(client.delete_subject("alice").await.unwrap_err());
    refused(client.login(by_token(&token), "bob").await.unwrap_err());
    let list = ListSessionsRequest { namespace: client.namespace.clone(), ..Default::default() };
    refused(client.grpc.clone().list_sessions(list).await.unwrap_err());
    refused(client.watch(whole_namespace()).await.err().unwrap());
    // Reads and changes by token never depend on it.
    let found = client.get(by_token(&token)).await.unwrap();
    assert_eq!(found.subject, "alice");
    client.touch(by_token(&token)).await.unwrap();
    client.set(by_token(&token), &[("a", text("1"))]).await.unwrap();
    std::fs::create_dir(&directory).unwrap();
    eventually("calls are served again", async || client.create_with(CreateSessionRequest::default()).await.ok()).await;
    assert!(client.lives(&session.id).await);
    audit.wait_for("session_created", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_delays_lines_and_loses_none() {
    let redis = Redis::start();
    let audit = Audit::new();
    audit.toml();
    let path = audit.path();
    // A limit of the size of files in blocks of 512 bytes has the effect of a full disk, for this process only.
    let arguments = [format!("--redis={}", redis.url()), format!("--audit-file={}", path.to_str().unwrap())];
    let mut server = Process::start_with_ulimit("-f 8; trap '' XFSZ", &arguments);
    let client = server.client().await;
    for _ in 0..30 {
        client.create(&[]).await;
    }
    let healthy = async || harness::metric(&server.metrics_address, "sessiond_audit_healthy").await;
    eventually("the log is broken", async || (healthy().await == 0.0).then_some(())).await;
    for _ in 0..30 {
        client.create(&[]).await;
    }
    let mut lines = Vec::new();
    let mut rest = String::new();
    // An operator moves the full file away, or truncates it, as often as it is full.
    for round in 0.. {
        eventually("the file is full, or all is written", async || {
            (healthy().await == 0.0 || lines.len() + lines_of(&path).len() >= 61).then_some(())
        })
        .await;
        let moved = path.with_extension("1");
        let full = if round % 2 == 0 { &moved } else { &path };
        if round % 2 == 0 {
            std::fs::rename(&path, &moved).unwrap();
        }
        let text = std::fs::read_to_string(full).unwrap();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        lines.extend(text[..whole].lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        rest.push_str(&text[whole..]);
        if lines.len() >= 61 {
            break;
        }
        if round % 2 == 1 {
            std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        }
        eventually("lines are written again", async || (!lines_of(&path).is_empty()).then_some(())).await;
    }
    // A line of which the full file has the start is whole in the next one.
    assert_numbered(&lines);
    assert!(!rest.is_empty(), "a file was full within a line");
    assert_eq!(lines.iter().filter(|line| line["event"] == "session_created").count(), 60);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_whose_client_gives_up_has_an_unknown_outcome() {
    let (world, audit) = (World::dedicated(), Audit::new());
    let server = world.server_with(&audit.toml()).await;
    let client = server.client().await;
    world.redis.pause();
    let create = client.create_with(CreateSessionRequest::default());
    assert!(tokio::time::timeout(Duration::from_millis(300), create).await.is_err());
    let lines = audit.wait_for("session_created", 1).await;
    world.redis.resume();
    assert_eq!((&lines[0]["outcome"], &lines[0]["reason"]), (&"unknown".into(), &"CANCELLED".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_has_a_line_and_one_for_each_problem() {
    let (world, audit, key) = (World::shared(), Audit::new(), Key::generate());
    let file = CallersFile::new(&[shop(&key)]);
    let server = world.server_with(&format!("{}{}", audit.toml(), file.toml())).await;
    file.write(&[Caller::new("shop", &[("web", "everything")]).key(&key)]);
    server.reload();
    let lines = audit.wait_for("privilege_permissions_changed", 1).await;
    assert_eq!((&lines[0]["outcome"], &lines[0]["files"]), (&"failed".into(), &"callers".into()));
    server.reload();
    file.write(&[shop(&key)]);
    server.reload();
    let lines = audit.wait_for("privilege_permissions_changed", 2).await;
    assert_eq!((&lines[1]["outcome"], &lines[1]["method"]), (&"ok".into(), &"reload".into()));
}

#[tokio::test]
async fn user_agent_cannot_forge_or_reorder_lines() {
    let (world, audit) = (World::shared(), Audit::new());
    let server = world.server_with(&audit.toml()).await;
    let agents = ["\u{202e}\u{2066}\u{200f}\u{9b}31m\"}{\"event\":\"x", &"a".repeat(8_000)];
    for agent in agents {
        let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap().user_agent(agent).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let mut grpc = sessiond_client::v1::session_service_client::SessionServiceClient::new(channel);
        grpc.create_session(CreateSessionRequest { namespace: "web".into(), ..Default::default() }).await.unwrap();
    }
    let lines = audit.wait_for("session_created", 2).await;
    let text = std::fs::read_to_string(audit.path()).unwrap();
    assert!(!text.contains(['\u{202e}', '\u{2066}', '\u{200f}', '\u{9b}']), "{text}");
    assert!(lines[0]["user_agent"].as_str().unwrap().starts_with(agents[0]), "{}", lines[0]);
    assert_eq!(lines[1]["user_agent"].as_str().unwrap().len(), 256);
}

#[test]
fn unusable_audit_file_is_refused_at_start() {
    let (redis, audit) = (Redis::start(), Audit::new());
    let pipe = audit.0.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    for path in [audit.0.path(), &audit.0.path().join("absent/audit"), &pipe, Path::new("/dev/null")] {
        let arguments = [format!("--redis={}", redis.url()), format!("--audit-file={}", path.to_str().unwrap())];
        let (log, code) = Process::expect_start_failure(&arguments);
        assert!(code == Some(1) && log.contains("cannot open the audit log"), "{log}");
    }
    let (log, code) = Process::expect_start_failure(&["--audit-required".to_owned()]);
    assert!(code == Some(2) && log.contains("audit_required: needs audit_file"), "{log}");
}

#[tokio::test]
async fn audit_log_on_standard_error_is_json() {
    let redis = Redis::start();
    let arguments = [format!("--redis={}", redis.url()), "--audit-file=stderr".to_owned()];
    let server = Process::start(&arguments);
    server.client().await.create(&[]).await;
    eventually("the line is written", async || {
        let log = server.log.lock().unwrap();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|line| line["event"] == "session_created").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_tokens_are_counted_and_end_nothing() {
    let (world, audit) = (World::shared(), Audit::new());
    let mut server = world.server_with(&audit.toml()).await;
    let client = server.client().await;
    let (session, token) = client.create(&[]).await;
    // The id is public: anyone can make such a token.
    let forged = successor_of(&token);
    for wrong in [&forged[..], "garbage", &new_token()] {
        for _ in 0..50 {
            assert!(!client.delete(by_token(wrong)).await.unwrap());
            client.rotate(wrong).await.unwrap_err();
            client.login(by_token(wrong), "alice").await.unwrap_err();
        }
    }
    assert!(client.lives(&session.id).await);
    server.stop().await;
    let lines = audit.lines();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == *event).collect::<Vec<_>>();
    for event in ["session_expired", "session_renewed", "privilege_permissions_changed"] {
        assert!(of(event).is_empty(), "{:?}", of(event));
    }
    let counted = of("session_use_after_expire");
    assert!(counted.len() < 20, "{} lines", counted.len());
    assert_eq!(counted.iter().map(|line| line["count"].as_u64().unwrap()).sum::<u64>(), 450);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_session_that_token_reuse_ended_has_its_line() {
    let (world, audit) = (World::shared(), Audit::new());
    let policy = "[default_policy]\nrotation_grace = '0s'\ntoken_reuse = 'end'\n";
    let server = world.server_with(&format!("{}{policy}", audit.toml())).await;
    let client = server.client().await;
    let mut stolen = Vec::new();
    for _ in 0..5 {
        let (session, old) = client.create(&[]).await;
        let new = client.rotate(&old).await.unwrap();
        client.get(by_token(&new)).await.unwrap();
        stolen.push((session.id, old));
    }
    let (_, ended) = client.create(&[]).await;
    client.delete(by_token(&ended)).await.unwrap();
    for (_, old) in &stolen {
        client.get(by_token(&ended)).await.unwrap_err();
        client.get(by_token(old)).await.unwrap_err();
    }
    let lines = eventually("all lines are written", async || {
        let lines = audit.wait_for("session_use_after_expire", 1).await;
        let reuse: Vec<_> = lines.into_iter().filter(|line| line["cause"] == "TOKEN_REUSE").collect();
        (reuse.len() >= stolen.len()).then_some(reuse)
    })
    .await;
    for (id, _) in &stolen {
        assert!(lines.iter().any(|line| line["id"] == id[..]), "{id} in {lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_that_the_drain_ends_has_its_line() {
    let (world, audit) = (World::dedicated(), Audit::new());
    let mut server = world.server_with(&format!("{}drain_timeout = '300ms'\n", audit.toml())).await;
    let client = server.client().await;
    client.create(&[]).await;
    world.redis.pause();
    let call = client.create_with(CreateSessionRequest::default());
    let stop = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.stop().await;
    };
    let (result, ()) = tokio::join!(call, stop);
    world.redis.resume();
    result.unwrap_err();
    let lines = audit.lines();
    let created: Vec<_> = lines.iter().filter(|line| line["event"] == "session_created").collect();
    assert_eq!((created.len(), &created[1]["outcome"]), (2, &"unknown".into()), "{lines:?}");
    assert_numbered(&lines);
}
