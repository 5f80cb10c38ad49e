//! A Lua script: its source, its SHA-1, and how it is run.

use std::sync::OnceLock;

use bytes::Bytes;
use fred::{
    bytes_utils::Str,
    clients::Client,
    error::Error as FredError,
    interfaces::LuaInterface,
    types::{Key, Value, scripts::Script as Loaded},
};

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

    /// Returns the source as sent to Redis: each include is expanded in its place, without comments.
    pub fn source(&self) -> String {
        let mut source = format!("#!lua flags={}\n", self.flags);
        self.expand(self.body, &mut source);
        source
    }

    /// # Panics
    ///
    /// Panics if an include has no code, which a test of the registry finds.
    fn expand(&self, code: &str, source: &mut String) {
        for line in code.lines() {
            match line.trim_start().strip_prefix("-- include ") {
                Some(name) => {
                    let include = self.includes.iter().find(|(known, _)| *known == name);
                    self.expand(include.unwrap_or_else(|| panic!("no include {name:?}")).1, source);
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

/// Whether Redis does not have the script.
pub(super) fn is_unknown_script(error: &FredError) -> bool {
    error.details().starts_with("NOSCRIPT")
}
