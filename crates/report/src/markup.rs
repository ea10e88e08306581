//! HTML and SVG as text. Names of elements and attributes are constants of this crate; everything else is escaped on its way
//! in, so that no name in a document can leave its place.

use std::fmt::{self, Write};

/// Markup in the making.
#[derive(Debug, Default)]
pub(crate) struct Markup(String);

/// Attributes of an element.
pub(crate) type Attributes<'a> = &'a [(&'static str, &'a str)];

impl Markup {
    /// An element with whatever `inside` puts there.
    pub(crate) fn element(&mut self, tag: &'static str, attributes: Attributes<'_>, inside: impl FnOnce(&mut Self)) {
        self.open(tag, attributes);
        inside(self);
        // Writing to a string cannot fail.
        let _ = write!(self.0, "</{tag}>");
        if is_block(tag) {
            self.0.push('\n');
        }
    }

    /// An element with text in it.
    pub(crate) fn leaf(&mut self, tag: &'static str, attributes: Attributes<'_>, text: &str) {
        self.element(tag, attributes, |inside| inside.text(text));
    }

    /// An element of SVG without contents, or with a title that is shown when one points at it.
    pub(crate) fn shape(&mut self, tag: &'static str, attributes: Attributes<'_>, title: Option<&str>) {
        match title {
            Some(title) => self.element(tag, attributes, |inside| inside.leaf("title", &[], title)),
            None => self.element(tag, attributes, |_| {}),
        }
        self.0.push('\n');
    }

    /// Text.
    pub(crate) fn text(&mut self, text: &str) {
        escape(&mut self.0, text);
    }

    /// Formatted text.
    pub(crate) fn format(&mut self, arguments: fmt::Arguments<'_>) {
        self.text(&arguments.to_string());
    }

    /// What other markup made.
    pub(crate) fn append(&mut self, other: &Markup) {
        self.0.push_str(&other.0);
    }

    /// Text of this crate that is markup already: the style sheet, the document's type.
    pub(crate) fn constant(&mut self, markup: &'static str) {
        self.0.push_str(markup);
    }

    /// An element that is never closed, such as `meta`.
    pub(crate) fn open(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.0.push('<');
        self.0.push_str(tag);
        for (name, value) in attributes {
            // Writing to a string cannot fail.
            let _ = write!(self.0, " {name}=\"");
            escape(&mut self.0, value);
            self.0.push('"');
        }
        self.0.push('>');
    }

    /// The text.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// Elements after which a line ends, so that the page's source can be read and compared.
fn is_block(tag: &str) -> bool {
    matches!(
        tag,
        "head"
            | "body"
            | "header"
            | "footer"
            | "section"
            | "h1"
            | "h2"
            | "h3"
            | "p"
            | "table"
            | "thead"
            | "tbody"
            | "tr"
            | "div"
            | "dl"
            | "dd"
            | "ul"
            | "li"
            | "figure"
            | "figcaption"
            | "svg"
            | "details"
            | "summary"
            | "title"
            | "style"
            | "nav"
            | "main"
            | "ol"
            | "pre"
            | "text"
            | "g"
    )
}

/// What HTML and XML want escaped, in text and in double-quoted values; characters that neither may hold become U+FFFD.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

/// A coordinate with one decimal, and none when it is whole.
pub(crate) fn coordinate(value: f64) -> String {
    let text = format!("{value:.1}");
    match text.strip_suffix(".0") {
        Some("-0") => "0".to_owned(),
        Some(whole) => whole.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        let hostile = "</td><script>alert('x')</script>\"&\u{0}";
        let mut markup = Markup::default();
        markup.leaf("td", &[("title", hostile)], hostile);
        let escaped = "&lt;/td&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}";
        assert_eq!(markup.into_text(), format!("<td title=\"{escaped}\">{escaped}</td>"));
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!([1.0, 2.25, -0.01, 10.96].map(coordinate), ["1", "2.2", "0", "11"]);
    }
}
