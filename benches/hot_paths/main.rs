//! Wall-clock cost of what the simulator does most, beside a hand-written tree. Other crates: `cargo bench --bench rivals`.
//!
//! ```text
//! cargo bench --bench hot_paths                 all, about a minute and a half, with a summary at the end
//! cargo bench --bench hot_paths -- walk         only names that contain "walk"
//! cargo bench --bench hot_paths -- --write      all, and the summary into docs/performance.md
//! cargo bench --bench hot_paths -- --test       every case once, no figures
//! ```
//!
//! # How to read it
//!
//! criterion's time is of one *round* of a case, many operations; its throughput and the summary at the end are per
//! operation. The summary gives the median of all rounds and, where there is something to compare with, the
//! ratio to it. Ratios travel between machines, nanoseconds do not. Compare cases of one run only, on a quiet machine.
//!
//! | group | one operation is | beside |
//! | --- | --- | --- |
//! | `memory` | an operation on table memory, by the form the frame is held in | a plain vector of words |
//! | `walk` | a 4-level EPT walk by the generic walker, accessed flags set | the same words in a `Vec<[u64; 512]>`, walked by hand |
//! | `tlb` | a look-up that ends in L1, L2, or nowhere | |
//! | `map` | mapping one 4K page, missing tables included | |
//! | `iterate` | one present leaf | |
//! | `sim` | a zapped terabyte, a micro-operation of a host actor, a replayed reference | |

mod iterate;
mod map;
mod memory;
#[path = "../shared/report.rs"]
mod report;
mod rounds;
#[path = "../shared/scatter.rs"]
mod scatter;
mod sim;
#[path = "../shared/sum.rs"]
mod sum;
mod tlb;
#[path = "../shared/tree.rs"]
mod tree;
mod walk;
#[path = "../shared/zap.rs"]
mod zap;

use rounds::Rounds;

fn main() {
    let mut rounds = Rounds::from_args();
    memory::all(&mut rounds);
    walk::all(&mut rounds);
    tlb::all(&mut rounds);
    map::all(&mut rounds);
    iterate::all(&mut rounds);
    sim::all(&mut rounds);
    rounds.finish();
}
