//! Kinds of numbers, byte sizes and durations, each with its range.

use std::{ops::RangeInclusive, time::Duration};

use toml::Value;

use super::kind::Kind;

/// Units of byte sizes, largest first.
const BYTE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];
/// Largest upper bound of a size that texts name.
const LARGEST_NAMED: u64 = 1 << 40;
/// Units of durations in nanoseconds, largest first.
const TIME_UNITS: [(&str, u128); 5] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
];

/// An integer in a range.
pub(super) fn integer<T>(range: RangeInclusive<i64>) -> Kind<T>
where
    T: TryFrom<i64> + TryInto<i64> + Copy + 'static,
{
    let bounds = format!("{} to {}", range.start(), range.end());
    let parse = move |value: &Value| value.as_integer().filter(|number| range.contains(number))?.try_into().ok();
    let to_toml = |value: &T| (*value).try_into().ok().map(Value::Integer);
    Kind::new("integer", format!("a whole number from {bounds}"), parse, to_toml).with_range(bounds)
}

/// A number of bytes in a range: an integer, or a text with the unit KiB, MiB or GiB.
pub(super) fn bytes<T>(range: RangeInclusive<u64>) -> Kind<T>
where
    T: TryFrom<u64> + TryInto<u64> + Copy + 'static,
{
    let (start, end) = (*range.start(), *range.end());
    let parse = move |value: &Value| {
        let bytes = match value {
            Value::Integer(bytes) => u64::try_from(*bytes).ok()?,
            Value::String(text) => parse_bytes(text)?,
            _ => return None,
        };
        Some(bytes).filter(|bytes| range.contains(bytes))?.try_into().ok()
    };
    let to_toml = |value: &T| i64::try_from((*value).try_into().ok()?).ok().map(Value::Integer);
    // The largest number that TOML has is no limit.
    let bounds = match end {
        0..=LARGEST_NAMED => format!("{} to {}", bytes_text(start), bytes_text(end)),
        _ => format!("at least {}", bytes_text(start)),
    };
    Kind::new("bytes", format!("a size, {bounds}, such as \"64 KiB\""), parse, to_toml)
        .with_range(bounds)
        .with_text(|value| (*value).try_into().map_or_else(|_| "none".into(), bytes_text))
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let (_, unit) = BYTE_UNITS.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*unit)
}

fn bytes_text(bytes: u64) -> String {
    let unit = BYTE_UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    unit.map_or_else(String::new, |(name, unit)| format!("{} {name}", bytes / unit).trim_end().to_owned())
}

/// Any duration, such as "30m".
pub(super) fn any_duration() -> Kind<Duration> {
    Kind::new("duration", "a duration, such as \"30m\"", parse_duration, |duration| {
        Some(duration_text(*duration).into())
    })
}

/// A duration in a range.
pub(super) fn duration(range: RangeInclusive<Duration>) -> Kind<Duration> {
    let (start, end) = (duration_text(*range.start()), duration_text(*range.end()));
    let bounds = match (*range.start(), *range.end()) {
        (_, Duration::MAX) => format!("at least {start}"),
        (Duration::ZERO, _) => format!("at most {end}"),
        _ => format!("{start} to {end}"),
    };
    let parse = move |value: &Value| parse_duration(value).filter(|duration| range.contains(duration));
    let to_toml = |duration: &Duration| Some(duration_text(*duration).into());
    Kind::new("duration", format!("a duration, {bounds}"), parse, to_toml).with_range(bounds)
}

/// A duration above zero, or "never", which is None.
pub(super) fn timeout() -> Kind<Option<Duration>> {
    let parse = |value: &Value| match value.as_str()? {
        "never" => Some(None),
        _ => parse_duration(value).filter(|timeout| !timeout.is_zero()).map(Some),
    };
    let to_toml = |timeout: &Option<Duration>| Some(timeout.map_or_else(|| "never".into(), duration_text).into());
    Kind::new("duration or never", "a duration above zero, such as \"30m\", or \"never\"", parse, to_toml)
        .with_range("above zero")
}

fn parse_duration(value: &Value) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok()
}

/// Returns the duration in the largest unit that divides it: `90s`; `1d` for 24 hours.
fn duration_text(duration: Duration) -> String {
    const SECOND: u128 = 1_000_000_000;
    let nanos = duration.as_nanos();
    // humantime parses a number of milliseconds or less as nanoseconds in a u64.
    let fits = |unit: u128| unit >= SECOND || nanos <= u128::from(u64::MAX);
    match TIME_UNITS.iter().find(|(_, unit)| nanos > 0 && nanos.is_multiple_of(*unit) && fits(*unit)) {
        Some((name, unit)) => format!("{}{name}", nanos / unit),
        None => humantime::format_duration(duration).to_string().replace(' ', ""),
    }
}
