//! Reads the sections of a TOML table, and collects every problem with its path.

use toml::{Table, Value};

use super::setting::{Section, Setting};

/// A table that is being read. A key that is never taken from it is a problem: most likely it is mistyped.
pub(super) struct Reader<'a> {
    path: String,
    table: Table,
    problems: &'a mut Vec<String>,
}

impl<'a> Reader<'a> {
    /// Returns a reader of the table at a path; the path of the whole file is empty.
    pub(super) fn new(path: impl Into<String>, table: Table, problems: &'a mut Vec<String>) -> Self {
        Reader { path: path.into(), table, problems }
    }

    /// Adds a problem with a key of the table. An empty key means the table itself.
    pub(super) fn problem(&mut self, key: &str, problem: &str) {
        let path = self.below(key);
        self.problems.push(format!("{path}: {problem}"));
    }

    /// Takes every setting of the section that the table has.
    pub(super) fn read<S: Section>(&mut self, section: &mut S) {
        for setting in S::SETTINGS {
            self.read_setting(setting, section);
        }
    }

    /// Takes the setting with this key if the table has it. Returns whether its value was accepted.
    pub(super) fn read_key<S: Section>(&mut self, key: &str, section: &mut S) -> bool {
        let setting = S::SETTINGS.iter().find(|setting| setting.key == key);
        setting.is_some_and(|setting| self.read_setting(setting, section))
    }

    fn read_setting<S>(&mut self, setting: &Setting<S>, section: &mut S) -> bool {
        let Some(value) = self.table.remove(setting.key) else { return false };
        let is_accepted = (setting.parse)(section, &value).is_some();
        if !is_accepted {
            self.problem(setting.key, &format!("must be {}", (setting.about)().accepted));
        }
        is_accepted
    }

    /// Takes the table under this key. Returns an empty one if the key is absent.
    pub(super) fn table(&mut self, key: &str) -> Table {
        match self.table.remove(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(_) => {
                self.problem(key, "must be a table");
                Table::new()
            }
        }
    }

    /// Takes the tables in the table under this key, by name.
    pub(super) fn tables(&mut self, key: &str) -> Vec<(String, Table)> {
        let mut tables = Vec::new();
        for (name, value) in self.table(key) {
            match value {
                Value::Table(table) => tables.push((name, table)),
                _ => self.problem(&format!("{key}.{name}"), "must be a table"),
            }
        }
        tables
    }

    /// Returns a reader of a table that was taken from this one.
    pub(super) fn section(&mut self, key: &str, table: Table) -> Reader<'_> {
        Reader::new(self.below(key), table, self.problems)
    }

    /// Reports every key that was not taken.
    pub(super) fn finish(mut self) {
        for (key, _) in std::mem::take(&mut self.table) {
            self.problem(&key, "is not known");
        }
    }

    fn below(&self, key: &str) -> String {
        [&self.path[..], key].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".")
    }
}
