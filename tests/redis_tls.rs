//! A Redis behind TLS. (The names of these tests begin with `tls_`: not every server is built with it.)

mod harness;

use harness::{client::*, process::Process, tls::Tls};

fn serve(url: &str) -> Vec<String> {
    vec![format!("--redis={url}")]
}

#[tokio::test]
async fn tls_sessions_are_kept_behind_it() {
    let tls = Tls::start();
    let (a, b) =
        (Process::start_in(&tls.trust(), &serve(&tls.url())), Process::start_in(&tls.trust(), &serve(&tls.url())));
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = other.watch_all().await;
    let (session, token) = client.create(&[("a", text("1"))]).await;
    assert_eq!(other.get(by_token(&token)).await.unwrap(), session);
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
    let told = refusal(&tls.trust_in_another(), &tls.url());
    assert!(told.contains("certificate"), "{told}");
}

#[test]
fn tls_a_certificate_for_another_name_is_refused_and_named_as_the_cause() {
    let tls = Tls::start();
    let told = refusal(&tls.trust(), &tls.url_at("127.0.0.1"));
    assert!(told.contains("certificate"), "{told}");
}

#[test]
fn tls_plain_text_is_not_taken_there() {
    let tls = Tls::start();
    refusal(&tls.trust(), &tls.url().replace("rediss:", "redis:"));
}
