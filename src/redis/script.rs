//! A Lua script: its source, its SHA-1, and how it is run.

use std::{collections::BTreeMap, sync::OnceLock};

use bytes::Bytes;
use fred::{
    bytes_utils::Str,
    clients::Client,
    error::Error as FredError,
    interfaces::LuaInterface,
    types::{Key, Value, scripts::Script as Loaded},
};

/// Name of the shared code whose lines, such as `local A, B = 1, 2`, define constants. Lua has none: a local takes one of the 200
/// registers of a script, and each function that uses it a search. So the source has their values.
const CONSTANTS: &str = "constants";

/// A Lua script.
pub struct Script {
    /// Name in metrics and errors.
    pub name: &'static str,
    /// Flags for Redis: `no-writes` runs while Redis refuses writes, `allow-oom` while it has no memory left.
    pub flags: &'static str,
    /// Number of keys it declares. The minimum number, if it takes one key for each of many ids.
    pub keys: usize,
    /// Its code. A line `-- include <name>` is replaced by shared code.
    body: &'static str,
    /// Shared code by name.
    includes: &'static [(&'static str, &'static str)],
    loaded: OnceLock<Loaded>,
}

impl Script {
    /// Creates a script.
    pub const fn new(
        name: &'static str,
        flags: &'static str,
        keys: usize,
        body: &'static str,
        includes: &'static [(&'static str, &'static str)],
    ) -> Self {
        Script { name, flags, keys, body, includes, loaded: OnceLock::new() }
    }

    /// Returns the source as sent to Redis: each include is expanded in its place, with the values of the constants and without
    /// comments.
    pub fn source(&self) -> String {
        let (mut code, mut values) = (String::new(), BTreeMap::new());
        self.expand(self.body, &mut code, &mut values);
        format!("#!lua flags={}\n{}", self.flags, with_values(&code, &values))
    }

    /// # Panics
    ///
    /// Panics if an include has no code, which a test of the registry finds.
    fn expand(&self, code: &str, source: &mut String, values: &mut BTreeMap<&str, &str>) {
        for line in code.lines() {
            match line.trim_start().strip_prefix("-- include ") {
                Some(name) => {
                    let include = self.includes.iter().find(|(known, _)| *known == name);
                    let code = include.unwrap_or_else(|| panic!("no include {name:?}")).1;
                    if name == CONSTANTS { *values = values_of(code) } else { self.expand(code, source, values) }
                }
                None if line.trim_start().starts_with("--") => {}
                None => {
                    source.push_str(line);
                    source.push('\n');
                }
            }
        }
    }

    /// Runs the script on this connection. Sends its source if Redis does not have it, which also loads it.
    pub(super) async fn run(&self, client: &Client, keys: &[Bytes], args: &[Bytes]) -> Result<Value, FredError> {
        let keys = || keys.iter().cloned().map(Key::from).collect::<Vec<_>>();
        let args = || args.iter().cloned().map(Value::Bytes).collect::<Vec<_>>();
        // A write pause holds back EVALSHA of a script that Redis does not have, also if the script only reads.
        if self.is_read_only() {
            return client.eval(self.loaded().lua().cloned().unwrap_or_default(), keys(), args()).await;
        }
        match client.evalsha(self.sha1().clone(), keys(), args()).await {
            Err(error) if is_unknown_script(&error) => client.eval(self.source(), keys(), args()).await,
            reply => reply,
        }
    }

    /// Whether it writes nothing, so that Redis runs it also while it takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains("no-writes")
    }

    /// SHA-1 of the source, for EVALSHA.
    pub(super) fn sha1(&self) -> &Str {
        self.loaded().sha1()
    }

    fn loaded(&self) -> &Loaded {
        self.loaded.get_or_init(|| Loaded::from_lua(self.source()))
    }
}

/// Values of constants by name.
fn values_of(constants: &str) -> BTreeMap<&str, &str> {
    let lines = constants.lines().filter_map(|line| line.strip_prefix("local ")?.split_once(" = "));
    lines.flat_map(|(names, values)| names.split(", ").zip(values.split(", "))).collect()
}

/// Replaces each name that has a value, but not in strings.
fn with_values(code: &str, values: &BTreeMap<&str, &str>) -> String {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let (mut replaced, mut rest) = (String::with_capacity(code.len()), code);
    while let Some(first) = rest.chars().next() {
        let bytes = match first {
            '\'' => rest[1..].find('\'').map(|quote| quote + 2),
            letter if is_of_name(letter) => rest.find(|letter| !is_of_name(letter)),
            other => Some(other.len_utf8()),
        };
        let (token, tail) = rest.split_at(bytes.unwrap_or(rest.len()));
        replaced.push_str(values.get(token).copied().unwrap_or(token));
        rest = tail;
    }
    replaced
}

/// Whether Redis does not have the script.
pub(super) fn is_unknown_script(error: &FredError) -> bool {
    error.details().starts_with("NOSCRIPT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_has_the_values_of_constants() {
        const INCLUDES: &[(&str, &str)] = &[
            ("constants", "-- Numbers.\nlocal A, LONG_NAME = 1, '>I4'\nlocal B = -2\n"),
            ("more", "  -- include shared\n"),
            ("shared", "local A2 = A\n"),
        ];
        let source = |body| Script::new("test", "no-writes", 0, body, INCLUDES).source();
        let body = "-- A comment.\n-- include constants\n-- include more\nreturn {A, x.A2, 'A', LONG_NAME .. 'B', B}\n";
        let expected = "#!lua flags=no-writes\nlocal A2 = 1\nreturn {1, x.A2, 'A', '>I4' .. 'B', -2}\n";
        assert_eq!(source(body), expected);
        assert_eq!(source("return A\n"), "#!lua flags=no-writes\nreturn A\n");
    }
}
