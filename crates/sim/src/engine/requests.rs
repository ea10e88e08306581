//! What the host asks of a vCPU: flushes, another root, leaving the guest.

use mmu_core::tlb::{Invalidate, TableCaches, Tag};
use mmu_core::{Cycles, Flush, FlushScope, Hpa, WalkCaches};

use super::costs::Costs;
use super::flight::FlightId;
use super::vcpu::{Mode, Vcpu};
use crate::arch::Arch;

/// Something that must be done at a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Request {
    pub(super) at: Cycles,
    pub(super) what: What,
    pub(super) flight: Option<FlightId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum What {
    Flush(Flush),
    Invalidate(Invalidate, TableCaches),
    Reload,
    Leave,
}

impl What {
    pub(super) const fn name(self) -> &'static str {
        match self {
            What::Flush(_) | What::Invalidate(..) => "flush",
            What::Reload => "reload",
            What::Leave => "leave",
        }
    }
}

impl<A: Arch> Vcpu<A> {
    /// An interrupt that makes this vCPU flush; true when it runs guest code and the sender must wait for it. One that is in the
    /// host flushes before it enters the guest again, and nobody waits.
    pub(crate) fn interrupt_for_flush(&mut self, flight: FlightId, at: Cycles, covers: Flush) -> bool {
        self.ask(What::Flush(covers), flight, at)
    }

    /// Makes this vCPU load the current root before it enters the guest again; true when the sender must wait.
    pub(crate) fn request_reload(&mut self, flight: FlightId, at: Cycles) -> bool {
        self.ask(What::Reload, flight, at)
    }

    /// Makes this vCPU leave the guest; true when it runs guest code and the sender must wait.
    pub(crate) fn request_exit(&mut self, flight: FlightId, at: Cycles) -> bool {
        self.ask(What::Leave, flight, at)
    }

    fn ask(&mut self, what: What, flight: FlightId, at: Cycles) -> bool {
        match self.mode {
            Mode::Guest => {
                self.queue(Request { at, what, flight: Some(flight) });
                true
            }
            // Out of the guest nothing can be used before it is entered again: the request is noted, nobody waits.
            Mode::Fresh | Mode::Exited | Mode::InHost => {
                self.note(what);
                false
            }
            Mode::Finished => false,
        }
    }

    /// An invalidation that hardware delivers; it acts on the TLBs whatever this vCPU is doing.
    pub(crate) fn receive_broadcast(&mut self, at: Cycles, covers: Flush) {
        match self.mode {
            Mode::Guest => self.queue(Request { at, what: What::Flush(covers), flight: None }),
            Mode::Fresh | Mode::Exited | Mode::InHost => self.note(What::Flush(covers)),
            Mode::Finished => {}
        }
    }

    /// Keeps requests in order of time, first come first among equals.
    pub(super) fn queue(&mut self, request: Request) {
        let place = self.requests.partition_point(|earlier| earlier.at <= request.at);
        self.requests.insert(place, request);
    }

    /// Takes note of a request while in the host. However many flushes are asked for, the entry makes one.
    pub(super) fn note(&mut self, what: What) {
        match what {
            What::Flush(covers) => {
                // Two different flushes together are a flush of everything.
                let merged = self.owed.map_or(covers, |owed| if owed == covers { owed } else { Flush::EVERYTHING });
                self.owed = Some(merged);
            }
            // Not noted, in fact: it stays on its way until its moment (`receive_invalidation`).
            What::Invalidate(what, tables) => drop(self.caches.invalidate(what, tables)),
            What::Reload => self.reload = true,
            // It is out already; its thread looks at what is asked before the guest runs again.
            What::Leave => self.kicked = true,
        }
    }

    /// An invalidation that this vCPU's own processor makes, out of the guest.
    pub(crate) fn flush_here(&mut self, covers: Flush) {
        self.stats.flushes += 1;
        self.apply_flush(covers);
    }

    /// The access that made it leave the guest has been done for it.
    pub(crate) fn skip_access(&mut self) {
        self.stats.accesses += u64::from(self.current.take().is_some());
    }

    /// Enters the guest, with the flush that was asked for meanwhile.
    pub(crate) fn enter(&mut self, costs: &Costs) {
        if let Some(covers) = self.owed.take() {
            self.stats.flushes += 1;
            self.apply_flush(covers);
            self.clock += costs.invalidate_local;
        }
        self.mode = Mode::Guest;
    }

    /// Starts using the VM's current root.
    pub(crate) fn load_root(&mut self, root: Hpa, generation: u16) {
        self.root = root;
        self.tag.root = mmu_core::tlb::RootId(generation);
        self.tag.vmid = mmu_core::tlb::Vmid(1 + generation);
        self.reload = false;
        self.requests.retain(|request| request.what != What::Reload);
    }

    /// Books the time between leaving the guest and entering it again.
    pub(crate) fn account_exit(&mut self, left: Cycles, costs: &Costs) {
        let spent = self.clock.since(left) + costs.exit;
        self.stats.fault_cycles += spent;
        self.stats.longest_fault = self.stats.longest_fault.max(spent);
    }

    /// A translation that this vCPU could still use to reach `[host, host + bytes)`: cached under its current tag, with no
    /// invalidation on its way that would remove it first.
    pub(crate) fn usable_translation(&self, host: Hpa, bytes: u64) -> Option<Hpa> {
        if self.mode == Mode::Finished || self.wants_reload() {
            return None;
        }
        let asked = self.requests.iter().any(|request| matches!(request.what, What::Flush(_) | What::Invalidate(..)));
        let flushing = asked || self.owed.is_some();
        if flushing {
            return None;
        }
        self.caches
            .tlb
            .reachable(self.tag)
            .find(|entry| {
                entry.output.raw() < host.raw() + bytes && host.raw() < entry.output.raw() + entry.size.bytes()
            })
            .map(|entry| entry.output)
    }

    /// Whether anything but guest code waits for it.
    pub(crate) fn wants_reload(&self) -> bool {
        self.reload || self.requests.iter().any(|request| request.what == What::Reload)
    }

    pub(super) fn serve(&mut self, request: Request, costs: &Costs) {
        match request.what {
            What::Flush(covers) => {
                self.stats.flushes += 1;
                self.apply_flush(covers);
                self.clock += costs.invalidate_local;
            }
            What::Invalidate(what, tables) => {
                self.stats.flushes += 1;
                self.caches.invalidate(what, tables);
                self.clock += costs.invalidate_local;
            }
            What::Reload => self.reload = true,
            What::Leave => {}
        }
        if let Some(flight) = request.flight {
            self.acks.push((flight, self.clock));
        }
    }

    /// Translates a flush into invalidations of this machine's caches.
    fn apply_flush(&mut self, flush: Flush) {
        let tables = match flush.walk_caches {
            WalkCaches::Keep => TableCaches::Kept,
            WalkCaches::Drop => TableCaches::Dropped,
        };
        let Tag { vmid, root, .. } = self.tag;
        match flush.scope {
            FlushScope::Vm => {
                self.overlapped = false;
                self.caches.invalidate(Invalidate::Root { root }, tables);
                self.caches.invalidate(Invalidate::VmidBothStages { vmid }, tables);
            }
            FlushScope::Range { start, bytes, .. } => {
                self.caches.invalidate(Invalidate::GuestPhysical { vmid, start, bytes }, tables);
                // Combined entries do not remember their guest-physical page: all of the VM's first-stage results go.
                if self.caches.tlb.rules().combined_by_gpa == mmu_core::tlb::CombinedByGpa::Unknown {
                    let globals = mmu_core::tlb::Globals::Dropped;
                    self.caches.invalidate(Invalidate::Vmid { vmid, globals }, TableCaches::Dropped);
                }
            }
        }
    }
}
