//! Every act beside every act.

use mmu_core::AccessKind;
use mmu_sim::explore::{Budget, MemoryOrder, Report, Strategy};
use rayon::prelude::*;

use super::{Act, Backing, Page, Pages, Program, Step, Touch, memory_orders};
use crate::museum::Architecture;

/// Two acts beside each other and a guest.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What was run.
    pub program: Program,
    /// What came of it.
    pub report: Report,
}

impl Program {
    /// Two actors, one act each on all pages, beside a guest that writes to a page, reads another and writes to the first again.
    pub fn pair(one: Act, two: Act, arch: Architecture) -> Program {
        let actor = |act| vec![Step { act, pages: Pages::ALL }];
        let touch = |kind, page| Touch { kind, page: Page::nth(page) };
        let guest = vec![touch(AccessKind::Write, 0), touch(AccessKind::Read, 1), touch(AccessKind::Write, 0)];
        Program {
            arch,
            backing: Backing::Small,
            memory: MemoryOrder::Sequential,
            guests: vec![guest],
            actors: vec![actor(one), actor(two)],
        }
    }
}

fn every_two(arch: Architecture) -> impl Iterator<Item = (Act, Act)> {
    let acts = Act::all_on(arch);
    let beside = acts.clone();
    let with = move |one: Act| beside.clone().into_iter().filter(move |two| *two >= one).map(move |two| (one, two));
    acts.into_iter().flat_map(with)
}

/// Every two acts on some architectures where both mean something, with small pages and with huge ones, in the order of [`Act::ALL`]; under this memory order, or
/// the weakest that the architecture may have.
pub fn pairs(
    architectures: &[Architecture],
    memory: Option<MemoryOrder>,
    strategy: &Strategy,
    budget: Budget,
) -> Vec<Pair> {
    let all: Vec<Program> = architectures
        .iter()
        .flat_map(|&arch| every_two(arch).map(move |(one, two)| Program::pair(one, two, arch)))
        .map(|program| match (memory, memory_orders(program.arch)) {
            (Some(memory), _) | (None, &[.., memory]) => Program { memory, ..program },
            (None, []) => program,
        })
        .flat_map(|program| [Backing::Small, Backing::Huge].map(|backing| Program { backing, ..program.clone() }))
        .collect();
    let run = |program: Program| {
        let report = program.scenario().explore(strategy, budget);
        Pair { program, report }
    };
    all.into_par_iter().map(run).collect()
}
