//! CPU time of a process, user and system.

use std::time::Duration;

/// Of the clock that `/proc` counts in: 100 a second on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// What a process has used up to now.
pub fn used_by(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // The command's name may hold anything; what follows its parenthesis is fields, the state first.
    let (_, fields) = stat.rsplit_once(')').expect("stat names the command");
    let ticks: u32 = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    TICK * ticks
}
