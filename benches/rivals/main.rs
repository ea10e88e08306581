//! Other page-table crates at the same work, and the arrays that one would write by hand.
//!
//! ```text
//! cargo bench --bench rivals                one table
//! cargo bench --bench rivals -- --write     and into docs/performance.md
//! cargo bench --bench rivals -- --test      everything once and small
//! ```
//!
//! Everybody maps, walks, iterates, protects and unmaps the same 4K pages of one address space, page by page: dense, every page of a stretch,
//! and sparse, one page in 128; host addresses are scattered, so that nothing of ours is a progression. Rounds of all of them take turns, so
//! that load falls on everybody; a figure is the median of rounds in nanoseconds a page.
//!
//! mmusim stands there twice. A `Mapper` is what a user takes for such work: it has the tables to itself, keeps at hand those it came by, and counts what it changed when it
//! closes, which is the last row. Without it each store to `TableMemory` is counted at once, in tables that others read meanwhile, and each page comes down from the root: a
//! hypervisor's protocols do that.
//!
//! Rivals work on live memory through pointers and in one architecture's format; they do not tell a use after free and cannot hold
//! terabytes. They show what generality costs, not who is better.

mod crates;
#[path = "../shared/report.rs"]
mod report;
#[path = "../shared/scatter.rs"]
mod scatter;
#[path = "../shared/sum.rs"]
mod sum;
mod tables;
#[path = "../shared/tree.rs"]
mod tree;

use std::hint::black_box;
use std::time::Instant;

use report::{Asked, Samples, Table};
use scatter::Scatter;
use tables::{ByHand, Ours, Shared, Tables};

/// What stands below the table.
const EXPLAINED: &str = "\"-\": the crate has no way to do it, or nothing to close. \"mmusim\" is a `Mapper`, which has the tables to itself, keeps those that it came by at hand and counts \
what it changed when it closes. \"mmusim, TableMemory\" comes down from the root for each page and counts each store at once.";

/// What is measured, in this order.
const WORK: [&str; 6] = ["map", "walk", "iterate", "protect", "unmap", "close"];

/// The pages of one address space, and in which order they are worked on.
struct Pages {
    name: &'static str,
    /// Guest-physical and host-physical.
    mapped: Vec<(u64, u64)>,
    /// The stretch that holds them.
    span: u64,
}

impl Pages {
    fn new(name: &'static str, count: u64, apart: u64) -> Self {
        let mut scatter = Scatter(5);
        let mut mapped: Vec<(u64, u64)> =
            (0..count).map(|i| ((i * apart + scatter.below(apart)) << 12, scatter.below(1 << 27) << 12)).collect();
        for i in (1..mapped.len()).rev() {
            mapped.swap(i, scatter.below(i as u64 + 1) as usize);
        }
        Self { name, mapped, span: count * apart }
    }
}

/// Samples of one of them, by what was measured.
type Figures = [Samples; WORK.len()];

/// One round: a tree is built, looked at and taken apart.
fn round<T: Tables>(pages: &Pages, figures: &mut Figures) {
    let mut tables = T::new();
    let mut measure = |work: usize, body: &mut dyn FnMut() -> bool| {
        let start = Instant::now();
        if body() {
            figures[work].add(start.elapsed().as_nanos() as f64 / pages.mapped.len() as f64);
        }
    };
    measure(0, &mut || {
        pages.mapped.iter().for_each(|&(gpa, host)| tables.map(gpa, host));
        true
    });
    let mut sum = 0;
    measure(1, &mut || {
        sum = pages.mapped.iter().fold(0, |sum, &(gpa, _)| sum ^ tables.walk(gpa));
        true
    });
    let expected = pages.mapped.iter().fold(0, |sum, (_, host)| sum ^ host);
    assert_eq!(sum, expected, "{}: walks end where pages were mapped", T::NAME);
    measure(2, &mut || black_box(tables.iterate(pages.span)).is_some());
    measure(3, &mut || {
        pages.mapped.iter().for_each(|&(gpa, _)| tables.protect(gpa));
        true
    });
    assert_eq!(tables.walk(pages.mapped[0].0), pages.mapped[0].1, "{}: a protected page is still mapped", T::NAME);
    measure(4, &mut || {
        pages.mapped.iter().for_each(|&(gpa, _)| tables.unmap(gpa));
        true
    });
    assert_eq!(tables.walk(pages.mapped[0].0), 0, "{}: an unmapped page is not", T::NAME);
    measure(5, &mut || tables.close().is_some());
}

/// What measures one of them.
type Round = fn(&Pages, &mut Figures);

/// All of them, the limit first.
const ALL: [(&str, Round); 7] = [
    (ByHand::NAME, round::<ByHand>),
    (Ours::NAME, round::<Ours>),
    (Shared::NAME, round::<Shared>),
    (crates::x86::Tables::NAME, round::<crates::x86::Tables>),
    (crates::multiarch::Tables::NAME, round::<crates::multiarch::Tables>),
    (crates::generic::Tables::NAME, round::<crates::generic::Tables>),
    (crates::arm::Tables::NAME, round::<crates::arm::Tables>),
];

fn main() {
    let asked = report::asked();
    let (count, rounds) = if asked == Asked::Once { (1 << 10, 1) } else { (1 << 15, 15) };
    let mut head = vec!["ns a page"];
    head.extend(ALL.map(|(name, _)| name));
    head.push("mmusim / by hand");
    let mut table = Table::new(&head);
    for pages in [Pages::new("dense", count, 1), Pages::new("sparse", count / 8, 128)] {
        let mut figures: [Figures; ALL.len()] = Default::default();
        for _ in 0..rounds {
            for ((_, round), figures) in ALL.iter().zip(&mut figures) {
                round(&pages, figures);
            }
        }
        for (work, name) in WORK.iter().enumerate() {
            let mut row = vec![format!("{name}, {}", pages.name)];
            row.extend(figures.iter().map(|figures| figures[work].to_string()));
            let ratio = figures[1][work].middle().zip(figures[0][work].middle());
            row.push(ratio.map_or("-".into(), |((ours, _), (limit, _))| format!("{:.1}", ours / limit)));
            table.row(row);
        }
    }
    if asked != Asked::Once {
        let text = format!("{table}\n{EXPLAINED}\n");
        report::publish(asked, "Page-table crates", "cargo bench --bench rivals -- --write", &text);
    }
}
