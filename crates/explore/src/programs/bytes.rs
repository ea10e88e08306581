//! Programs and schedules from bytes, for fuzzers: every string of bytes is both, and small changes of the one are small changes of the other.

use mmu_core::AccessKind;
use mmu_sim::explore::{Agent, Chooser, Kind, Point, agents, nth};

use super::{Act, Backing, PAGES, Page, Pages, Program, Step, Touch, memory_orders};
use crate::museum::Architecture;

/// Most vCPUs of a program from bytes.
const GUESTS: u8 = 2;
/// Most host actors.
const ACTORS: u8 = 3;
/// Most acts of one, and most accesses of a guest.
const EACH: u8 = 3;

impl Program {
    /// The program that the first bytes say, and the bytes behind them. After the end there are zeros.
    pub fn from_bytes(bytes: &[u8]) -> (Program, &[u8]) {
        let mut bytes = Reader(bytes);
        let arch = Architecture::ALL[bytes.below(3)];
        let backing = [Backing::Small, Backing::Huge][bytes.below(2)];
        let orders = memory_orders(arch);
        let memory = orders[bytes.below(orders.len())];
        let several = |bytes: &mut Reader<'_>, most: u8| 0..=bytes.below(usize::from(most));
        let guests = several(&mut bytes, GUESTS)
            .map(|_| several(&mut bytes, EACH).map(|_| touch(&mut bytes)).collect())
            .collect();
        let acts = Act::all_on(arch);
        let actors = several(&mut bytes, ACTORS)
            .map(|_| several(&mut bytes, EACH).map(|_| step(&mut bytes, &acts)).collect())
            .collect();
        (Program { arch, backing, memory, guests, actors }, bytes.0)
    }
}

fn touch(bytes: &mut Reader<'_>) -> Touch {
    let kind = [AccessKind::Read, AccessKind::Write][bytes.below(2)];
    Touch { kind, page: page(bytes) }
}

fn step(bytes: &mut Reader<'_>, acts: &[Act]) -> Step {
    let act = acts[bytes.below(acts.len())];
    let first = page(bytes);
    Step { act, pages: Pages::from(first, 1 + bytes.below(usize::from(PAGES)) as u8) }
}

fn page(bytes: &mut Reader<'_>) -> Page {
    Page::ALL[bytes.below(Page::ALL.len())]
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn below(&mut self, n: usize) -> usize {
        match self.0.split_first() {
            Some((&byte, rest)) => {
                self.0 = rest;
                usize::from(byte) % n
            }
            None => 0,
        }
    }
}

/// Decisions by bytes, one byte each. When they are used up everybody who can go on does so in turn, and nothing out of the ordinary happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    bytes: Vec<u8>,
    next: usize,
    last: u8,
}

impl Schedule {
    /// The schedule of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), next: 0, last: 0 }
    }

    fn byte(&mut self) -> Option<usize> {
        let byte = *self.bytes.get(self.next)?;
        self.next += 1;
        Some(usize::from(byte))
    }
}

impl Chooser for Schedule {
    fn run(&mut self, point: Point<'_>) -> Option<Agent> {
        let chosen = match self.byte() {
            Some(byte) => nth(point.enabled, byte % point.enabled.count_ones() as usize),
            None => agents(point.enabled).find(|agent| agent.0 > self.last).or_else(|| nth(point.enabled, 0)),
        };
        self.last = chosen.map_or(0, |agent| agent.0);
        chosen
    }

    fn pick(&mut self, _: Kind, of: usize) -> Option<usize> {
        Some(self.byte().map_or(0, |byte| byte % of))
    }
}
