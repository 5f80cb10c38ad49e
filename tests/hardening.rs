//! What keeps secrets in the process: no dumps of its memory, and the sandbox of the unit of systemd.

use harness::{ConfigFile, Redis, eventually, process::Process};
use rustix::process::Signal;
use sessiond_client::v1::CreateSessionRequest;

const UNIT: &str = include_str!("../packaging/sessiond.service");

/// Returns the value of a setting of the unit.
fn setting(name: &str) -> &'static str {
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.next().unwrap_or_else(|| panic!("no {name} in the unit"))
}

#[tokio::test]
async fn server_and_its_redis_write_no_core_dumps() {
    let directory = tempfile::tempdir().unwrap();
    let server = Process::start_with_ulimit(
        "-c unlimited 2>/dev/null",
        &[format!("--data-dir={}", directory.path().join("data").to_str().unwrap())],
    );
    let limit_of = |pid: u32| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_owned();
        line.split_whitespace().filter(|word| *word == "0").count()
    };
    assert_eq!(limit_of(server.pid()), 2, "soft and hard limit");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.pid())).unwrap();
    let redis: u32 = children.split_whitespace().next().expect("the embedded Redis").parse().unwrap();
    assert_eq!(limit_of(redis), 2);
}

#[tokio::test]
async fn unit_of_systemd_starts_reloads_and_stops_the_server() {
    let redis = Redis::start();
    let config = ConfigFile::new(&format!("redis = {:?}\ndrain_timeout = '5s'\n", redis.url()));
    let words: Vec<_> = setting("ExecStart").split(' ').collect();
    assert_eq!(words[..2], ["/usr/bin/sessiond", "serve"]);
    let path = config.flag();
    let arguments: Vec<_> = words[2..]
        .iter()
        .map(|word| if word.starts_with("--config=") { path.clone() } else { (*word).to_owned() })
        .collect();
    assert!(arguments.contains(&path));
    let mut server = Process::start(&arguments);
    assert_eq!(setting("ExecReload"), "/bin/kill -HUP $MAINPID");
    server.signal(Signal::HUP);
    eventually("the signal is logged", async || server.log.lock().unwrap().contains("SIGHUP received").then_some(()))
        .await;
    server.client().await.create_with(CreateSessionRequest::default()).await.unwrap();
    assert_eq!(server.stop().await, Some(0));
}

#[test]
fn unit_of_systemd_has_the_whole_sandbox() {
    let yes = [
        "NoNewPrivileges",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectClock",
        "ProtectControlGroups",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "MemoryDenyWriteExecute",
    ];
    for name in yes {
        assert_eq!(setting(name), "yes", "{name}");
    }
    let others = [
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("LimitCORE", "0"),
        ("UMask", "0077"),
        ("SystemCallFilter", "@system-service"),
        ("User", "sessiond"),
    ];
    for (name, value) in others {
        assert_eq!(setting(name), value, "{name}");
    }
}
