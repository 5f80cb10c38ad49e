//! Redis over TLS. The names of these tests begin with `tls_`, because some Redis servers are built without TLS.

use harness::{
    client::*,
    cluster::{Cluster, Promotion, create_many, key_of, sessions_on},
    eventually,
    process::Process,
    sentinel::Sentinels,
    servers::run_blocking,
    tls::{Certificates, Tls},
};

fn serve(url: &str) -> Vec<String> {
    vec![format!("--redis={url}")]
}

#[tokio::test]
async fn tls_connection_stores_and_watches_sessions() {
    let tls = Tls::start();
    let (a, b) = (
        Process::start_with_env(&tls.certificates.trusted_env(), &serve(&tls.url())),
        Process::start_with_env(&tls.certificates.trusted_env(), &serve(&tls.url())),
    );
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = other.watch_all().await;
    let (session, token) = client.create(&[("a", text("1"))]).await;
    assert_eq!(other.get(by_token(&token)).await.unwrap(), session);
    assert_eq!(watching.event().await.id, session.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_cluster_nodes_are_reached_by_name_after_a_failover() {
    let certificates = Certificates::generate();
    let (cluster, url, certificates) = run_blocking(move || {
        let (cluster, url) = Cluster::start_over_tls(1, &certificates);
        (cluster, url, certificates)
    })
    .await;
    let server = Process::start_with_env(&certificates.trusted_env(), &serve(&url));
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let sessions = create_many(&client).await;
    let primary = cluster.primaries().remove(1);
    let hurt = sessions_on(&primary, &sessions);
    assert!(!hurt.is_empty() && hurt.len() < sessions.len());
    let of = cluster.clone();
    run_blocking(move || of.promote(&of.replicas_of(&primary)[0], Promotion::Coordinated)).await;
    // The target node of a slot migration is reached by name too.
    let slot = cluster.slot_of(&key_of(&cluster, &sessions[0]));
    let from = cluster.primary_of_slot(slot);
    let to = cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
    let moving = cluster.start_slot_move(slot, &to);
    while moving.step(10) > 0 {}
    watching.events_until_now().await;
    let mut opened = client.watch_all().await;
    run_blocking(move || moving.finish()).await;
    for session in &sessions {
        eventually("the session is ended on its present node", async || client.delete(by_id(&session.id)).await.ok())
            .await;
    }
    for watching in [&mut watching, &mut opened] {
        assert_eq!(watching.events_until_now().await.len(), sessions.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_sentinels_and_primaries_are_reached_by_name() {
    let certificates = Certificates::generate();
    let (sentinels, certificates) =
        run_blocking(move || (Sentinels::start_over_tls(1, &certificates), certificates)).await;
    let server = Process::start_with_env(&certificates.trusted_env(), &serve(&sentinels.url_over_tls()));
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    let mut watching = client.watch_all().await;
    let _sentinels = run_blocking(move || {
        sentinels.primary().wait_for(&sentinels.replicas()[0]);
        sentinels.fail_over();
        sentinels.wait_until_replicated();
        sentinels
    })
    .await;
    eventually("the session is ended on the new primary", async || client.delete(by_id(&session.id)).await.ok()).await;
    assert_eq!(watching.event().await.id, session.id);
}

/// Returns the only error line of a server that does not start, in lower case.
fn refusal(environment: &[(&str, String)], url: &str) -> String {
    let arguments = [&serve(url)[..], &["--start-timeout=2s".to_owned()]].concat();
    let (log, code) = Process::expect_start_failure_with_env(environment, &arguments);
    assert_eq!(code, Some(1), "{log}");
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"ERROR\"")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(!log.contains("change-me"), "{log}");
    errors[0].to_ascii_lowercase()
}

#[test]
fn tls_untrusted_authority_is_refused_as_a_certificate_error() {
    let tls = Tls::start();
    let error = refusal(&tls.certificates.untrusted_env(), &tls.url());
    assert!(error.contains("certificate"), "{error}");
}

#[test]
fn tls_certificate_for_another_name_is_refused_as_such() {
    let tls = Tls::start();
    let error = refusal(&tls.certificates.trusted_env(), &tls.url_at("127.0.0.1"));
    assert!(error.contains("certificate"), "{error}");
}

#[test]
fn tls_port_refuses_plain_text() {
    let tls = Tls::start();
    refusal(&tls.certificates.trusted_env(), &tls.url().replace("rediss:", "redis:"));
}
