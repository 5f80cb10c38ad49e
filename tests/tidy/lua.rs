//! Scripts agree with their registry, and Lua, Rust and the proto files agree on numbers.

use std::collections::BTreeMap;

use sessiond::{
    pb,
    session::Cause,
    store::scripts::{self, Outcome},
};

use super::{lines_with, report, texts};

/// Shared code, which scripts include.
const SHARED: &str = "src/store/scripts/lib/";
/// Maximum number of lines of a function.
const MAX_FUNCTION: usize = 40;
/// Maximum number of lines of code of a file outside of its functions.
const MAX_STATEMENTS: usize = 40;

/// Number of entries in a line of a script header, such as `-- KEYS   1 log  2 meta` or `-- KEYS   session, due, log`.
fn header_count(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("-- {name}   ")))?;
    let line = line.split("   (").next().unwrap();
    Some(if line.starts_with("none") {
        0
    } else if line.starts_with("1 ") {
        line.split("  ").filter(|part| part.starts_with(|digit: char| digit.is_ascii_digit())).count()
    } else {
        line.split(',').count()
    })
}

#[test]
fn scripts_match_their_registry_entries() {
    let mut wrong = Vec::new();
    for (path, text) in &texts("src/store/scripts", "lua") {
        let is_shared = path.starts_with(SHARED);
        let last = if is_shared { "-- Sets   " } else { "-- Reply  " };
        for line in ["-- KEYS   ", "-- ARGV   ", last] {
            if !text.contains(line) && !path.ends_with("/constants.lua") {
                wrong.push(format!("{path}: missing line {line}"));
            }
        }
        if is_shared {
            continue;
        }
        let file = path.rsplit('/').next().unwrap();
        let Some((script, _)) = scripts::ALL.iter().find(|(_, of)| *of == file) else {
            wrong.push(format!("{path}: is missing in the registry"));
            continue;
        };
        let keys = header_count(text, "KEYS").unwrap_or(0);
        if keys != script.keys {
            wrong.push(format!("{path}: {keys} keys, {} in the registry", script.keys));
        }
        // One key for each of many ids: the number in the registry is the minimum.
        let has_many = text.lines().any(|line| line.starts_with("-- KEYS  ") && line.contains(" for each "));
        let relation = if has_many { ">=" } else { "==" };
        if !text.contains(&format!("assert(#KEYS {relation} {keys}")) {
            wrong.push(format!("{path}: header has {keys} keys, assert has another number"));
        }
        if !script.source().starts_with("#!lua") {
            wrong.push(format!("{path}: does not start with #!lua"));
        }
    }
    report(wrong, "make header, assert, and the registry in src/store/scripts.rs agree");
}

/// Files that decode the replies of scripts.
const DECODERS: &str = "src/store/replies";

#[test]
fn replies_of_scripts_are_decoded_in_one_place() {
    let files = texts("src/store", "rs");
    let (decoders, others): (Vec<_>, Vec<_>) = files.iter().partition(|(path, _)| path.starts_with(DECODERS));
    let mut wrong = Vec::new();
    for (_, file) in scripts::ALL.iter().filter(|(script, _)| script.name != "probe") {
        let doc = format!("/// Reply of `{file}`");
        let count: usize = decoders.iter().map(|(_, text)| text.matches(&doc).count()).sum();
        if count != 1 {
            wrong.push(format!("{count} types are documented as: {doc}"));
        }
    }
    // Methods that take a value of a reply.
    let accessors = decoders.iter().flat_map(|(_, text)| text.split("fn take_").skip(1));
    let accessors = accessors.map(|rest| format!(".take_{}(", rest.split('(').next().unwrap()));
    let accessors: Vec<String> = accessors.collect();
    assert!(accessors.len() > 3, "{accessors:?}");
    // The registry declares the outcomes; a write decides by them whether to send again and whether to wait for replicas.
    let may_match = ["src/store/scripts.rs", "src/store/script_call.rs"];
    for (path, text) in others {
        let outcomes: &[&str] = if may_match.contains(&&path[..]) { &[] } else { &["Outcome::"] };
        let accessors = accessors.iter().map(|name| &name[..]);
        let lines = lines_with(text, &accessors.chain(outcomes.iter().copied()).collect::<Vec<_>>());
        wrong.extend(lines.into_iter().map(|line| format!("{path}:{line}")));
    }
    report(wrong, "decode each reply once, to the type of its script in src/store/replies");
}

#[test]
fn shared_code_of_scripts_is_included() {
    let files = texts("src/store/scripts", "lua");
    let is_included = |name: &str| {
        let include = format!("-- include {name}");
        files.values().any(|text| text.lines().any(|line| line.trim() == include))
    };
    let names = files.keys().filter_map(|path| path.strip_prefix(SHARED)?.strip_suffix(".lua"));
    let unused: Vec<String> = names.filter(|name| !is_included(name)).map(str::to_owned).collect();
    report(unused, "include the shared code, or delete it");
}

#[test]
fn functions_of_scripts_are_short() {
    let mut wrong = Vec::new();
    for (path, text) in texts("src/store/scripts", "lua") {
        let lines: Vec<&str> = text.lines().collect();
        for (first, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("local function ")) {
            let length = lines[first..].iter().position(|line| *line == "end").map_or(usize::MAX, |end| end + 1);
            if length > MAX_FUNCTION {
                wrong.push(format!("{path}:{}: {line}: {length} lines", first + 1));
            }
        }
    }
    report(wrong, "split the function");
}

/// Lines of code outside of functions.
fn statements(text: &str) -> Vec<&str> {
    let mut is_function = false;
    let outside = text.lines().filter(|line| {
        let was_function = is_function;
        is_function = line.starts_with("local function ") || was_function && *line != "end";
        !is_function && !was_function
    });
    outside.filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("--")).collect()
}

#[test]
fn scripts_and_includes_are_short() {
    let mut wrong = Vec::new();
    for (path, text) in texts("src/store/scripts", "lua") {
        let length = statements(&text).len();
        if length > MAX_STATEMENTS {
            wrong.push(format!("{path}: {length} lines outside of functions"));
        }
    }
    report(wrong, "move a step into an include");
}

#[test]
fn names_of_functions_in_scripts_have_one_meaning() {
    let files = texts("src/store/scripts", "lua");
    let mut functions: BTreeMap<&str, &str> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (path, text) in &files {
        for name in text.lines().filter_map(|line| line.strip_prefix("local function ")?.split('(').next()) {
            if let Some(other) = functions.insert(name, path) {
                wrong.push(format!("{path}: function {name} is in {other} too"));
            }
        }
    }
    assert!(functions.len() > 20, "{functions:?}");
    for (path, text) in &files {
        let declarations = text.lines().filter_map(|line| line.trim_start().strip_prefix("local "));
        let declarations = declarations.filter(|line| !line.starts_with("function "));
        for name in declarations.flat_map(|line| line.split(" = ").next().unwrap().split(", ")) {
            if let Some(other) = functions.get(name.trim()) {
                wrong.push(format!("{path}: variable {name} is a function in {other}"));
            }
        }
    }
    report(wrong, "give the function or the variable another name");
}

/// Numbers that lines such as `local A, B = 1, 2` assign.
fn lua_constants() -> BTreeMap<String, i64> {
    let text = &texts("src/store/scripts", "lua")["src/store/scripts/lib/constants.lua"];
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
fn lua_rust_and_proto_agree_on_numbers() {
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
        assert!(lua.contains_key(&screaming(&format!("{cause:?}"))), "scripts set {cause:?} themselves");
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
    report(wrong, "use the number of Rust and the proto in the scripts");
}
