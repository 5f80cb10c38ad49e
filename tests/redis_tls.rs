//! A Redis behind TLS. (The names of these tests begin with `tls_`: not every server is built with it.)

mod harness;

use harness::{
    client::*,
    cluster::{Cluster, Promotion, key_of, many, on},
    eventually,
    process::Process,
    sentinel::Sentinels,
    servers::aside,
    tls::{Certificates, Tls},
};

fn serve(url: &str) -> Vec<String> {
    vec![format!("--redis={url}")]
}

#[tokio::test]
async fn tls_sessions_are_kept_behind_it() {
    let tls = Tls::start();
    let (a, b) = (
        Process::start_in(&tls.certificates.trust(), &serve(&tls.url())),
        Process::start_in(&tls.certificates.trust(), &serve(&tls.url())),
    );
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = other.watch_all().await;
    let (session, token) = client.create(&[("a", text("1"))]).await;
    assert_eq!(other.get(by_token(&token)).await.unwrap(), session);
    assert_eq!(watching.event().await.id, session.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_the_nodes_of_a_cluster_are_reached_by_name_also_one_that_takes_over() {
    let certificates = Certificates::make();
    let (cluster, url, certificates) = aside(move || {
        let (cluster, url) = Cluster::start_over_tls(1, &certificates);
        (cluster, url, certificates)
    })
    .await;
    let server = Process::start_in(&certificates.trust(), &serve(&url));
    let client = server.client().await;
    let mut watching = client.watch_all().await;
    let sessions = many(&client).await;
    let primary = cluster.primaries().remove(1);
    let hurt = on(&primary, &sessions);
    assert!(!hurt.is_empty() && hurt.len() < sessions.len());
    let of = cluster.clone();
    aside(move || of.promote(&of.replicas_of(&primary)[0], Promotion::Agreed)).await;
    // And one that a slot is on its way to.
    let slot = cluster.slot_of(&key_of(&cluster, &sessions[0]));
    let from = cluster.primary_of_slot(slot);
    let to = cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
    let moving = cluster.begin_to_move(slot, &to);
    while moving.step(10) > 0 {}
    watching.everything_so_far().await;
    let mut opened = client.watch_all().await;
    aside(move || moving.finish()).await;
    for session in &sessions {
        eventually("it is ended where it is now", async || client.delete(by_id(&session.id)).await.ok()).await;
    }
    for watching in [&mut watching, &mut opened] {
        assert_eq!(watching.everything_so_far().await.len(), sessions.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_sentinels_and_the_primary_that_they_name_are_reached_by_name_also_the_next_one() {
    let certificates = Certificates::make();
    let (sentinels, certificates) = aside(move || (Sentinels::start_over_tls(1, &certificates), certificates)).await;
    let server = Process::start_in(&certificates.trust(), &serve(&sentinels.url_over_tls()));
    let client = server.client().await;
    let (session, _) = client.create(&[]).await;
    let mut watching = client.watch_all().await;
    let _sentinels = aside(move || {
        sentinels.primary().wait_for(&sentinels.replicas()[0]);
        sentinels.fail_over();
        sentinels.wait_until_followed();
        sentinels
    })
    .await;
    eventually("it is ended there", async || client.delete(by_id(&session.id)).await.ok()).await;
    assert_eq!(watching.event().await.id, session.id);
}

/// The one line that says why it does not start.
fn refusal(environment: &[(&str, String)], url: &str) -> String {
    let (log, code) = Process::start_in_vain_in(environment, &serve(url));
    assert_eq!(code, Some(1), "{log}");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("\"ERROR\"")).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(!log.contains("change-me"), "{log}");
    told[0].to_ascii_lowercase()
}

#[test]
fn tls_an_authority_that_is_not_trusted_is_refused_and_the_certificate_is_named_as_the_cause() {
    let tls = Tls::start();
    let told = refusal(&tls.certificates.trust_in_another(), &tls.url());
    assert!(told.contains("certificate"), "{told}");
}

#[test]
fn tls_a_certificate_for_another_name_is_refused_and_named_as_the_cause() {
    let tls = Tls::start();
    let told = refusal(&tls.certificates.trust(), &tls.url_at("127.0.0.1"));
    assert!(told.contains("certificate"), "{told}");
}

#[test]
fn tls_plain_text_is_not_taken_there() {
    let tls = Tls::start();
    refusal(&tls.certificates.trust(), &tls.url().replace("rediss:", "redis:"));
}
