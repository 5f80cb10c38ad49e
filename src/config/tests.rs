//! Tests of the configuration as its users write it.

use clap::Parser;

use super::*;
use crate::{observe::LogFormat, session::Preset};

fn load(file: &str, flags: &[&str]) -> Result<Config, InvalidConfig> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessiond.toml");
    std::fs::write(&path, file).unwrap();
    let fixed = ["sessiond", "--config", path.to_str().unwrap()];
    Config::load(&Flags::parse_from(fixed.iter().chain(flags)))
}

#[test]
fn flag_overrides_the_file() {
    let config = load("listen = '127.0.0.1:1'\nlog_format = 'json'", &["--listen", "127.0.0.1:2"]).unwrap();
    assert_eq!((config.listen.port(), config.log_format), (2, LogFormat::Json));
}

#[test]
fn switch_is_true_alone_and_takes_a_value() {
    let insecure = |flags: &[&str]| load("insecure = true", flags).unwrap().insecure;
    assert!(insecure(&[]) && insecure(&["--insecure"]) && insecure(&["--insecure=true"]));
    assert!(!insecure(&["--insecure", "false"]));
}

#[test]
fn help_shows_every_visible_flag_with_its_default() {
    let help = <Flags as clap::CommandFactory>::command().render_long_help().to_string();
    for text in [
        "--listen <LISTEN>",
        "[default: 127.0.0.1:50051]",
        "[env: SESSIOND_LISTEN",
        "[default: an embedded Redis is started]",
        "[default: 10s]",
        "--allow-eviction [<ALLOW_EVICTION>]",
        "--config <CONFIG>",
    ] {
        assert!(help.contains(text), "{text} in {help}");
    }
    assert!(!help.contains("--redis-password <"), "{help}");
}

#[test]
fn namespace_inherits_the_default_policy() {
    let file = "[default_policy]\nidle_timeout = '1h'\n[namespace.web]\nmax_payload_bytes = '128 KiB'";
    let policies = load(file, &[]).unwrap().policies();
    let web = policies.of(&"web".parse().unwrap()).unwrap();
    assert_eq!((web.idle_timeout, web.max_payload_bytes), (Some(Duration::from_secs(3600)), 128 * 1024));
    assert_eq!(policies.default.max_payload_bytes, 64 * 1024);
}

#[test]
fn problems_are_all_reported_with_their_paths() {
    let file = "listen = '0.0.0.0:1'\npartitions = 3\nlisen = 'x'\ndrain_timeout = 5\nredis_password = 'x'\n\
                reconcile_interval = '1ms'\n[default_policy]\ntombstone = '1s'\nidle_timeout = '500d'\n\
                token_reuse = 'ignore'\n[namespace.Web]\n[namespace.b]\nidle_timeout = '1h'\nretry_window = '1h'\nkey = 1\n\
                [limits]\nwatches = 0\nkeepalive_timeout = '99ms'\ncall_timeout = '0s'";
    let flags = ["--redis", "http://x", "--key-prefix", "{x}", "--tls-cert", "cert.pem", "--client-crl", "crl.pem"];
    let mut problems = load(file, &flags).unwrap_err().0;
    problems.sort();
    let expected = [
        "client_crl: needs client_ca",
        "default_policy.idle_timeout: must be at most max_idle_timeout",
        "default_policy.token_reuse: must be \"end\" or \"report\"",
        "default_policy.tombstone: must be a duration, 1m to 30d",
        "drain_timeout: must be a duration, such as \"30m\"",
        "key_prefix: must be a text of at most 64 bytes without braces",
        "limits.call_timeout: must be a duration, 100ms to 10s",
        "limits.keepalive_timeout: must be a duration, 100ms to 1h",
        "limits.watches: must be a whole number from 1 to 1000000",
        "lisen: is not known",
        "listen: needs callers, because it is not a loopback address (insecure permits it without)",
        "listen: needs tls_cert and tls_key, because it is not a loopback address (insecure permits it without)",
        "namespace.Web: a namespace must match [a-z0-9]([-a-z0-9]{0,62})",
        "namespace.b.key: is not known",
        "namespace.b.retry_window: must be at most tombstone",
        "partitions: must be a power of two",
        "reconcile_interval: must be a duration, at least 1s",
        "redis: must be a URL that begins with one of redis://, rediss://, redis+unix://, redis-cluster://, \
         rediss-cluster://, redis-sentinel://, rediss-sentinel://",
        "redis_password: is not read from the file; set SESSIOND_REDIS_PASSWORD",
        "tls_cert: needs tls_key",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn address_that_others_can_reach_needs_tls_and_callers() {
    let tls = ["--tls-cert", "cert.pem", "--tls-key", "key.pem"];
    let callers = ["--callers", "callers.toml"];
    for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
        for (has_tls, has_callers, is_insecure) in (0..8).map(|n| (n & 1 == 1, n & 2 == 2, n & 4 == 4)) {
            let mut flags = vec!["--listen", address];
            flags.extend(tls.iter().filter(|_| has_tls));
            flags.extend(callers.iter().filter(|_| has_callers));
            flags.extend(is_insecure.then_some("--insecure"));
            let problems = load("", &flags).map_or_else(|invalid| invalid.0, |_| Vec::new());
            let names =
                |part: &str| problems.iter().any(|problem| problem.starts_with(&format!("listen: needs {part}")));
            assert_eq!(names("tls_cert and tls_key"), !has_tls && !is_insecure, "{flags:?}: {problems:?}");
            assert_eq!(names("callers"), !has_callers && !is_insecure, "{flags:?}: {problems:?}");
        }
    }
    for address in ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1"] {
        assert!(load("", &["--listen", address]).is_ok(), "{address}");
    }
}

#[test]
fn option_without_the_one_that_it_needs_is_refused() {
    let rows: [(&[&str], &[&str]); 6] = [
        (&["--tls-cert", "a"], &["tls_cert: needs tls_key"]),
        (&["--tls-key", "a"], &["tls_key: needs tls_cert"]),
        (&["--client-ca", "a"], &["client_ca: needs tls_cert and tls_key", "client_ca: needs callers"]),
        (&["--client-ca", "a", "--tls-cert", "a", "--tls-key", "a"], &["client_ca: needs callers"]),
        (&["--client-crl", "a", "--tls-cert", "a", "--tls-key", "a"], &["client_crl: needs client_ca"]),
        (&["--callers", "a", "--tls-cert", "a", "--tls-key", "a", "--client-ca", "a", "--client-crl", "a"], &[]),
    ];
    for (flags, expected) in rows {
        let problems = load("", flags).map_or_else(|invalid| invalid.0, |_| Vec::new());
        assert_eq!(problems, expected, "{flags:?}");
    }
}

#[test]
fn malformed_retry_window_is_reported_once() {
    let problems = load("[default_policy]\ntombstone = '2m'\nretry_window = 'x'", &[]).unwrap_err().0;
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn malformed_file_is_the_only_problem_and_is_not_quoted() {
    let problems = load("insecure = true\nredis = 'redis://:hunter2@h", &["--listen", "0.0.0.0:1"]).unwrap_err().0;
    assert!(problems.len() == 1 && problems[0].contains("line 2"), "{problems:?}");
    assert!(!problems[0].contains("hunter2"), "{problems:?}");
}

#[test]
fn retry_window_defaults_to_a_shorter_tombstone() {
    let config = load("[default_policy]\ntombstone = '2m'", &[]).unwrap();
    assert_eq!(config.default_policy.retry_window, Duration::from_secs(120));
}

#[test]
fn printed_durations_can_be_loaded() {
    for text in ["1ns", "1500ms", "400d", "600years 1ms", "584years 1ms"] {
        let printed = load(&format!("drain_timeout = '{text}'"), &[]).unwrap();
        assert_eq!(load(&printed.to_toml(), &[]).unwrap().drain_timeout, printed.drain_timeout, "{text}");
    }
}

#[test]
fn printed_config_masks_secrets_and_can_be_loaded() {
    let file = "log_max_bytes = '1 MiB'\n[namespace.web]\nidle_timeout = 'never'\nmax_idle_timeout = 'never'\n\
                touch_interval = '1s 500ms'";
    for url in [
        "redis://user:hunter2@localhost:1",
        "redis-sentinel://user:hunter2@localhost:1?sentinelUsername=user&sentinelPassword=hunter2&node=localhost:2",
        "redis-sentinel://localhost:1?sentinelPassword=@hunter2",
    ] {
        let config = load(file, &["--redis", url, "--redis-password", "hunter2"]).unwrap();
        assert_eq!(config.redis_password.as_deref(), Some("hunter2"));
        let printed = config.to_toml();
        assert!(!printed.contains("hunter2") && printed.contains("localhost:1"), "{printed}");
        assert!(!format!("{config:?}").contains("Secret(\"hunter2"));
        assert_eq!(load(&printed, &[]).unwrap().to_toml(), printed);
    }
}

/// Returns the values of a policy, without the name of its preset.
fn values(policy: &Policy) -> Policy {
    Policy { preset: None, ..policy.clone() }
}

#[test]
fn preset_values_are_replaced_by_keys_of_the_section() {
    let file = "[default_policy]\npreset = 'nist-aal2'\nidle_timeout = '30m'\n\
                [namespace.bank]\npreset = 'owasp-high-value'\nrenewal_timeout = 'never'\n[namespace.web]";
    let policies = load(file, &[]).unwrap().policies();
    let default =
        Policy { idle_timeout: Some(Duration::from_secs(30 * 60)), ..Preset::NistAal2.apply_to(&Policy::default()) };
    assert_eq!(policies.default, default);
    let bank = Policy { renewal_timeout: None, ..Preset::OwaspHighValue.apply_to(&default) };
    assert_eq!(policies.of(&"bank".parse().unwrap()), Some(&bank));
    assert_eq!(*policies.of(&"web".parse().unwrap()).unwrap(), values(&default));
}

#[test]
fn preset_replaces_timeouts_and_token_rules_only() {
    let file = "[default_policy]\nidle_timeout = '2h'\ntouch_interval = '1h'\ntoken_reuse = 'report'\nrotation_grace = '5m'\n\
                client_tokens = false\nmax_payload_bytes = '128 KiB'\ntombstone = '1h'\n\
                [namespace.web]\npreset = 'web-default'";
    let policies = load(file, &[]).unwrap().policies();
    let rest = Policy { max_payload_bytes: 128 * 1024, tombstone: Duration::from_secs(3600), ..Policy::default() };
    assert_eq!(values(policies.of(&"web".parse().unwrap()).unwrap()), rest);
}

#[test]
fn printed_config_with_inherited_touch_interval_can_be_loaded() {
    let file = "[default_policy]\ntouch_interval = '1h'\nidle_timeout = '2h'\n[namespace.web]\nidle_timeout = '5m'";
    let printed = load(file, &[]).unwrap().to_toml();
    assert_eq!(load(&printed, &[]).unwrap().to_toml(), printed);
}

#[test]
fn touch_interval_above_the_idle_timeout_of_a_preset_is_refused() {
    for idle in ["idle_timeout = '5m'", "preset = 'owasp-high-value'"] {
        let problems = load(&format!("[namespace.web]\n{idle}\ntouch_interval = '1h'"), &[]).unwrap_err().0;
        assert_eq!(problems, ["namespace.web.touch_interval: must be at most idle_timeout"], "{idle}");
    }
}

#[test]
fn unknown_preset_is_reported_with_the_known_ones() {
    let problems = load("[namespace.web]\npreset = 'nist-aal4'", &[]).unwrap_err().0;
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].starts_with("namespace.web.preset: "), "{problems:#?}");
    for (name, _) in Preset::NAMED {
        assert!(problems[0].contains(name), "{name} in {problems:#?}");
    }
}

#[test]
fn timeout_above_the_maximum_of_its_preset_is_rejected() {
    let problems = load("[default_policy]\npreset = 'nist-aal3'\nidle_timeout = '1h'", &[]).unwrap_err().0;
    assert_eq!(problems, ["default_policy.idle_timeout: must be at most max_idle_timeout"]);
    let raised = "[default_policy]\npreset = 'nist-aal3'\nidle_timeout = '1h'\nmax_idle_timeout = '1h'";
    assert_eq!(load(raised, &[]).unwrap().default_policy.idle_timeout, Some(Duration::from_secs(3600)));
}

#[test]
fn printed_preset_and_its_values_can_be_loaded() {
    for (name, preset) in Preset::NAMED {
        let file = format!(
            "[default_policy]\npreset = '{name}'\ntouch_interval = '5s'\n[namespace.a]\npreset = '{name}'\n[namespace.b]"
        );
        let config = load(&file, &[]).unwrap();
        let printed = config.to_toml();
        let read = load(&printed, &[]).unwrap();
        assert_eq!(read.to_toml(), printed);
        assert_eq!(read.default_policy, config.default_policy);
        assert_eq!(read.namespaces, config.namespaces);
        let table: toml::Table = printed.parse().unwrap();
        assert_eq!(table["namespace"]["a"]["preset"].as_str(), Some(preset.name()));
        assert_eq!(table["namespace"]["a"].get("touch_interval"), None);
        assert!(table["namespace"]["a"].get("idle_timeout").is_some());
        assert_eq!(table["namespace"]["b"].get("preset"), None);
    }
}

/// Each column of the table is read as the keys of a section.
#[test]
fn preset_values_match_the_table_in_the_docs() {
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
        let documented = load(&file, &[]).unwrap().default_policy;
        assert_eq!(documented, values(&preset.apply_to(&Policy::default())), "{name}");
    }
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating/configuration.md");

/// With SESSIOND_UPDATE_DOCS in the environment, the test writes the tables instead.
#[test]
fn reference_page_is_current() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let current = reference::update(&page);
    #[expect(clippy::disallowed_methods, reason = "a test has no flags")]
    let writes = std::env::var("SESSIOND_UPDATE_DOCS").is_ok();
    if writes {
        std::fs::write(PAGE, current).unwrap();
    } else {
        assert!(page == current, "{PAGE} is stale: run SESSIOND_UPDATE_DOCS=1 cargo test --lib config");
    }
}

#[test]
fn reference_example_is_valid() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let example = page.split("```").find_map(|block| block.strip_prefix("toml\n")).unwrap();
    assert_eq!(load(example, &[]).unwrap().limits.watches, 50_000);
}
