//! Pages name tests, files and functions that exist, and state every guarantee.

use super::{page, report, root, texts, tracked_files};

/// Names in the last column of the tables of a page, if its head is `tests`.
fn named_tests(text: &str) -> Vec<&str> {
    let (mut names, mut of_tests) = (Vec::new(), false);
    for line in text.lines() {
        let last = line.strip_suffix(" |").and_then(|row| row.rsplit('|').next()).unwrap_or_default();
        // The head applies to all rows of its table.
        of_tests = last.trim() == "tests" || of_tests && line.starts_with('|');
        if of_tests {
            names.extend(last.split('`').skip(1).step_by(2));
        }
    }
    names
}

#[test]
fn tests_that_pages_name_exist() {
    let code: String =
        ["src", "tests", "clients/rust/src"].into_iter().flat_map(|folder| texts(folder, "rs").into_values()).collect();
    for (path, at_least) in [("docs/security.md", 25), ("docs/faults.md", 35), ("docs/watching.md", 5)] {
        let text = page(path);
        let names = named_tests(&text);
        assert!(names.len() > at_least, "{path}: {names:?}");
        let missing = names.into_iter().filter(|name| !code.contains(&format!("fn {name}(")));
        report(missing.map(str::to_owned).collect(), &format!("name tests that exist in {path}"));
    }
}

#[test]
fn every_guarantee_has_a_test_with_its_prefix() {
    let code: String = texts("tests", "rs").into_values().collect();
    let guarantees = (1..=8).map(|number| format!("S{number}")).chain((1..=10).map(|number| format!("W{number}")));
    for (path, series) in [("README.md", "SW"), ("docs/watching.md", "W")] {
        let text = page(path);
        let wanted = guarantees.clone().filter(|name| series.contains(&name[..1]));
        let missing = wanted.filter(|name| !text.contains(&format!("\n| {name} | ")));
        report(missing.collect(), &format!("state every guarantee in {path}"));
    }
    let missing = guarantees.filter(|name| !code.contains(&format!("fn {}_", name.to_lowercase())));
    report(missing.collect(), "give a test the prefix of the guarantee that it proves");
}

/// Files that the tour names, each with the names that follow it in the same step. `src/store/reads.rs` `Store::get` is
/// one file with one name.
fn tour_steps(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut steps: Vec<(&str, Vec<&str>)> = Vec::new();
    for step in text.split("\n\n").flat_map(|paragraph| paragraph.split_inclusive(".\n")) {
        let mut is_in_file = false;
        for name in step.split('`').skip(1).step_by(2) {
            if name.contains('/') && name.contains('.') {
                steps.push((name, Vec::new()));
                is_in_file = true;
            } else if let (true, Some((_, names))) = (is_in_file, steps.last_mut()) {
                names.push(name);
            }
        }
    }
    steps
}

#[test]
fn files_and_functions_of_the_tour_exist() {
    let text = page("docs/contributing/tour.md");
    // The sections after the paths say how to add things, with commands and placeholders among the names.
    let (paths, _) = text.split_once("## How to").unwrap();
    let steps = tour_steps(paths);
    assert!(steps.len() > 25, "the tour has only {} steps", steps.len());
    let mut wrong = Vec::new();
    for (path, names) in steps {
        let Ok(source) = std::fs::read_to_string(root().join(path)) else {
            wrong.push(format!("{path} does not exist"));
            continue;
        };
        for name in names {
            // `Store::get` is `fn get`, or a struct, enum, const or Lua function of that name.
            let name = name.trim_end_matches("()").rsplit("::").next().unwrap();
            let declared = ["fn ", "struct ", "enum ", "const ", "trait ", "rpc ", "function ", "static ", "mod "];
            if !declared.iter().any(|keyword| source.contains(&format!("{keyword}{name}"))) {
                wrong.push(format!("{path} does not declare {name}"));
            }
        }
    }
    report(wrong, "update docs/contributing/tour.md");
}

#[test]
fn paths_of_the_tour_have_at_most_twelve_steps() {
    let text = page("docs/contributing/tour.md");
    let mut wrong = Vec::new();
    for section in text.split("\n## ").skip(1) {
        let steps = section.lines().filter(|line| line.starts_with(|digit: char| digit.is_ascii_digit())).count();
        if steps > 12 {
            wrong.push(format!("{}: {steps} steps", section.lines().next().unwrap()));
        }
    }
    report(wrong, "shorten the path");
}

/// Anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

#[test]
fn links_between_pages_resolve() {
    let files = tracked_files();
    let mut wrong = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".md")) {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (target, fragment) = link.split_once('#').unwrap_or((link, ""));
            let file =
                if target.is_empty() { root().join(path) } else { root().join(path).parent().unwrap().join(target) };
            if !file.exists() {
                wrong.push(format!("{path}: {link}"));
            } else if !fragment.is_empty() {
                let headings = std::fs::read_to_string(&file).unwrap_or_default();
                if !headings.lines().any(|line| line.starts_with('#') && anchor(line) == fragment) {
                    wrong.push(format!("{path}: no heading for {link}"));
                }
            }
        }
    }
    report(wrong, "correct the link");
}
