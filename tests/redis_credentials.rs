//! Password and TLS for Redis from files: they are used for each new connection, also after a change, and a bad file changes
//! nothing. The names of the tests over TLS begin with `tls_`, because some Redis servers are built without TLS.

use std::path::{Path, PathBuf};

use harness::{
    ConfigFile, Redis, Server,
    client::*,
    eventually,
    pki::replace,
    process::Process,
    redis::CREDENTIALS,
    sentinel::Sentinels,
    servers::run_blocking,
    tls::{Certificates, Tls},
    unique_prefix,
};
use sessiond_client::v1::CreateSessionRequest;
use tempfile::TempDir;

const PREFIX: &str = "ses:";
/// Every character that has a meaning in a command of Redis.
const NEW: &str = "new \"password' \\x41 > é\t$1";

fn user_and_password() -> (&'static str, &'static str) {
    CREDENTIALS.split_once(':').unwrap()
}

/// Returns the URL without its password.
fn without_password(url: &str) -> String {
    url.replacen(CREDENTIALS, user_and_password().0, 1)
}

/// A file with this content, in a directory of its own.
fn file(content: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::Builder::new().prefix("sessiond-secret-").tempdir().unwrap();
    let path = directory.path().join("password");
    replace(&path, content);
    (directory, path)
}

fn setting(name: &str, path: &Path) -> String {
    format!("{name} = {:?}\n", path.to_str().unwrap())
}

fn tls_settings(certificates: &Certificates) -> String {
    let files = [("redis_ca", "ca.pem"), ("redis_cert", "client.pem"), ("redis_key", "client.key")];
    files.map(|(name, file)| setting(name, &certificates.path(file))).concat()
}

/// Ends all connections of sessiond, and waits until a call succeeds on new ones.
async fn reconnect(redis: &Redis, client: &Client) {
    assert!(redis.number(&["CLIENT", "KILL", "USER", user_and_password().0]) > 0);
    eventually("sessiond has reconnected", async || client.create_with(CreateSessionRequest::default()).await.ok())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_password_is_rotated_as_the_manual_says() {
    let redis = Redis::start();
    let (user, old) = user_and_password();
    let (_directory, path) = file(&format!("{old}\n"));
    let server = Server::start(&without_password(&redis.url()), PREFIX, &setting("redis_password_file", &path)).await;
    let client = server.client().await;
    let mut watch = client.watch_all().await;
    // Both passwords, then the file, then only the new one.
    redis.must(&["ACL", "SETUSER", user, &format!(">{NEW}")]);
    let time = server.metric("sessiond_reload_last_success_timestamp_seconds{file=\"redis_password_file\"}").await;
    assert!(time > 0.0);
    replace(&path, &format!("{NEW}\r\n"));
    eventually("the file is reloaded without a signal", async || {
        let name = "sessiond_reload_last_success_timestamp_seconds{file=\"redis_password_file\"}";
        (server.metric(name).await > time).then_some(())
    })
    .await;
    reconnect(&redis, &client).await;
    redis.must(&["ACL", "SETUSER", user, &format!("<{old}")]);
    reconnect(&redis, &client).await;
    let (session, _) = client.create(&[]).await;
    while watch.event().await.id != session.id {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_redis_password_file_changes_nothing() {
    let redis = Redis::start();
    let (directory, path) = file(user_and_password().1);
    let server = Server::start(&without_password(&redis.url()), PREFIX, &setting("redis_password_file", &path)).await;
    let client = server.client().await;
    for content in ["", "\n", "two\nlines\n", "nul\0"] {
        replace(&path, content);
        server.reload_until("redis_password_file", 0.0).await;
        reconnect(&redis, &client).await;
        replace(&path, user_and_password().1);
        server.reload_until("redis_password_file", 1.0).await;
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    server.reload_until("redis_password_file", 0.0).await;
    reconnect(&redis, &client).await;
    drop(directory);
}

#[test]
fn unusable_redis_password_file_is_refused_at_start() {
    let redis = Redis::start();
    for content in ["", "secret-of-two\nlines\n"] {
        let (_directory, path) = file(content);
        let arguments =
            [format!("--redis={}", redis.url()), format!("--redis-password-file={}", path.to_str().unwrap())];
        let (log, code) = Process::expect_start_failure(&arguments);
        assert!(code == Some(1) && log.contains("one line") && !log.contains("secret-of-two"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_password_file_is_not_for_sentinels() {
    let sentinels = run_blocking(|| Sentinels::start(1)).await;
    let (user, old) = user_and_password();
    for redis in sentinels.servers() {
        redis.must(&["ACL", "SETUSER", user, ">of-the-servers", &format!("<{old}")]);
    }
    let (_directory, path) = file("of-the-servers");
    let server = Server::start(&sentinels.url(), &unique_prefix(), &setting("redis_password_file", &path)).await;
    server.client().await.create(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_redis_client_certificate_is_replaced_without_a_restart() {
    let tls = Tls::start_mutual();
    let files = &tls.certificates;
    let server = Server::start(&tls.url(), PREFIX, &tls_settings(files)).await;
    let client = server.client().await;
    client.create(&[]).await;
    assert!(server.metric("sessiond_tls_certificate_not_after_timestamp_seconds{certificate=\"redis\"}").await > 0.0);
    // Redis trusts both authorities of clients, sessiond gets its new certificate, Redis trusts the new one only.
    let [ca, other] = ["ca.pem", "other-ca.pem"].map(|name| std::fs::read_to_string(files.path(name)).unwrap());
    let trust = |authorities: &str| {
        replace(&files.path("trusted.pem"), authorities);
        tls.redis.must(&["CONFIG", "SET", "tls-ca-cert-file", files.path("trusted.pem").to_str().unwrap()]);
    };
    trust(&format!("{ca}{other}"));
    // One file after the other: in between, the key is not that of the certificate.
    let take = |of: &str, as_: &str| replace(&files.path(as_), &std::fs::read_to_string(files.path(of)).unwrap());
    take("other-client.pem", "client.pem");
    server.reload_until("redis_key", 0.0).await;
    reconnect(&tls.redis, &client).await;
    take("other-client.key", "client.key");
    server.reload_until("redis_key", 1.0).await;
    trust(&other);
    reconnect(&tls.redis, &client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_redis_authority_is_replaced_without_a_restart() {
    let tls = Tls::start();
    let trusted = tls.certificates.path("trusted.pem");
    let [ca, other] =
        ["ca.pem", "other-ca.pem"].map(|name| std::fs::read_to_string(tls.certificates.path(name)).unwrap());
    replace(&trusted, &ca);
    let server = Server::start(&tls.url(), PREFIX, &setting("redis_ca", &trusted)).await;
    let client = server.client().await;
    client.create(&[]).await;
    let time = "sessiond_reload_last_success_timestamp_seconds{file=\"redis_ca\"}";
    let before = server.metric(time).await;
    replace(&trusted, &other);
    eventually("the file is reloaded", async || (server.metric(time).await > before).then_some(())).await;
    // Open connections continue; a new one is refused, because the authority of Redis is no longer trusted.
    client.create(&[]).await;
    tls.redis.must(&["CLIENT", "KILL", "USER", user_and_password().0]);
    eventually("sessiond does not connect", async || client.create_with(CreateSessionRequest::default()).await.err())
        .await;
    replace(&trusted, &ca);
    eventually("sessiond has reconnected", async || client.create_with(CreateSessionRequest::default()).await.ok())
        .await;
}

#[test]
fn tls_redis_without_the_client_certificate_is_refused() {
    let tls = Tls::start_mutual();
    let ca = tls.certificates.path("ca.pem");
    let arguments = [
        format!("--redis={}", tls.url()),
        format!("--redis-ca={}", ca.to_str().unwrap()),
        "--start-timeout=2s".to_owned(),
    ];
    let (log, code) = Process::expect_start_failure(&arguments);
    assert!(code == Some(1) && log.to_lowercase().contains("certificate"), "{log}");
}

#[test]
fn redis_options_that_need_another_are_refused_without() {
    let config =
        ConfigFile::new("redis = 'redis://localhost'\nredis_ca = 'a'\nredis_cert = 'b'\nredis_password_file = 'c'\n");
    let environment = [("SESSIOND_REDIS_PASSWORD", "d".to_owned())];
    let (log, code) = Process::expect_start_failure_with_env(&environment, &[config.flag()]);
    assert_eq!(code, Some(2), "{log}");
    let expected =
        ["redis_ca: needs redis", "redis_cert: needs redis", "redis_cert: needs redis_key", "redis_password_file: is"];
    for text in expected {
        assert!(log.contains(text), "{text} in {log}");
    }
}
