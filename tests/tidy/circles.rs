//! The files of a room do not import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::{report, texts};

fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let is_code = |line: &&str| !line.trim_start().starts_with("//") && !line.starts_with("mod ");
    let text = text.lines().filter(is_code).collect::<Vec<_>>().join("\n");
    // The path in a visibility is no import.
    let parts = text.split("pub(in ").map(|part| part.split_once(") ").map_or(part, |(_, rest)| rest));
    let (first, _) = text.split_once("pub(in ").unwrap_or((&text, ""));
    std::iter::once(first).chain(parts.skip(1)).collect::<Vec<_>>().join("pub ")
}

fn room_of(module: &str) -> &str {
    module.split("::").next().unwrap()
}

fn parent_of(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

fn last_of(module: &str) -> &str {
    module.rsplit_once("::").map_or(module, |(_, last)| last)
}

/// A path of an import, such as `super::a::B`, and the name that it gets: `B`, or `C` after `as C`.
struct Path {
    segments: Vec<String>,
    name: String,
    /// Whether `pub use` exports it again.
    is_exported: bool,
}

/// Parses a path, or a tree such as `super::{a, b::{self, C as D}}`. Returns the text after it.
fn tree<'a>(text: &'a str, before: &[String], found: &mut Vec<Path>) -> &'a str {
    let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '*';
    let end = text.find(|letter: char| !is_letter(letter)).unwrap_or(text.len());
    let (segment, rest) = text.split_at(end);
    let segments: Vec<String> = before.iter().cloned().chain([segment.to_owned()]).collect();
    let Some(below) = rest.strip_prefix("::") else {
        let alias = rest.strip_prefix(" as ").map(|rest| rest.split(|letter| !is_letter(letter)).next().unwrap());
        let name = alias.unwrap_or(segment).to_owned();
        found.push(Path { segments, name, is_exported: false });
        return rest;
    };
    let Some(mut list) = below.strip_prefix('{') else { return tree(below, &segments, found) };
    loop {
        list = list.trim_start_matches(|letter: char| letter.is_whitespace() || letter == ',');
        if let Some(rest) = list.strip_prefix('}') {
            return rest;
        }
        let rest = tree(list, &segments, found);
        list = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
    }
}

/// All paths in the code that begin with one of these names, and the code without their imports.
fn paths(code: &str, starts: &[&str]) -> (Vec<Path>, String) {
    let (mut found, mut without_use) = (Vec::<Path>::new(), String::new());
    for statement in code.split_inclusive(';') {
        let (before, imported) = statement.rsplit_once("use ").unwrap_or((statement, ""));
        let visibility = before.rsplit('\n').next().unwrap().trim();
        if imported.is_empty() || !(visibility.is_empty() || visibility.starts_with("pub")) {
            without_use += statement;
            continue;
        }
        let first = found.len();
        tree(imported, &[], &mut found);
        found[first..].iter_mut().for_each(|path| path.is_exported = !visibility.is_empty());
        without_use += before;
        // A path may begin with a name that a glob brings in.
        let other = found[first..].iter().filter(|path| !starts.contains(&&path.segments[0][..]));
        other.for_each(|path| without_use += &format!("{};\n", path.segments.join("::")));
    }
    found.retain(|path| starts.contains(&&path.segments[0][..]));
    for (at, _) in without_use.match_indices("::") {
        let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
        let start = without_use[..at].rfind(|letter| !is_letter(letter)).map_or(0, |before| before + 1);
        if starts.contains(&&without_use[start..at]) && !without_use[..start].ends_with("::") {
            tree(&without_use[start..], &[], &mut found);
        }
    }
    (found, without_use)
}

/// Whether the code contains this name, or the beginning of a path such as `a::`, as a word.
fn names(code: &str, name: &str) -> bool {
    let is_letter = |letter: char| letter.is_alphanumeric() || letter == '_';
    let is_end = |after: &str| name.ends_with(':') || !after.starts_with(is_letter);
    code.match_indices(name).any(|(at, _)| !code[..at].ends_with(is_letter) && is_end(&code[at + name.len()..]))
}

struct Crate {
    /// Code without comments and tests of each module with a file, such as `redis::node`.
    code: BTreeMap<String, String>,
    /// Paths in the code of each module.
    paths: BTreeMap<String, Vec<Path>>,
    /// Code without imports.
    without_use: BTreeMap<String, String>,
}

impl Crate {
    fn of(files: BTreeMap<String, String>) -> Self {
        let name = |path: &str| path.trim_start_matches("src/").trim_end_matches(".rs").replace('/', "::");
        let files = files.into_iter().map(|(path, text)| (name(&path), code(&text)));
        let code: BTreeMap<String, String> = files.filter(|(name, _)| !name.ends_with("tests")).collect();
        let (mut paths_of, mut without_use) = (BTreeMap::new(), BTreeMap::new());
        for (module, text) in &code {
            let children = code.keys().filter(|other| parent_of(other) == module).map(|child| last_of(child));
            let starts: Vec<&str> = ["crate", "super"].into_iter().chain(children).collect();
            let (found, rest) = paths(text, &starts);
            paths_of.insert(module.clone(), found);
            without_use.insert(module.clone(), rest);
        }
        Crate { code, paths: paths_of, without_use }
    }

    /// The module that declares what a path in a module names. An item that a module exports again with `pub use` belongs to
    /// the module that it comes from. None: another crate, or the root.
    fn target(&self, module: &str, path: &Path) -> Option<String> {
        let mut at = module.to_owned();
        for (index, segment) in path.segments.iter().enumerate() {
            let child = if at.is_empty() { segment.clone() } else { format!("{at}::{segment}") };
            match &segment[..] {
                "crate" if index == 0 => at = String::new(),
                "super" => at = parent_of(&at).to_owned(),
                "self" => {}
                _ if self.code.contains_key(&child) => at = child,
                _ => {
                    let exported = self.paths.get(&at)?.iter().find(|path| path.is_exported && path.name == *segment);
                    return exported.map_or(Some(at.clone()), |path| self.target(&at, path));
                }
            }
        }
        Some(at).filter(|at| !at.is_empty())
    }

    /// Modules of the same room that a module imports.
    fn imports(&self, module: &str) -> BTreeSet<String> {
        let code = &self.without_use[module];
        // What a face only exports again is no import of the face.
        let used = self.paths[module].iter().filter(|path| !path.is_exported || names(code, &path.name));
        let mut targets: BTreeSet<String> = used.clone().filter_map(|path| self.target(module, path)).collect();
        for glob in used.filter(|path| path.name == "*") {
            let Some(from) = self.target(module, glob) else { continue };
            let named = self.paths[&from].iter().filter(|path| names(code, &path.name));
            targets.extend(named.filter_map(|path| self.target(&from, path)));
            let children = self.code.keys().filter(|child| parent_of(child) == from);
            targets.extend(children.filter(|child| names(code, &format!("{}::", last_of(child)))).cloned());
        }
        targets.retain(|target| target != module && room_of(target) == room_of(module));
        targets
    }

    /// Rooms whose files import each other in a circle, with these files and their imports within the circle.
    fn circles(&self) -> BTreeMap<String, Vec<String>> {
        let imports: BTreeMap<&str, _> = self.code.keys().map(|module| (&module[..], self.imports(module))).collect();
        let reached = |from: &str| {
            let mut reached = BTreeSet::new();
            let mut next: Vec<&str> = imports[from].iter().map(|module| &module[..]).collect();
            while let Some(module) = next.pop() {
                if reached.insert(module) {
                    next.extend(imports[module].iter().map(|module| &module[..]));
                }
            }
            reached
        };
        let reached: BTreeMap<&str, BTreeSet<&str>> = imports.keys().map(|module| (*module, reached(module))).collect();
        let mut circles: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (module, imported) in &imports {
            let back = imported.iter().filter(|other| reached[&other[..]].contains(module)).map(|other| &other[..]);
            let back: Vec<&str> = back.collect();
            if !back.is_empty() {
                circles
                    .entry(room_of(module).to_owned())
                    .or_default()
                    .push(format!("{module} imports {}", back.join(", ")));
            }
        }
        circles
    }
}

#[test]
fn no_import_circle_inside_a_room() {
    let circles = Crate::of(texts("src", "rs")).circles();
    report(circles.into_values().flatten().collect(), "move the shared item to a file below both, or pass it in");
}

#[test]
fn import_circles_are_found() {
    let circles = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(path, text)| (format!("src/{path}.rs"), (*text).to_owned())).collect();
        Crate::of(files).circles().into_values().flatten().collect::<Vec<_>>()
    };
    let face = "mod a;\nmod b;\npub use a::{A, One as Two};\nfn f() {}";
    // Names of the face are resolved to the file that declares them.
    assert_eq!(circles(&[("r", face), ("r/a", "struct A;"), ("r/b", "use super::{A, Two};")]), [""; 0]);
    for import in ["use super::A;", "use super::{f, Two};", "use crate::r::{a::{self}};", "fn g() { super::a::h(); }"] {
        let found = circles(&[("r", face), ("r/a", "use super::b::B;"), ("r/b", import)]);
        assert_eq!(found, ["r::a imports r::b", "r::b imports r::a"], "{import}");
    }
    let with_face = circles(&[("r", "mod a;\nuse a::A;\nstruct S;"), ("r/a", "use super::S;")]);
    assert_eq!(with_face, ["r imports r::a", "r::a imports r"]);
    // A name that the face both exports and uses, and all that a glob brings in.
    let exported = circles(&[("r", "mod a;\npub use a::A;\nfn f(a: A) {}"), ("r/a", "use super::f;")]);
    assert_eq!(exported, ["r imports r::a", "r::a imports r"]);
    for code in ["use super::*;\nfn g(b: B) {}", "use super::*;\nuse b::C;"] {
        let found = circles(&[("r", "mod a;\nmod b;\nuse b::B;"), ("r/a", code), ("r/b", "use super::a::A;")]);
        assert!(found.contains(&"r::a imports r, r::b".to_owned()), "{code}: {found:?}");
    }
    let nested = circles(&[("r", ""), ("r/a", "use crate::r::a::c::C;"), ("r/a/c", "use super::super::a::A;")]);
    assert_eq!(nested, ["r::a imports r::a::c", "r::a::c imports r::a"]);
    // Comments, tests, visibilities and other rooms do not count.
    let visible = "pub(in crate::r) struct A;";
    assert_eq!(circles(&[("r", "use a::A;"), ("r/a", visible)]), [""; 0]);
    let tests = "// use super::b::B;\n#[cfg(test)]\nmod tests {\n    use super::super::b::B;\n}";
    assert_eq!(circles(&[("r", face), ("r/a", tests), ("r/b", "use super::a::A;")]), [""; 0]);
    assert_eq!(circles(&[("r", "use crate::q::Q;"), ("q", "use crate::r::R;")]), [""; 0]);
    // Nor does a child with the name of another room.
    let child = [("r", "use crate::{q::Q, s::S};\nstruct R;"), ("r/q", "use super::R;"), ("q", "")];
    assert_eq!(circles(&child), [""; 0]);
}
