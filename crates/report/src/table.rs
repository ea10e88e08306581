//! Tables: names to the left, numbers to the right, the exact figure when one points at a short one.

use crate::markup::Markup;
use crate::number::{compact, exact, figure, signed_percent};

/// A cell.
#[derive(Clone, Debug)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A name or command, as it is typed.
    Code(String),
    /// A count or cycles: short, exact when pointed at.
    Count(u64),
    /// A figure that already has its digits.
    Number(String),
    /// A signed share and whether it is as good as wanted.
    Error(Option<f64>, Verdict),
    /// A figure that already has its digits, and whether it is as good as wanted.
    Judged(String, Verdict),
    /// A word that says how something ended.
    Verdict(&'static str, Verdict),
    /// Nothing to say.
    None,
}

/// How something is to be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// As it should be.
    Good,
    /// Not.
    Bad,
    /// Nobody said how it should be.
    Open,
}

impl Cell {
    /// A figure with its digits.
    pub(crate) fn figure(value: f64) -> Self {
        Cell::Number(figure(value))
    }

    /// Words.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Cell::Text(text.into())
    }
}

/// A table in the making.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<(String, String)>,
    rows: Vec<Row>,
}

#[derive(Debug)]
enum Row {
    Cells(Vec<Cell>),
    Group(String),
}

impl Table {
    /// A table with these headings, each with its unit or nothing.
    pub(crate) fn new<'a>(headings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let headings = headings.into_iter().map(|(name, unit)| (name.to_owned(), unit.to_owned())).collect();
        Self { headings, rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(Row::Cells(cells.into_iter().collect()));
    }

    /// Adds a line over the rows that follow.
    pub(crate) fn group(&mut self, name: impl Into<String>) {
        self.rows.push(Row::Group(name.into()));
    }

    /// Writes the table; wide ones scroll by themselves.
    pub(crate) fn write(&self, out: &mut Markup) {
        out.element("div", &[("class", "scroll")], |out| {
            out.element("table", &[], |out| {
                out.element("thead", &[], |out| out.element("tr", &[], |out| self.head(out)));
                out.element("tbody", &[], |out| self.rows.iter().for_each(|row| self.body(row, out)));
            });
        });
    }

    fn head(&self, out: &mut Markup) {
        for (index, (name, unit)) in self.headings.iter().enumerate() {
            let class = if self.is_numeric(index) { "n" } else { "t" };
            out.element("th", &[("class", class), ("scope", "col")], |out| {
                out.text(name);
                if !unit.is_empty() {
                    out.leaf("span", &[("class", "unit")], unit);
                }
            });
        }
    }

    /// Whether a column holds numbers, by its first cell that says.
    fn is_numeric(&self, column: usize) -> bool {
        let cells = self.rows.iter().filter_map(|row| match row {
            Row::Cells(cells) => cells.get(column),
            Row::Group(_) => None,
        });
        cells
            .into_iter()
            .find(|cell| !matches!(cell, Cell::None))
            .is_some_and(|cell| matches!(cell, Cell::Count(_) | Cell::Number(_) | Cell::Judged(..) | Cell::Error(..)))
    }

    fn body(&self, row: &Row, out: &mut Markup) {
        match row {
            Row::Group(name) => out.element("tr", &[("class", "group")], |out| {
                out.leaf("th", &[("colspan", &self.headings.len().to_string()), ("scope", "rowgroup")], name);
            }),
            Row::Cells(cells) => out.element("tr", &[], |out| cells.iter().for_each(|cell| write_cell(cell, out))),
        }
    }
}

fn write_cell(cell: &Cell, out: &mut Markup) {
    match cell {
        Cell::Text(text) => out.leaf("td", &[], text),
        Cell::Code(text) => out.element("td", &[], |out| out.leaf("code", &[], text)),
        Cell::Count(number) if *number >= 10_000 => {
            out.leaf("td", &[("class", "n"), ("title", &exact(*number))], &compact(*number as f64));
        }
        Cell::Count(number) => out.leaf("td", &[("class", "n")], &number.to_string()),
        Cell::Number(text) => out.leaf("td", &[("class", "n")], text),
        Cell::Error(Some(share), verdict) => {
            out.leaf("td", &[("class", class(*verdict, "n"))], &signed_percent(*share));
        }
        Cell::Judged(text, verdict) => out.leaf("td", &[("class", class(*verdict, "n"))], text),
        Cell::Verdict(word, verdict) => out.leaf("td", &[("class", class(*verdict, ""))], word),
        Cell::Error(None, _) | Cell::None => out.leaf("td", &[("class", "n none")], "–"),
    }
}

fn class(verdict: Verdict, kind: &str) -> &'static str {
    match (verdict, kind) {
        (Verdict::Good, "n") => "n good",
        (Verdict::Bad, "n") => "n bad",
        (Verdict::Open, "n") => "n",
        (Verdict::Good, _) => "good",
        (Verdict::Bad, _) => "bad",
        (Verdict::Open, _) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_with_the_exact_figure_behind_them() {
        let mut table = Table::new([("strategy", ""), ("zap", "cycles"), ("error", "")]);
        table.group("a <range>");
        table.row([Cell::text("x"), Cell::Count(18_163_042), Cell::Error(Some(-0.5), Verdict::Bad)]);
        table.row([Cell::text("y"), Cell::None, Cell::Error(None, Verdict::Open)]);
        let mut out = Markup::default();
        table.write(&mut out);
        let text = out.into_text();
        for wanted in [
            "<th class=\"t\" scope=\"col\">strategy</th>",
            "<th class=\"n\" scope=\"col\">zap<span class=\"unit\">cycles</span></th>",
            "<th colspan=\"3\" scope=\"rowgroup\">a &lt;range&gt;</th>",
            "<td class=\"n\" title=\"18 163 042\">18.16M</td>",
            "<td class=\"n bad\">-50.0 %</td>",
            "<td class=\"n none\">–</td>",
        ] {
            assert!(text.contains(wanted), "no {wanted} in {text}");
        }
    }
}
