//! The configuration as its users meet it.

use clap::Parser;

use super::*;

fn load(file: &str, flags: &[&str]) -> Result<Config, Problems> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessiond.toml");
    std::fs::write(&path, file).unwrap();
    let fixed = ["sessiond", "--config", path.to_str().unwrap()];
    Config::load(&Flags::parse_from(fixed.iter().chain(flags)))
}

#[test]
fn a_flag_beats_the_file() {
    let config = load("listen = '127.0.0.1:1'\nlog_format = 'json'", &["--listen", "127.0.0.1:2"]).unwrap();
    assert_eq!((config.listen.port(), config.log_format), (2, LogFormat::Json));
}

#[test]
fn a_namespace_takes_the_default_policy_over() {
    let file = "[default_policy]\nidle_timeout = '1h'\n[namespace.web]\nmax_payload_bytes = '128 KiB'";
    let config = load(file, &[]).unwrap();
    let web = config.policies.of(&"web".parse().unwrap()).unwrap();
    assert_eq!((web.idle_timeout, web.max_payload_bytes), (Some(Duration::from_secs(3600)), 128 * 1024));
    assert_eq!(config.policies.default.max_payload_bytes, 64 * 1024);
}

#[test]
fn all_problems_are_told_at_once() {
    let file = "listen = '0.0.0.0:1'\npartitions = 3\nlisen = 'x'\ndrain_timeout = 5\n[default_policy]\ntombstone = '1s'\n\
                idle_timeout = '500d'\n[namespace.Web]\n[limits]\nwatches = 0";
    let problems = load(file, &["--redis", "http://x"]).unwrap_err().0;
    let keys = [
        "listen:",
        "partitions:",
        "lisen:",
        "drain_timeout:",
        "default_policy.tombstone:",
        "default_policy.idle_timeout:",
        "namespace.Web:",
        "limits.watches:",
        "redis:",
    ];
    for key in keys {
        assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key} in {problems:#?}");
    }
}

#[test]
fn what_is_shown_can_be_read_and_shows_no_secret() {
    let config = load(
        "[namespace.web]\nidle_timeout = 'never'\nmax_idle_timeout = 'never'",
        &["--redis", "redis://user:hunter2@localhost:1", "--redis-password", "hunter2"],
    );
    let shown = config.unwrap().to_toml();
    assert!(!shown.contains("hunter2"));
    assert_eq!(load(&shown, &[]).unwrap().to_toml(), shown);
}
