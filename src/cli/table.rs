//! Columns that line up, and texts that do nothing to a terminal.

/// What came from elsewhere, without control characters: they would break the line, or give a terminal orders.
pub fn printable(text: &str) -> String {
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

/// A table that grows: every column is as wide as the widest cell so far.
pub struct Table<const N: usize> {
    widths: [usize; N],
    /// Until it has been printed.
    header: Option<[&'static str; N]>,
}

impl<const N: usize> Table<N> {
    /// With these columns, at least so wide each.
    pub fn new(header: [&'static str; N], widths: [usize; N]) -> Self {
        Table { widths, header: Some(header) }
    }

    /// The lines of these rows, before the first of all that of the header.
    pub fn lines(&mut self, rows: Vec<[String; N]>) -> Vec<String> {
        let header = self.header.take().map(|header| header.map(str::to_owned));
        let rows: Vec<_> = header.into_iter().chain(rows.into_iter().map(|row| row.map(|cell| shown(&cell)))).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        rows.iter().map(|row| line(&self.widths, row)).collect()
    }
}

/// Names and values in two columns.
pub fn pairs(pairs: &[(String, String)]) -> Vec<String> {
    let shown: Vec<_> = pairs.iter().map(|(name, value)| [printable(name), printable(value)]).collect();
    let width = shown.iter().map(|[name, _]| name.chars().count()).max().unwrap_or_default();
    shown.iter().map(|pair| line(&[width, 0], pair)).collect()
}

/// An empty cell has a sign of its own, so that programs can count columns.
fn shown(cell: &str) -> String {
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
    fn columns_line_up_and_grow() {
        let mut table = Table::new(["A", "B"], [3, 0]);
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(table.lines(vec![row("1", ""), row("22", "x")]), ["A    B", "1    -", "22   x"]);
        assert_eq!(table.lines(vec![row("4444", "y")]), ["4444  y"]);
    }

    #[test]
    fn a_terminal_gets_no_orders() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{202e}é"), "a\\u{1b}[2Jb\\nc\\u{202e}é");
    }
}
