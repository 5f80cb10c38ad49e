//! The registry of scripts, and the numbers they answer with.

use fred::types::scripts::Script as Loaded;

/// One Lua script. Its header names its keys, arguments and replies.
pub struct Script {
    pub name: &'static str,
    /// What Redis may assume of it: `no-writes` runs where Redis takes no writes, `allow-oom` where it has no memory left.
    pub flags: &'static str,
    /// Number of keys it declares.
    pub keys: usize,
    body: &'static str,
    prelude: Prelude,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Prelude {
    /// session.lua stands before the body.
    Session,
    None,
}

const SESSION: &str = include_str!("scripts/session.lua");

macro_rules! registry {
    ($($constant:ident $name:literal in $file:literal flags $flags:literal keys $keys:literal $prelude:ident;)*) => {
        $(pub static $constant: Script = Script {
            name: $name,
            flags: $flags,
            keys: $keys,
            body: include_str!(concat!("scripts/", $file, ".lua")),
            prelude: Prelude::$prelude,
        };)*
        /// All of them.
        pub static ALL: &[&Script] = &[$(&$constant),*];
    };
}

registry! {
    CREATE "create" in "create" flags "" keys 5 Session;
    READ "read" in "get" flags "no-writes,allow-oom" keys 5 Session;
    TOUCH "touch" in "get" flags "allow-oom" keys 5 Session;
    UPDATE "update" in "update" flags "" keys 5 Session;
    END "end" in "end" flags "allow-oom" keys 5 Session;
    INITIALISE "initialise" in "initialise" flags "" keys 1 None;
    DUE "due" in "due" flags "allow-oom" keys 2 None;
    TRIM "trim" in "trim" flags "allow-oom" keys 2 None;
}

impl Script {
    /// The text that Redis is given.
    pub fn source(&self) -> String {
        let prelude = match self.prelude {
            Prelude::None => "",
            Prelude::Session => SESSION,
        };
        format!("#!lua flags={}\n{prelude}\n{}", self.flags, self.body)
    }

    pub(super) fn load(&self) -> Loaded {
        Loaded::from_lua(self.source())
    }
}

/// The first integer of a session script's reply; session.lua has the same list.
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
}

impl Outcome {
    pub const ALL: [Outcome; 14] = [
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
    ];

    pub fn from_number(number: i64) -> Option<Self> {
        Outcome::ALL.into_iter().find(|outcome| *outcome as i64 == number)
    }
}
