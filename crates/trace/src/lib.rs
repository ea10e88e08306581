//! Streaming readers and writers of memory traces: what a program fetched, loaded and stored, in order.
//!
//! A trace is a guest workload: [`TraceReader`] turns a file of any supported [`TraceFormat`], plain or compressed
//! (`.gz`, `.xz`, `.zst`, recognised by magic bytes), into a stream of [`Access`] values and never holds more than
//! one block of it. [`TraceWriter`] goes the other way, [`convert`] joins the two, [`info`] sums a trace up, and
//! [`synthetic::s1`] generates a trace whose TLB hit counts several independent simulators agree on.
//!
//! | format | what it is | read | write |
//! | --- | --- | --- | --- |
//! | `lackey` | text of `valgrind --tool=lackey --trace-mem=yes` | yes | yes |
//! | `champsim`, `champsim-cloudsuite` | 64- and 96-byte instruction records of ChampSim | yes | no |
//! | `packed` | one little-endian word per record, see [`formats::packed`] | yes | yes |
//! | `mmut` | our own: delta-coded, checksummed blocks, see [`formats::mmut`] | yes | yes |
//!
//! Input is not trusted: every length is a claim, every reader has [`Limits`], and a bad or cut file gives a
//! [`TraceError`] with file, place, field, expectation and remedy, after the records before the damage were delivered.
//!
//! ```
//! use mmu_trace::{AccessKind, ReadOptions, TraceReader};
//!
//! let text = "==7== Lackey\nI  0401ab70,3\n S 1fff000768,8\n M 1fff000768,8\n";
//! let input = std::io::Cursor::new(text);
//! let mut trace = TraceReader::from_reader(input, "ls.lackey", &ReadOptions::default())?;
//!
//! let mut batch = Vec::new();
//! while trace.fill(&mut batch, 65_536)? > 0 {}
//! assert_eq!(batch.len(), 3);
//! assert_eq!(batch[1].kind, AccessKind::Store);
//! assert_eq!(batch[2].kind.references(), 2); // a modify is a load, then a store
//! # Ok::<(), mmu_trace::TraceError>(())
//! ```

mod access;
mod compress;
mod convert;
mod error;
mod format;
pub mod formats;
mod info;
mod limits;
mod pages;
mod reader;
mod source;
pub mod synthetic;
mod writer;

pub use access::{Access, AccessKind, TraceCounts};
pub use compress::Compression;
pub use convert::{ConvertOptions, Selection, convert};
pub use error::{Place, Problem, TraceError};
pub use format::TraceFormat;
pub use formats::mmut::MmutHeader;
pub use info::{TraceInfo, info};
pub use limits::Limits;
pub use reader::{ReadOptions, TraceReader};
pub use writer::{TraceWriter, WriteOptions};
