//! Looking at every interleaving, and judging by what others have written down.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`explorer`] | exhaustive depth-first search with state hashing and partial-order reduction over any [`explorer::System`] |
//! | [`litmus`] | page-table litmus tests: their reader, the operational model of page table, TLB and TLBI that runs them, the verdicts |
//! | [`museum`] | defects of the past as scenarios for the protocol explorer ([`mmu_sim::explore`]) |
//! | [`programs`] | any mixture of today's protocols: in pairs, from fuzzers, from property tests |
//! | [`lint`] | a state machine per table entry that reports a missing step of Arm's break / DSB / TLBI / DSB sequence |
//!
//! ```
//! use mmu_explore::litmus::{Limits, judge, read};
//!
//! let text = r#"{"tests": [{"id": "stale", "use": "must_be_able_to_observe",
//!     "init": {"memory": {"p": 7}, "stage1": {"x": {"map": "p"}}},
//!     "threads": [{"privilege": "el1", "on_fault": "stop", "ops": [
//!         {"op": "write", "to": {"pte1": "x"}, "value": {"valid": 0}},
//!         {"op": "read", "from": {"va": "x"}, "reg": "r0"}]}],
//!     "final": {"quantifier": "exists", "condition": ["reg", 0, "r0", 7]}}]}"#;
//! let tests = read("example.json", text.as_bytes(), &Limits::default())?;
//! assert!(judge(&tests[0], None, &Limits::default()).agrees(), "nothing removed the cached translation");
//! # Ok::<(), mmu_explore::litmus::LitmusError>(())
//! ```

pub mod explorer;
pub mod lint;
pub mod litmus;
pub mod museum;
pub mod programs;
