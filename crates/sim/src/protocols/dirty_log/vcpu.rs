//! A vCPU whose writes may be logged: what its faults ask of the memslot, and its thread.
//!
//! Models `vcpu_enter_guest` and `vmx_handle_exit` as far as dirty logging goes (Linux 6.6): the processor's log of modified pages is
//! emptied upon every exit, and a vCPU whose ring is soft-full leaves for its monitor before it enters. Locking and flushes are those of the
//! fault handler and of [`super::mark_page_dirty`]. Frees nothing.

use mmu_core::{Format, Gpa};

use super::ring::{DirtyGfn, DirtyRing};
use super::{DirtyLog, flush_modification_log, mark_page_dirty};
use crate::engine::{ExitReason, Host, VcpuId};
use crate::protocols::fault::{FaultHooks, Faults, Logging, PfRet};
use crate::protocols::vcpu::Ran;

/// What the faults of one vCPU ask of memory with a dirty log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoggedSlot {
    /// The slot, or the first of several.
    pub log: DirtyLog,
    /// How many slots there are: as large as the first one, one behind the other ([`DirtyLog::nth`]).
    pub slots: u64,
    /// The vCPU's ring, if pages go there instead of the bitmap.
    pub ring: Option<DirtyRing>,
}

impl LoggedSlot {
    /// The one slot of a vCPU without a ring.
    pub const fn new(log: DirtyLog) -> Self {
        Self { log, slots: 1, ring: None }
    }

    /// The number of the slot of an address; the first one's for addresses in none.
    fn slot_of(&self, gpa: Gpa) -> u64 {
        let distance = gpa.raw().saturating_sub(self.log.slot.start.raw()) / self.log.slot.bytes.0.max(1);
        if distance < self.slots { distance } else { 0 }
    }

    /// The log of an address.
    fn log_of(&self, gpa: Gpa) -> DirtyLog {
        self.log.nth(self.slot_of(gpa))
    }

    /// Notes a page that has been written.
    async fn note<F: Format>(&self, host: &Host<F>, gpa: Gpa) {
        let log = self.log_of(gpa);
        match (self.ring, log.page_of(gpa)) {
            (None, _) => mark_page_dirty(host, &log, gpa).await,
            (Some(ring), Some(offset)) => {
                let slot = self.slot_of(gpa) as u32;
                ring.push(host, DirtyGfn { slot, offset }).await;
            }
            (Some(_), None) => {}
        }
    }

    /// Empties the processor's log.
    async fn flush_modification_log<F: Format>(&self, host: &Host<F>, vcpu: VcpuId) {
        if self.ring.is_none() && self.slots == 1 {
            flush_modification_log(host, &self.log, vcpu).await;
            return;
        }
        while let Some(gpa) = host.pop_modified(vcpu).await {
            self.note(host, gpa).await;
        }
    }
}

impl<F: Format> FaultHooks<F> for LoggedSlot {
    async fn logging(&self, host: &Host<F>, gpa: Gpa) -> Logging {
        if self.log_of(gpa).is_on(host, gpa).await { Logging::On } else { Logging::Off }
    }

    async fn mark_dirty(&self, host: &Host<F>, gpa: Gpa) {
        self.note(host, gpa).await;
    }
}

/// Runs a vCPU until the work that it was given is done. Its log is empty afterwards. Exits are handled inside a section of `kvm->srcu`, so that a memslot
/// update waits for whoever still acts on the slot as it was.
pub async fn run<F: Format>(host: &Host<F>, vcpu: VcpuId, slot: &LoggedSlot, faults: &mut Faults<LoggedSlot>) -> Ran {
    loop {
        if let Some(ring) = slot.ring {
            ring.wait_while_full(host).await;
        }
        let exit = host.vcpu_run(vcpu).await;
        let section = host.srcu_read_lock().await;
        slot.flush_modification_log(host, vcpu).await;
        let ran = match exit.reason {
            ExitReason::Fault(fault) => (faults.handle(host, fault).await == PfRet::Invalid).then_some(Ran::Failed),
            ExitReason::Kicked | ExitReason::LogFull => None,
            ExitReason::Done => Some(Ran::Done),
        };
        host.srcu_read_unlock(section).await;
        if let Some(ran) = ran {
            return ran;
        }
    }
}
