//! Durations in ms, and durations and sizes in error texts, in the units that people use.

use std::time::Duration;

/// Units of a duration in ms, the largest first, each with its name.
const DURATIONS: [(u128, &str); 5] = [(86_400_000, "days"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];
/// Units of a size in bytes, the largest first, each with its name.
const SIZES: [(u128, &str); 3] = [(1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes")];

/// Number of milliseconds of a duration.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns a duration in the largest unit in which it is a whole number, such as `400 days` or `90 min`. A single day is 24 h.
pub fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = if ms < 2 * DURATIONS[0].0 { &DURATIONS[1..] } else { &DURATIONS };
    in_units(ms, units)
}

/// Returns a size in the largest unit in which it is a whole number, such as `64 KiB`.
pub fn size_text(bytes: usize) -> String {
    in_units(bytes as u128, &SIZES)
}

fn in_units(amount: u128, units: &[(u128, &str)]) -> String {
    let is_whole = |(unit, _): &&(u128, &str)| amount.is_multiple_of(*unit) && amount >= *unit;
    let last = units.last().copied().unwrap_or((1, ""));
    let (unit, name) = units.iter().find(is_whole).copied().unwrap_or(last);
    format!("{} {name}", amount / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_largest_whole_unit() {
        let rows = [
            (400 * 86_400, "400 days"),
            (86_400, "24 h"),
            (36 * 3_600, "36 h"),
            (5_400, "90 min"),
            (90, "90 s"),
            (0, "0 ms"),
        ];
        for (seconds, text) in rows {
            assert_eq!(duration_text(Duration::from_secs(seconds)), text);
        }
        assert_eq!(duration_text(Duration::from_millis(1_500)), "1500 ms");
    }

    #[test]
    fn sizes_have_the_largest_whole_unit() {
        for (bytes, text) in [(1 << 20, "1 MiB"), (65_536, "64 KiB"), (1_000, "1000 bytes"), (0, "0 bytes")] {
            assert_eq!(size_text(bytes), text);
        }
    }
}
