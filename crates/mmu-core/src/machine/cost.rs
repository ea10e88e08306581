//! Costs of events: one list from which the structure, the reader and the checks are made.
//!
//! A sheet gives every cost its machine can have, in nanoseconds (`name_ns`) or core cycles (`name_cycles`); costs of
//! instructions that its architecture lacks are refused there and zero here. How costs combine is the engine's business;
//! the docs below say what each one covers, so that none is charged twice.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::Spanned;

use super::check::Checks;
use super::error::nearest;
use super::{Arch, Clock};
use crate::addr::Cycles;

/// Machines that have a cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum On {
    All,
    X86,
    Arm,
    Power,
}

impl On {
    fn has(self, arch: Arch) -> bool {
        match self {
            On::All => true,
            On::X86 => arch == Arch::X86_64,
            On::Arm => arch == Arch::Aarch64,
            On::Power => arch == Arch::Power,
        }
    }
}

macro_rules! costs {
    ($($(#[$doc:meta])* $name:ident: $on:ident,)*) => {
        /// Cycles of every event that software or hardware is charged for. Zero on machines that lack the event.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
        pub struct Costs {
            $($(#[$doc])* pub $name: Cycles,)*
        }

        const LIST: &[(&str, On)] = &[$((stringify!($name), On::$on),)*];

        impl Costs {
            fn slot(&mut self, name: &str) -> Option<&mut Cycles> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }

            /// All costs with their names, in the order of the structure.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, Cycles)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

costs! {
    /// Sending an interrupt to the first other CPU, seen by the sender.
    ipi_send: All,
    /// From sending to having the acknowledgement of an idle-handed receiver.
    ipi_ack: All,
    /// More for every receiver after the first.
    ipi_per_extra_remote: All,
    /// What a receiver loses to one flush interrupt, pages aside.
    victim_fixed: All,
    /// What a receiver loses per page it invalidates one by one.
    victim_per_page: All,
    /// Leaving the guest.
    vm_exit: All,
    /// Entering the guest.
    vm_entry: All,
    /// The hypervisor's fault path outside table work and locks: memslot and page look-up, bookkeeping.
    fault_handler_fixed: All,
    /// A fault of the guest's own that needs no exit.
    guest_fault: All,
    /// A round trip to the user-space monitor.
    user_exit: All,
    /// Local invalidation of one page.
    local_invalidate_page: All,
    /// Local invalidation of everything, refills not included.
    local_invalidate_all: All,
    /// Software overhead of one flush call.
    flush_call: All,
    /// An uncontended lock and unlock.
    lock_uncontended: All,
    /// Passing a contended lock on.
    lock_handoff: All,
    /// Read side of an uncontended reader-writer lock.
    rwlock_read: All,
    /// Moving a modified cache line from another core.
    line_transfer: All,
    /// A locked operation on a line already owned.
    atomic_local: All,
    /// Length of an RCU or SRCU grace period.
    rcu_grace_period: All,
    /// Length of an expedited grace period.
    rcu_expedited: All,
    /// Time between scheduler ticks.
    tick_period: All,
    /// What a tick takes from whoever runs.
    tick_cost: All,
    /// One check whether to reschedule, when the answer is no.
    cond_resched: All,
    /// Giving the CPU away and getting it back, others' time not included.
    reschedule: All,
    /// From queueing work to a worker starting on it.
    work_dispatch: All,
    /// Clearing 4 KiB.
    page_clear_4k: All,
    /// Allocating a table page, clearing not included.
    table_alloc: All,
    /// Freeing a table page.
    table_free: All,
    /// Allocating one page of memory that the kernel maps page by page (vmalloc): the page, its charge, its mapping; clearing not included.
    vmalloc_page: All,
    /// Looking at one table entry in a software walk.
    entry_visit: All,
    /// Changing one entry that is not a zap: write-protect, age, clear dirty.
    entry_update: All,
    /// Zapping one present leaf; what its page's owner is told is [`Costs::page_release`].
    leaf_zap: All,
    /// Writing one child of a split leaf; what is done to the child afterwards (write protection, clearing its dirty flag) not included.
    split_child: All,
    /// Releasing a mapped page: accessed and dirty marking in its owner.
    page_release: All,
    /// Hardware update of accessed flags in a walk.
    assist_accessed: All,
    /// Hardware update of dirty flags in a walk.
    assist_dirty: All,
    /// Cleaning and invalidating the data cache for 4 KiB.
    dcache_clean_4k: All,
    /// Invalidating the instruction cache for 4 KiB.
    icache_invalidate_4k: All,
    /// INVEPT of one root, refills not included.
    invept: X86,
    /// INVVPID of one VPID.
    invvpid: X86,
    /// One broadcast TLBI while no second stage is in use.
    tlbi_stage1: Arm,
    /// One broadcast TLBI that has combined entries to remove.
    tlbi_combined: Arm,
    /// One local TLBI while no second stage is in use.
    tlbi_local: Arm,
    /// More per TLBI and core of the machine.
    tlbi_per_core: Arm,
    /// A DSB that waits for TLBIs, their own time not included.
    dsb: Arm,
    /// A TLBI that covers a range.
    tlbi_range: Arm,
    /// One broadcast tlbie.
    tlbie: Power,
    /// One local tlbiel.
    tlbiel: Power,
    /// eieio; tlbsync; ptesync after tlbie.
    ptesync: Power,
    /// A hypercall served in real mode.
    realmode_hcall: Power,
}

/// Costs for which zero means that the event never ends or never comes.
const POSITIVE: [&str; 7] =
    ["ipi_ack", "vm_exit", "vm_entry", "lock_handoff", "line_transfer", "rcu_grace_period", "tick_period"];

/// The table of a sheet.
pub(super) type RawCosts = Spanned<BTreeMap<Spanned<String>, Spanned<f64>>>;

/// Unit of a key, by its ending.
fn split_unit(key: &str, clock: Clock) -> Option<(&str, f64)> {
    let nanoseconds = key.strip_suffix("_ns").map(|name| (name, clock.ghz()));
    nanoseconds.or_else(|| key.strip_suffix("_cycles").map(|name| (name, 1.0)))
}

/// Reads all costs; every missing, unknown, doubled or impossible one is an error.
pub(super) fn read(raw: &RawCosts, arch: Arch, clock: Clock, checks: &mut Checks) -> Costs {
    let mut costs = Costs::default();
    let mut given: Vec<&str> = Vec::new();
    for (key, value) in raw.get_ref() {
        let Some((name, factor)) = split_unit(key.get_ref(), clock) else {
            let help = format!("write {0}_ns or {0}_cycles", key.get_ref());
            checks.fail(key.span(), format!("cost `{}` has no unit", key.get_ref()), help);
            continue;
        };
        if !is_known(name, arch, key, checks) {
            continue;
        }
        if given.contains(&name) {
            checks.fail(key.span(), format!("cost `{name}` is given twice"), "keep one of `_ns` and `_cycles`");
            continue;
        }
        given.push(name);
        let cycles = value.get_ref() * factor;
        let least = if POSITIVE.contains(&name) { 0.5 } else { 0.0 };
        if !(least..=1e15).contains(&cycles) {
            let message = format!("cost `{name}` is {}", value.get_ref());
            let bound = if least > 0.0 { "more than zero" } else { "zero or more" };
            checks.fail(value.span(), message, format!("give {bound}, below 1e15 cycles"));
        } else if let Some(slot) = costs.slot(name) {
            *slot = Cycles(cycles.round() as u64);
        }
    }
    for (name, _) in LIST.iter().filter(|(name, on)| on.has(arch) && !given.contains(name)) {
        let help = format!("add {name}_ns or {name}_cycles; mark a guess as one in a comment");
        checks.fail(raw.span(), format!("cost `{name}` is missing"), help);
    }
    costs
}

fn is_known(name: &str, arch: Arch, key: &Spanned<String>, checks: &mut Checks) -> bool {
    match LIST.iter().find(|(known, _)| *known == name) {
        Some((_, on)) if on.has(arch) => true,
        Some(_) => {
            checks.fail(key.span(), format!("cost `{name}` does not exist on {arch}"), "remove it");
            false
        }
        None => {
            let known = LIST.iter().filter(|(_, on)| on.has(arch)).map(|(known, _)| *known);
            let help = match nearest(name, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "see `Costs` for the list".to_owned(),
            };
            checks.fail(key.span(), format!("unknown cost `{name}`"), help);
            false
        }
    }
}
