//! House rules that text can show: structure, names, prose, and pages that name code. Each failure names the remedy.

mod circles;
mod imports;
mod lua;
mod pages;
mod source;
mod words;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_under(&path, found) } else { found.push(path) }
    }
}

/// Path from the root and text of every file in the folder with this extension.
fn texts(folder: &str, extension: &str) -> BTreeMap<String, String> {
    let mut found = Vec::new();
    files_under(&root().join(folder), &mut found);
    found.retain(|path| path.extension().is_some_and(|of| of == extension));
    let name = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// Path from the root and text of every UTF-8 file that git tracks or would add.
fn tracked_files() -> BTreeMap<String, String> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").args(arguments).current_dir(root()).output().unwrap();
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let paths = String::from_utf8(listed.stdout).unwrap();
    let read = |path: &str| Some((path.to_owned(), fs::read_to_string(root().join(path)).ok()?));
    paths.lines().filter_map(read).collect()
}

/// Text of a page, such as `docs/faults.md`.
fn page(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Fails with the remedy and the places that break the rule, if there are any.
fn report(wrong: Vec<String>, remedy: &str) {
    assert!(wrong.is_empty(), "{remedy}:\n{}", wrong.join("\n"));
}

/// Lines of code, without comments, that contain one of these strings.
fn lines_with(text: &str, strings: &[&str]) -> Vec<String> {
    let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.filter(|(_, line)| strings.iter().any(|string| line.contains(string)))
        .map(|(number, line)| format!("{}: {}", number + 1, line.trim()))
        .collect()
}
