//! Look-ups of one hardware thread's TLBs: plain ones, and as Granite Rapids has them.

use std::hint::black_box;

use mmusim::core::assoc::Shape;
use mmusim::core::tlb::{
    ArraySpec, Inclusion, Input, LargerPages, Lookup, Port, Tag, TagRules, Tlb, TlbEntry, TlbSpec,
};
use mmusim::{Cycles, Gva, Hpa, Machine, PageSize, Perms};

use super::rounds::Rounds;

const LOOKUPS: u64 = 16384;

/// All cases of the group.
pub fn all(rounds: &mut Rounds) {
    plain(rounds);
    granite_rapids(rounds);
}

fn array(entries: u32, ways: u32) -> ArraySpec {
    ArraySpec {
        name: format!("{entries}/{ways}"),
        shape: Shape::new(entries, ways).expect("whole sets"),
        ports: Port::ALL.to_vec(),
        sizes: vec![PageSize::SIZE_4K],
        coalesce: None,
        larger: LargerPages::Fragment,
    }
}

/// 64 entries of 4 ways over 1536 of 12, LRU, filled by misses as a guest's are.
fn plain(rounds: &mut Rounds) {
    let spec = TlbSpec {
        l1: vec![array(64, 4)],
        l2: vec![array(1536, 12)],
        inclusion: Inclusion::NonInclusive,
        rules: TagRules::default(),
        l2_hit_extra: Cycles(7),
        l2_hit_extra_fetch: Cycles(7),
    };
    for (name, pages) in [("tlb_l1_hit", 64u64), ("tlb_l2_hit", 1536)] {
        let mut tlb = Tlb::new(&spec, 1).expect("a checked hierarchy");
        for page in 0..pages {
            let entry = TlbEntry::new(Hpa::new(page << 20), PageSize::SIZE_4K, Perms::RW);
            tlb.fill(Port::Load, Tag::default(), input(page), entry);
        }
        rounds.case("tlb", name, LOOKUPS, || lookups(&mut tlb, pages));
    }
    rounds.goal("tlb/tlb_l1_hit", 1e9 / 150e6);
    rounds.goal("tlb/tlb_l2_hit", 1e9 / 60e6);
}

fn granite_rapids(rounds: &mut Rounds) {
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
