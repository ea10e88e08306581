//! What events cost on one machine, in cycles: the machine sheet's figures as the engine uses them.

use mmu_core::machine::{Arch, Machine, SocketSpec, WalkSpec};
use mmu_core::{Cycles, Share};

use super::lock::{LockCosts, LockKind};

/// Cycles of every event the engine charges. One field per event; the sheet says where each figure comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Costs {
    // ---- software walks ----
    /// Reading one table entry in a walk loop, loop overhead included.
    pub visit: Cycles,
    /// Storing one entry.
    pub store: Cycles,
    /// One atomic read-modify-write on an entry.
    pub atomic: Cycles,
    /// Bookkeeping of one leaf that goes away.
    pub release_leaf: Cycles,
    /// Filling and accounting one child of a huge leaf that is split, beyond the store.
    pub split_child: Cycles,
    /// Giving one page back to its owner.
    pub page_release: Cycles,
    /// Allocating and zeroing one table.
    pub alloc_table: Cycles,
    /// Freeing one table.
    pub free_table: Cycles,
    /// Allocating, mapping and zeroing one page of `vmalloc`.
    pub vmalloc_page: Cycles,
    /// Reading a line that no cache has.
    pub cold_line: Cycles,

    // ---- scheduling ----
    /// Asking whether to reschedule.
    pub resched_check: Cycles,
    /// Giving the processor away and getting it back.
    pub reschedule: Cycles,
    /// Waking a kernel worker for work that was queued to it.
    pub work_dispatch: Cycles,
    /// Time slice after which `need_resched` is set.
    pub tick_period: Cycles,
    /// Least length of an RCU grace period.
    pub rcu_grace: Cycles,
    /// Least length of an expedited grace period, of SRCU too.
    pub rcu_expedited: Cycles,
    /// Taking a lock in this processor's cache, or leaving it as a reader: a locked operation.
    pub lock_local: Cycles,
    /// Giving back a lock that nobody else holds: a store (`queued_write_unlock`, `queued_spin_unlock`).
    pub unlock: Cycles,
    /// Moving a lock's line between processors.
    pub lock_handoff: Cycles,
    /// Sockets between which that takes longer, if there are several.
    pub sockets: Option<SocketSpec>,
    /// What kind of lock `mmu_lock` is.
    pub mmu_lock: LockKind,

    // ---- flushes ----
    /// Interrupt from send to the target's handler.
    pub ipi_latency: Cycles,
    /// Sending to each further target.
    pub ipi_extra: Cycles,
    /// What an interrupted vCPU loses: exit, handler, entry.
    pub ipi_victim: Cycles,
    /// From the last acknowledgement back to the sender.
    pub ipi_ack: Cycles,
    /// One invalidation instruction on its own processor.
    pub invalidate_local: Cycles,
    /// Issuing one broadcast invalidation.
    pub broadcast_issue: Cycles,
    /// From issue to the invalidation being done at every processor.
    pub broadcast_latency: Cycles,
    /// The barrier that waits for completion.
    pub broadcast_barrier: Cycles,
    /// For how much of a broadcast and its barrier others cannot broadcast.
    pub broadcast_share: Share,
    /// What a processor that receives a broadcast loses.
    pub broadcast_victim: Cycles,

    // ---- guest ----
    /// One access that hits the first-level TLB.
    pub access: Cycles,
    /// Lines that may be on their way from beyond the first cache at the same time.
    pub fill_buffers: u32,
    /// What walks take: once, and for each reference; and how many may be under way.
    pub walk: WalkSpec,
    /// Setting an accessed or dirty flag.
    pub assist: Cycles,
    /// A fault inside the guest: its own handler maps a page.
    pub guest_fault: Cycles,
    /// From the guest to the hypervisor.
    pub exit: Cycles,
    /// From the hypervisor to the guest.
    pub entry: Cycles,
    /// The hypervisor's path of one fault outside the lock.
    pub fault_fixed: Cycles,
    /// Zeroing a 4 KiB page.
    pub clear_4k: Cycles,
    /// Cleaning 4 KiB to the point of coherency.
    pub clean_4k: Cycles,
    /// Invalidating the instruction cache for 4 KiB.
    pub invalidate_fetched_4k: Cycles,
    /// A round trip to the user-space monitor.
    pub user_exit: Cycles,
}

impl Costs {
    /// The figures of a machine sheet. `mmu_lock` is a spin lock on POWER and a read-write lock elsewhere (Linux 6.6).
    pub fn of(machine: &Machine) -> Self {
        let sheet = &machine.costs;
        let half = |cycles: Cycles| Cycles(cycles.0 / 2);
        let (invalidate_local, broadcast_victim, broadcast_issue, broadcast_barrier) = match machine.arch {
            Arch::X86_64 => (sheet.invept, sheet.invept, Cycles::ZERO, Cycles::ZERO),
            // With a second stage in use a local TLBI looks for combined entries as a broadcast one does.
            Arch::Aarch64 => (sheet.tlbi_combined, sheet.tlbi_local, sheet.tlbi_combined, sheet.dsb),
            Arch::Power => (sheet.tlbiel, sheet.tlbiel, sheet.tlbie, sheet.ptesync),
        };
        Self {
            visit: sheet.entry_visit,
            store: sheet.entry_update,
            atomic: sheet.entry_update.max(sheet.atomic_local),
            release_leaf: sheet.leaf_zap.since(sheet.atomic_local) + sheet.page_release,
            split_child: sheet.split_child.since(sheet.entry_update),
            page_release: sheet.page_release,
            alloc_table: sheet.table_alloc + sheet.page_clear_4k,
            free_table: sheet.table_free,
            vmalloc_page: sheet.vmalloc_page + sheet.page_clear_4k,
            cold_line: machine.caches.memory,
            resched_check: sheet.cond_resched,
            reschedule: sheet.reschedule,
            work_dispatch: sheet.work_dispatch,
            tick_period: sheet.tick_period,
            rcu_grace: sheet.rcu_grace_period,
            rcu_expedited: sheet.rcu_expedited,
            lock_local: half(sheet.lock_uncontended),
            unlock: sheet.entry_visit,
            lock_handoff: sheet.lock_handoff,
            sockets: machine.sockets,
            mmu_lock: if machine.arch == Arch::Power { LockKind::Spin } else { LockKind::ReadWrite },
            // A round trip is given; the way there is half of it.
            ipi_latency: half(sheet.ipi_ack),
            ipi_extra: sheet.ipi_per_extra_remote,
            ipi_victim: sheet.victim_fixed,
            ipi_ack: half(sheet.ipi_ack),
            invalidate_local,
            broadcast_issue,
            // The instruction is done everywhere when the barrier is; other processors see it halfway.
            broadcast_latency: half(broadcast_issue + broadcast_barrier),
            broadcast_barrier,
            broadcast_share: Share::of_one(machine.invalidate.contention_slope),
            broadcast_victim,
            access: machine.caches.levels.first().map_or(Cycles(4), |level| level.latency),
            fill_buffers: machine.caches.fill_buffers,
            walk: machine.walk,
            assist: sheet.assist_accessed,
            guest_fault: sheet.guest_fault,
            exit: sheet.vm_exit,
            entry: sheet.vm_entry,
            fault_fixed: sheet.fault_handler_fixed,
            clear_4k: sheet.page_clear_4k,
            clean_4k: sheet.dcache_clean_4k,
            invalidate_fetched_4k: sheet.icache_invalidate_4k,
            user_exit: sheet.user_exit,
        }
    }

    pub(crate) fn lock(&self) -> LockCosts {
        LockCosts { local: self.lock_local, unlock: self.unlock, handoff: self.lock_handoff, sockets: self.sockets }
    }

    /// The longest window that hides no cross-processor event: nothing one processor does reaches another sooner. What costs nothing here does not exist on the
    /// machine: x86 has no broadcasts. Not longer than the longest with which contended runs end to the cycle as with the shortest (`cargo bench --bench scale`).
    pub fn window(&self) -> Cycles {
        const LONGEST: Cycles = Cycles(800);
        let cross = [self.ipi_latency, self.broadcast_latency, self.exit];
        let least = cross.into_iter().filter(|&latency| latency > Cycles::ZERO).min();
        least.unwrap_or(LONGEST).clamp(Cycles(100), LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_as_long_as_the_quickest_event_that_the_machine_has() {
        for machine in Machine::names().map(|name| Machine::builtin(name).unwrap()) {
            let costs = Costs::of(&machine);
            let events = [costs.ipi_latency, costs.broadcast_latency, costs.exit];
            assert!(events.iter().all(|&event| event == Cycles::ZERO || event >= costs.window()), "{}", machine.name);
            let quickest = events.into_iter().filter(|&event| event > Cycles::ZERO).min().unwrap();
            assert_eq!(costs.window(), quickest.min(Cycles(800)), "{}", machine.name);
        }
    }
}
