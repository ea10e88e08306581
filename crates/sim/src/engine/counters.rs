//! What the host counts.

use mmu_core::Cycles;

/// Counters of the whole run; each names what one increment is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct HostCounters {
    /// Table entries that host actors looked at.
    pub visits: u64,
    /// Leaves that became non-present, their state handed to the primary MMU.
    pub zapped_leaves: u64,
    /// Tables unlinked and given to RCU.
    pub zapped_tables: u64,
    /// Flushes that had to reach other processors.
    pub remote_flushes: u64,
    /// Interrupts sent to vCPUs.
    pub ipis: u64,
    /// Broadcast invalidation instructions.
    pub broadcasts: u64,
    /// Tables allocated.
    pub tables_allocated: u64,
    /// Tables freed.
    pub tables_freed: u64,
    /// Times an actor gave the processor away.
    pub reschedules: u64,
    /// Faults that found their entry in place.
    pub spurious_faults: u64,
    /// Faults that had to be taken again.
    pub retried_faults: u64,
    /// Cycles spent waiting for flushes to complete.
    pub flush_wait: Cycles,
    /// Bytes cleaned to the point of coherency, each time counted.
    pub cleaned_bytes: u64,
    /// Entries that were broken and made again.
    pub breaks: u64,
    /// Cycles during which such an entry mapped nothing.
    pub break_cycles: Cycles,
    /// The longest of these.
    pub longest_break: Cycles,
    /// Runs of vCPUs that ended with an error to user space.
    pub failed_runs: u64,
}

impl HostCounters {
    /// What came since an earlier moment of the same run; the longest figures are those of the whole run.
    pub fn since(&self, earlier: &HostCounters) -> HostCounters {
        HostCounters {
            visits: self.visits - earlier.visits,
            zapped_leaves: self.zapped_leaves - earlier.zapped_leaves,
            zapped_tables: self.zapped_tables - earlier.zapped_tables,
            remote_flushes: self.remote_flushes - earlier.remote_flushes,
            ipis: self.ipis - earlier.ipis,
            broadcasts: self.broadcasts - earlier.broadcasts,
            tables_allocated: self.tables_allocated - earlier.tables_allocated,
            tables_freed: self.tables_freed - earlier.tables_freed,
            reschedules: self.reschedules - earlier.reschedules,
            spurious_faults: self.spurious_faults - earlier.spurious_faults,
            retried_faults: self.retried_faults - earlier.retried_faults,
            flush_wait: self.flush_wait.since(earlier.flush_wait),
            cleaned_bytes: self.cleaned_bytes - earlier.cleaned_bytes,
            breaks: self.breaks - earlier.breaks,
            break_cycles: self.break_cycles.since(earlier.break_cycles),
            longest_break: self.longest_break,
            failed_runs: self.failed_runs - earlier.failed_runs,
        }
    }
}
