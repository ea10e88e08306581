//! EPT faults and control-register rules that the recorded vectors do not reach.

mod common;

use arch_x86_ept::{
    AccessedDirty, AdvancedInfo, Capability, EptCapabilities, EptConfig, EptConfigError, EptReason, Eptp, EptpRule,
    ExecuteOnly, InvTlbi, InveptSupport, LongModeConfig, ModeBasedExecute, Qualification, ViolationDelivery,
    ViolationException, WalkLength,
};
use common::{BACKING, GVA, Machine, PAGE};
use mmu_core::tlb::Perms;
use mmu_core::walk::{NestedFault, NoCaches, Step, walk};
use mmu_core::{
    Access, BreakRule, Delivery, FaultClass, FaultReport, Flush, FlushScope, Format, Gpa, Hpa, Level, PageSize, Reach,
    WalkCaches,
};

fn machine(config: EptConfig) -> Machine {
    Machine::new(LongModeConfig::new().build().unwrap(), config.build().unwrap(), PageSize::SIZE_4K)
        .with_page(PageSize::SIZE_4K)
}

/// Changes the EPT leaf of the guest's page.
fn edit(machine: &mut Machine, change: impl Fn(u64) -> u64) {
    let at = machine.ept_entry(PAGE, Level::LAST);
    machine.image.set(at, change(machine.image.get(at))).unwrap();
}

fn qualification(machine: &mut Machine, access: Access) -> Option<u64> {
    match machine.access(access) {
        Err(NestedFault::Two { fault, .. }) => fault.qualification().map(Qualification::bits),
        other => panic!("{other:?}"),
    }
}

#[test]
fn mode_based_execute_tells_users_from_supervisors() {
    let mut machine = machine(EptConfig::new().mode_based_execute(ModeBasedExecute::On));
    edit(&mut machine, |word| word & !4);
    assert_eq!(qualification(&mut machine, Access::EXECUTE), Some(0x1dc));
    assert!(machine.access(Access::EXECUTE.user()).is_ok());
    edit(&mut machine, |word| word & !(1 << 10) | 4);
    assert!(machine.access(Access::EXECUTE).is_ok());
    assert_eq!(qualification(&mut machine, Access::EXECUTE.user()), Some(0x1bc));
}

#[test]
fn advanced_information_describes_the_guests_page() {
    for (info, wanted) in [(AdvancedInfo::Absent, 0x182), (AdvancedInfo::Reported, 0x382)] {
        let mut machine = machine(EptConfig::new().advanced_info(info));
        edit(&mut machine, |_| 0);
        assert_eq!(qualification(&mut machine, Access::WRITE.user()), Some(wanted));
    }
    let mut machine = machine(EptConfig::new().advanced_info(AdvancedInfo::Reported));
    edit(&mut machine, |_| 0);
    let mut cursor = machine.cursor(Access::WRITE.user());
    let fault = loop {
        match cursor.step(&mut machine.image, &mut NoCaches) {
            Step::Fault(NestedFault::Two { fault, .. }) => break fault,
            Step::Fault(fault) => panic!("{fault}"),
            _ => {}
        }
    };
    let page = cursor.first_stage().unwrap();
    assert!(page.perms.contains(Perms::RWX));
    let whole = fault.with_guest_page(&page).qualification().unwrap();
    assert!(whole.contains(Qualification::GUEST_WRITABLE) && !whole.contains(Qualification::GUEST_NO_EXECUTE));
    assert_eq!(whole.bits(), 0x782);
}

#[test]
fn violations_convert_to_ve_unless_suppressed() {
    for (control, suppress, wanted) in [
        (ViolationException::Off, 0, ViolationDelivery::Exit),
        (ViolationException::On, 0, ViolationDelivery::Convertible),
        (ViolationException::On, 1 << 63, ViolationDelivery::Exit),
    ] {
        for rights in [0, 1] {
            let mut machine = machine(EptConfig::new().violation_exception(control));
            edit(&mut machine, |word| word & !7 | rights | suppress);
            let Err(NestedFault::Two { fault, .. }) = machine.access(Access::WRITE) else { panic!("no violation") };
            let EptReason::Violation(violation) = fault.reason else { panic!("{fault}") };
            assert_eq!(violation.delivery, wanted);
        }
    }
}

#[test]
fn guest_table_updates_need_write_permission() {
    // The page that holds the guest's last table is read-only in the EPT.
    for (ad, wanted) in [(AccessedDirty::On, 0xab), (AccessedDirty::Off, 0xab)] {
        let mut machine = machine(EptConfig::new().accessed_dirty(ad));
        let table = machine.guest_entry(GVA, Level::LAST);
        let at = machine.ept_entry(table, Level::LAST);
        machine.image.set(at, machine.image.get(at) & !2).unwrap();
        let Err(NestedFault::Two { fault, gpa, table: level }) = machine.access(Access::READ) else { panic!() };
        assert_eq!((gpa, level), (table, Some(Level::LAST)));
        assert_eq!(fault.qualification().map(Qualification::bits), Some(wanted), "{ad:?}");
        // With the guest's flags set beforehand only the EPT with flags still wants to write.
        let word = Hpa::new(BACKING + table.raw());
        machine.image.set(word, machine.image.get(word) | 3 << 5).unwrap();
        assert_eq!(machine.access(Access::READ).is_ok(), ad == AccessedDirty::Off);
    }
}

#[test]
fn addresses_wider_than_the_walk_are_violations() {
    let mut machine = machine(EptConfig::new().max_phys_addr(52));
    let fault = walk(&machine.ept, common::EPT_ROOT, 1 << 48, Access::READ, &mut machine.image).unwrap_err();
    assert_eq!((fault.class(), fault.exit_reason().number()), (FaultClass::AddressSize, 48));
    let five = EptConfig::new().walk_length(WalkLength::Five).max_phys_addr(52).build().unwrap();
    let fault = walk(&five, common::EPT_ROOT, 1 << 48, Access::READ, &mut machine.image).unwrap_err();
    assert_eq!(fault.class(), FaultClass::NotPresent);
}

#[test]
fn entry_checks_every_field_of_the_pointer() {
    let caps = EptCapabilities::all();
    let config = EptConfig::for_processor(caps, 40);
    let rule = |value: u64, caps| Eptp::new(value).enter(config, caps).map_err(|error| error.rule).err();
    assert_eq!(rule(0x1000_005e, caps), None);
    assert_eq!(rule(0x1000_0018, caps), None);
    assert_eq!(rule(0x1000_0066, caps), None);
    for memory_type in [1, 2, 3, 4, 5, 7] {
        assert_eq!(rule(0x1000_0018 | memory_type, caps), Some(EptpRule::MemoryType));
    }
    for length in [0, 1, 2, 5, 6, 7] {
        assert_eq!(rule(0x1000_0006 | length << 3, caps), Some(EptpRule::WalkLength));
    }
    assert_eq!(rule(0x1000_0066, caps.without(Capability::WalkLength5)), Some(EptpRule::WalkLength));
    assert_eq!(rule(0x1000_0018, caps.without(Capability::Uncacheable)), Some(EptpRule::MemoryType));
    assert_eq!(rule(0x1000_005e, caps.without(Capability::AccessedDirty)), Some(EptpRule::AccessedDirty));
    assert_eq!(rule(0x1000_00de, caps), Some(EptpRule::SupervisorShadowStack));
    for bit in [8, 9, 10, 11, 40, 51, 52, 63] {
        assert_eq!(rule(0x1000_005e | 1 << bit, caps), Some(EptpRule::Reserved), "bit {bit}");
    }
    let error = Eptp::new(0x5d).enter(config.max_phys_addr(99), caps).unwrap_err().to_string();
    assert!(error.starts_with("EPTP 0x5d: VM entry fails (error 7)"), "{error}");
}

#[test]
fn a_configuration_is_held_against_the_processor() {
    let skylake = EptCapabilities::from_msr(0xf0106334141);
    assert!(EptConfig::new().build_for(skylake).is_ok());
    let missing = |config: EptConfig| config.build_for(skylake).unwrap_err();
    assert_eq!(
        missing(EptConfig::new().walk_length(WalkLength::Five)),
        EptConfigError::Missing { capability: Capability::WalkLength5 }
    );
    assert_eq!(
        missing(EptConfig::new().advanced_info(AdvancedInfo::Reported)),
        EptConfigError::Missing { capability: Capability::AdvancedInfo }
    );
    let plain = EptCapabilities::none().with(Capability::WalkLength4).with(Capability::Uncacheable);
    let config = EptConfig::for_processor(plain.with(Capability::InveptAllContext), 36);
    let ept = config.build_for(plain.with(Capability::InveptAllContext)).unwrap();
    assert_eq!(ept.config().execute_only(ExecuteOnly::Unsupported), config);
}

#[test]
fn flushes_take_the_whole_root() {
    let flush = Flush {
        scope: FlushScope::Range { start: Gpa::new(0), bytes: 4096, level: None },
        walk_caches: WalkCaches::Keep,
        reach: Reach::Everyone,
    };
    let ept = EptConfig::new().build().unwrap();
    let plan = ept.flush_plan(flush);
    assert_eq!((plan.instruction, plan.delivery, plan.repeats), (InvTlbi::InveptSingleContext, Delivery::Interrupt, 1));
    assert_eq!(plan.covers.scope, FlushScope::Vm);
    assert!(plan.instruction.follows_ept_changes() && !InvTlbi::InvvpidSingleContext.follows_ept_changes());
    let old = EptConfig::new().invept(InveptSupport::AllContextOnly).build().unwrap();
    assert_eq!(old.flush_plan(flush).instruction.to_string(), "INVEPT all-context");
}

#[test]
fn changing_the_page_size_in_place_is_relaxed() {
    let ept = EptConfig::new().build().unwrap();
    let level = Level::new(1);
    let table = ept.encode_table(level, Hpa::new(0x1000)).unwrap();
    let leaf = 0x20_0000 | 7 | 6 << 3 | 1 << 7;
    assert!(matches!(ept.break_rule(level, leaf, table), BreakRule::Relaxed(_)));
    assert!(matches!(ept.break_rule(level, table, leaf), BreakRule::Relaxed(_)));
    assert_eq!(ept.break_rule(level, leaf, leaf & !2), BreakRule::NotNeeded);
    assert_eq!(ept.break_rule(level, leaf, leaf ^ 1 << 30), BreakRule::NotNeeded);
}
