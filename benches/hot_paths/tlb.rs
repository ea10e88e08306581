//! Look-ups of one hardware thread's TLBs, as Granite Rapids has them.

use std::hint::black_box;

use mmusim::core::tlb::{Input, Lookup, Port, Tag, Tlb, TlbEntry};
use mmusim::{Gva, Hpa, Machine, PageSize, Perms};

use super::rounds::Rounds;

const LOOKUPS: u64 = 16384;

/// All cases of the group.
pub fn all(rounds: &mut Rounds) {
    let machine = Machine::builtin("intel-granite-rapids-host").expect("a machine of ours");
    let tlb = || Tlb::new(&machine.translation.tlb, 1).expect("a checked machine");
    // Few pages stay in the first level; round and round through a thousand, each has left it when its turn comes.
    for (name, pages) in [("L1 hit", 16u64), ("L2 hit", 1024)] {
        let mut tlb = tlb();
        for page in 0..pages {
            let entry = TlbEntry::new(Hpa::new(page << 20), PageSize::SIZE_4K, Perms::RW);
            tlb.fill(Port::Load, Tag::default(), input(page), entry);
        }
        rounds.case("tlb", name, LOOKUPS, || lookups(&mut tlb, pages));
    }
    let mut tlb = tlb();
    rounds.case("tlb", "miss", LOOKUPS, || lookups(&mut tlb, LOOKUPS));
}

fn input(page: u64) -> Input {
    Input::Combined(Gva::new(0x7f00_0000_0000 + (page << 12)))
}

fn lookups(tlb: &mut Tlb, pages: u64) {
    let mut sum = 0;
    for i in 0..LOOKUPS {
        match tlb.lookup(Port::Load, Tag::default(), input(i % pages)) {
            Lookup::L1(entry) | Lookup::L2(entry) => sum ^= entry.output.raw(),
            Lookup::Miss => sum += 1,
        }
    }
    black_box(sum);
}
