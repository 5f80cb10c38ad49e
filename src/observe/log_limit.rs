//! The limit of warnings and errors: one caller or one fault can cause any number of them.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Maximum number of lines of one call site in each [`WINDOW`].
const MAX_LINES: u32 = 10;
/// Time to which [`MAX_LINES`] applies. It starts with the first line after the previous window.
const WINDOW: Duration = Duration::from_secs(10);

/// Limit of the lines of one call site.
pub(crate) struct LogLimit(Mutex<Window>);

struct Window {
    /// Time of its first line. None: no line yet.
    start: Option<Instant>,
    /// Number of lines logged since the start.
    logged: u32,
    /// Number of lines suppressed since the last logged one.
    suppressed: u64,
}

impl LogLimit {
    /// Returns the limit of a call site that has logged no line.
    pub(crate) const fn new() -> Self {
        LogLimit(Mutex::new(Window { start: None, logged: 0, suppressed: 0 }))
    }

    /// Counts one line. Returns the number of lines suppressed since the last logged one. None: the line is suppressed.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock();
        if window.start.is_none_or(|start| now.saturating_duration_since(start) >= WINDOW) {
            (window.start, window.logged) = (Some(now), 0);
        }
        if window.logged == MAX_LINES {
            window.suppressed += 1;
            return None;
        }
        window.logged += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

/// Logs a line of this level, unless the call site has reached its limit. The next line has the field `suppressed`.
macro_rules! limited {
    ($level:ident, $($fields:tt)+) => {{
        static LIMIT: $crate::observe::LogLimit = $crate::observe::LogLimit::new();
        if let Some(suppressed) = LIMIT.admit(::std::time::Instant::now()) {
            let suppressed = (suppressed > 0).then_some(suppressed);
            ::tracing::event!(::tracing::Level::$level, suppressed, $($fields)+);
        }
    }};
}

/// Logs a warning like `tracing::warn`, within the limit of its call site.
macro_rules! warning {
    ($($fields:tt)+) => { $crate::observe::limited!(WARN, $($fields)+) };
}

/// Logs an error like `tracing::error`, within the limit of its call site.
macro_rules! error {
    ($($fields:tt)+) => { $crate::observe::limited!(ERROR, $($fields)+) };
}

pub(crate) use {error, limited, warning};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_suppressed_and_counted() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let admitted =
            |count: u32, after: Duration| (0..count).filter_map(|_| limit.admit(start + after)).collect::<Vec<_>>();
        assert_eq!(admitted(25, Duration::ZERO), [0; 10]);
        assert_eq!(admitted(5, WINDOW - Duration::from_millis(1)), [0_u64; 0]);
        assert_eq!(admitted(2, WINDOW), [20, 0]);
        assert_eq!(admitted(20, WINDOW * 2), [0; 10]);
    }
}
