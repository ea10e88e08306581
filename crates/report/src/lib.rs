//! One self-contained HTML page from the JSON that the program writes: tables and plots, no network, no script.
//!
//! Text in, text out: nothing here reads a file, a clock or the environment, so the same documents give the same page.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `read` | which command wrote a document; its errors |
//! | `page` | the page around the sections: head, contents, foot |
//! | `sections` | one file for each kind of document: its fields, its tables, its plots |
//! | `markup` | HTML and SVG as text that cannot be left unescaped |
//! | `table` | tables |
//! | [`svg`] | axes, lines, rows of panels, timelines; curves as files of their own |
//! | `number` | figures with their units |
//!
//! ```
//! use mmu_report::{Input, page};
//! let text = r#"{"schema_version": 1, "experiment": "predict", "machine": "m", "clock_ghz": 3.9, "seed": 1,
//!                "points": [{"curve": "dense4k", "n": 64, "cycles": 5.0, "ns": 1.28, "events": null}]}"#;
//! let html = page("Curves", &[Input { name: "curve.json".to_owned(), text: text.to_owned() }])?;
//! assert!(html.starts_with("<!DOCTYPE html>") && html.contains("dense4k"));
//!
//! let wrong = Input { name: "x.json".to_owned(), text: "{}".to_owned() };
//! assert!(page("", &[wrong]).unwrap_err().to_string().starts_with("x.json: "));
//! # Ok::<(), mmu_report::ReportError>(())
//! ```

mod markup;
mod number;
mod page;
mod read;
mod sections;
pub mod svg;
mod table;

pub use page::page;
pub use read::{Input, ReportError, SCHEMA_VERSION};
