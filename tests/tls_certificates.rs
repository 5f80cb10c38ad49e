//! Client certificates: which are accepted, which end the handshake, and which have no caller.

use std::collections::BTreeMap;

use harness::{
    Server, Status as _, World,
    callers::{Caller, CallersFile},
    client::*,
    eventually,
    pki::{Authority, Pair, Pki, client_parameters, dns, replace, uri},
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    SerialNumber, date_time_ymd,
};
use sessiond_client::v1::CreateSessionRequest;
use tonic::Code;

const SHOP: &str = "spiffe://example.org/ns/shop/sa/backend";

/// What the server does with a client that shows a certificate.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// It has a caller.
    Accepted,
    /// It has no caller.
    Refused,
    /// The handshake fails, with this result in the metrics.
    Handshake(String),
}
use Outcome::{Accepted, Refused};

#[expect(non_snake_case, reason = "the variant with a constant")]
fn Handshake(result: &str) -> Outcome {
    Outcome::Handshake(result.to_owned())
}

/// Number of failed handshakes by result.
async fn failed_handshakes(server: &Server) -> BTreeMap<String, f64> {
    let metrics = server.http("/metrics").await.unwrap();
    let counts = metrics.lines().filter_map(|line| {
        let (result, count) = line.strip_prefix("sessiond_tls_handshakes_total{result=\"")?.split_once("\"} ")?;
        Some((result.to_owned(), count.parse().unwrap()))
    });
    counts.filter(|(result, _)| result != "ok").collect()
}

async fn outcome(server: &Server, pki: &Pki, pair: &Pair) -> Outcome {
    let before = failed_handshakes(server).await;
    let options = ClientOptions { tls: Some(pki.client_options_with(pair)), key: None };
    let called = match Client::try_connect_with(&server.address, &options).await {
        Ok(client) => client.create_with(CreateSessionRequest::default()).await.map(drop),
        Err(_) => Err(tonic::Status::unavailable("")),
    };
    match called {
        Ok(()) => Accepted,
        Err(status) if status.code() == Code::Unauthenticated => {
            assert_eq!(status.reason(), "CREDENTIALS_INVALID");
            Refused
        }
        // With TLS 1.3 the client may notice the failure before the server has counted it.
        Err(_) => {
            eventually("the failed handshake is counted", async || {
                let now = failed_handshakes(server).await;
                let counted = now.into_iter().find(|(result, count)| before.get(result) != Some(count));
                counted.map(|(result, _)| Outcome::Handshake(result))
            })
            .await
        }
    }
}

/// Parameters of a valid certificate, changed.
fn changed(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut parameters = client_parameters(&[uri(SHOP)]);
    change(&mut parameters);
    parameters
}

/// The names of a certificate with a second URI that is not UTF-8.
fn undecodable_names() -> CustomExtension {
    const SUBJECT_ALTERNATIVE_NAME: [u64; 4] = [2, 5, 29, 17];
    let uri = |bytes: &[u8]| [&[0x86, bytes.len() as u8][..], bytes].concat();
    let names = [uri(SHOP.as_bytes()), uri(b"spiffe://example.org/\xff")].concat();
    let content = [&[0x30, names.len() as u8][..], &names].concat();
    CustomExtension::from_oid_content(&SUBJECT_ALTERNATIVE_NAME, content)
}

/// Issues a certificate below this many intermediate authorities.
fn chain_of(root: &Authority, length: usize) -> Pair {
    let mut authorities = Vec::new();
    for index in 0..length {
        let above = authorities.last().unwrap_or(root);
        let authority = above.intermediate(&format!("intermediate {index}"));
        authorities.push(authority);
    }
    let mut pair = authorities[length - 1].client(&[uri(SHOP)]);
    authorities.iter().rev().for_each(|authority| pair.certificate += &authority.pem());
    pair
}

fn self_signed() -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = client_parameters(&[uri(SHOP)]).self_signed(&key).unwrap();
    Pair { certificate: certificate.pem(), key: key.serialize_pem() }
}

/// The identities that callers have. `long` is a SPIFFE id of 2,048 bytes.
fn callers(long: &str) -> CallersFile {
    let caller = |name| Caller::new(name, &[("web", "full")]);
    let shop = caller("shop").certificate(SHOP).certificate("dns:shop.internal").certificate("dns:shop2.internal");
    CallersFile::new(&[shop, caller("other").certificate("dns:other.internal").certificate(long)])
}

/// Certificates with their outcomes. `long` is the SPIFFE id of 2,048 bytes.
fn rows(authority: &Authority, long: &str) -> Vec<(&'static str, Pair, Outcome)> {
    let names = |names: &[SanType]| authority.client(names);
    let issue = |change: fn(&mut CertificateParams)| authority.issue(changed(change));
    vec![
        ("SPIFFE id", names(&[uri(SHOP)]), Accepted),
        ("SPIFFE id and unknown DNS name", names(&[dns("a.internal"), uri(SHOP)]), Accepted),
        ("SPIFFE id of 2,048 bytes", names(&[uri(long)]), Accepted),
        ("SPIFFE id of 2,049 bytes", names(&[uri(&format!("{long}a"))]), Refused),
        ("DNS name", names(&[dns("shop.internal")]), Accepted),
        ("DNS name in upper case", names(&[dns("SHOP.internal")]), Accepted),
        ("DNS name, and one that no caller has", names(&[dns("a.internal"), dns("shop.internal")]), Accepted),
        ("two DNS names of one caller", names(&[dns("shop.internal"), dns("shop2.internal")]), Accepted),
        ("DNS names of two callers", names(&[dns("shop.internal"), dns("other.internal")]), Refused),
        ("DNS name that no caller has", names(&[dns("a.internal")]), Refused),
        ("wildcard", names(&[dns("*.internal")]), Refused),
        ("common name only", names(&[]), Refused),
        ("address", names(&[SanType::IpAddress([127, 0, 0, 1].into())]), Refused),
        ("two URIs", names(&[uri(SHOP), uri("spiffe://example.org/b")]), Refused),
        ("the same URI twice", names(&[uri(SHOP), uri(SHOP)]), Refused),
        ("unknown URI and the DNS name of a caller", names(&[uri("spiffe://a/b"), dns("shop.internal")]), Refused),
        ("SPIFFE id without a path", names(&[uri("spiffe://example.org")]), Refused),
        ("SPIFFE id with a query", names(&[uri(&format!("{SHOP}?a=b"))]), Refused),
        ("SPIFFE id in upper case", names(&[uri(&SHOP.to_uppercase())]), Refused),
        (
            "URI that is not UTF-8",
            issue(|parameters| {
                parameters.subject_alt_names.clear();
                parameters.custom_extensions.push(undecodable_names());
            }),
            Refused,
        ),
        (
            "expired",
            issue(|parameters| parameters.not_after = date_time_ymd(2026, 1, 1)),
            Handshake("certificate_expired"),
        ),
        (
            "early",
            issue(|parameters| parameters.not_before = date_time_ymd(2126, 1, 1)),
            Handshake("certificate_early"),
        ),
        ("other authority", Authority::generate("x").client(&[uri(SHOP)]), Handshake("certificate_unknown_ca")),
        (
            "same name of another authority",
            Authority::generate("authority of the clients").client(&[uri(SHOP)]),
            Handshake("certificate_invalid"),
        ),
        ("self-signed", self_signed(), Handshake("certificate_unknown_ca")),
        (
            "authority",
            issue(|parameters| parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            Handshake("certificate_invalid"),
        ),
        (
            "for servers",
            issue(|parameters| parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            Handshake("certificate_purpose"),
        ),
        ("intermediate", chain_of(authority, 1), Accepted),
        ("chain of 20", chain_of(authority, 20), Handshake("certificate_invalid")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_has_one_identity_of_one_caller_or_none() {
    let (world, pki) = (World::shared(), Pki::generate());
    let long = format!("spiffe://example.org/{}", "a".repeat(2_048 - 21));
    let file = callers(&long);
    let server = world.server_with(&(pki.mutual_toml() + &file.toml())).await;
    let mut wrong = Vec::new();
    for (name, pair, expected) in rows(&pki.client_authority, &long) {
        let outcome = outcome(&server, &pki, &pair).await;
        if outcome != expected {
            wrong.push(format!("{name}: {outcome:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_list_covers_every_issuer() {
    let (world, pki) = (World::shared(), Pki::generate());
    let file = callers("spiffe://example.org/long");
    replace(&pki.client_crl(), &pki.client_authority.revocation_list(&[7]));
    let toml = format!("{}client_crl = {:?}\n{}", pki.mutual_toml(), pki.client_crl().to_str().unwrap(), file.toml());
    let server = world.server_with(&toml).await;
    let with_serial = |serial: u64| {
        pki.client_authority.issue(changed(|parameters| parameters.serial_number = Some(SerialNumber::from(serial))))
    };
    let rows = [
        ("revoked", with_serial(7), Handshake("certificate_revoked")),
        ("not revoked", with_serial(8), Accepted),
        ("issuer without a list", chain_of(&pki.client_authority, 1), Handshake("crl_unknown")),
    ];
    for (name, pair, expected) in rows {
        assert_eq!(outcome(&server, &pki, &pair).await, expected, "{name}");
    }
}

#[tokio::test]
async fn header_makes_no_identity() {
    let (world, pki) = (World::shared(), Pki::generate());
    let file = callers("spiffe://example.org/long");
    let server = world.server_with(&(pki.mutual_toml() + &file.toml())).await;
    let channel =
        ClientOptions { tls: Some(pki.client_options()), key: None }.endpoint(&server.address).connect().await;
    let channel = channel.unwrap();
    let headers = [
        ("x-forwarded-client-cert", format!("URI={SHOP}")),
        ("x-client-cert", SHOP.to_owned()),
        ("x-ssl-client-s-dn", "CN=shop.internal".to_owned()),
        ("x-real-ip", "127.0.0.1".to_owned()),
        ("forwarded", "for=127.0.0.1".to_owned()),
        ("user", "shop".to_owned()),
        ("x-sessiond-caller", "shop".to_owned()),
    ];
    for (name, value) in headers {
        let mut stub = sessiond_client::v1::session_service_client::SessionServiceClient::new(channel.clone());
        let mut request =
            tonic::Request::new(CreateSessionRequest { namespace: NAMESPACE.into(), ..Default::default() });
        request.metadata_mut().insert(name, value.parse().unwrap());
        expect_error(stub.create_session(request).await, Code::Unauthenticated, "CREDENTIALS_INVALID");
    }
}
