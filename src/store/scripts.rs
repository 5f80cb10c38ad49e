//! The registry of scripts, and the numbers they answer with.

use std::sync::OnceLock;

use fred::{bytes_utils::Str, types::scripts::Script as Loaded};

/// One Lua script. Its header names its keys, arguments and replies.
pub struct Script {
    pub name: &'static str,
    /// Its file in scripts/.
    pub file: &'static str,
    /// What Redis may assume of it: `no-writes` runs where Redis takes no writes, `allow-oom` where it has no memory left.
    pub flags: &'static str,
    /// Number of keys it declares.
    pub keys: usize,
    body: &'static str,
    pub prelude: Prelude,
    loaded: OnceLock<Loaded>,
}

/// What stands before a script's body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Prelude {
    None,
    /// gate.lua: it may be told to stop.
    Gate,
    /// That, record.lua and token.lua: it reads a session.
    Record,
    /// Those and mutation.lua: it writes one.
    Mutation,
}

const GATE: &str = include_str!("scripts/gate.lua");
const RECORD: &str = include_str!("scripts/record.lua");
const TOKEN: &str = include_str!("scripts/token.lua");
const MUTATION: &str = include_str!("scripts/mutation.lua");

macro_rules! registry {
    ($($constant:ident $name:literal in $file:literal flags $flags:literal keys $keys:literal $prelude:ident;)*) => {
        $(pub static $constant: Script = Script {
            name: $name,
            file: $file,
            flags: $flags,
            keys: $keys,
            body: include_str!(concat!("scripts/", $file)),
            prelude: Prelude::$prelude,
            loaded: OnceLock::new(),
        };)*
        /// All of them.
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
    CLAIM "claim" in "claim.lua" flags "" keys 1 Gate;
    INITIALISE "initialise" in "initialise.lua" flags "" keys 1 None;
    DUE "due" in "due.lua" flags "allow-oom" keys 2 None;
    TRIM "trim" in "trim.lua" flags "allow-oom" keys 2 None;
}

impl Script {
    /// The text that Redis is given.
    pub fn source(&self) -> String {
        let before: &[&str] = match self.prelude {
            Prelude::None => &[],
            Prelude::Gate => &[GATE],
            Prelude::Record => &[GATE, RECORD, TOKEN],
            Prelude::Mutation => &[GATE, RECORD, TOKEN, MUTATION],
        };
        format!("#!lua flags={}\n{}\n{}", self.flags, before.join("\n"), self.body)
    }

    /// The digest that Redis knows it by.
    pub(super) fn digest(&self) -> &Str {
        self.loaded.get_or_init(|| Loaded::from_lua(self.source())).sha1()
    }
}

/// The first integer of a gated script's reply; gate.lua has the same list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    StoreChanged = -2,
    TooLate = -1,
    NotFound = 0,
    Done = 1,
    Ended = 2,
    Exists = 3,
    Corrupt = 4,
    RevisionMismatch = 5,
    RequestIdReused = 6,
    SubjectChange = 7,
    TooManyAttributes = 8,
    TooManyLabels = 9,
    TooLarge = 10,
    NotDue = 11,
    Rotated = 12,
    TokenKnown = 13,
    NotReserved = 14,
    SubjectFull = 15,
    SubjectLimit = 16,
    NotMeant = 17,
}

impl Outcome {
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

    pub fn from_number(number: i64) -> Option<Self> {
        Outcome::ALL.into_iter().find(|outcome| *outcome as i64 == number)
    }
}
