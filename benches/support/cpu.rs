//! User and system CPU time of a process.

use std::time::Duration;

/// Clock tick of `/proc`: 100 per second on Linux.
const TICK: Duration = Duration::from_millis(10);

/// Returns the CPU time that a process has used.
pub fn used_by(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The command name can contain any character. The fields after its closing parenthesis start with the state.
    let (_, fields) = stat.rsplit_once(')').expect("stat has the command name");
    let ticks: u32 = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    TICK * ticks
}
