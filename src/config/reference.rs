//! The tables of docs/operating/configuration.md, generated from the declared settings.

use super::{
    schema::{Config, Limits},
    setting::{Section, Setting, Source},
};
use crate::session::Policy;

const END: &str = "<!-- end of generated table -->";

/// Returns the page with the table below each marker, such as `<!-- generated: limits -->`, replaced by the current one.
pub(super) fn update(page: &str) -> String {
    let tables = [("server", table::<Config>()), ("policies", table::<Policy>()), ("limits", table::<Limits>())];
    tables.iter().fold(page.to_owned(), |page, (name, table)| {
        let begin = format!("<!-- generated: {name} -->");
        let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("the page has no {begin}"));
        let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("the page has no {END} after {begin}"));
        format!("{before}{begin}\n\n{table}\n{END}{after}")
    })
}

fn table<S: Section + Default>() -> String {
    let default = S::default();
    let has_flags = S::SETTINGS.iter().any(|setting| setting.source != Source::Key);
    let mut table = String::new();
    let mut row = |flag: String, cells: [String; 5]| {
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        let flag = if has_flags { format!("| {flag} ") } else { String::new() };
        table.push_str(&format!("{flag}| {} |\n", cells.join(" | ")));
    };
    row("flag".into(), ["key", "type", "default", "range", "meaning"].map(str::to_owned));
    row("---".into(), ["---"; 5].map(str::to_owned));
    for setting in S::SETTINGS {
        let about = (setting.about)();
        let cells = [key(setting), about.name.to_owned(), (setting.to_text)(&default), about.range, setting.meaning()];
        row(flag(setting), cells);
    }
    table
}

fn flag<S>(setting: &Setting<S>) -> String {
    if setting.source == Source::Key { String::new() } else { format!("`--{}`", setting.key.replace('_', "-")) }
}

fn key<S>(setting: &Setting<S>) -> String {
    if setting.source == Source::Environment { String::new() } else { format!("`{}`", setting.key) }
}
