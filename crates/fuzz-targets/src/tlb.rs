//! A TLB against the list of what was filled and not invalidated since.

use std::collections::BTreeMap;

use mmu_core::assoc::{Replacement, Shape};
use mmu_core::tlb::{
    ArraySpec, Asid, AsidScope, Coalesce, Globals, Inclusion, Input, Invalidate, LargerPages, Lookup, Port, RootId,
    Tag, TagRules, Tlb, TlbEntry, TlbSpec, Vmid,
};
use mmu_core::{Cycles, Gva, Hpa, PageSize, Perms};

use crate::bytes::Bytes;

const SIZES: [PageSize; 3] = [PageSize::SIZE_4K, PageSize::SIZE_16K, PageSize::SIZE_2M];
const POLICIES: [Replacement; 6] = [
    Replacement::Lru,
    Replacement::Fifo,
    Replacement::TreePlru,
    Replacement::Nru,
    Replacement::Random,
    Replacement::RandomHalf,
];
const OPERATIONS: usize = 512;

/// Page number, ASID and VMID.
type Key = (u64, u32, u16);

fn array(name: &str, entries: u32, ways: u32, policy: Replacement, coalesce: Option<Coalesce>) -> ArraySpec {
    let shape = Shape::new(entries, ways).expect("a legal shape");
    ArraySpec {
        name: name.to_owned(),
        shape: shape.replaced_by(policy).unwrap_or(shape),
        ports: Port::ALL.to_vec(),
        sizes: SIZES.to_vec(),
        coalesce,
        larger: LargerPages::Fragment,
    }
}

fn tlb(choice: u8, policies: u8) -> Tlb {
    let inclusions = [Inclusion::NonInclusive, Inclusion::Inclusive, Inclusion::Exclusive];
    let policy = |i: u8| POLICIES[usize::from(i) % POLICIES.len()];
    let ways = [2, 4, 20][usize::from(choice >> 3) % 3];
    let coalesce = (choice & 4 != 0).then_some(Coalesce { pages: 4 });
    let spec = TlbSpec {
        l1: vec![array("l1", 4 * ways, ways, policy(policies), None)],
        l2: vec![array("l2", 32, 4, policy(policies / 6), coalesce)],
        inclusion: inclusions[usize::from(choice & 3) % 3],
        rules: TagRules::default(),
        l2_hit_extra: Cycles(7),
        l2_hit_extra_fetch: Cycles(9),
    };
    Tlb::new(&spec, 3).expect("a legal TLB")
}

/// First two bytes: inclusion, grouping, ways, replacement; then operations of two bytes.
pub(crate) fn tlb_vs_model(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut tlb = tlb(bytes.u8(), bytes.u8());
    let mut newest = BTreeMap::new();
    for step in 0..OPERATIONS as u64 {
        if bytes.is_empty() {
            break;
        }
        operation(&mut tlb, &mut newest, step, bytes.u8(), bytes.u8());
        for array in tlb.l1().iter().chain(&tlb.l2()) {
            let shape = array.shape();
            assert!(array.len() <= shape.sets() as usize * shape.ways() as usize, "{} holds too much", array.name());
        }
    }
}

/// One page has one size for ever; 4K pages lie side by side, so that some coalesce.
fn address(page: u64) -> (Gva, PageSize) {
    let size = SIZES[(page % 3) as usize];
    let base = [0, 1 << 38, 1 << 40][(page % 3) as usize];
    (Gva::new(base + page / 3 * size.bytes()), size)
}

fn operation(tlb: &mut Tlb, newest: &mut BTreeMap<Key, TlbEntry>, step: u64, op: u8, page: u8) {
    let (asid, vmid) = (u32::from(page >> 6 & 1), u16::from(page >> 7));
    let page = u64::from(page & 0x3f);
    let key = (page, asid, vmid);
    let (va, size) = address(page);
    let input = Input::Combined(va);
    let tag = Tag { asid: Asid(asid), vmid: Vmid(vmid), root: RootId(0) };
    match op % 8 {
        0..=2 => {
            let output = Hpa::new((1 << 44) + ((step % 3) << 36) + (va.raw() & 0xffff_ffff));
            let entry = TlbEntry::new(output, size, Perms::RW);
            tlb.fill(Port::Load, tag, input, entry);
            newest.insert(key, entry);
        }
        3..=5 => {
            if let Some(entry) = tlb.lookup(Port::Load, tag, input).entry() {
                assert_eq!(newest.get(&key), Some(entry), "step {step}: {key:?} is stale");
                let again = tlb.lookup(Port::Load, tag, input);
                assert!(matches!(again, Lookup::L1(_)), "step {step}: {key:?} was just used: {again:?}");
            }
        }
        6 => {
            let what = Invalidate::Page { vmid: Vmid(vmid), asid: AsidScope::One(Asid(asid)), va };
            tlb.invalidate(what);
            newest.remove(&key);
        }
        _ => {
            let (vmid_scope, asid_scope) = (Vmid(vmid), Asid(asid));
            if op & 8 == 0 {
                tlb.invalidate(Invalidate::Asid { vmid: vmid_scope, asid: asid_scope, globals: Globals::Kept });
                newest.retain(|held, _| (held.1, held.2) != (asid, vmid));
            } else {
                tlb.invalidate(Invalidate::VmidBothStages { vmid: vmid_scope });
                newest.retain(|held, _| held.2 != vmid);
            }
        }
    }
}
