//! Modules import in one direction; libraries are used in the modules that own them.

use super::{lines_with, report, texts};

/// The top-level module of a source file: `src/grpc.rs` and `src/grpc/parse.rs` belong to `grpc`.
fn module_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap();
    below.split(['/', '.']).next().unwrap()
}

/// Lines with one of these strings in modules other than these.
pub fn outside(modules: &[&str], strings: &[&str]) -> Vec<String> {
    let files = texts("src", "rs").into_iter().filter(|(path, _)| !modules.contains(&module_of(path)));
    files
        .flat_map(|(path, text)| lines_with(&text, strings).into_iter().map(move |line| format!("{path}:{line}")))
        .collect()
}

#[test]
fn grpc_libraries_are_used_in_grpc_pb_server_and_cli_only() {
    let strings = ["tonic::", "prost::", "prost_types::", "tonic_", "use tonic;", "use prost;"];
    report(outside(&["grpc", "pb", "server", "cli"], &strings), "use plain types here; parse and render in grpc");
}

#[test]
fn client_stubs_are_used_in_cli_only() {
    report(outside(&["cli"], &["sessiond_client"]), "use the messages of the server in pb");
}

#[test]
fn fred_is_used_in_redis_only() {
    report(outside(&["redis"], &["fred::", "use fred;"]), "add a method without types of fred to src/redis");
}

#[test]
fn keys_are_spelled_in_one_file() {
    let spelled = [
        "\":log",
        "\":meta",
        "\":ns",
        "\":events",
        ":due:",
        ":log\"",
        ":meta\"",
        ":ns\"",
        ":s:{",
        ":u:",
        ":events\"",
        "}:s:",
    ];
    let mut wrong = Vec::new();
    for (path, text) in texts("src", "rs").into_iter().chain(texts("src", "lua")) {
        if path != "src/store/keys.rs" {
            wrong.extend(lines_with(&text, &spelled).into_iter().map(|line| format!("{path}:{line}")));
        }
    }
    report(wrong, "name the key in src/store/keys.rs, and pass it to scripts as KEYS");
}

#[test]
fn imports_go_in_one_direction() {
    // Each module, and the modules that it may import.
    let modules: [(&str, &[&str]); 21] = [
        ("session", &[]),
        ("observe", &[]),
        ("auth", &["session"]),
        ("audit_log", &["observe"]),
        ("moment", &[]),
        ("tasks", &[]),
        ("embedded", &["observe"]),
        ("pb", &[]),
        // A client: it uses the proto files only, and the form of API keys.
        ("cli", &["auth", "pb", "session"]),
        ("config", &["observe", "session"]),
        ("redis", &["observe"]),
        ("store", &["observe", "session", "redis", "tasks"]),
        ("feed", &["moment", "observe", "session", "store"]),
        ("cache", &["moment", "observe", "session", "store", "feed"]),
        ("watch", &["observe", "session", "auth", "store", "feed"]),
        ("workers", &["observe", "session", "store", "feed"]),
        ("service", &["observe", "session", "auth", "store", "feed", "cache", "tasks", "watch"]),
        ("grpc", &["moment", "observe", "session", "auth", "audit_log", "store", "watch", "service", "pb"]),
        (
            "server",
            &[
                "observe",
                "session",
                "auth",
                "audit_log",
                "store",
                "feed",
                "cache",
                "watch",
                "service",
                "pb",
                "grpc",
                "workers",
                "config",
                "tasks",
                "embedded",
            ],
        ),
        ("lib", &[]),
        ("main", &["cli", "config", "observe", "server"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in texts("src", "rs") {
        let own = module_of(&path);
        let Some((_, allowed)) = modules.iter().find(|(name, _)| *name == own) else {
            wrong.push(format!("{path}: the module is missing in the list of this test"));
            continue;
        };
        for (other, _) in modules.iter().filter(|(other, _)| *other != own && !allowed.contains(other)) {
            if imported_modules(&text).contains(other) {
                wrong.push(format!("{path} imports {other}"));
            }
        }
    }
    report(
        wrong,
        "imports go session → store → feed → cache, watch, workers → service → grpc → server: move the shared item down",
    );
}

#[test]
fn workers_do_not_import_each_other() {
    let files = texts("src/workers", "rs");
    let names: Vec<_> = files.keys().map(|path| path.rsplit('/').next().unwrap().trim_end_matches(".rs")).collect();
    let mut wrong = Vec::new();
    for (path, text) in &files {
        for name in names.iter().filter(|name| !path.ends_with(&format!("/{name}.rs"))) {
            let imports = [format!("super::{name}"), format!("workers::{name}")];
            wrong
                .extend(lines_with(text, &[&imports[0], &imports[1]]).into_iter().map(|line| format!("{path}:{line}")));
        }
    }
    report(wrong, "move the shared item to src/workers.rs");
}

/// The modules named after `crate::`, alone or in braces.
fn imported_modules(text: &str) -> Vec<&str> {
    let mut used = Vec::new();
    for part in text.split("crate::").skip(1) {
        let Some(list) = part.strip_prefix('{') else {
            used.extend(part.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next());
            continue;
        };
        // Names at the first level of the braces.
        let (mut depth, mut start) = (1, Some(0));
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            let ends = letter == ',' && depth == 1 || depth == 0 || letter == ':' && depth == 1;
            if ends {
                used.extend(start.take().map(|start| list[start..at].trim().trim_end_matches('}')));
            }
            if letter == ',' && depth == 1 {
                start = Some(at + 1);
            }
            if depth == 0 {
                break;
            }
        }
    }
    used
}

#[test]
fn imported_modules_are_found() {
    let text = "use crate::a::B;\nuse crate::{\n    c::{D, e::F},\n    g,\n    h::I,\n};\nlet x = crate::j::k();";
    assert_eq!(imported_modules(text), ["a", "c", "g", "h", "", "j"]);
}
