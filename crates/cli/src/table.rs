//! Tables and numbers for people.

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};

/// A line above, below and under the headings.
const STYLE: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

/// A table whose first `names` columns hold text; the others hold numbers and are set to the right.
#[derive(Debug)]
pub struct Columns {
    table: Table,
    names: usize,
}

impl Columns {
    /// An empty table; a line break in a heading stacks it.
    pub fn new(names: usize, headings: &[&str]) -> Self {
        let mut columns = Self { table: Table::new(), names };
        columns.table.load_style(STYLE);
        let header = columns.cells(headings.iter().map(|heading| (*heading).to_owned()));
        columns.table.set_header(header);
        columns
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = self.cells(cells);
        self.table.add_row(cells);
    }

    fn cells(&self, texts: impl IntoIterator<Item = String>) -> Vec<Cell> {
        let align = |index| if index < self.names { CellAlignment::Left } else { CellAlignment::Right };
        texts.into_iter().enumerate().map(|(index, text)| Cell::new(text).set_alignment(align(index))).collect()
    }

    /// The table, with a line break at its end.
    pub fn render(&self) -> String {
        format!("{}\n", self.table.trim_fmt())
    }
}

/// Four significant digits and a suffix: `812.3k`, `37.12M`; exact below ten thousand.
pub fn compact(number: u64) -> String {
    const SUFFIXES: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if number < 10_000 {
        return number.to_string();
    }
    let mut scaled = number as f64;
    let mut suffix = "";
    for next in SUFFIXES {
        // 999.95 and above would print as 1000.0.
        if scaled < 999.95 {
            break;
        }
        scaled /= 1000.0;
        suffix = next;
    }
    let decimals = match scaled {
        100.0.. => 1,
        10.0.. => 2,
        _ => 3,
    };
    format!("{scaled:.decimals$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_four_digits() {
        let cases = [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.00k"),
            (812_345, "812.3k"),
            (999_960, "1.000M"),
            (37_123_456, "37.12M"),
            (u64::MAX, "18.45E"),
        ];
        for (number, text) in cases {
            assert_eq!(compact(number), text);
        }
    }

    #[test]
    fn numbers_stand_to_the_right_of_their_column() {
        let mut columns = Columns::new(1, &["name", "cycles"]);
        columns.row(["a".to_owned(), "7".to_owned()]);
        let text = columns.render();
        assert!(text.lines().any(|line| line.trim_end() == " a           7"), "{text}");
    }
}
