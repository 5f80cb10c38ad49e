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
    /// Shared code that precedes its body.
    pub preludes: &'static [&'static str],
    /// Its own code.
    pub body: &'static str,
    loaded: OnceLock<Loaded>,
}

impl Script {
    /// Creates a script.
    pub const fn new(
        name: &'static str,
        flags: &'static str,
        keys: usize,
        preludes: &'static [&'static str],
        body: &'static str,
    ) -> Self {
        Script { name, flags, keys, preludes, body, loaded: OnceLock::new() }
    }

    /// Returns the source with its preludes, as sent to Redis.
    pub fn source(&self) -> String {
        format!("#!lua flags={}\n{}\n{}", self.flags, self.preludes.join("\n"), self.body)
    }

    /// Runs the script on this connection. Sends its source if Redis does not have it, which also loads it.
    pub(super) async fn run(&self, client: &Client, keys: &[Bytes], args: &[Bytes]) -> Result<Value, FredError> {
        let keys: Vec<Key> = keys.iter().cloned().map(Key::from).collect();
        let args: Vec<Value> = args.iter().cloned().map(Value::Bytes).collect();
        match client.evalsha(self.sha1().clone(), keys.clone(), args.clone()).await {
            Err(error) if is_unknown_script(&error) => client.eval(self.source(), keys, args).await,
            reply => reply,
        }
    }

    /// SHA-1 of the source, for EVALSHA.
    pub(super) fn sha1(&self) -> &Str {
        self.loaded.get_or_init(|| Loaded::from_lua(self.source())).sha1()
    }
}

/// Whether Redis does not have the script.
pub(super) fn is_unknown_script(error: &FredError) -> bool {
    error.details().starts_with("NOSCRIPT")
}
