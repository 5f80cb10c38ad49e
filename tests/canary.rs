//! Canaries: an API key, a token and a password of Redis pass through every call and every fault, and appear in no output.

use std::{fmt::Write, path::Path, time::Duration};

use harness::{
    ConfigFile, World,
    callers::{Caller, CallersFile, Key},
    cli,
    client::*,
    eventually,
    pki::{Pki, replace, uri},
    process::Process,
    proxy::Proxy,
    redis::CREDENTIALS,
    tokens::EVERY_CALL,
};
use rustix::process::Signal;
use sessiond_client::v1::{CreateSessionRequest, RotateSessionRequest, UpdateSessionRequest, WatchRequest};
use tempfile::TempDir;

/// Password of Redis.
const PASSWORD: &str = "Canary_of_Redis_0123456789";

/// A server on a Redis whose user has the password of the file, and everything that it writes.
struct Stage {
    world: World,
    proxy: Proxy,
    process: Process,
    pki: Pki,
    callers: CallersFile,
    key: Key,
    directory: TempDir,
    config: ConfigFile,
    /// Texts of all answers, errors included.
    answers: String,
}

impl Stage {
    async fn start() -> Self {
        let world = World::dedicated();
        let (user, old) = CREDENTIALS.split_once(':').unwrap();
        world.redis.must(&["ACL", "SETUSER", user, &format!(">{PASSWORD}"), &format!("<{old}")]);
        let proxy = Proxy::start(&world.redis);
        let (pki, key, directory) = (Pki::generate(), Key::generate(), tempfile::tempdir().unwrap());
        let callers = CallersFile::new(&[shop(&key)]);
        let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        replace(Path::new(&file("password")), &format!("{PASSWORD}\n"));
        let config = ConfigFile::new(&format!(
            "redis = {:?}\nredis_password_file = {:?}\naudit_file = {:?}\nlog_level = 'trace,fred=trace'\n{}{}",
            proxy.url().replacen(CREDENTIALS, user, 1),
            file("password"),
            file("audit"),
            pki.mutual_toml(),
            callers.toml(),
        ));
        let process = Process::start(&[config.flag()]);
        Stage { world, proxy, process, pki, callers, key, directory, config, answers: String::new() }
    }

    async fn client(&self, key: &str) -> Client {
        let options = ClientOptions { tls: Some(self.pki.client_options()), key: Some(key.to_owned()) };
        Client::connect_with(&self.process.address, &options).await
    }

    fn note(&mut self, answer: impl std::fmt::Debug) {
        writeln!(self.answers, "{answer:?}").unwrap();
    }

    /// Makes every call with the canaries, also in fields where they are wrong. Returns the tokens.
    async fn call_everything(&mut self, client: &Client) -> Vec<String> {
        let Ok((session, token)) = client.create_with(CreateSessionRequest::default()).await else { return Vec::new() };
        let key = self.key.text.clone();
        for call in EVERY_CALL {
            for secret in [&token, &key] {
                let answer = client.present(call, secret).await;
                self.note(answer);
            }
        }
        let mut tokens = vec![token];
        let (session_2, token) = match client.create_with(CreateSessionRequest::default()).await {
            Ok(created) => created,
            Err(_) => return tokens,
        };
        tokens.push(token.clone());
        for wrong in [&token[..], &key] {
            self.note(client.get(by_id(wrong)).await.map(drop));
            self.note(client.delete(by_id(wrong)).await);
            let update = UpdateSessionRequest {
                key: by_id(&session.id),
                request_id: wrong.to_owned(),
                remove_labels: vec![wrong.to_owned()],
                ..Default::default()
            };
            self.note(client.update(update).await.map(drop));
            let rotate =
                RotateSessionRequest { token: wrong.to_owned(), new_token: wrong.to_owned(), ..Default::default() };
            self.note(client.rotate_with(rotate).await.map(drop));
            let watch = WatchRequest { resume_token: wrong.as_bytes().to_vec(), ..whole_namespace() };
            self.note(client.watch(watch).await.map(drop));
            self.note(client.in_namespace(wrong).get(by_id(&session.id)).await.map(drop));
        }
        self.note(client.delete(by_id(&session_2.id)).await);
        tokens
    }

    /// Everything that anyone but the caller can read.
    async fn output(&self) -> String {
        let mut output = self.answers.clone();
        output += &self.process.log.lock().unwrap();
        output += &self.process.metrics().await;
        output += &harness::http(&self.process.metrics_address, "/readyz").await.unwrap_or_default();
        output += &std::fs::read_to_string(self.directory.path().join("audit")).unwrap();
        output += &String::from_utf8_lossy(&self.world.redis.contents());
        output += &cli::run(cli::command(&["config", &self.config.flag()]), "").await.succeeded();
        output
    }
}

fn shop(key: &Key) -> Caller {
    Caller::new("shop", &[("*", "full")]).key(key).certificate("spiffe://test/shop")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canaries_appear_in_no_output_of_any_call_or_fault() {
    let mut stage = Stage::start().await;
    let key = stage.key.text.clone();
    let client = stage.client(&key).await;
    let mut tokens = stage.call_everything(&client).await;
    assert_eq!(tokens.len(), 2);
    // Wrong keys, the token as a key, and the key on a connection with a certificate.
    for wrong in [&stage.key.with_other_secret(), &tokens[1], &format!("{key}a")] {
        let refused = stage.client(wrong).await.get(by_token(&tokens[0])).await;
        stage.note(refused.map(drop));
    }
    let pair = stage.pki.client_authority.client(&[uri("spiffe://test/shop")]);
    let tls = Some(stage.pki.client_options_with(&pair));
    let both = Client::connect_with(&stage.process.address, &ClientOptions { tls, key: Some(key.clone()) }).await;
    tokens.extend(stage.call_everything(&both).await);
    // Redis is cut off, stopped, and refuses the password.
    stage.proxy.cut();
    tokens.extend(stage.call_everything(&client).await);
    stage.world.redis.pause();
    let stopped = tokio::time::timeout(Duration::from_secs(2), client.get(by_token(&tokens[0]))).await;
    stage.note(stopped.map(|result| result.map(drop)));
    stage.world.redis.resume();
    let (user, _) = CREDENTIALS.split_once(':').unwrap();
    stage.world.redis.must(&["ACL", "SETUSER", user, "resetpass", ">another"]);
    stage.world.redis.command(&["CLIENT", "KILL", "USER", user]);
    eventually("the password is refused", async || {
        let log = stage.process.log.lock().unwrap();
        log.contains("WRONGPASS").then_some(())
    })
    .await;
    tokens.extend(stage.call_everything(&client).await);
    stage.world.redis.must(&["ACL", "SETUSER", user, "resetpass", &format!(">{PASSWORD}")]);
    eventually("sessiond has reconnected", async || client.create_with(CreateSessionRequest::default()).await.ok())
        .await;
    // The key in a file where it is wrong, and a password file that is wrong.
    let broken = [
        format!("[caller.shop]\nhash = \"{key}\"\n"),
        format!("{key} = {key}"),
        format!("[caller.{key}]\n"),
        format!("[caller.shop]\n{key} = 1\n"),
        format!("[caller.shop]\n{key} = 1\n{key} = 2\n"),
        format!("[caller.shop]\ngrants = {{ {key} = \"full\" }}\n"),
        format!("[caller.shop]\ngrants = {{ web = \"{key}\" }}\ncertificates = [\"{key}\"]\n"),
    ];
    for broken in broken {
        stage.callers.write_text(&broken);
        stage.process.signal(Signal::HUP);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    replace(&stage.directory.path().join("password"), &format!("{PASSWORD}\n{PASSWORD}\n"));
    eventually("the problems are logged", async || {
        let log = stage.process.log.lock().unwrap();
        (log.contains("redis_password_file") && log.contains("cannot reload")).then_some(())
    })
    .await;
    tokens.extend(stage.call_everything(&client).await);

    let output = stage.output().await;
    assert!(output.len() > 100_000 && output.contains("shop") && output.contains("TRACE"), "the output is complete");
    let secrets = tokens.iter().map(|token| &token[31..]).chain([&key[15..], PASSWORD]);
    for secret in secrets {
        if let Some(at) = output.find(secret) {
            let start = output[..at].rfind('\n').map_or(0, |end| end + 1);
            panic!("a secret is in the output: {}", &output[start..output.len().min(at + 200)]);
        }
    }
    assert_eq!(stage.process.stop().await, Some(0));
}

#[tokio::test]
async fn printed_configuration_has_no_password() {
    let url = format!("redis://sessiond:{PASSWORD}@localhost");
    let mut command = cli::command(&["config", "--redis", &url]);
    command.env("SESSIOND_REDIS_PASSWORD", PASSWORD);
    let printed = cli::run(command, "").await.succeeded();
    assert!(printed.contains("sessiond:****@localhost") && !printed.contains(PASSWORD), "{printed}");
    let mut command = cli::command(&["serve", "--help"]);
    command.env("SESSIOND_REDIS_PASSWORD", PASSWORD).env("SESSIOND_REDIS", &url);
    let help = cli::run(command, "").await.succeeded();
    assert!(!help.contains(PASSWORD), "{help}");
}
