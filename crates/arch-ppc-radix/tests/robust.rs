//! Nothing that memory or registers hold makes a walk panic or run on, and steps agree with whole runs.

use arch_ppc_radix::hpt::{HashedTable, HptMapping, HptPage, Protection, Segment, VirtualAddress};
use arch_ppc_radix::{
    EffectiveAccess, FetchDenied, Keys, KnownTables, MmuStep, MsrMode, PowerMmu, RcUpdate, Relocation,
};
use mmu_core::image::{MemoryImage, RamRange};
use mmu_core::walk::{Bus, BusError, Exchange, NoCaches};
use mmu_core::{Access, AccessKind, Gva, Hpa, Privilege};
use proptest::prelude::*;

/// Memory in which every word is made of its address: any walk finds entries everywhere.
struct Noise {
    seed: u64,
    written: MemoryImage,
}

impl Noise {
    fn word(&self, at: Hpa) -> u64 {
        let mixed = (at.raw() ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let mixed = (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        // Most words are nearly legal: valid directories of nine bits, roots of 52 and 13, leaves.
        match mixed >> 60 {
            0..6 => mixed & 0x0000_ffff_ffff_f000 | 1 << 63 | 9,
            6..10 => mixed & 0x0000_ffff_ffff_0000 | 0xc << 60 | 0xad,
            10..13 => mixed | 3 << 62,
            _ => mixed,
        }
    }
}

impl Bus for Noise {
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        if at.raw() >> 60 != 0 {
            return Err(BusError { at });
        }
        match self.written.get(at) {
            0 => Ok(self.word(at)),
            word => Ok(word),
        }
    }
    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        let found = self.read(at)?;
        if found != old {
            return Ok(Exchange::Found(found));
        }
        self.written.set(at, new).map_err(|_| BusError { at })?;
        Ok(Exchange::Done)
    }
}

fn access() -> impl Strategy<Value = EffectiveAccess> {
    let kind = prop_oneof![
        Just(AccessKind::Read),
        Just(AccessKind::Write),
        Just(AccessKind::Execute),
        Just(AccessKind::ReadWrite)
    ];
    let address = prop_oneof![any::<u64>(), any::<u64>().prop_map(|raw| raw & 0xc00f_ffff_ffff_ffff)];
    (address, kind, any::<[bool; 3]>()).prop_map(|(address, kind, [user, hypervisor, real])| EffectiveAccess {
        address: Gva::new(address),
        access: Access { kind, privilege: if user { Privilege::User } else { Privilege::Supervisor }, ..Access::READ },
        mode: if hypervisor { MsrMode::Hypervisor } else { MsrMode::Guest },
        relocation: if real { Relocation::Off } else { Relocation::On },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_memory_gives_an_answer(
        seed: u64, access in access(), ptcr: u64, ids: [u16; 2], keys: [u64; 2], modes: [bool; 2],
    ) {
        let Ok(mmu) = PowerMmu::new(ptcr & 0x0fff_ffff_f000_0018) else { return Ok(()) };
        let rc = if modes[0] { RcUpdate::Hardware } else { RcUpdate::Interrupt };
        let denied = if modes[1] { FetchDenied::NoExecute } else { FetchDenied::Protection };
        let mmu = mmu.with_lpid(ids[0].into()).with_pid(ids[1].into()).with_keys(Keys::new(keys[0], keys[1]));
        let mmu = mmu.with_rc(rc).with_fetch_denied(denied);
        let noise = || Noise { seed, written: MemoryImage::everywhere() };
        let mut bus = noise();
        let whole = mmu.translate(access, &mut bus, &mut NoCaches);
        let mut cursor = mmu.walk_knowing(access, KnownTables::default());
        let (mut stepped, mut count) = (noise(), 0);
        let end = loop {
            match cursor.step(&mut stepped, &mut NoCaches) {
                MmuStep::Done(done) => break Ok(done),
                MmuStep::Interrupt(interrupt) => break Err(interrupt),
                _ => count += 1,
            }
            // 30 reads, and an update of every leaf on the way; one that hits the walk's own path starts it over.
            prop_assert!(count < 500, "the walk does not end");
        };
        prop_assert_eq!(whole, end);
        prop_assert_eq!(&bus.written, &stepped.written);
        if let Ok(done) = end {
            prop_assert!(done.output.raw() >> 60 == 0);
            // What was allowed once is allowed again, and changes nothing more.
            prop_assert_eq!(mmu.translate(access, &mut bus, &mut NoCaches).map(|again| again.output), Ok(done.output));
        }
    }

    #[test]
    fn any_hashed_table_gives_an_answer(seed: u64, vsid in 0u64..1 << 28, offset in 0u64..1 << 40, order in 18u32..47) {
        let table = HashedTable::new(Hpa::new(1 << 46), order).unwrap();
        let va = VirtualAddress::new(Segment::T1, vsid, offset).unwrap();
        let mut bus = Noise { seed, written: MemoryImage::everywhere() };
        let mapping = HptMapping::new(Hpa::new(0), HptPage::M16, Protection::AllRead);
        let _ = table.insert(&mut bus, va, mapping);
        let _ = table.translate(&mut bus, va, HptPage::M16, &Access::WRITE);
        let _ = table.invalidate(&mut bus, va, HptPage::M16).map(|removed| removed.is_some());
        prop_assert!(table.lookup(&mut bus, va, HptPage::M16).unwrap().is_none());
    }
}

#[test]
fn tables_outside_memory_are_machine_checks() {
    use arch_ppc_radix::InterruptKind;
    let mut image = MemoryImage::new([RamRange { start: Hpa::new(0), bytes: 0x1000 }]);
    let mmu = PowerMmu::new(0x10_0000).unwrap().with_lpid(1);
    let access = EffectiveAccess::guest_real(Gva::new(0), AccessKind::Read);
    let interrupt = mmu.translate(access, &mut image, &mut NoCaches).unwrap_err();
    assert_eq!(interrupt.kind, InterruptKind::MachineCheck);
    let table = HashedTable::new(Hpa::new(0x100_0000), 18).unwrap();
    let va = VirtualAddress::new(Segment::M256, 1, 0).unwrap();
    assert!(table.lookup(&mut image, va, HptPage::K4).is_err());
}
