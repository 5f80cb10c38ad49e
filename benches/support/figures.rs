//! Clock, quartiles, and Markdown tables.

use std::{fmt, time::SystemTime};

/// Returns the time in µs since the epoch.
pub fn now_us() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("the clock is set").as_micros() as u64
}

/// Median and quartiles over the rounds.
pub struct Quartiles {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Quartiles {
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = share * (values.len() - 1) as f64;
            let (below, above) = (values[index.floor() as usize], values[index.ceil() as usize]);
            below + (above - below) * index.fract()
        };
        Quartiles { low: at(0.25), median: at(0.5), high: at(0.75) }
    }
}

/// The precision of the format is the number of significant digits of the median.
impl fmt::Display for Quartiles {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let significant = out.precision().unwrap_or(3) as i32;
        let before_point = self.median.abs().max(1e-9).log10().floor() as i32 + 1;
        let digits = (significant - before_point).max(0) as usize;
        write!(out, "{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.low, self.high)
    }
}

/// Goal of a figure.
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// Returns the goal as a text, and whether the figure meets it. If only a quartile does, it is met within the spread.
    pub fn judge(&self, figure: &Quartiles) -> [String; 2] {
        let (goal, by_median, by_quartile) = match self {
            Goal::AtLeast(goal) => (format!("≥ {goal}"), figure.median >= *goal, figure.high >= *goal),
            Goal::AtMost(goal) => (format!("≤ {goal}"), figure.median <= *goal, figure.low <= *goal),
        };
        let met = match (by_median, by_quartile) {
            (true, _) => "yes",
            (false, true) => "within the spread",
            (false, false) => "no",
        };
        [goal, met.to_owned()]
    }
}

/// Prints a Markdown table.
pub fn print_table(head: &[&str], rows: &[Vec<String>]) {
    println!("| {} |", head.join(" | "));
    println!("|---{}|", "|---:".repeat(head.len() - 1));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
    println!();
}
