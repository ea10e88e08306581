//! The page around the sections.

use crate::markup::Markup;
use crate::read::{Input, Kind, ReportError, kind};
use crate::sections::{self, Section};
use crate::svg;

const STYLE: &str = include_str!("style.css");

/// A page with a section for each input, in their order. `title` may be empty.
///
/// The page names no host, no date and no place of files beyond the names of the inputs, and loads nothing.
///
/// # Errors
/// The first input that is no document of the program, with its name, the line and the remedy.
pub fn page(title: &str, inputs: &[Input]) -> Result<String, ReportError> {
    let sections: Result<Vec<(Kind, Section)>, ReportError> = inputs
        .iter()
        .map(|input| {
            let kind = kind(input)?;
            Ok((kind, sections::read(kind, input)?))
        })
        .collect();
    let sections = sections?;
    let title = if title.is_empty() { default_title(&sections) } else { title.to_owned() };
    let mut out = Markup::default();
    out.constant("<!DOCTYPE html>\n");
    out.element("html", &[("lang", "en")], |out| {
        out.element("head", &[], |out| head(out, &title));
        out.element("body", &[], |out| {
            header(out, &title, inputs, &sections);
            out.element("main", &[], |out| {
                for (index, (input, (_, section))) in inputs.iter().zip(&sections).enumerate() {
                    out.element("section", &[("id", &anchor(index))], |out| body(out, input, section, inputs.len()));
                }
            });
            out.leaf("footer", &[], FOOT);
        });
    });
    let mut text = out.into_text();
    text.push('\n');
    Ok(text)
}

const FOOT: &str = "Simulated figures are cycles of the machine sheet that is named beside them, at its clock; a comparison on one sheet can be trusted \
                    more than its absolute cycles. The same command, version, sheet and seed give the same figures. Short figures tell the exact \
                    one when pointed at.";

fn default_title(sections: &[(Kind, Section)]) -> String {
    match sections {
        [(_, only)] => only.title.clone(),
        _ => "mmusim results".to_owned(),
    }
}

fn anchor(index: usize) -> String {
    format!("s{}", index + 1)
}

fn head(out: &mut Markup, title: &str) {
    out.open("meta", &[("charset", "utf-8")]);
    out.open("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]);
    out.open("meta", &[("name", "color-scheme"), ("content", "light dark")]);
    out.leaf("title", &[], title);
    out.element("style", &[], |out| {
        out.constant(svg::STYLE);
        out.constant(STYLE);
    });
}

/// What was run: enough to run it again.
fn header(out: &mut Markup, title: &str, inputs: &[Input], sections: &[(Kind, Section)]) {
    out.element("header", &[], |out| {
        out.leaf("h1", &[], title);
        for (index, (input, (kind, section))) in inputs.iter().zip(sections).enumerate() {
            out.element("div", &[("class", "made")], |out| {
                let command = section.command.clone().unwrap_or_else(|| format!("mmusim {}", kind.command()));
                out.element("pre", &[], |out| {
                    out.leaf("span", &[("class", "prompt")], "$ ");
                    out.text(&command);
                });
                out.element("p", &[("class", "facts")], |out| {
                    if sections.len() > 1 {
                        out.leaf("a", &[("href", &format!("#{}", anchor(index)))], &section.title);
                        out.text(" · ");
                    }
                    out.text(&section.facts.join(" · "));
                    out.text(if section.facts.is_empty() { "" } else { " · " });
                    out.leaf("span", &[("class", "file")], &input.name);
                });
            });
        }
    });
}

/// The page's own heading is enough for the only document.
fn body(out: &mut Markup, input: &Input, section: &Section, of: usize) {
    if of > 1 {
        out.element("h2", &[], |out| {
            out.text(&section.title);
            out.leaf("span", &[("class", "file")], &input.name);
        });
    }
    out.append(&section.body);
}
