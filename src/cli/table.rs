//! Aligned columns, with control characters escaped.

/// Escapes control and formatting characters, which could break a line or send commands to the terminal.
pub(super) fn printable(text: &str) -> String {
    let is_hidden = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut printable = String::new();
    for letter in text.chars() {
        if is_hidden(letter) { printable.extend(letter.escape_default()) } else { printable.push(letter) }
    }
    printable
}

/// Table that is printed while rows arrive: each column is as wide as its widest cell so far.
pub(super) struct Table<const N: usize> {
    widths: [usize; N],
    /// None: the header has been printed.
    header: Option<[&'static str; N]>,
}

impl<const N: usize> Table<N> {
    /// Returns an empty table with these column names and minimum widths.
    pub(super) fn new(header: [&'static str; N], min_widths: [usize; N]) -> Self {
        Table { widths: min_widths, header: Some(header) }
    }

    /// Returns the lines of these rows, preceded by the header on the first call.
    pub(super) fn lines(&mut self, rows: Vec<[String; N]>) -> Vec<String> {
        let header = self.header.take().map(|header| header.map(str::to_owned));
        let rows = rows.into_iter().map(|row| row.map(|cell| cell_text(&cell)));
        let rows: Vec<_> = header.into_iter().chain(rows).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        rows.iter().map(|row| line(&self.widths, row)).collect()
    }
}

/// Returns names and values in two columns.
pub(super) fn pairs(pairs: &[(String, String)]) -> Vec<String> {
    let rows: Vec<_> = pairs.iter().map(|(name, value)| [printable(name), printable(value)]).collect();
    let width = rows.iter().map(|[name, _]| name.chars().count()).max().unwrap_or_default();
    rows.iter().map(|row| line(&[width, 0], row)).collect()
}

/// Returns `-` for an empty cell, so that programs can split lines at whitespace.
fn cell_text(cell: &str) -> String {
    if cell.is_empty() { "-".to_owned() } else { printable(cell) }
}

fn line<const N: usize>(widths: &[usize; N], cells: &[String; N]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_grow() {
        let mut table = Table::new(["A", "B"], [3, 0]);
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(table.lines(vec![row("1", ""), row("22", "x")]), ["A    B", "1    -", "22   x"]);
        assert_eq!(table.lines(vec![row("4444", "y")]), ["4444  y"]);
    }

    #[test]
    fn printable_escapes_control_characters() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{202e}é"), "a\\u{1b}[2Jb\\nc\\u{202e}é");
    }
}
