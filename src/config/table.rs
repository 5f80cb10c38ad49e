//! Reads a TOML table key by key, and gathers what is wrong with it.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use toml::{Table, Value};

/// A table under a path. What is not taken from it is a problem: most likely a mistyped key.
pub struct Section<'a> {
    path: String,
    table: Table,
    problems: &'a mut Vec<String>,
}

impl<'a> Section<'a> {
    pub fn new(path: impl Into<String>, table: Table, problems: &'a mut Vec<String>) -> Self {
        Section { path: path.into(), table, problems }
    }

    pub fn problem(&mut self, key: &str, problem: &str) {
        let path = [&self.path[..], key].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".");
        self.problems.push(format!("{path}: {problem}"));
    }

    fn take<T>(&mut self, key: &str, read: impl FnOnce(&Value) -> Option<T>, form: &str) -> Option<T> {
        let value = self.table.remove(key)?;
        let read = read(&value);
        if read.is_none() {
            self.problem(key, &format!("must be {form}"));
        }
        read
    }

    pub fn text(&mut self, key: &str) -> Option<String> {
        self.take(key, |value| value.as_str().map(str::to_owned), "a text")
    }

    pub fn boolean(&mut self, key: &str) -> Option<bool> {
        let read = |value: &Value| value.as_bool().or_else(|| value.as_str()?.parse().ok());
        self.take(key, read, "true or false")
    }

    pub fn address(&mut self, key: &str) -> Option<SocketAddr> {
        self.take(key, |value| value.as_str()?.parse().ok(), "an IP address and a port, such as 127.0.0.1:50051")
    }

    pub fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let form = format!("a whole number from {} to {}", range.start(), range.end());
        self.take(key, |value| value.as_integer().filter(|number| range.contains(number)), &form)
    }

    /// A number of bytes, or a text with KiB or MiB.
    pub fn bytes(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let read = |value: &Value| {
            let bytes = match value {
                Value::Integer(bytes) => u64::try_from(*bytes).ok()?,
                Value::String(text) => {
                    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
                    let unit = match unit.trim() {
                        "" => 1,
                        "KiB" => 1024,
                        "MiB" => 1024 * 1024,
                        _ => return None,
                    };
                    number.parse::<u64>().ok()?.checked_mul(unit)?
                }
                _ => return None,
            };
            Some(bytes).filter(|bytes| range.contains(bytes))
        };
        self.take(
            key,
            read,
            &format!("a number of bytes from {} to {}, such as \"64 KiB\"", range.start(), range.end()),
        )
    }

    pub fn duration(&mut self, key: &str) -> Option<Duration> {
        self.take(key, duration, "a duration, such as \"30m\"")
    }

    /// A duration or "never"; the outer None = not given.
    pub fn timeout(&mut self, key: &str) -> Option<Option<Duration>> {
        let read = |value: &Value| match value.as_str()? {
            "never" => Some(None),
            _ => duration(value).filter(|timeout| !timeout.is_zero()).map(Some),
        };
        self.take(key, read, "a duration above zero, such as \"30m\", or \"never\"")
    }

    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        let read = |value: &Value| {
            let text = value.as_str()?;
            choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice)
        };
        self.take(key, read, &names.join(" or "))
    }

    /// The table under this key; an empty one where there is none.
    pub fn section(&mut self, key: &str) -> Section<'_> {
        let table = self.take(key, |value| value.as_table().cloned(), "a table").unwrap_or_default();
        Section::new(self.below(key), table, self.problems)
    }

    /// The tables in the table under this key, by name.
    pub fn sections(&mut self, key: &str) -> Vec<(String, Table)> {
        let tables = self.take(key, |value| value.as_table().cloned(), "a table").unwrap_or_default();
        let mut sections = Vec::new();
        for (name, value) in tables {
            match value {
                Value::Table(table) => sections.push((name, table)),
                _ => self.problem(&format!("{key}.{name}"), "must be a table"),
            }
        }
        sections
    }

    pub fn within(&mut self, key: &str, table: Table) -> Section<'_> {
        Section::new(self.below(key), table, self.problems)
    }

    fn below(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Nothing may be left.
    pub fn finish(mut self) {
        let left: Vec<String> = self.table.keys().cloned().collect();
        left.iter().for_each(|key| self.problem(key, "is not known"));
    }
}

fn duration(value: &Value) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok()
}
