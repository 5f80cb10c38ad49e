//! The command line with TLS, API keys and client certificates, and `sessiond api-key new`.

use std::path::Path;

use harness::{
    Server, World,
    callers::{Caller, CallersFile, Key},
    cli::{Finished, command, run},
    client::*,
    eventually,
    pki::{Pki, replace, uri},
};

/// Runs a command against this server with these flags.
async fn sessiond(server: &Server, scheme: &str, arguments: &[&str]) -> Finished {
    let mut command = command(arguments);
    // A name that the certificate has.
    let address = server.address.replace("127.0.0.1", "localhost");
    command.args(["--endpoint", &format!("{scheme}://{address}"), "--namespace", NAMESPACE]);
    run(command, "").await
}

fn path_of(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A server that knows a caller by this key and by a certificate, and the files of the caller.
async fn setup(world: &World, key: &Key) -> (Server, Pki, CallersFile, [String; 4]) {
    let pki = Pki::generate();
    let file = CallersFile::new(&[Caller::new("shop", &[("web", "full")]).key(key).certificate("spiffe://test/shop")]);
    let server = world.server_with(&(pki.mutual_toml() + &file.toml())).await;
    let (key_file, ca) = (pki.path().join("shop.key-file"), pki.path().join("ca.pem"));
    replace(&key_file, &format!("{}\n", key.text));
    replace(&ca, &pki.server_authority.pem());
    let (cert, cert_key) = pki.client_authority.client(&[uri("spiffe://test/shop")]).write(pki.path(), "client");
    let files = [ca, key_file, cert, cert_key].map(|path| path_of(&path));
    (server, pki, file, files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_use_tls_with_a_key_or_a_certificate() {
    let (world, key) = (World::shared(), Key::generate());
    let (server, _pki, _file, [ca, key_file, cert, cert_key]) = setup(&world, &key).await;
    for credential in [&["--api-key-file", &key_file][..], &["--cert", &cert, "--key", &cert_key]] {
        let with = [&["create", "--ca", &ca][..], credential].concat();
        let created = sessiond(&server, "https", &with).await.succeeded();
        let id = created.lines().find_map(|line| line.strip_prefix("id ")).unwrap().trim().to_owned();
        let get = [&["get", &id, "--ca", &ca][..], credential].concat();
        sessiond(&server, "https", &get).await.succeeded();
        // The watch ends with its only session.
        let watched = async {
            sessiond(&server, "https", &[&["watch", &id, "--ca", &ca, "--initial-state"][..], credential].concat())
                .await
        };
        let ended = async {
            eventually("the watch is open", async || (server.metric("sessiond_watches").await > 0.0).then_some(()))
                .await;
            sessiond(&server, "https", &[&["delete", &id, "--ca", &ca][..], credential].concat()).await.succeeded();
        };
        let (watched, ()) = tokio::join!(watched, ended);
        assert!(watched.succeeded().contains("ENDED"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_without_its_credential_reports_what_is_missing() {
    let (world, key) = (World::shared(), Key::generate());
    let (server, pki, _file, [ca, key_file, cert, cert_key]) = setup(&world, &key).await;
    let wrong = path_of(&pki.path().join("wrong"));
    replace(Path::new(&wrong), &Key::generate().text);
    let rows: [(&str, &[&str], i32, &str); 9] = [
        ("https", &["--ca", &ca], 1, "UNAUTHENTICATED CREDENTIALS_INVALID"),
        ("https", &["--ca", &ca, "--api-key-file", &wrong], 1, "UNAUTHENTICATED CREDENTIALS_INVALID"),
        ("https", &["--api-key-file", &key_file], 1, "UnknownIssuer"),
        ("https", &["--ca", &ca, "--api-key-file", "/absent"], 2, "--api-key-file: No such file"),
        ("https", &["--ca", "/absent"], 2, "--ca: /absent: No such file"),
        ("https", &["--ca", &ca, "--cert", &cert], 2, "--key"),
        ("https", &["--ca", &ca, "--cert", &key_file, "--key", &cert_key], 2, "--endpoint"),
        ("http", &["--ca", &ca], 2, "need an --endpoint with https://"),
        ("ftp", &[], 2, "must start with http:// or https://"),
    ];
    for (scheme, flags, code, text) in rows {
        let errors = sessiond(&server, scheme, &[&["list"][..], flags].concat()).await.failed(code);
        assert!(errors.contains(text), "{flags:?}: {errors}");
        assert!(!errors.contains(&key.text), "{errors}");
    }
}

#[tokio::test]
async fn key_is_not_sent_without_tls_to_another_machine() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, Key::generate().text).unwrap();
    let mut command = command(&["list", "--namespace", NAMESPACE, "--endpoint", "http://192.0.2.1:1"]);
    command.arg("--api-key-file").arg(path);
    let errors = run(command, "").await.failed(2);
    assert!(errors.contains("would be sent without TLS"), "{errors}");
}

#[tokio::test]
async fn new_key_with_its_block_in_the_file_is_accepted() {
    let world = World::shared();
    let new = run(command(&["api-key", "new", "--caller", "shop", "--expires", "90d"]), "").await;
    let (key, block) = (new.output.trim_end().to_owned(), new.errors.clone());
    assert_eq!(new.code, Some(0), "{block}");
    assert!(key.starts_with("sdk_") && key.len() == 67 && !block.contains(&key[15..]), "{block}");
    assert!(block.starts_with("[[caller.shop.key]]\n") && block.contains("\nexpires = 20"), "{block}");
    let file = CallersFile::new(&[]);
    file.write_text(&format!("[caller.shop]\ngrants = {{ web = \"full\" }}\n{block}"));
    let server = world.server_with(&file.toml()).await;
    Client::connect_with(&server.address, &ClientOptions::with_key(&key)).await.create(&[]).await;
    for wrong in [&["api-key", "new"][..], &["api-key", "new", "--caller", "Shop"], &["api-key"]] {
        assert_eq!(run(command(wrong), "").await.code, Some(2), "{wrong:?}");
    }
    let again = run(command(&["api-key", "new", "--caller", "shop"]), "").await;
    assert!(again.output.trim_end() != key && !again.errors.contains("expires"));
}
