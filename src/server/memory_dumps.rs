//! Keeps the memory of the process, which contains secrets, out of core dumps and away from debuggers of the same user.

use rustix::{
    io,
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
};

/// Forbids core dumps of this process and of the processes that it starts, and reads of its memory and environment by other
/// processes of its user.
pub fn forbid_memory_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
