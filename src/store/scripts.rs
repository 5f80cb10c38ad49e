//! Registry of the Lua scripts, and the outcome numbers of their replies.

use std::sync::OnceLock;

use fred::{
    bytes_utils::Str,
    clients::Client,
    error::Error as FredError,
    interfaces::LuaInterface,
    types::{Key, Value, scripts::Script as Loaded},
};

/// One Lua script. The header of its file documents keys, arguments and replies.
pub struct Script {
    /// Name in metrics and errors.
    pub name: &'static str,
    /// Name of its file in scripts/.
    pub file: &'static str,
    /// Flags for Redis: `no-writes` runs while Redis refuses writes, `allow-oom` while it has no memory left.
    pub flags: &'static str,
    /// Number of keys it declares. The minimum number, if it takes one key for each of many ids.
    pub keys: usize,
    body: &'static str,
    /// Code that precedes its body.
    pub prelude: Prelude,
    loaded: OnceLock<Loaded>,
}

/// Shared code that precedes the body of a script.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Prelude {
    /// No shared code.
    None,
    /// gate.lua: checks store id and deadline.
    Gate,
    /// gate.lua, record.lua and token.lua: reads a session.
    Record,
    /// gate.lua, record.lua, token.lua and mutation.lua: writes a session.
    Mutation,
}

const GATE: &str = include_str!("scripts/gate.lua");
const RECORD: &str = include_str!("scripts/record.lua");
const TOKEN: &str = include_str!("scripts/token.lua");
const MUTATION: &str = include_str!("scripts/mutation.lua");

macro_rules! registry {
    ($($constant:ident $name:literal in $file:literal flags $flags:literal keys $keys:literal $prelude:ident;)*) => {
        $(#[doc = concat!("Script `", $name, "` in `scripts/", $file, "`.")]
        pub static $constant: Script = Script {
            name: $name,
            file: $file,
            flags: $flags,
            keys: $keys,
            body: include_str!(concat!("scripts/", $file)),
            prelude: Prelude::$prelude,
            loaded: OnceLock::new(),
        };)*
        /// All scripts.
        pub static ALL: &[&Script] = &[$(&$constant),*];
    };
}

registry! {
    CREATE "create" in "create.lua" flags "" keys 6 Mutation;
    READ "read" in "get.lua" flags "allow-oom" keys 6 Record;
    READ_ONLY "read-only" in "get.lua" flags "no-writes,allow-oom" keys 6 Record;
    TOUCH "touch" in "get.lua" flags "allow-oom" keys 6 Mutation;
    UPDATE "update" in "update.lua" flags "" keys 6 Mutation;
    ROTATE "rotate" in "update.lua" flags "" keys 6 Mutation;
    END "end" in "end.lua" flags "allow-oom" keys 6 Mutation;
    SETTLE "settle" in "settle.lua" flags "allow-oom" keys 6 Mutation;
    ADMIT "admit" in "admit.lua" flags "" keys 2 Gate;
    FORGET "forget" in "forget.lua" flags "allow-oom" keys 2 Gate;
    SURVEY "survey" in "survey.lua" flags "allow-oom" keys 4 Gate;
    INDEXED "indexed" in "indexed.lua" flags "allow-oom" keys 2 Gate;
    ENTRIES "entries" in "entries.lua" flags "allow-oom" keys 2 Gate;
    CLAIM "claim" in "claim.lua" flags "allow-oom" keys 1 Gate;
    REPAIR "repair" in "repair.lua" flags "allow-oom" keys 2 None;
    INITIALISE "initialise" in "initialise.lua" flags "" keys 1 None;
    DUE "due" in "due.lua" flags "allow-oom" keys 2 None;
    TRIM "trim" in "trim.lua" flags "allow-oom" keys 2 None;
    PAGE "page" in "page.lua" flags "no-writes,allow-oom" keys 1 None;
    PROBE "probe" in "probe.lua" flags "allow-oom" keys 0 None;
}

impl Script {
    /// Returns the source with its prelude, as sent to Redis.
    pub fn source(&self) -> String {
        let before: &[&str] = match self.prelude {
            Prelude::None => &[],
            Prelude::Gate => &[GATE],
            Prelude::Record => &[GATE, RECORD, TOKEN],
            Prelude::Mutation => &[GATE, RECORD, TOKEN, MUTATION],
        };
        format!("#!lua flags={}\n{}\n{}", self.flags, before.join("\n"), self.body)
    }

    /// Runs the script on this connection. Sends its source if Redis does not have it, which also loads it.
    pub(crate) async fn run(&self, client: &Client, keys: Vec<Key>, args: Vec<Value>) -> Result<Value, FredError> {
        match client.evalsha(self.digest().clone(), keys.clone(), args.clone()).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => client.eval(self.source(), keys, args).await,
            reply => reply,
        }
    }

    /// SHA-1 digest for EVALSHA.
    pub(crate) fn digest(&self) -> &Str {
        self.loaded.get_or_init(|| Loaded::from_lua(self.source())).sha1()
    }
}

/// First integer of the reply of a gated script. The same list is in gate.lua.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The store has no id or another one.
    StoreChanged = -2,
    /// The script ran after its deadline.
    TooLate = -1,
    /// No live session, or a wrong token.
    NotFound = 0,
    /// The script did what was asked.
    Done = 1,
    /// The session has ended.
    Ended = 2,
    /// A live session has the id.
    Exists = 3,
    /// The record cannot be read.
    Corrupt = 4,
    /// The current revision is another one.
    RevisionMismatch = 5,
    /// The request id belongs to another request.
    RequestIdReused = 6,
    /// The session has another subject.
    SubjectChange = 7,
    /// The change would exceed the maximum number of attributes.
    TooManyAttributes = 8,
    /// The change would exceed the maximum number of labels.
    TooManyLabels = 9,
    /// The change would exceed the maximum payload.
    TooLarge = 10,
    /// The deadline or period has not passed.
    NotDue = 11,
    /// The presented token is superseded and not accepted.
    Rotated = 12,
    /// The successor is, or was, a token of the session.
    TokenKnown = 13,
    /// The subject index has no valid reservation of the id.
    NotReserved = 14,
    /// The subject has reached its limit; the caller has to check its newest entries.
    SubjectFull = 15,
    /// The subject has reached its limit.
    SubjectLimit = 16,
    /// The session does not meet the condition.
    NotMeant = 17,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Outcome; 20] = [
        Outcome::StoreChanged,
        Outcome::TooLate,
        Outcome::NotFound,
        Outcome::Done,
        Outcome::Ended,
        Outcome::Exists,
        Outcome::Corrupt,
        Outcome::RevisionMismatch,
        Outcome::RequestIdReused,
        Outcome::SubjectChange,
        Outcome::TooManyAttributes,
        Outcome::TooManyLabels,
        Outcome::TooLarge,
        Outcome::NotDue,
        Outcome::Rotated,
        Outcome::TokenKnown,
        Outcome::NotReserved,
        Outcome::SubjectFull,
        Outcome::SubjectLimit,
        Outcome::NotMeant,
    ];

    /// Outcome with this number. None: unknown.
    pub fn from_number(number: i64) -> Option<Self> {
        Outcome::ALL.into_iter().find(|outcome| *outcome as i64 == number)
    }
}
