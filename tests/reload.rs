//! Reload of files with credentials: no call of a caller that keeps its right fails, those that lost it are answered as
//! specified, watches included, and a bad file changes nothing.

use std::{
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use harness::{
    Server, WatchReader, World,
    callers::{Caller, CallersFile, Key},
    client::*,
    eventually,
    pki::{Authority, Pair, Pki, replace, uri},
    process::Process,
};
use rustix::process::Signal;
use rustls::HandshakeKind;
use sessiond_client::v1::CreateSessionRequest;
use tonic::Code;

const SHOP: &str = "spiffe://test/shop";
const OTHER: &str = "spiffe://test/other";

fn shop() -> Caller {
    Caller::new("shop", &[("web", "full")])
}

/// Calls in a loop that must not fail, until it is stopped.
struct Load {
    is_over: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    running: tokio::task::JoinHandle<()>,
}

impl Load {
    /// Starts it: half of the calls on an open connection, half on a new one.
    fn start(address: &str, options: ClientOptions) -> Self {
        let (is_over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (address, over, count) = (address.to_owned(), is_over.clone(), calls.clone());
        #[expect(clippy::disallowed_methods, reason = "the test owns it")]
        let running = tokio::spawn(async move {
            let open = Client::connect_with(&address, &options).await;
            while !over.load(Ordering::Relaxed) {
                open.create(&[]).await;
                Client::connect_with(&address, &options).await.create(&[]).await;
                count.fetch_add(2, Ordering::Relaxed);
            }
        });
        Load { is_over, calls, running }
    }

    /// Waits until further calls have succeeded.
    async fn goes_on(&self) {
        let before = self.calls.load(Ordering::Relaxed);
        eventually("calls go on", async || (self.calls.load(Ordering::Relaxed) >= before + 2).then_some(())).await;
    }

    /// Stops it; panics if a call has failed.
    async fn stop(self) {
        self.goes_on().await;
        self.is_over.store(true, Ordering::Relaxed);
        self.running.await.unwrap();
    }
}

/// Reads the watch to its end; returns the resume token of its last response, and its status.
async fn end_of(watch: &mut WatchReader) -> (Vec<u8>, tonic::Status) {
    let mut token = Vec::new();
    loop {
        match watch.response().await {
            Ok(Some(response)) => token = response.resume_token,
            Ok(None) => panic!("the watch ended with OK"),
            Err(status) => return (token, status),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_key_or_grant_ends_calls_and_watches_only_of_its_caller() {
    let (world, [kept, lost, reduced]) = (World::shared(), [(); 3].map(|()| Key::generate()));
    let reduced_caller = |grant| Caller::new("reduced", &[("web", grant)]).key(&reduced);
    let file = CallersFile::new(&[shop().key(&kept).key(&lost), reduced_caller("full")]);
    let server = world.server_with(&file.toml()).await;
    let clients = [&kept, &lost, &reduced].map(|key| ClientOptions::with_key(&key.text));
    let [kept_client, lost_client, reduced_client] = {
        let connect = async |index: usize| Client::connect_with(&server.address, &clients[index]).await;
        [connect(0).await, connect(1).await, connect(2).await]
    };
    let load = Load::start(&server.address, clients[0].clone());
    let (mut kept_watch, mut lost_watch) = (kept_client.watch_all().await, lost_client.watch_all().await);
    let mut reduced_watch = reduced_client.watch_all().await;
    // Without a reload on request: the poll finds the change.
    file.write(&[shop().key(&kept), reduced_caller("manage")]);
    let (token, status) = end_of(&mut lost_watch).await;
    expect_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_INVALID");
    assert!(!token.is_empty(), "the final response has a resume token");
    let (token, status) = end_of(&mut reduced_watch).await;
    let status = expect_error::<()>(Err(status), Code::PermissionDenied, "GRANT_MISSING");
    assert_eq!((&status.metadata_of("grant")[..], &status.metadata_of("namespace")[..]), ("full", "web"));
    let read = by_token(&new_token());
    expect_error(lost_client.get(read.clone()).await, Code::Unauthenticated, "CREDENTIALS_INVALID");
    expect_error(reduced_client.get(read).await, Code::PermissionDenied, "GRANT_MISSING");
    load.stop().await;
    // The other watch continues, and the token of an ended one can be resumed with a key that has the right.
    let (session, _) = kept_client.create(&[("name", text("last"))]).await;
    while kept_watch.event().await.id != session.id {}
    let mut resumed = kept_client.resume(&token).await;
    while resumed.event().await.id != session.id {}
    let used =
        |key: &Key| format!("sessiond_caller_key_last_used_timestamp_seconds{{caller=\"shop\",key=\"{}\"}}", key.id);
    assert!(server.metric(&used(&kept)).await > 0.0);
    assert_eq!(server.metric(&used(&lost)).await, 0.0, "a removed key has no metric");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_is_exchanged_as_the_manual_says() {
    let (world, [old, new]) = (World::shared(), [(); 2].map(|()| Key::generate()));
    let file = CallersFile::new(&[shop().key(&old)]);
    let server = world.server_with(&file.toml()).await;
    let [old_options, new_options] = [&old, &new].map(|key| ClientOptions::with_key(&key.text));
    let old_load = Load::start(&server.address, old_options.clone());
    let used = async |key: &Key| {
        let labels = format!("{{caller=\"shop\",key=\"{}\"}}", key.id);
        server.metric(&format!("sessiond_caller_key_last_used_timestamp_seconds{labels}")).await
    };
    file.write(&[shop().key(&old).key(&new)]);
    eventually("the new key is valid", async || {
        let client = Client::connect_with(&server.address, &new_options).await;
        client.create_with(CreateSessionRequest::default()).await.ok()
    })
    .await;
    let new_load = Load::start(&server.address, new_options.clone());
    old_load.stop().await;
    let last = used(&old).await;
    eventually("only the new key is used", async || (used(&new).await > last + 1.0).then_some(())).await;
    assert_eq!(used(&old).await, last);
    file.write(&[shop().key(&new)]);
    let old_client = Client::connect_with(&server.address, &old_options).await;
    eventually("the old key is refused", async || old_client.create_with(CreateSessionRequest::default()).await.err())
        .await;
    new_load.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_of_a_key_ends_its_watch() {
    let (world, key) = (World::shared(), Key::generate());
    let end = SystemTime::now() + Duration::from_secs(10);
    let file =
        CallersFile::new(&[shop().key_with(&key, &format!("expires = {}", humantime::format_rfc3339_millis(end)))]);
    let server = world.server_with(&file.toml()).await;
    let client = Client::connect_with(&server.address, &ClientOptions::with_key(&key.text)).await;
    let mut watch = client.watch_all().await;
    let (token, status) = end_of(&mut watch).await;
    expect_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_INVALID");
    assert!(!token.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_is_lost_too_by_a_client_that_does_not_read() {
    let (world, key) = (World::shared(), Key::generate());
    let file = CallersFile::new(&[shop().key(&key)]);
    let toml = format!("{}[limits]\nresponse_timeout = '1s'\n", file.toml());
    let server = world.server_with(&toml).await;
    let client = Client::connect_with(&server.address, &ClientOptions::with_key(&key.text)).await;
    let _unread = client.watch(whole_namespace()).await.unwrap();
    eventually("the watch is open", async || (server.metric("sessiond_watches").await == 1.0).then_some(())).await;
    file.write(&[shop().key(&Key::generate())]);
    server.reload();
    eventually("the watch ends", async || (server.metric("sessiond_watches").await == 0.0).then_some(())).await;
}

/// A server with TLS, a client authority, and a caller by certificate.
async fn mutual_server(world: &World) -> (Server, Pki, CallersFile, Pair) {
    let pki = Pki::generate();
    let file =
        CallersFile::new(&[shop().certificate(SHOP), Caller::new("other", &[("web", "full")]).certificate(OTHER)]);
    let server = world.server_with(&(pki.mutual_toml() + &file.toml())).await;
    let pair = pki.client_authority.client(&[uri(SHOP)]);
    (server, pki, file, pair)
}

fn with_certificate(pki: &Pki, pair: &Pair) -> ClientOptions {
    ClientOptions { tls: Some(pki.client_options_with(pair)), key: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_authority_is_exchanged_without_a_failed_call() {
    let world = World::shared();
    let (server, pki, _file, before) = mutual_server(&world).await;
    let new_authority = Authority::generate("new authority of the clients");
    let after = new_authority.client(&[uri(OTHER)]);
    let old_client = Client::connect_with(&server.address, &with_certificate(&pki, &before)).await;
    let mut old_watch = old_client.watch_all().await;
    // Add the new authority, issue certificates by it, remove the old one.
    let load = Load::start(&server.address, with_certificate(&pki, &before));
    replace(&pki.client_ca(), &(pki.client_authority.pem() + &new_authority.pem()));
    server.reload();
    let new_client = eventually("the new authority is accepted", async || {
        let client = Client::try_connect_with(&server.address, &with_certificate(&pki, &after)).await.ok()?;
        client.create_with(Default::default()).await.ok().map(|_| client)
    })
    .await;
    load.stop().await;
    let mut new_watch = new_client.watch_all().await;
    let load = Load::start(&server.address, with_certificate(&pki, &after));
    replace(&pki.client_ca(), &new_authority.pem());
    server.reload();
    // A certificate that was accepted in a handshake is verified again on its open connection.
    let (token, status) = end_of(&mut old_watch).await;
    expect_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_INVALID");
    assert!(!token.is_empty());
    let read = by_token(&new_token());
    expect_error(old_client.get(read).await, Code::Unauthenticated, "CREDENTIALS_INVALID");
    load.stop().await;
    let (session, _) = new_client.create(&[]).await;
    while new_watch.event().await.id != session.id {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_certificate_ends_calls_and_watches() {
    let (world, pki) = (World::shared(), Pki::generate());
    let file =
        CallersFile::new(&[shop().certificate(SHOP), Caller::new("other", &[("web", "full")]).certificate(OTHER)]);
    replace(&pki.client_crl(), &pki.client_authority.revocation_list(&[]));
    let toml = format!("{}client_crl = {:?}\n{}", pki.mutual_toml(), pki.client_crl().to_str().unwrap(), file.toml());
    let server = world.server_with(&toml).await;
    let issue = |name, serial: u64| {
        let mut parameters = harness::pki::client_parameters(&[uri(name)]);
        parameters.serial_number = Some(rcgen::SerialNumber::from(serial));
        pki.client_authority.issue(parameters)
    };
    let (stolen, kept) = (issue(SHOP, 7), issue(OTHER, 8));
    let client = Client::connect_with(&server.address, &with_certificate(&pki, &stolen)).await;
    let mut watch = client.watch_all().await;
    let load = Load::start(&server.address, with_certificate(&pki, &kept));
    replace(&pki.client_crl(), &pki.client_authority.revocation_list(&[7]));
    let (_, status) = end_of(&mut watch).await;
    expect_error::<()>(Err(status), Code::Unauthenticated, "CREDENTIALS_INVALID");
    expect_error(client.get(by_token(&new_token())).await, Code::Unauthenticated, "CREDENTIALS_INVALID");
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_ticket_outlives_its_authority() {
    let world = World::shared();
    let (server, pki, _file, pair) = mutual_server(&world).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut config = pki.rustls_config_of(Some(&pair), &["h2"], &[version]);
        config.resumption = rustls::client::Resumption::in_memory_sessions(8);
        for _ in 0..3 {
            let mut stream = pki.connect_with(&server.address, config.clone()).await.unwrap();
            // Session tickets of TLS 1.3 follow the handshake.
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await
                .unwrap();
            tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full), "{version:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_certificate_is_replaced_in_any_order() {
    let (world, pki) = (World::shared(), Pki::generate());
    let server = world.server_with(&pki.toml()).await;
    let options = ClientOptions { tls: Some(pki.client_options()), key: None };
    let open = Client::connect_with(&server.address, &options).await;
    let mut watch = open.watch_all().await;
    let load = Load::start(&server.address, options);
    let shown = async || {
        let stream = pki.connect(&server.address, &["h2"]).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    for first in ["server.pem", "server.key"] {
        let before = shown().await;
        let pair = pki.server_authority.server();
        let files = [("server.pem", &pair.certificate), ("server.key", &pair.key)];
        let (now, later): (Vec<_>, Vec<_>) = files.into_iter().partition(|(name, _)| *name == first);
        replace(&pki.path().join(now[0].0), now[0].1);
        // Certificate and key do not belong together: the old ones stay.
        server.reload_until("tls_key", 0.0).await;
        load.goes_on().await;
        assert_eq!(shown().await, before);
        replace(&pki.path().join(later[0].0), later[0].1);
        server.reload_until("tls_key", 1.0).await;
        assert_ne!(shown().await, before);
        load.goes_on().await;
    }
    load.stop().await;
    let (session, _) = open.create(&[("name", text("last"))]).await;
    while watch.event().await.id != session.id {}
}

/// Puts something else in the place of a file.
type Break = fn(&Path, &str);

fn remove(path: &Path) {
    let _ = std::fs::remove_dir(path).or_else(|_| std::fs::remove_file(path));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_file_changes_nothing_and_is_visible() {
    let (world, key) = (World::shared(), Key::generate());
    let pki = Pki::generate();
    replace(&pki.client_crl(), &pki.client_authority.revocation_list(&[]));
    let file = CallersFile::new(&[shop().key(&key).certificate(SHOP)]);
    let crl = format!("client_crl = {:?}\n", pki.client_crl().to_str().unwrap());
    let server = world.server_with(&(pki.mutual_toml() + &crl + &file.toml())).await;
    let certificate = pki.client_authority.client(&[uri(SHOP)]);
    let by_key = Load::start(&server.address, ClientOptions { tls: Some(pki.client_options()), key: Some(key.text) });
    let by_certificate = Load::start(&server.address, with_certificate(&pki, &certificate));
    let files = [
        ("tls_cert", pki.path().join("server.pem")),
        ("tls_key", pki.path().join("server.key")),
        ("client_ca", pki.client_ca()),
        ("client_crl", pki.client_crl()),
        ("callers", file.path()),
    ];
    let breaks: [(&str, Break); 8] = [
        ("truncated", |path, content| replace(path, &content[..content.len() / 2])),
        ("empty", |path, _| replace(path, "")),
        ("of another kind", |path, _| {
            replace(path, &Pki::generate().server_authority.revocation_list(&[]).replace("X509 CRL", "SOMETHING"))
        }),
        ("absent", |path, _| remove(path)),
        ("directory", |path, _| {
            remove(path);
            std::fs::create_dir(path).unwrap();
        }),
        ("100 MB", |path, _| {
            std::fs::File::create(path).unwrap().set_len(100_000_000).unwrap();
        }),
        ("loop of symbolic links", |path, _| {
            remove(path);
            symlink(path, path).unwrap();
        }),
        ("not UTF-8", |path, _| std::fs::write(path, [0xff; 100]).unwrap()),
    ];
    for (name, path) in &files {
        let content = std::fs::read_to_string(path).unwrap();
        for (how, break_file) in breaks {
            break_file(path, &content);
            server.reload_until(name, 0.0).await;
            by_key.goes_on().await;
            by_certificate.goes_on().await;
            remove(path);
            replace(path, &content);
            server.reload_until(name, 1.0).await;
            println!("{name}: {how}");
        }
    }
    by_key.stop().await;
    by_certificate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchanged_symbolic_link_is_found_by_the_poll() {
    let (world, [first, second]) = (World::shared(), [(); 2].map(|()| Key::generate()));
    // As Kubernetes mounts a secret: the file is a link into a directory, which is exchanged by the rename of another link.
    let directory = tempfile::tempdir().unwrap();
    let files = [&first, &second].map(|key| CallersFile::new(&[shop().key(key)]));
    let link_to = |file: &CallersFile| {
        let new = directory.path().join("new");
        symlink(file.path().parent().unwrap(), &new).unwrap();
        std::fs::rename(new, directory.path().join("..data")).unwrap();
    };
    link_to(&files[0]);
    let path = directory.path().join("callers.toml");
    symlink("..data/callers.toml", &path).unwrap();
    let server = world.server_with(&format!("callers = {:?}\n", path.to_str().unwrap())).await;
    Client::connect_with(&server.address, &ClientOptions::with_key(&first.text)).await.create(&[]).await;
    link_to(&files[1]);
    let client = Client::connect_with(&server.address, &ClientOptions::with_key(&second.text)).await;
    eventually("the new file is in force", async || client.create_with(Default::default()).await.ok()).await;
}

#[tokio::test]
async fn hangup_reloads_and_logs_the_files() {
    let (world, [first, second]) = (World::dedicated(), [(); 2].map(|()| Key::generate()));
    let file = CallersFile::new(&[shop().key(&first)]);
    let arguments = [format!("--redis={}", world.redis.url()), format!("--callers={}", file.path().display())];
    let mut process = Process::start(&arguments);
    file.write(&[shop().key(&second)]);
    process.signal(Signal::HUP);
    let client = Client::connect_with(&process.address, &ClientOptions::with_key(&second.text)).await;
    eventually("the new key is accepted", async || client.create_with(Default::default()).await.ok()).await;
    file.write_text("[caller.shop");
    eventually("the problem is logged", async || {
        let log = process.log.lock().unwrap().clone();
        (log.contains("cannot reload credentials") && log.contains("line 1")).then_some(())
    })
    .await;
    client.create(&[]).await;
    let log = process.log.lock().unwrap().clone();
    assert_eq!(log.matches("cannot reload credentials").count(), 1, "{log}");
    assert!(log.contains("credentials reloaded") && !log.contains(&second.text), "{log}");
    assert_eq!(process.stop().await, Some(0));
}

#[test]
fn server_does_not_start_with_a_bad_file() {
    let (world, pki) = (World::dedicated(), Pki::generate());
    let redis = format!("--redis={}", world.redis.url());
    let path = |name: &str| pki.path().join(name).display().to_string();
    let callers = CallersFile::new(&[]);
    callers.write_text("[caller.shop]\ngrants = { web = \"all\" }\n");
    let rows = [
        (vec![format!("--tls-cert={}", path("server.pem")), format!("--tls-key={}", path("absent"))], "absent"),
        (
            vec![format!("--tls-cert={}", path("client-ca.pem")), format!("--tls-key={}", path("server.key"))],
            "is not the key of the certificate",
        ),
        (
            vec![format!("--callers={}", callers.path().display())],
            "caller.shop.grants.web: must be token, manage or full",
        ),
    ];
    for (arguments, problem) in rows {
        let (log, code) = Process::expect_start_failure(&[vec![redis.clone()], arguments].concat());
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(problem), "{log}");
    }
}
