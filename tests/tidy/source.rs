//! Rules for source files: statuses, sizes, file headers, test names, doc comments, and unfinished code.

use sessiond::pb::ErrorReason;

use super::{imports::outside, lines_with, page, report, texts};

const MAX_LINES: usize = 400;
const MAX_TEST_NAME: usize = 60;

#[test]
fn every_error_reason_is_returned() {
    const NOT_YET: [(ErrorReason, &str); 1] = [(ErrorReason::Unspecified, "never sent")];
    let text = &texts("src", "rs")["src/grpc/status.rs"];
    let reasons = (0..).map_while(|number| ErrorReason::try_from(number).ok());
    let mut wrong = Vec::new();
    for reason in reasons {
        let name = reason.as_str_name().strip_prefix("ERROR_REASON_").unwrap();
        let camel: String =
            name.split('_').map(|word| word[..1].to_owned() + &word[1..].to_ascii_lowercase()).collect();
        let is_returned = !lines_with(text, &[&format!("ErrorReason::{camel},")]).is_empty();
        match NOT_YET.iter().find(|(of, _)| *of == reason) {
            None if !is_returned => wrong.push(format!("{name} is never returned")),
            Some((_, why)) if is_returned => wrong.push(format!("{name} is returned, but listed here as: {why}")),
            _ => {}
        }
    }
    report(wrong, "return it in src/grpc/status.rs and remove it from the list here, or state the reason here");
}

#[test]
fn every_status_is_built_in_one_file() {
    let mut wrong = outside(&["grpc", "pb"], &["Status::"]);
    for (path, text) in texts("src/grpc", "rs") {
        if path != "src/grpc/status.rs" {
            let built = ["Status::new", "Status::with_", "Status::invalid", "Status::internal", "Status::un"];
            wrong.extend(lines_with(&text, &built).into_iter().map(|line| format!("{path}:{line}")));
        }
    }
    wrong.retain(|line| !line.contains("ServingStatus::"));
    report(wrong, "build it in src/grpc/status.rs");
}

#[test]
fn files_are_small_and_state_what_they_own() {
    let mut wrong = Vec::new();
    for (path, text) in texts("src", "rs").into_iter().chain(texts("tests", "rs")) {
        let name = path.rsplit('/').next().unwrap();
        if !text.starts_with("//! ") {
            wrong.push(format!("{path}: start it with a //! line that states what it owns"));
        }
        if path.starts_with("src/") && text.lines().count() > MAX_LINES {
            wrong.push(format!("{path}: {} lines, split it by concept", text.lines().count()));
        }
        if name == "mod.rs" && path.starts_with("src/") {
            wrong.push(format!("{path}: name it after its concept, next to its folder"));
        }
        if ["util", "utils", "common", "helpers", "helper", "misc"].contains(&name.trim_end_matches(".rs")) {
            wrong.push(format!("{path}: name it after the one concept it owns"));
        }
    }
    report(wrong, "one concept per file");
}

#[test]
fn test_names_are_short() {
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests", "clients/rust"].into_iter().flat_map(|folder| texts(folder, "rs")) {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let name = line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
            if let Some(name) = name.filter(|_| std::mem::take(&mut is_test))
                && name.len() > MAX_TEST_NAME
            {
                wrong.push(format!("{path}: {name} has {} characters", name.len()));
            }
        }
    }
    report(wrong, "name tests <subject>_<condition>_<expected result>, at most 60 characters");
}

#[test]
fn doc_comments_stand_alone() {
    let starts = ["/// The same", "/// Of ", "/// As above", "/// For good", "/// Those "];
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests", "benches", "clients/rust"].into_iter().flat_map(|folder| texts(folder, "rs")) {
        let mut previous_is_doc = false;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if !previous_is_doc && starts.iter().any(|start| line.starts_with(start)) {
                wrong.push(format!("{path}:{}: {line}", number + 1));
            }
            previous_is_doc = line.starts_with("///");
        }
    }
    report(wrong, "write a first sentence that a reader understands without the code around it");
}

#[test]
fn fred_features_that_log_or_read_replicas_are_off() {
    let manifest: toml::Table = page("Cargo.toml").parse().unwrap();
    let fred = &manifest["dependencies"]["fred"];
    assert_eq!(fred["default-features"].as_bool(), Some(false));
    let features = fred["features"].as_array().unwrap().iter().map(|feature| feature.as_str().unwrap());
    let bad = ["network-logs", "full-tracing", "partial-tracing", "replicas", "default"];
    report(
        features.filter(|feature| bad.contains(feature)).map(str::to_owned).collect(),
        "these features log arguments, which are secrets, or read from replicas: remove them",
    );
}

#[test]
fn code_is_finished() {
    // Concatenated, so that this line is no match.
    let words = [concat!("#[ign", "ore"), concat!("tod", "o!("), concat!("unimple", "mented!("), concat!("dbg", "!(")];
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests"].into_iter().flat_map(|folder| texts(folder, "rs")) {
        wrong.extend(lines_with(&text, &words).into_iter().map(|line| format!("{path}:{line}")));
    }
    report(wrong, "finish it, or remove it");
}
