//! The rules of the house that text can show. Each failure names the cure.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use sessiond::{
    pb::{self, ErrorReason},
    session::Cause,
    store::scripts::{self, Outcome},
};

const MAX_LINES: usize = 400;

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_under(&path, found) } else { found.push(path) }
    }
}

/// Path below the package's root and text of every file under the folder with this extension.
fn texts(folder: &str, extension: &str) -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files_under(&root.join(folder), &mut found);
    found.retain(|path| path.extension().is_some_and(|of| of == extension));
    let name = |path: &PathBuf| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

fn no_more(wrong: Vec<String>, cure: &str) {
    assert!(wrong.is_empty(), "{cure}:\n{}", wrong.join("\n"));
}

/// The room that a source file belongs to: `src/grpc.rs` and `src/grpc/parse.rs` are both of `grpc`.
fn room(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap();
    below.split(['/', '.']).next().unwrap()
}

/// The lines of code in which one of these words stands, outside of comments.
fn lines_with(text: &str, words: &[&str]) -> Vec<String> {
    let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        .map(|(number, line)| format!("{}: {}", number + 1, line.trim()))
        .collect()
}

fn outside(rooms: &[&str], words: &[&str]) -> Vec<String> {
    let files = texts("src", "rs").into_iter().filter(|(path, _)| !rooms.contains(&room(path)));
    files
        .flat_map(|(path, text)| lines_with(&text, words).into_iter().map(move |line| format!("{path}:{line}")))
        .collect()
}

#[test]
fn the_wire_is_known_in_grpc_pb_server_and_cli_alone() {
    let words = ["tonic::", "prost::", "prost_types::", "tonic_", "use tonic;", "use prost;"];
    no_more(outside(&["grpc", "pb", "server", "cli"], &words), "take plain types there; parse and render in grpc");
}

#[test]
fn the_stubs_of_clients_are_known_in_cli_alone() {
    no_more(outside(&["cli"], &["sessiond_client"]), "the server's own messages are in pb");
}

#[test]
fn fred_is_known_in_the_store_alone() {
    no_more(outside(&["store"], &["fred::", "use fred;"]), "give the store a typed method for it");
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
        "{ses:",
    ];
    let mut wrong = Vec::new();
    for (path, text) in texts("src", "rs").into_iter().chain(texts("src", "lua")) {
        if path != "src/store/keys.rs" {
            wrong.extend(lines_with(&text, &spelled).into_iter().map(|line| format!("{path}:{line}")));
        }
    }
    no_more(wrong, "name the key in src/store/keys.rs, and hand it to scripts as KEYS");
}

#[test]
fn imports_go_one_way() {
    // Each room, and the rooms it may know.
    let rooms: [(&str, &[&str]); 17] = [
        ("session", &[]),
        ("observe", &[]),
        ("tasks", &[]),
        ("embedded", &[]),
        ("pb", &[]),
        // A client like any other: it knows the service by its proto files alone.
        ("cli", &["pb"]),
        ("config", &["observe", "session"]),
        ("store", &["observe", "session"]),
        ("watch", &["observe", "session", "store"]),
        ("sweeper", &["observe", "session", "store", "watch"]),
        ("auditor", &["observe", "session", "store", "watch"]),
        ("bridge", &["observe", "session", "store", "watch"]),
        ("service", &["observe", "session", "store", "watch"]),
        ("grpc", &["observe", "session", "store", "watch", "service", "pb"]),
        (
            "server",
            &[
                "observe", "session", "store", "watch", "service", "pb", "grpc", "sweeper", "auditor", "bridge",
                "config", "tasks", "embedded",
            ],
        ),
        ("lib", &[]),
        ("main", &["cli", "config", "observe", "server"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in texts("src", "rs") {
        let own = room(&path);
        let Some((_, known)) = rooms.iter().find(|(name, _)| *name == own) else {
            wrong.push(format!("{path}: a room without a place in the order"));
            continue;
        };
        for (other, _) in rooms.iter().filter(|(other, _)| *other != own && !known.contains(other)) {
            let imported = used_rooms(&text).contains(other);
            if imported {
                wrong.push(format!("{path} uses {other}"));
            }
        }
    }
    no_more(
        wrong,
        "imports go session → store → watch, sweeper, auditor → service → grpc → server: move what is needed down",
    );
}

/// The rooms that stand after `crate::`, alone or in braces.
fn used_rooms(text: &str) -> Vec<&str> {
    let mut used = Vec::new();
    for part in text.split("crate::").skip(1) {
        let Some(list) = part.strip_prefix('{') else {
            used.extend(part.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next());
            continue;
        };
        // Words at the first level of the braces.
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
fn used_rooms_are_found() {
    let text = "use crate::a::B;\nuse crate::{\n    c::{D, e::F},\n    g,\n    h::I,\n};\nlet x = crate::j::k();";
    assert_eq!(used_rooms(text), ["a", "c", "g", "h", "", "j"]);
}

/// The entries of a header's line, such as `-- KEYS  1 log  2 meta` or `-- KEYS  session, due, log`.
fn header_count(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("-- {name}  ")))?;
    let line = line.split("   (").next().unwrap();
    Some(if line.starts_with("1 ") {
        line.split("  ").filter(|part| part.starts_with(|digit: char| digit.is_ascii_digit())).count()
    } else {
        line.split(',').count()
    })
}

#[test]
fn every_script_is_registered_and_its_header_is_true() {
    let mut wrong = Vec::new();
    // Those that stand before others assert for them.
    const PRELUDES: [&str; 4] = ["gate", "record", "token", "mutation"];
    for (path, text) in &texts("src/store/scripts", "lua") {
        let name = Path::new(path).file_stem().unwrap().to_str().unwrap();
        for line in ["-- KEYS  ", "-- ARGV  ", "-- Reply "] {
            if !text.contains(line) {
                wrong.push(format!("{path}: no line {line}"));
            }
        }
        if PRELUDES.contains(&name) {
            continue;
        }
        let Some(script) = scripts::ALL.iter().find(|script| script.file == format!("{name}.lua")) else {
            wrong.push(format!("{path}: is not registered"));
            continue;
        };
        let source = script.source();
        let keys = header_count(text, "KEYS").unwrap_or(0);
        if keys != script.keys {
            wrong.push(format!("{path}: {keys} keys, registered with {}", script.keys));
        }
        if !source.contains(&format!("assert(#KEYS == {keys}")) {
            wrong.push(format!("{path}: its header has {keys} keys, its assert another number"));
        }
        let is_gated = script.prelude != scripts::Prelude::None;
        let arguments = if is_gated { 1 } else { header_count(text, "ARGV").unwrap_or(0) };
        if !source.contains(&format!("#ARGV == {arguments},")) {
            wrong.push(format!("{path}: its header and its assert differ in ARGV"));
        }
        if !source.starts_with("#!lua") {
            wrong.push(format!("{path}: begins without #!lua"));
        }
    }
    no_more(wrong, "bring header, assert, and the registry in src/store/scripts.rs together");
}

/// The numbers that `local A, B = 1, 2` gives in what stands before the scripts.
fn lua_constants() -> BTreeMap<String, i64> {
    let files = texts("src/store/scripts", "lua");
    let text =
        ["gate", "record", "mutation"].map(|name| files[&format!("src/store/scripts/{name}.lua")].clone()).concat();
    let mut constants = BTreeMap::new();
    for line in text.lines() {
        let Some((names, values)) = line.strip_prefix("local ").and_then(|line| line.split_once(" = ")) else {
            continue;
        };
        for (name, value) in names.split(", ").zip(values.split(", ")) {
            if let Ok(number) = value.parse() {
                constants.insert(name.to_owned(), number);
            }
        }
    }
    constants
}

/// `TooManyLabels` as `TOO_MANY_LABELS`.
fn screaming(name: &str) -> String {
    let letters = name.chars().enumerate();
    letters.fold(String::new(), |mut whole, (at, letter)| {
        if letter.is_uppercase() && at > 0 {
            whole.push('_');
        }
        whole.push(letter.to_ascii_uppercase());
        whole
    })
}

#[test]
fn lua_and_rust_give_the_same_numbers() {
    let lua = lua_constants();
    let mut wrong = Vec::new();
    for outcome in Outcome::ALL {
        if lua.get(&screaming(&format!("{outcome:?}"))) != Some(&(outcome as i64)) {
            wrong.push(format!("{outcome:?} = {} in scripts.rs", outcome as i64));
        }
    }
    for cause in Cause::ALL {
        if lua.get(&screaming(&format!("{cause:?}"))).is_some_and(|number| *number != cause as i64) {
            wrong.push(format!("{cause:?} = {} in event.rs", cause as i64));
        }
        if pb::Cause::from(cause) as i64 != cause as i64 {
            wrong.push(format!("{cause:?} = {} in event.rs, another number in the proto", cause as i64));
        }
    }
    for cause in [Cause::IdleTimeout, Cause::AbsoluteTimeout, Cause::OutOfBand] {
        assert!(lua.contains_key(&screaming(&format!("{cause:?}"))), "scripts decide on {cause:?} themselves");
    }
    for (name, kind) in [
        ("CREATED", pb::EventType::Created),
        ("UPDATED", pb::EventType::Updated),
        ("ROTATING", pb::EventType::Rotated),
        ("ENDING", pb::EventType::Ended),
        ("TOKEN_REUSED", pb::EventType::TokenReused),
    ] {
        if lua.get(name) != Some(&(kind as i64)) {
            wrong.push(format!("{name} = {} in the proto", kind as i64));
        }
    }
    no_more(wrong, "give the scripts the number that Rust and the proto have");
}

#[test]
fn every_error_reason_is_produced() {
    const NOT_YET: [(ErrorReason, &str); 3] = [
        (ErrorReason::Unspecified, "never sent"),
        (ErrorReason::CredentialsInvalid, "comes with callers' keys"),
        (ErrorReason::GrantMissing, "comes with callers' keys"),
    ];
    let text = &texts("src", "rs")["src/grpc/status.rs"];
    let reasons = (0..).map_while(|number| ErrorReason::try_from(number).ok());
    let mut wrong = Vec::new();
    for reason in reasons {
        let name = reason.as_str_name().strip_prefix("ERROR_REASON_").unwrap();
        let camel: String =
            name.split('_').map(|word| word[..1].to_owned() + &word[1..].to_ascii_lowercase()).collect();
        let is_produced = !lines_with(text, &[&format!("ErrorReason::{camel},")]).is_empty();
        match NOT_YET.iter().find(|(of, _)| *of == reason) {
            None if !is_produced => wrong.push(format!("{name} is not produced")),
            Some((_, why)) if is_produced => wrong.push(format!("{name} is produced, and listed here as: {why}")),
            _ => {}
        }
    }
    no_more(wrong, "produce it in src/grpc/status.rs and take it off the list here, or say here why not");
}

#[test]
fn every_status_is_made_in_one_file() {
    let mut wrong = outside(&["grpc", "pb"], &["Status::"]);
    for (path, text) in texts("src/grpc", "rs") {
        if path != "src/grpc/status.rs" {
            let made = ["Status::new", "Status::with_", "Status::invalid", "Status::internal", "Status::un"];
            wrong.extend(lines_with(&text, &made).into_iter().map(|line| format!("{path}:{line}")));
        }
    }
    wrong.retain(|line| !line.contains("ServingStatus::"));
    no_more(wrong, "make it in src/grpc/status.rs");
}

#[test]
fn files_are_small_and_say_what_they_own() {
    let mut wrong = Vec::new();
    for (path, text) in texts("src", "rs").into_iter().chain(texts("tests", "rs")) {
        let name = path.rsplit('/').next().unwrap();
        if !text.starts_with("//! ") {
            wrong.push(format!("{path}: open it with a //! line that says what it owns"));
        }
        if path.starts_with("src/") && text.lines().count() > MAX_LINES {
            wrong.push(format!("{path}: {} lines, split it by concept", text.lines().count()));
        }
        if name == "mod.rs" && path.starts_with("src/") {
            wrong.push(format!("{path}: name it after its concept, beside its folder"));
        }
        if ["util", "utils", "common", "helpers", "helper", "misc"].contains(&name.trim_end_matches(".rs")) {
            wrong.push(format!("{path}: name it after the one concept it owns"));
        }
    }
    no_more(wrong, "one concept per file");
}

/// The names in the column `tests`, the last one, of a page's tables.
fn named_tests(page: &str) -> Vec<&str> {
    let (mut names, mut of_tests) = (Vec::new(), false);
    for line in page.lines() {
        let last = line.strip_suffix(" |").and_then(|row| row.rsplit('|').next()).unwrap_or_default();
        // Within a table what its head says holds on.
        of_tests = last.trim() == "tests" || of_tests && line.starts_with('|');
        if of_tests {
            names.extend(last.split('`').skip(1).step_by(2));
        }
    }
    names
}

#[test]
fn tests_that_pages_name_exist() {
    let code: String = ["src", "tests"].into_iter().flat_map(|folder| texts(folder, "rs").into_values()).collect();
    for (page, at_least) in [("docs/security.md", 25), ("docs/faults.md", 35), ("docs/watching.md", 5)] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        let names = named_tests(&text);
        assert!(names.len() > at_least, "{page}: {names:?}");
        let missing = names.into_iter().filter(|name| !code.contains(&format!("fn {name}(")));
        no_more(missing.map(str::to_owned).collect(), &format!("name tests that exist in {page}"));
    }
}

#[test]
fn every_guarantee_has_a_test_that_bears_its_name() {
    let code: String = texts("tests", "rs").into_values().collect();
    let promised = (1..=8).map(|number| format!("S{number}")).chain((1..=10).map(|number| format!("W{number}")));
    for (page, series) in [("README.md", "SW"), ("docs/watching.md", "W")] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        let wanted = promised.clone().filter(|name| series.contains(&name[..1]));
        let missing = wanted.filter(|name| !text.contains(&format!("\n| {name} | ")));
        no_more(missing.collect(), &format!("say in {page} what is promised"));
    }
    let missing = promised.filter(|name| !code.contains(&format!("fn {}_", name.to_lowercase())));
    no_more(missing.collect(), "name a test after the guarantee that it shows");
}

#[test]
fn features_of_fred_that_leak_or_read_what_is_old_are_off() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let fred = &manifest["dependencies"]["fred"];
    assert_eq!(fred["default-features"].as_bool(), Some(false));
    let features = fred["features"].as_array().unwrap().iter().map(|feature| feature.as_str().unwrap());
    let bad = ["network-logs", "full-tracing", "partial-tracing", "replicas", "default"];
    no_more(
        features.filter(|feature| bad.contains(feature)).map(str::to_owned).collect(),
        "they log arguments, which are secrets, or ask replicas: do without",
    );
}

#[test]
fn nothing_is_left_undone() {
    // Put together, so that this line is not found.
    let words = [concat!("#[ign", "ore"), concat!("tod", "o!("), concat!("unimple", "mented!("), concat!("dbg", "!(")];
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests"].into_iter().flat_map(|folder| texts(folder, "rs")) {
        wrong.extend(lines_with(&text, &words).into_iter().map(|line| format!("{path}:{line}")));
    }
    no_more(wrong, "finish it, or take it out");
}
