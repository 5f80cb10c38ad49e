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
                idle_timeout = '500d'\n[namespace.Web]\n[limits]\nwatches = 0\nkeepalive_timeout = '99ms'";
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
        "limits.keepalive_timeout:",
        "redis:",
    ];
    for key in keys {
        assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key} in {problems:#?}");
    }
}

#[test]
fn what_is_shown_can_be_read_and_shows_no_secret() {
    let file = "[namespace.web]\nidle_timeout = 'never'\nmax_idle_timeout = 'never'";
    for url in [
        "redis://user:hunter2@localhost:1",
        "redis-sentinel://user:hunter2@localhost:1?sentinelUsername=user&sentinelPassword=hunter2&node=localhost:2",
        "redis-sentinel://localhost:1?sentinelPassword=@hunter2",
    ] {
        let shown = load(file, &["--redis", url, "--redis-password", "hunter2"]).unwrap().to_toml();
        assert!(!shown.contains("hunter2") && shown.contains("localhost:1"), "{shown}");
        assert_eq!(load(&shown, &[]).unwrap().to_toml(), shown);
    }
}

/// A policy, whatever its values began with.
fn values(policy: &Policy) -> Policy {
    Policy { preset: None, ..policy.clone() }
}

#[test]
fn a_preset_is_what_its_section_begins_with() {
    let file = "[default_policy]\npreset = 'nist-aal2'\nidle_timeout = '30m'\n\
                [namespace.bank]\npreset = 'owasp-high-value'\nrenewal_timeout = 'never'\n[namespace.web]";
    let policies = load(file, &[]).unwrap().policies;
    let default =
        Policy { idle_timeout: Some(Duration::from_secs(30 * 60)), ..Preset::NistAal2.over(&Policy::default()) };
    assert_eq!(policies.default, default);
    let bank = Policy { renewal_timeout: None, ..Preset::OwaspHighValue.over(&default) };
    assert_eq!(policies.of(&"bank".parse().unwrap()), Some(&bank));
    assert_eq!(*policies.of(&"web".parse().unwrap()).unwrap(), values(&default));
}

#[test]
fn a_preset_takes_no_timeout_and_no_rule_of_tokens_from_the_default_policy_but_the_rest() {
    let file = "[default_policy]\nidle_timeout = '1m'\ntouch_interval = '1h'\ntoken_reuse = 'report'\nrotation_grace = '5m'\n\
                client_tokens = false\nmax_payload_bytes = '128 KiB'\ntombstone = '1h'\n\
                [namespace.web]\npreset = 'web-default'";
    let policies = load(file, &[]).unwrap().policies;
    let rest = Policy { max_payload_bytes: 128 * 1024, tombstone: Duration::from_secs(3600), ..Policy::default() };
    assert_eq!(values(policies.of(&"web".parse().unwrap()).unwrap()), rest);
}

#[test]
fn a_preset_that_is_not_known_is_told_with_those_that_are() {
    let problems = load("[namespace.web]\npreset = 'nist-aal4'", &[]).unwrap_err().0;
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].starts_with("namespace.web.preset: "), "{problems:#?}");
    for (name, _) in Preset::NAMED {
        assert!(problems[0].contains(name), "{name} in {problems:#?}");
    }
}

#[test]
fn a_timeout_above_a_presets_ceiling_needs_the_ceiling_raised() {
    let problems = load("[default_policy]\npreset = 'nist-aal3'\nidle_timeout = '1h'", &[]).unwrap_err().0;
    assert_eq!(problems, ["default_policy.idle_timeout: must be at most max_idle_timeout"]);
    let raised = "[default_policy]\npreset = 'nist-aal3'\nidle_timeout = '1h'\nmax_idle_timeout = '1h'";
    assert_eq!(load(raised, &[]).unwrap().policies.default.idle_timeout, Some(Duration::from_secs(3600)));
}

#[test]
fn what_a_preset_expands_to_is_shown_and_can_be_read() {
    for (name, preset) in Preset::NAMED {
        let file = format!(
            "[default_policy]\npreset = '{name}'\ntouch_interval = '5s'\n[namespace.a]\npreset = '{name}'\n[namespace.b]"
        );
        let config = load(&file, &[]).unwrap();
        let shown = config.to_toml();
        let read = load(&shown, &[]).unwrap();
        assert_eq!(read.to_toml(), shown);
        assert_eq!(read.policies.default, config.policies.default);
        assert_eq!(read.policies.listed, config.policies.listed);
        let table: toml::Table = shown.parse().unwrap();
        assert_eq!(table["namespace"]["a"]["preset"].as_str(), Some(preset.name()));
        assert_eq!(table["namespace"]["a"].get("touch_interval"), None);
        assert!(table["namespace"]["a"].get("idle_timeout").is_some());
        assert_eq!(table["namespace"]["b"].get("preset"), None);
    }
}

/// Read as a section of keys, a column of the table in the manual says what the preset says.
#[test]
fn presets_are_what_the_manual_says() {
    let page = include_str!("../../docs/operating/policies.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .skip_while(|line| !line.starts_with("| key |"))
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    assert_eq!(rows[0][1..], Preset::NAMED.map(|(name, _)| name));
    for (column, (name, preset)) in (1..).zip(Preset::NAMED) {
        let mut file = "[default_policy]\n".to_owned();
        for row in &rows[2..] {
            let value =
                if ["true", "false"].contains(&row[column]) { row[column] } else { &format!("'{}'", row[column]) };
            file.push_str(&format!("{} = {value}\n", row[0]));
        }
        let told = load(&file, &[]).unwrap().policies.default;
        assert_eq!(told, values(&preset.over(&Policy::default())), "{name}");
    }
}
