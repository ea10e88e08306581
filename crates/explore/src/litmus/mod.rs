//! Page-table litmus tests: a few operations on a few processors, and an outcome that hardware may or may not show.
//!
//! [`read`] turns a file into tests, [`judge`] runs one on the [`Model`] in both memory orders and compares with what must be,
//! [`Defect`] breaks the model on purpose to see what a suite is worth. Entries are real words of the Arm formats, so that the
//! format's encoder, its verdicts and its hardware updates are judged too.
//!
//! # The files
//!
//! `{"tests": [test, ..]}`, plain or xz. A test has `id`, `use`, `init`, `threads`, `final`; `init` gives `memory` (page: value),
//! `stage1` (virtual page: entry), `stage2` (intermediate page: entry) and `stage1_level2` (table pointer: `valid`, `covers`). A virtual page without an
//! entry has an invalid one; a page that is only mapped holds 0. A register that was never set equals nothing in a condition and counts as 0 in an operation. What else may stand there is in the
//! errors of whoever gets it wrong.

mod condition;
mod defect;
mod describe;
mod judge;
mod model;
mod names;
mod ops;
pub(crate) mod read;
mod state;
mod test;
pub mod timed;
mod tlb;
mod translate;
mod words;

pub use defect::Defect;
pub use judge::{ClassCount, Ending, Found, Judgement, endings, explain, judge, judge_all, run, summary};
pub use model::{Decision, MemoryOrder, Model, TestState};
pub use read::{Limits, LitmusError, read, read_each};
pub use test::{Test, Use};
pub use translate::{After, FaultLevel, Outcome};
