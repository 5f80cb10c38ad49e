//! CPU time of processes and threads, in nanoseconds, from the scheduler.

use std::{fs, path::Path, time::Duration};

/// Returns the CPU time of all threads of a process that have not ended.
pub fn used_by(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    threads.filter_map(|thread| read(&thread.ok()?.path().join("schedstat"))).sum()
}

/// Returns the CPU time of the main thread of a process.
pub fn of_main_thread(pid: u32) -> Duration {
    read(Path::new(&format!("/proc/{pid}/schedstat"))).expect("the process runs")
}

/// Returns the CPU time of the calling thread.
pub fn of_this_thread() -> Duration {
    read(Path::new("/proc/thread-self/schedstat")).expect("the thread runs")
}

/// None: the thread has ended.
fn read(path: &Path) -> Option<Duration> {
    let text = fs::read_to_string(path).ok()?;
    let (nanoseconds, _) = text.split_once(' ').expect("the kernel has scheduler statistics");
    Some(Duration::from_nanos(nanoseconds.parse().expect("a number of nanoseconds")))
}
