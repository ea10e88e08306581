//! Costs of events, put together from a sheet's figures: shootdowns, faults, flag assists, atomics, clearing.
//!
//! The rules are those of the paths: a call pays its fixed part, its work on every page, and the flush, which is one
//! invalidation for each page up to the ceiling and a whole one beyond; with a second thread an interrupt and its
//! acknowledgement come on top, and the thread that is interrupted loses its handler and as many invalidations.

use mmu_core::machine::Machine;

/// Names of the figures in a sheet's `[software_ns]` that are understood here, and what they are.
pub const FIGURES: [(&str, &str); 41] = [
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
    ("load_in_pass", "one load of a loop that reads a line in each page"),
    ("memory_overlapped", "memory latency while several requests are on their way"),
    ("interrupted", "what an interrupt costs whom it finds with nothing to flush"),
    ("disturbance_period", "how often somebody else interrupts a processor"),
    ("flush_line_absent", "flush of a line that no cache holds"),
    ("flush_line_clean", "flush of a clean line among many"),
    ("flush_line_batched", "flush of a dirty line among many"),
];

/// The predicted cost of one event in nanoseconds; `None` when the sheet lacks a figure or nobody knows the event.
pub fn nanoseconds(machine: &Machine, name: &str, n: u64) -> Option<f64> {
    let figures = Figures { machine };
    if let Some((call, threads)) = call_of(name) {
        return figures.shootdown(call, n, threads - 1);
    }
    if let Some((call, what)) = victim_of(name) {
        return figures.victim(call, what, n);
    }
    if let Some(when) = reload_of(name) {
        return figures.reload(when, n);
    }
    let (_, event) = EVENTS.iter().find(|(known, _)| *known == name)?;
    event(&figures, n)
}

/// Names of events, for messages.
pub(crate) fn known() -> String {
    let calls: Vec<String> = CALLS.iter().map(|(call, _)| format!("{call}_1t")).collect();
    let events: Vec<&str> = EVENTS.iter().map(|(name, _)| *name).collect();
    format!(
        "{} (with _2t, _3t, .. for threads, as in mprotect_rw_to_r_2t), dontneed_victim_lost, dontneed_victim_gaps_x1000, reload64_warm_1t, \
         reload64_after_1t, {}",
        calls.join(", "),
        events.join(", ")
    )
}

/// Calls that flush, with the name that their figures have in the sheet.
const CALLS: [(&str, &str); 4] =
    [("mprotect_rw_to_r", "protect"), ("mprotect_r_to_rw", "unprotect"), ("dontneed", "discard"), ("munmap", "unmap")];

/// `munmap_2t`: which call, and how many threads run.
fn call_of(name: &str) -> Option<(&'static str, u64)> {
    let (call, threads) = name.rsplit_once('_')?;
    let threads: u64 = threads.strip_suffix('t')?.parse().ok().filter(|threads| (1..=4096).contains(threads))?;
    Some((CALLS.iter().find(|(known, _)| *known == call)?.1, threads))
}

/// What is counted of a thread that is interrupted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OfVictim {
    /// Time that it loses to one call.
    Lost,
    /// Gaps in its work.
    Gaps,
}

/// `dontneed_victim_lost`; without a call the interrupt carries nothing.
fn victim_of(name: &str) -> Option<(Option<&'static str>, OfVictim)> {
    let (front, what) = [("victim_lost", OfVictim::Lost), ("victim_gaps_x1000", OfVictim::Gaps)]
        .into_iter()
        .find_map(|(end, what)| Some((name.strip_suffix(end)?, what)))?;
    match front.strip_suffix('_') {
        None => front.is_empty().then_some((None, what)),
        Some(call) => Some((Some(CALLS.iter().find(|(known, _)| *known == call)?.1), what)),
    }
}

/// When pages that a call did not touch are loaded again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reload {
    /// Without a call before.
    Warm,
    /// After it.
    After,
}

/// `reload64_warm_1t`, `reload64_after_2t`
fn reload_of(name: &str) -> Option<Reload> {
    let rest = name.strip_prefix("reload")?.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let (when, threads) = rest.strip_prefix('_')?.rsplit_once('_')?;
    threads.strip_suffix('t')?.parse::<u32>().ok()?;
    match when {
        "warm" => Some(Reload::Warm),
        _ if when.starts_with("after") || when == "cold" => Some(Reload::After),
        _ => None,
    }
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

    /// Whether `n` pages are flushed by dropping everything.
    fn drops_all(&self, n: u64) -> bool {
        n > self.machine.invalidate.full_above_pages
    }

    /// The local flush of `n` pages.
    fn flush(&self, n: u64) -> Option<f64> {
        if self.drops_all(n) {
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

    /// What a processor loses that is told to drop `n` pages, and how often it stops. A long call leaves time for others to interrupt it, too.
    fn victim(&self, call: Option<&str>, what: OfVictim, n: u64) -> Option<f64> {
        let costs = &self.machine.costs;
        let fixed = self.ns(costs.victim_fixed);
        let Some(call) = call else {
            return if what == OfVictim::Lost { self.get("interrupted") } else { Some(1000.0 / TSC_GHZ) };
        };
        let others = self.shootdown(call, n, 1)? / self.get("disturbance_period")?;
        Some(match what {
            OfVictim::Gaps => (1.0 + others) * 1000.0 / TSC_GHZ,
            OfVictim::Lost if self.drops_all(n) => (1.0 + others) * fixed + self.ns(costs.local_invalidate_all),
            OfVictim::Lost => (1.0 + others) * fixed + n as f64 * self.ns(costs.victim_per_page),
        })
    }

    /// A load from a page that a call left alone: it walks if the call dropped everything.
    fn reload(&self, when: Reload, n: u64) -> Option<f64> {
        let warm = self.get("load_in_pass")?;
        if when == Reload::Warm || !self.drops_all(n) {
            return Some(warm);
        }
        self.walked()
    }

    /// A load of a loop that walks each time: one reference to a table of each stage, served by the first cache and by the second, and the data
    /// from the second, all walkers at work.
    fn walked(&self) -> Option<f64> {
        let machine = self.machine;
        let latency =
            |level: usize| machine.caches.levels.get(level).map_or(mmu_core::Cycles(5), |level| level.latency);
        let walk = machine.walk.fixed + machine.walk.reference(latency(0)) + machine.walk.reference(latency(1));
        let whole = walk + machine.translation.tlb.l2_hit_extra + latency(1);
        let shared = machine.clock.nanoseconds(whole) / f64::from(machine.walk.walkers.max(1));
        Some(self.get("load_in_pass")?.max(shared))
    }

    /// The first touch of a page that neither stage maps.
    fn both_stages(&self) -> f64 {
        let costs = &self.machine.costs;
        let violation = costs.vm_exit + costs.vm_entry + costs.fault_handler_fixed + costs.page_clear_4k;
        self.ns(costs.guest_fault + violation)
    }

    /// `n` loads in a loop between two readings of the clock, each from another page. Pages beyond the second-level TLB are walked for.
    fn pass(&self, n: u64) -> Option<f64> {
        let load = if n > self.reach() { self.walked()? } else { self.get("load_in_pass")? };
        Some(load + 2.0 * self.get("timestamp")? / n.max(1) as f64)
    }

    /// Pages whose translations the last level of TLBs holds.
    fn reach(&self) -> u64 {
        let arrays = &self.machine.translation.tlb.l2;
        arrays
            .iter()
            .map(|array| u64::from(array.shape.sets()) * u64::from(array.shape.ways()))
            .max()
            .unwrap_or(u64::MAX)
    }
}

type Event = fn(&Figures<'_>, u64) -> Option<f64>;

/// Events that are figures of the sheet, or put together from few.
const EVENTS: &[(&str, Event)] = &[
    ("core_cycle_from_imul", |f, _| Some(1.0 / f.machine.clock.ghz())),
    ("rdtsc", |f, _| f.get("timestamp")),
    ("pause", |f, _| f.get("pause")),
    ("syscall_getppid", |f, _| f.get("syscall")),
    ("cpuid_loop", |f, _| Some(f.ns(f.machine.costs.vm_exit) + f.ns(f.machine.costs.vm_entry))),
    ("cpuid_single", |f, _| f.get("cpuid_single")),
    ("anon4k_first_write", |f, _| Some(f.ns(f.machine.costs.guest_fault))),
    ("anon4k_write_after_dontneed", |f, _| Some(f.ns(f.machine.costs.guest_fault))),
    ("zeropage_first_read", |f, _| f.get("zero_read_fault")),
    ("dontneed_bulk_per_page", |f, _| f.get("unmap_bulk_page")),
    ("munmap_bulk_per_page", |f, _| f.get("unmap_bulk_page")),
    ("thp_first_write_per_2m", |f, _| f.get("fault_2m")),
    ("thp_munmap_per_2m", |f, _| f.get("unmap_2m")),
    ("memfd_map_write_per_page", |f, _| f.get("file_write_fault")),
    ("memfd_map_read_faultaround", |f, _| f.get("file_read_around")),
    ("load_after_cold_A0", |f, _| Some(f.ns(f.machine.costs.assist_accessed))),
    // The walk sets the accessed flag in the same assist.
    ("store_after_free_AD0", |f, _| Some(f.ns(f.machine.costs.assist_accessed.max(f.machine.costs.assist_dirty)))),
    ("load_warm", |f, n| f.pass(n)),
    ("load_A1", |f, n| f.pass(n)),
    ("store_dirty_pte", |f, n| f.pass(n)),
    ("store_AD1", |f, n| f.pass(n)),
    // Memory that the hypervisor has mapped already, and memory that it has not: in the first pass most of it.
    ("pass0_p05", |f, _| Some(f.ns(f.machine.costs.guest_fault))),
    ("pass0_p50", |f, _| Some(f.both_stages())),
    ("pass0_p75", |f, _| Some(f.both_stages())),
    ("pass1_p05", |f, _| Some(f.ns(f.machine.costs.guest_fault))),
    ("pass1_p25", |f, _| Some(f.ns(f.machine.costs.guest_fault))),
    ("pass1_p50", |f, _| Some(f.ns(f.machine.costs.guest_fault))),
    ("private_expedited_1t", |f, _| f.get("membarrier")),
    ("private_expedited_2t", |f, _| Some(f.get("membarrier")? + f.interrupt())),
    ("global_rcu_gp_1t", |f, _| Some(f.ns(f.machine.costs.rcu_grace_period))),
    ("global_rcu_gp_2t", |f, _| Some(f.ns(f.machine.costs.rcu_grace_period))),
    ("cmpxchg_local", |f, _| Some(f.ns(f.machine.costs.atomic_local))),
    ("xadd_local", |f, _| Some(f.ns(f.machine.costs.atomic_local))),
    ("mfence", |f, _| f.get("fence")),
    ("ttas_spinlock_local", |f, _| Some(f.ns(f.machine.costs.lock_uncontended))),
    ("rwlock_rd_local", |f, _| Some(f.ns(f.machine.costs.rwlock_read))),
    ("handoff_store_oneway", |f, _| Some(f.ns(f.machine.costs.line_transfer))),
    // The line comes over, and the exchange is made there.
    ("handoff_cmpxchg_oneway", |f, _| {
        Some(f.ns(f.machine.costs.line_transfer) + 2.0 * f.ns(f.machine.costs.atomic_local))
    }),
    ("xadd_both", |f, _| f.get("add_shared")),
    ("cmpxchg_loop_both", |f, _| f.get("exchange_shared")),
    ("ttas_spinlock_both", |f, _| f.get("lock_shared")),
    ("rwlock_rd_both", |f, _| f.get("read_lock_shared")),
    ("pipe_wake_other_cpu_oneway", |f, _| f.get("wake_other")),
    ("pipe_switch_same_cpu_oneway", |f, _| f.get("switch")),
    ("sched_yield_alone", |f, _| f.get("yield")),
    ("repstosb_4k_L1hot", |f, _| f.get("clear_4k_l1")),
    ("repstosb_4k_L2hot", |f, _| f.get("clear_4k_l2")),
    ("repstosb_4k_cold", |f, _| Some(f.ns(f.machine.costs.page_clear_4k))),
    ("repstosb_2m", |f, _| f.get("clear_2m")),
    ("copy_4k_cold_src", |f, _| f.get("copy_4k")),
    ("clflush_dirty_per_line", |f, _| f.get("flush_line")),
    ("clflush_absent_per_line", |f, _| f.get("flush_line_absent")),
    ("clflushopt_one_dirty_fenced", |f, _| f.get("flush_line")),
    ("clflushopt_dirty_per_line", |f, _| f.get("flush_line_batched")),
    ("clflushopt_clean_per_line", |f, _| f.get("flush_line_clean")),
    ("clwb_dirty_per_line", |f, _| f.get("flush_line_batched")),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Machine {
        Machine::builtin("intel-granite-rapids-host").unwrap()
    }

    #[test]
    fn every_event_of_the_measured_host_has_a_figure() {
        for (name, _) in EVENTS {
            assert!(nanoseconds(&host(), name, 32).is_some_and(|ns| ns > 0.0), "{name}");
        }
    }

    #[test]
    fn shootdowns_are_put_together_for_any_pages_and_threads() {
        let ns = |name: &str, n| nanoseconds(&host(), name, n).unwrap_or_else(|| panic!("{name}"));
        let extra = ns("munmap_4t", 8) - ns("munmap_2t", 8);
        assert!((extra - 500.0).abs() < 1.0, "two more to interrupt: {extra}");
        assert!(ns("munmap_victim_lost", 33) > ns("munmap_victim_lost", 4));
        assert!(ns("dontneed_victim_lost", 34) < ns("dontneed_victim_lost", 33));
        assert!(ns("dontneed_victim_gaps_x1000", 512) > ns("dontneed_victim_gaps_x1000", 1));
        assert!(ns("reload64_after_2t", 34) > ns("reload64_after_2t", 33));
        assert!((ns("reload64_warm_1t", 34) - ns("reload64_after_1t", 1)).abs() < 1e-9);
        for unknown in
            ["munmap_0t", "munmap_t", "remap_1t", "lost_victim", "reload64_never_1t", "reload64_warm", "xvictim_lost"]
        {
            assert_eq!(nanoseconds(&host(), unknown, 1), None, "{unknown}");
        }
    }
}
