//! The events by name and field.
//!
//! Names and fields are those of Linux 6.6 (`include/trace/events/kvm.h`, `arch/x86/kvm/trace.h`, `arch/x86/kvm/mmu/mmutrace.h`,
//! `arch/arm64/kvm/trace_arm.h`, `arch/powerpc/include/asm/trace.h`). A change of n consecutive entries is one event with a
//! `count`, which the kernel's tracepoints do not have. What begins with `sim_` is the simulator's own.
//!
//! Fields without meaning here are left out where that is possible and constant otherwise: a guest has no instructions, so
//! `guest_rip` and `vcpu_pc` are not recorded.

use mmu_core::Cycles;

/// A field's value, by how it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// A number.
    Int(u64),
    /// A number that may be negative.
    Signed(i64),
    /// An address or a table word: written as hexadecimal text, because JSON's numbers lose bits beyond 53.
    Hex(u64),
    /// A word.
    Text(&'static str),
}

macro_rules! value {
    (int, $value:expr) => {
        Value::Int(u64::from($value))
    };
    (signed, $value:expr) => {
        Value::Signed(i64::from($value))
    };
    (hex, $value:expr) => {
        Value::Hex($value)
    };
    (text, $value:expr) => {
        Value::Text($value)
    };
    (cycles, $value:expr) => {
        Value::Int($value.0)
    };
}

macro_rules! traces {
    ($( $(#[doc = $doc:literal])* $variant:ident $name:literal { $( $(#[doc = $field_doc:literal])* $field:ident: $type:ty as $kind:ident, )* } )*) => {
        /// What can be recorded.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Trace {
            $( $(#[doc = $doc])* $variant { $( $(#[doc = $field_doc])* $field: $type, )* }, )*
        }

        impl Trace {
            /// The names of all events.
            pub const NAMES: &'static [&'static str] = &[$( $name, )*];

            /// The event's name.
            pub const fn name(&self) -> &'static str {
                match self {
                    $( Trace::$variant { .. } => $name, )*
                }
            }

            /// Calls `field` with the name and value of each field, in order.
            pub fn fields(&self, field: &mut dyn FnMut(&'static str, Value)) {
                match *self {
                    $( Trace::$variant { $( $field, )* } => { $( field(stringify!($field), value!($kind, $field)); )* } )*
                }
            }
        }
    };
}

traces! {
    // ---- include/trace/events/kvm.h ----

    /// The notifier takes a range away.
    KvmUnmapHvaRange "kvm_unmap_hva_range" {
        /// First byte; host-virtual and guest-physical addresses are the same number here.
        start: u64 as hex,
        /// End, exclusive.
        end: u64 as hex,
    }
    /// The notifier changes one page's mapping (removed in 6.10).
    KvmSetSpteHva "kvm_set_spte_hva" {
        /// Its address.
        hva: u64 as hex,
    }
    /// The accessed flags of a range are tested and cleared.
    KvmAgeHva "kvm_age_hva" {
        /// First byte.
        start: u64 as hex,
        /// End, exclusive.
        end: u64 as hex,
    }
    /// The accessed flag of a page is tested.
    KvmTestAgeHva "kvm_test_age_hva" {
        /// Its address.
        hva: u64 as hex,
    }
    /// A dirty page is pushed into a vCPU's ring.
    KvmDirtyRingPush "kvm_dirty_ring_push" {
        /// Ring number, which is the vCPU's.
        index: u32 as int,
        /// Entries pushed before it.
        dirty_index: u32 as int,
        /// Entries reset so far.
        reset_index: u32 as int,
        /// Address space and memslot.
        slot: u32 as int,
        /// Page in the memslot.
        offset: u64 as int,
    }
    /// Harvested entries of a ring are made free again.
    KvmDirtyRingReset "kvm_dirty_ring_reset" {
        /// Ring number.
        index: u32 as int,
        /// Entries pushed so far.
        dirty_index: u32 as int,
        /// Entries reset so far.
        reset_index: u32 as int,
    }
    /// A vCPU left for its monitor because its ring is soft-full.
    KvmDirtyRingExit "kvm_dirty_ring_exit" {
        /// Which.
        vcpu_id: u32 as int,
    }

    // ---- arch/x86/kvm: trace.h, mmu/mmutrace.h ----

    /// A vCPU enters the guest (also arm64; POWER: `kvm_guest_enter`).
    KvmEntry "kvm_entry" {
        /// Which.
        vcpu_id: u32 as int,
    }
    /// A vCPU has left the guest (also arm64; POWER: `kvm_guest_exit`).
    KvmExit "kvm_exit" {
        /// Which.
        vcpu_id: u32 as int,
        /// Why, in the simulator's words.
        exit_reason: &'static str as text,
    }
    /// An EPT violation.
    KvmPageFault "kvm_page_fault" {
        /// Which vCPU.
        vcpu_id: u32 as int,
        /// The guest-physical address.
        fault_address: u64 as hex,
        /// `PFERR_*` bits: present 0, write 1, fetch 4.
        error_code: u64 as hex,
    }
    /// Table entries of the TDP MMU change.
    KvmTdpMmuSpteChanged "kvm_tdp_mmu_spte_changed" {
        /// First guest frame of 4 KiB.
        gfn: u64 as hex,
        /// The word before; the first one of several.
        old_spte: u64 as hex,
        /// The word after.
        new_spte: u64 as hex,
        /// `PG_LEVEL_*`: 1 is 4 KiB.
        level: u32 as int,
        /// Address space.
        as_id: u32 as int,
        /// Consecutive entries.
        count: u64 as int,
    }
    /// A fault asks for this mapping.
    KvmMmuSpteRequested "kvm_mmu_spte_requested" {
        /// Guest frame.
        gfn: u64 as hex,
        /// Host frame.
        pfn: u64 as hex,
        /// `PG_LEVEL_*`.
        level: u32 as int,
    }
    /// A fault was tried without the lock.
    FastPageFault "fast_page_fault" {
        /// Which vCPU.
        vcpu_id: u32 as int,
        /// The guest-physical address.
        cr2_or_gpa: u64 as hex,
        /// `PFERR_*` bits.
        error_code: u64 as hex,
        /// Address of the entry.
        sptep: u64 as hex,
        /// Its word before.
        old_spte: u64 as hex,
        /// Its word after.
        new_spte: u64 as hex,
        /// `RET_PF_*`.
        ret: &'static str as text,
    }
    /// A huge page is split without a fault.
    KvmMmuSplitHugePage "kvm_mmu_split_huge_page" {
        /// First guest frame.
        gfn: u64 as hex,
        /// Its word.
        spte: u64 as hex,
        /// `PG_LEVEL_*`.
        level: u32 as int,
        /// 0, or why it could not be.
        errno: i32 as signed,
    }
    /// All roots are made obsolete.
    KvmMmuZapAllFast "kvm_mmu_zap_all_fast" {
        /// The roots' generation.
        mmu_valid_gen: u64 as int,
        /// Tables in use.
        mmu_used_pages: u64 as int,
    }

    // ---- arch/arm64/kvm/trace_arm.h ----

    /// A stage-2 abort.
    KvmGuestFault "kvm_guest_fault" {
        /// `ESR_EL2`: class, WnR, fault status.
        hsr: u64 as hex,
        /// The intermediate physical address.
        ipa: u64 as hex,
    }
    /// A stage-2 access-flag fault.
    KvmAccessFault "kvm_access_fault" {
        /// The intermediate physical address.
        ipa: u64 as hex,
    }
    /// Stage-2 entries change. The kernel has no such tracepoint.
    KvmS2PteChanged "kvm_s2_pte_changed" {
        /// First intermediate physical address.
        ipa: u64 as hex,
        /// The word before; the first one of several.
        old: u64 as hex,
        /// The word after.
        new: u64 as hex,
        /// Architectural level: 3 is the last.
        level: i32 as signed,
        /// 1 when other walkers may run: `mmu_lock` is not held for writing.
        shared: u32 as int,
        /// Consecutive entries.
        count: u64 as int,
    }

    // ---- arch/powerpc ----

    /// An invalidation instruction.
    Tlbie "tlbie" {
        /// Partition.
        lpid: u32 as int,
        /// 1 for `tlbiel`.
        local: u32 as int,
        /// Effective page, IS and AP fields.
        rb: u64 as hex,
        /// LPID and PID.
        rs: u64 as hex,
        /// Which caches: 0 TLB, 1 page walk cache, 2 all.
        ric: u32 as int,
        /// Process-scoped.
        prs: u32 as int,
        /// Radix.
        r: u32 as int,
        /// Consecutive instructions; `rb` is the first one's.
        count: u64 as int,
    }
    /// A hypervisor data or instruction storage interrupt of a radix guest. The kernel traces the hash path only.
    RadixPageFault "sim_radix_page_fault" {
        /// Which vCPU.
        vcpu_id: u32 as int,
        /// The guest-physical address.
        gpa: u64 as hex,
        /// `HDSISR`: no translation, protection, store, R or C must be set.
        hdsisr: u64 as hex,
    }
    /// Partition-scoped entries change. The kernel has no such tracepoint.
    RadixPteChanged "sim_radix_pte_changed" {
        /// First guest-physical address.
        gpa: u64 as hex,
        /// The word before; the first one of several.
        old: u64 as hex,
        /// The word after.
        new: u64 as hex,
        /// Address bits below the entry.
        shift: u32 as int,
        /// Consecutive entries.
        count: u64 as int,
    }

    // ---- slices of a vCPU ----

    /// A vCPU runs guest code.
    Guest "sim_guest" {
        /// Which.
        vcpu_id: u32 as int,
    }
    /// A vCPU is in the host, from its exit to its entry.
    InHost "sim_in_host" {
        /// Which.
        vcpu_id: u32 as int,
        /// Why.
        exit_reason: &'static str as text,
        /// The guest-physical address of a fault.
        gpa: u64 as hex,
    }
    /// A vCPU was interrupted to flush or to leave, or received a broadcast.
    Interrupted "sim_interrupted" {
        /// For what.
        request: &'static str as text,
    }
    /// A walk of this vCPU set flags.
    HardwareFlags "sim_hardware_flags" {
        /// Guest-physical address of the entry's page; all ones for a table that no known root reaches.
        gpa: u64 as hex,
        /// The bits it set, and the rest of the word as the walk read it.
        word: u64 as hex,
    }

    // ---- slices of any actor ----

    /// Waits for a lock.
    LockWait "sim_lock_wait" {
        /// Which.
        lock: &'static str as text,
        /// Its number.
        number: u32 as int,
        /// `read` or `write`.
        mode: &'static str as text,
    }
    /// Holds a lock.
    LockHeld "sim_lock_held" {
        /// Which.
        lock: &'static str as text,
        /// Its number.
        number: u32 as int,
        /// `read` or `write`.
        mode: &'static str as text,
    }
    /// Is inside an RCU read section.
    RcuRead "sim_rcu_read" {}
    /// Waits for a grace period.
    SynchronizeRcu "sim_synchronize_rcu" {}
    /// Flushes, until it is complete everywhere.
    Flush "sim_flush" {
        /// `vm` or `range`.
        scope: &'static str as text,
        /// First guest-physical byte.
        start: u64 as hex,
        /// Bytes that the instructions cover; 0 for all.
        bytes: u64 as hex,
        /// `local`, `interrupt` or `broadcast`.
        delivery: &'static str as text,
        /// Instructions.
        repeats: u64 as int,
        /// `kept` or `dropped`: cached table pointers.
        walk_caches: &'static str as text,
    }
    /// Makes vCPUs leave the guest, until none is there.
    Kick "sim_kick" {
        /// What for.
        request: &'static str as text,
    }
    /// An interrupt to a vCPU.
    Ipi "sim_ipi" {
        /// Which vCPU.
        to: u32 as int,
    }
    /// The vCPU has done what the interrupt asked for.
    IpiDone "sim_ipi_done" {
        /// Cycles since it was sent.
        after: Cycles as cycles,
    }
    /// Gave the processor away.
    Rescheduled "sim_rescheduled" {}
    /// Sleeps on a wait queue.
    Waits "sim_waits" {
        /// Number of the queue.
        queue: u32 as int,
    }
    /// Sleeps for a time.
    Sleeps "sim_sleeps" {}
    /// Tables are handed to RCU.
    CallRcu "sim_call_rcu" {
        /// How many.
        tables: u64 as int,
        /// The first one.
        first: u64 as hex,
    }
    /// A grace period is over, and tables are freed.
    GracePeriod "sim_grace_period_end" {
        /// How many.
        tables: u64 as int,
        /// Sleepers that wake up.
        woken: u64 as int,
    }
    /// Pages are freed by the primary MMU.
    PagesDropped "sim_pages_dropped" {
        /// First guest-physical byte.
        start: u64 as hex,
        /// Bytes.
        bytes: u64 as hex,
    }
    /// A protocol's own remark.
    Note "sim_note" {
        /// What it says.
        text: &'static str as text,
        /// A figure that goes with it.
        value: u64 as int,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fields_come_in_order() {
        let mut names: Vec<_> = Trace::NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Trace::NAMES.len());

        let what = Trace::KvmDirtyRingPush { index: 1, dirty_index: 2, reset_index: 3, slot: 4, offset: 5 };
        let mut fields = Vec::new();
        what.fields(&mut |name, value| fields.push((name, value)));
        let wanted = ["index", "dirty_index", "reset_index", "slot", "offset"];
        assert_eq!(fields, wanted.iter().zip(1..).map(|(&name, n)| (name, Value::Int(n))).collect::<Vec<_>>());
    }
}
