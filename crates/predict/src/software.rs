//! Costs of events, put together from a sheet's figures: shootdowns, faults, flag assists, atomics, clearing.
//!
//! The rules are those of the paths: a call pays its fixed part, its work on every page, and the flush, which is one
//! invalidation for each page up to the ceiling and a whole one beyond; with a second thread an interrupt and its
//! acknowledgement come on top, and the thread that is interrupted loses its handler and as many invalidations.

use mmu_core::machine::Machine;

/// Names of the figures in a sheet's `[software_ns]` that are understood here, and what they are.
pub const FIGURES: [(&str, &str); 35] = [
    ("range_flush", "a flush page by page, without its invalidations"),
    ("full_flush", "a flush of everything"),
    ("protect_page", "mprotect: change of one entry, less permission"),
    ("unprotect_page", "mprotect: change of one entry, more permission"),
    ("protect_fixed", "mprotect: the call without page work and flush"),
    ("unprotect_fixed", "the same towards more permission"),
    ("discard_page", "madvise: zap and free of one page"),
    ("discard_fixed", "madvise: the call without page work and flush"),
    ("unmap_page", "munmap: zap and free of one page"),
    ("unmap_fixed", "munmap: the call without page work and flush"),
    ("unmap_bulk_page", "munmap of thousands of pages, each"),
    ("unmap_2m", "munmap of one huge page"),
    ("syscall", "a call that does nothing"),
    ("zero_read_fault", "first read of an anonymous page"),
    ("fault_2m", "first write of a huge page, clearing included"),
    ("file_write_fault", "first write of a page of a memory file"),
    ("file_read_around", "first read of a page of a memory file, mapped with its neighbours"),
    ("membarrier", "an expedited barrier that interrupts nobody"),
    ("timestamp", "reading the time-stamp counter"),
    ("pause", "a pause instruction"),
    ("fence", "a full fence"),
    ("cpuid_single", "an exit that finds its code cold"),
    ("wake_other", "waking a thread on another processor, one way"),
    ("switch", "switching to a thread of the same processor"),
    ("yield", "sched_yield with nobody else to run"),
    ("clear_4k_l1", "clearing 4 KiB that are in the first-level cache"),
    ("clear_4k_l2", "clearing 4 KiB that are in the second-level cache"),
    ("clear_2m", "clearing 2 MiB"),
    ("copy_4k", "copying 4 KiB that are not in a cache"),
    ("add_shared", "atomic addition by two processors at the same word"),
    ("exchange_shared", "compare-and-exchange loop by two processors at the same word"),
    ("lock_shared", "test-and-set lock taken by two processors in turn"),
    ("read_lock_shared", "reader-writer lock read-locked by two processors in turn"),
    ("flush_line", "flush of a dirty line that waits for it"),
    ("flush_line_batched", "flush of a dirty line among many"),
];

/// The predicted cost of one event in nanoseconds; `None` when the sheet lacks a figure or nobody knows the event.
pub fn nanoseconds(machine: &Machine, name: &str, n: u64) -> Option<f64> {
    let figures = Figures { machine };
    let threads = |base: &str| name.strip_prefix(base).and_then(|end| ["_1t", "_2t"].iter().position(|&t| t == end));
    let calls = [
        ("mprotect_rw_to_r", "protect"),
        ("mprotect_r_to_rw", "unprotect"),
        ("dontneed", "discard"),
        ("munmap", "unmap"),
    ];
    if let Some((remotes, call)) = calls.iter().find_map(|(base, call)| Some((threads(base)?, call))) {
        return figures.shootdown(call, n, remotes as u64);
    }
    figures.event(name, n)
}

/// Ticks of the time-stamp counter in a nanosecond on the measured host: counts stand in its files as ticks, too.
const TSC_GHZ: f64 = 2.7;

struct Figures<'a> {
    machine: &'a Machine,
}

impl Figures<'_> {
    fn get(&self, name: &str) -> Option<f64> {
        self.machine.software_ns.get(name).copied()
    }

    fn ns(&self, cycles: mmu_core::Cycles) -> f64 {
        self.machine.clock.nanoseconds(cycles)
    }

    /// The local flush of `n` pages.
    fn flush(&self, n: u64) -> Option<f64> {
        if n > self.machine.invalidate.full_above_pages {
            return self.get("full_flush");
        }
        Some(self.get("range_flush")? + n as f64 * self.ns(self.machine.costs.local_invalidate_page))
    }

    fn shootdown(&self, call: &str, n: u64, remotes: u64) -> Option<f64> {
        let costs = &self.machine.costs;
        let local =
            self.get(&format!("{call}_fixed"))? + n as f64 * self.get(&format!("{call}_page"))? + self.flush(n)?;
        let extra = remotes.saturating_sub(1) as f64 * self.ns(costs.ipi_per_extra_remote);
        Some(local + if remotes == 0 { 0.0 } else { self.interrupt() + extra })
    }

    /// An interrupt to another processor until it has answered.
    fn interrupt(&self) -> f64 {
        self.ns(self.machine.costs.ipi_send) + self.ns(self.machine.costs.ipi_ack)
    }

    /// What a processor loses that is told to drop `n` pages.
    fn victim(&self, n: u64) -> f64 {
        let costs = &self.machine.costs;
        let own = if n > self.machine.invalidate.full_above_pages {
            self.ns(costs.local_invalidate_all)
        } else {
            n as f64 * self.ns(costs.victim_per_page)
        };
        self.ns(costs.victim_fixed) + own
    }

    fn event(&self, name: &str, n: u64) -> Option<f64> {
        let costs = &self.machine.costs;
        let clock = self.machine.clock.ghz();
        Some(match name {
            "core_cycle_from_imul" => 1.0 / clock,
            "rdtsc" => self.get("timestamp")?,
            "pause" => self.get("pause")?,
            "syscall_getppid" => self.get("syscall")?,
            "cpuid_loop" => self.ns(costs.vm_exit) + self.ns(costs.vm_entry),
            "cpuid_single" => self.get("cpuid_single")?,
            "anon4k_first_write" | "anon4k_write_after_dontneed" => self.ns(costs.guest_fault),
            "zeropage_first_read" => self.get("zero_read_fault")?,
            "dontneed_bulk_per_page" | "munmap_bulk_per_page" => self.get("unmap_bulk_page")?,
            "thp_first_write_per_2m" => self.get("fault_2m")?,
            "thp_munmap_per_2m" => self.get("unmap_2m")?,
            "memfd_map_write_per_page" => self.get("file_write_fault")?,
            "memfd_map_read_faultaround" => self.get("file_read_around")?,
            "load_after_cold_A0" => self.ns(costs.assist_accessed),
            // The walk sets the accessed flag in the same assist.
            "store_after_free_AD0" => self.ns(costs.assist_accessed.max(costs.assist_dirty)),
            "dontneed_victim_lost" => self.victim(n),
            // Every call is one gap for the thread that is interrupted.
            "dontneed_victim_gaps_x1000" => 1000.0 / TSC_GHZ,
            "victim_lost" => self.ns(costs.victim_fixed),
            "private_expedited_1t" => self.get("membarrier")?,
            "private_expedited_2t" => self.get("membarrier")? + self.interrupt(),
            "global_rcu_gp_1t" | "global_rcu_gp_2t" => self.ns(costs.rcu_grace_period),
            "cmpxchg_local" | "xadd_local" => self.ns(costs.atomic_local),
            "mfence" => self.get("fence")?,
            "ttas_spinlock_local" => self.ns(costs.lock_uncontended),
            "rwlock_rd_local" => self.ns(costs.rwlock_read),
            "handoff_store_oneway" => self.ns(costs.line_transfer),
            // The line comes over, and the exchange is made there.
            "handoff_cmpxchg_oneway" => self.ns(costs.line_transfer) + 2.0 * self.ns(costs.atomic_local),
            "xadd_both" => self.get("add_shared")?,
            "cmpxchg_loop_both" => self.get("exchange_shared")?,
            "ttas_spinlock_both" => self.get("lock_shared")?,
            "rwlock_rd_both" => self.get("read_lock_shared")?,
            "pipe_wake_other_cpu_oneway" => self.get("wake_other")?,
            "pipe_switch_same_cpu_oneway" => self.get("switch")?,
            "sched_yield_alone" => self.get("yield")?,
            "repstosb_4k_L1hot" => self.get("clear_4k_l1")?,
            "repstosb_4k_L2hot" => self.get("clear_4k_l2")?,
            "repstosb_4k_cold" => self.ns(costs.page_clear_4k),
            "repstosb_2m" => self.get("clear_2m")?,
            "copy_4k_cold_src" => self.get("copy_4k")?,
            "clflush_dirty_per_line" | "clflushopt_one_dirty_fenced" => self.get("flush_line")?,
            "clflushopt_dirty_per_line" | "clwb_dirty_per_line" => self.get("flush_line_batched")?,
            _ => return None,
        })
    }
}
