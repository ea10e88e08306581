//! A state machine per table entry that reports a missing step of Arm's sequence, whether or not anybody happened to use the entry.
//!
//! ```text
//!            valid -> invalid, cacheable            DSB of the writer         TLBI that covers it         DSB of its issuer
//!  present ---------------------------> written ----------------> ordered ----------------> invalidated ----------------> clean
//!                                                                     |  stage 2, by address                                 ^
//!                                                                     '--> TLBI by IPA --> DSB --> TLBI of stage 1 ----------'
//! ```
//!
//! Only a clean entry may become valid again with another meaning, only a table that nothing can reach any more may be released or
//! linked elsewhere. Entries of tables that no root reaches, or whose root was never active, are free.
//!
//! [`Lint`] takes [`Event`]s, of a trace or of a running simulator, and answers with what is wrong. [`judge_file`] replays traces with
//! expected verdicts; [`casemate`] writes such traces of explorations.
//!
//! Architecture only: which thread invalidates does not matter, as long as each step is ordered behind the one before; a DSB that
//! follows a TLBI counts on the thread that issued it. That PTEs are written under the lock of their tree is a rule of hypervisors
//! that the lint knows too; it applies to trees that have been given a lock.

mod entry;
mod machine;
mod read;
mod write;

pub use entry::{BarrierReach, Owed, Regime, TlbiKind};
pub use machine::{EntryAt, Event, Lint, Rule, Violation};
pub use read::{Judged, Limits, LintError, judge_file};
pub use write::{ExportError, casemate};
