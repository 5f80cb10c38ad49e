//! The quickstart sample of every client, run against two servers: all print the same lines, without TLS, and over TLS with an API
//! key or a client certificate.

use std::{path::PathBuf, process::Output};

use harness::{
    Server, World,
    callers::{Caller, CallersFile, Key},
    pki::{Pki, replace, uri},
};

const EXPECTED: &str = r#"server A created the session of user 1
server B received CREATED: user_id=1 cart=["item1","item2"]
server B read: user_id=1 cart=["item1","item2"]
server B received ENDED: LOGOUT
server A returned: NOT_FOUND
done
"#;

/// Runs `make quickstart` of a client against these servers, with these variables.
async fn run(language: &str, servers: [&Server; 2], variables: &[(&str, PathBuf)]) -> Output {
    let mut command = tokio::process::Command::new("make");
    command
        .args(["-s", "-C", &format!("{}/clients/{language}", env!("CARGO_MANIFEST_DIR")), "quickstart"])
        .env("SESSIOND_A", &servers[0].address)
        .env("SESSIOND_B", &servers[1].address);
    for variable in ["SESSIOND_CA", "SESSIOND_API_KEY_FILE", "SESSIOND_CERT", "SESSIOND_KEY"] {
        command.env_remove(variable);
    }
    command.envs(variables.iter().map(|(name, path)| (name, path))).output().await.unwrap()
}

#[track_caller]
fn assert_expected(language: &str, run: &Output) {
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{language}: {errors}");
    assert_eq!(String::from_utf8_lossy(&run.stdout), EXPECTED, "{language}: {errors}");
}

/// Two servers with TLS and a caller that has a key and a certificate, and the files of its client.
struct Secured {
    _world: World,
    _callers: CallersFile,
    servers: [Server; 2],
    pki: Pki,
    key: Key,
}

impl Secured {
    async fn start() -> Self {
        let (world, pki, key) = (World::shared(), Pki::generate(), Key::generate());
        let shop = Caller::new("shop", &[("*", "full")]).key(&key).certificate("spiffe://test/shop");
        let callers = CallersFile::new(&[shop]);
        let toml = pki.mutual_toml() + &callers.toml();
        let servers = [world.server_with(&toml).await, world.server_with(&toml).await];
        pki.client_authority.client(&[uri("spiffe://test/shop")]).write(pki.path(), "client");
        replace(&pki.path().join("ca.pem"), &pki.server_authority.pem());
        Secured { _world: world, _callers: callers, servers, pki, key }
    }

    /// Runs a sample with these variables, whose files are in the directory of the certificates.
    async fn run(&self, language: &str, variables: &[(&str, &str)]) -> Output {
        let variables: Vec<_> = variables.iter().map(|(name, file)| (*name, self.pki.path().join(file))).collect();
        run(language, [&self.servers[0], &self.servers[1]], &variables).await
    }

    /// Writes a file with a key, and runs a sample with it.
    async fn run_with_key(&self, language: &str, key: &str) -> Output {
        replace(&self.pki.path().join("api.key"), &format!("{key}\n"));
        self.run(language, &[("SESSIOND_CA", "ca.pem"), ("SESSIOND_API_KEY_FILE", "api.key")]).await
    }
}

async fn run_without_tls(language: &str) {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    assert_expected(language, &run(language, [&a, &b], &[]).await);
}

async fn run_with_tls_and_key(language: &str) {
    let secured = Secured::start().await;
    let expected = secured.run_with_key(language, &secured.key.text).await;
    assert_expected(language, &expected);
    let wrong = secured.key.with_other_secret();
    let refused = secured.run_with_key(language, &wrong).await;
    let text = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(!refused.status.success() && text.to_lowercase().contains("unauthenticated"), "{language}: {text}");
    assert!(!text.contains(&wrong[15..]), "{language} prints the key: {text}");
    let without_tls = secured.run(language, &[("SESSIOND_API_KEY_FILE", "api.key")]).await;
    let errors = String::from_utf8_lossy(&without_tls.stderr);
    assert!(!without_tls.status.success() && errors.contains("needs SESSIOND_CA"), "{language}: {errors}");
}

macro_rules! quickstarts {
    ($($run:ident { $($name:ident: $language:literal),* })*) => {
        $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $run($language).await;
        })*)*
    };
}

quickstarts! {
    run_without_tls {
        rust_quickstart_prints_the_expected_lines: "rust",
        go_quickstart_prints_the_expected_lines: "go",
        python_quickstart_prints_the_expected_lines: "python",
        typescript_quickstart_prints_the_expected_lines: "typescript",
        java_quickstart_prints_the_expected_lines: "java"
    }
    run_with_tls_and_key {
        rust_quickstart_works_over_tls_with_a_key: "rust",
        go_quickstart_works_over_tls_with_a_key: "go",
        python_quickstart_works_over_tls_with_a_key: "python",
        typescript_quickstart_works_over_tls_with_a_key: "typescript",
        java_quickstart_works_over_tls_with_a_key: "java"
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_quickstart_works_with_a_client_certificate() {
    let secured = Secured::start().await;
    let files = [("SESSIOND_CA", "ca.pem"), ("SESSIOND_CERT", "client.pem"), ("SESSIOND_KEY", "client.key")];
    assert_expected("go", &secured.run("go", &files).await);
}
