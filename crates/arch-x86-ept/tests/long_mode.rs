//! The guest's own paging: rights, error codes, flags (SDM 4.6 to 4.8).

use arch_x86_ept::{
    LargePages, LongMode, LongModeConfig, LongModeFault, NoExecute, PageFaultCode, Smap, Smep, WalkLength, WriteProtect,
};
use mmu_core::image::MemoryImage;
use mmu_core::walk::walk;
use mmu_core::{Access, AccessKind, FaultClass, FaultReport, Hpa, Privilege};

const RW: u64 = 2;
const US: u64 = 4;
const NX: u64 = 1 << 63;
const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
const LINEAR: u64 = 0x5123;

/// Four tables in a row, `words` added to the entries from the root down.
fn tree(added: [u64; 4]) -> MemoryImage {
    let mut image = MemoryImage::everywhere();
    for (level, &table) in TABLES.iter().enumerate() {
        let index = if level == 3 { LINEAR >> 12 } else { 0 };
        image.set(Hpa::new(table + 8 * index), (table + 0x1000) | 1 | added[level]).unwrap();
    }
    image
}

fn accesses() -> impl Iterator<Item = Access> {
    [Access::READ, Access::WRITE, Access::EXECUTE].into_iter().flat_map(|access| [access, access.user()])
}

/// The manual's rules (4.6.1), written straight from the text.
fn manual(access: Access, writable: bool, user: bool, execute: bool, config: [bool; 4]) -> bool {
    let [wp, nxe, smep, smap] = config;
    let execute = execute || !nxe;
    match (access.privilege, access.kind) {
        (Privilege::Supervisor, AccessKind::Read) => !user || !smap,
        (Privilege::Supervisor, AccessKind::Write) => (writable || !wp) && (!user || !smap),
        (Privilege::Supervisor, AccessKind::Execute) => execute && (!user || !smep),
        (Privilege::User, AccessKind::Read) => user,
        (Privilege::User, AccessKind::Write) => user && writable,
        (Privilege::User, AccessKind::Execute) => user && execute,
        (_, AccessKind::ReadWrite) => false,
    }
}

fn configured(config: [bool; 4]) -> LongMode {
    let [wp, nxe, smep, smap] = config;
    LongModeConfig::new()
        .write_protect(if wp { WriteProtect::On } else { WriteProtect::Off })
        .no_execute(if nxe { NoExecute::On } else { NoExecute::Off })
        .smep(if smep { Smep::On } else { Smep::Off })
        .smap(if smap { Smap::On } else { Smap::Off })
        .build()
        .unwrap()
}

#[test]
fn rights_follow_the_manual_for_every_combination() {
    for bits in 0..16u32 {
        let config = [0, 1, 2, 3].map(|i| bits >> i & 1 == 1);
        let guest = configured(config);
        for upper in 0..8u64 {
            for lower in 0..8u64 {
                let word = |b: u64| (b & 1) * RW + (b >> 1 & 1) * US + (b >> 2 & 1) * NX;
                if !config[1] && (upper | lower) & 4 != 0 {
                    continue; // Reserved without NXE.
                }
                let (writable, user) = (upper & lower & 1 == 1, upper & lower & 2 == 2);
                let execute = (upper | lower) & 4 == 0;
                for access in accesses() {
                    let mut image = tree([RW | US, word(upper), RW | US, word(lower)]);
                    let answer = walk(&guest, Hpa::new(0x1000), LINEAR, access, &mut image);
                    let allowed = manual(access, writable, user, execute, config);
                    assert_eq!(answer.is_ok(), allowed, "{access} upper {upper} lower {lower} {config:?}");
                    if let Err(LongModeFault::PageFault { linear, code, .. }) = answer {
                        assert_eq!(linear, LINEAR);
                        let fetch = access.kind == AccessKind::Execute && (config[1] || config[2]);
                        let wanted = 1
                            + (access.kind == AccessKind::Write) as u32 * 2
                            + (access.privilege == Privilege::User) as u32 * 4
                            + fetch as u32 * 16;
                        assert_eq!(code.bits(), wanted, "{access}");
                    }
                }
            }
        }
    }
}

#[test]
fn walks_set_accessed_everywhere_and_dirty_in_the_leaf() {
    let guest = configured([true; 4]);
    let flags =
        |image: &MemoryImage| [0x1000, 0x2000, 0x3000, 0x4000 + 8 * 5].map(|at| image.get(Hpa::new(at)) >> 5 & 3);
    let mut image = tree([RW; 4]);
    walk(&guest, Hpa::new(0x1000), LINEAR, Access::READ, &mut image).unwrap();
    assert_eq!(flags(&image), [1, 1, 1, 1]);
    walk(&guest, Hpa::new(0x1000), LINEAR, Access::WRITE, &mut image).unwrap();
    assert_eq!(flags(&image), [1, 1, 1, 3]);
}

#[test]
fn reserved_bits_are_told_apart_from_missing_entries() {
    let guest = LongModeConfig::new().max_phys_addr(40).large_pages(LargePages::Only2M).build().unwrap();
    let root = Hpa::new(0x1000);
    let bad = [
        ("beyond MAXPHYADDR", [RW, RW | 1 << 40, RW, RW]),
        ("large at the root", [RW | 1 << 7, RW, RW, RW]),
        ("1 GiB without the capability", [RW, RW | 1 << 7, RW, RW]),
        ("misaligned 2 MiB", [RW, RW, RW | 1 << 7 | 1 << 13, RW]),
    ];
    for (why, words) in bad {
        let fault = walk(&guest, root, LINEAR, Access::WRITE, &mut tree(words)).unwrap_err();
        assert_eq!(fault.class(), FaultClass::Malformed, "{why}");
        assert!(matches!(fault, LongModeFault::PageFault { code, .. } if code.bits() == 0b1011), "{why}: {fault}");
    }
    let mut image = tree([RW; 4]);
    image.set(Hpa::new(0x3000), 1 << 51).unwrap();
    let fault = walk(&guest, root, LINEAR, Access::READ.user(), &mut image).unwrap_err();
    let LongModeFault::PageFault { code, level, .. } = fault else { panic!("{fault}") };
    assert_eq!((code, level.index(), fault.class()), (PageFaultCode::USER, 1, FaultClass::NotPresent));
}

#[test]
fn addresses_that_are_not_canonical_are_refused_before_any_reference() {
    for (length, first) in [(WalkLength::Four, 1u64 << 47), (WalkLength::Five, 1 << 56)] {
        let guest = LongModeConfig::new().walk_length(length).build().unwrap();
        for linear in [first, !first, first << 1] {
            let fault = walk(&guest, Hpa::new(0x1000), linear, Access::READ, &mut tree([RW; 4])).unwrap_err();
            assert_eq!(fault, LongModeFault::NonCanonical { linear });
        }
        for linear in [first - 1, first.wrapping_neg(), u64::MAX] {
            let fault = walk(&guest, Hpa::new(0x1000), linear, Access::READ, &mut tree([RW; 4])).unwrap_err();
            assert_eq!(fault.class(), FaultClass::NotPresent, "{linear:#x}");
        }
    }
}

#[test]
fn illegal_configurations_are_named() {
    let wide = LongModeConfig::new().max_phys_addr(53).build().unwrap_err().to_string();
    assert!(wide.contains("53 bits"), "{wide}");
    assert!(LongModeConfig::new().large_pages(LargePages::None).build().is_err());
}
