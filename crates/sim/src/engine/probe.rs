//! Probes: single accesses of a guest whose data counts, for judges that ask what a program on these processors may see.
//!
//! A workload's accesses have addresses only. A probe goes through the same TLBs, walk caches and walks, and then loads or stores a word
//! of host memory, in the order that the engine promises: all guest accesses of a window come before all host writes of it, in the
//! order of their vCPUs. It is made with a privilege and in an address space of its own choice, through first-stage tables that all
//! vCPUs share: these lie in table memory like those of the second stage, and host actors write them as a guest's kernel would.
//! Such a guest invalidates by the instructions of its architecture ([`Host::invalidate`]), which it need not wait for.
//!
//! What is in here is no part of a snapshot: only judges use it, and they keep nothing.

use std::collections::BTreeMap;

use mmu_core::tlb::{Asid, Invalidate, TableCaches, Vmid};
use mmu_core::{AccessKind, Cycles, Gpa, Gva, Hpa, Level, Privilege, Reach};

use super::guest::GuestTables;
use super::host::Host;
use super::op::{Op, VcpuId};
use super::requests::{Request, What};
use super::sim::Sim;
use super::upkeep::{Tagged, Upkeep};
use super::vcpu::{ExitReason, GuestFault, Mode, Outcome, Vcpu, View};
use crate::arch::Arch;
use crate::workload::GuestAccess;

/// One access whose data counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Where.
    pub gva: Gva,
    /// Who.
    pub privilege: Privilege,
    /// In which address space.
    pub asid: Asid,
    /// Of which virtual machine.
    pub vmid: Vmid,
    /// What it does there.
    pub data: Data,
}

/// What a probe does to the word that it reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data {
    /// Nothing: the page is translated for a load that nobody waits for, as hardware does when it fetches ahead.
    Nothing,
    /// Loads it.
    Load,
    /// Stores this.
    Store(u64),
    /// Stores this word unless anybody has stored there since it had been stored to so many times.
    StoreUnchanged {
        /// What is stored.
        word: u64,
        /// [`Content::stores`] as it was found.
        stores: u64,
    },
    /// Stores a word if another is there.
    Cmpxchg {
        /// What must be there.
        old: u64,
        /// What is stored.
        new: u64,
    },
    /// `word = (word & and) | or`, atomically.
    Mask {
        /// Bits kept.
        and: u64,
        /// Bits set.
        or: u64,
    },
    /// Adds, atomically, wrapping around.
    Add(u64),
}

impl Data {
    fn access(self) -> AccessKind {
        match self {
            Data::Nothing | Data::Load => AccessKind::Read,
            Data::Store(_) | Data::StoreUnchanged { .. } => AccessKind::Write,
            Data::Cmpxchg { .. } | Data::Mask { .. } | Data::Add(_) => AccessKind::ReadWrite,
        }
    }

    /// What the word becomes, if it is stored to.
    fn stores(self, found: Content) -> Option<u64> {
        match self {
            Data::Nothing | Data::Load => None,
            Data::Store(word) => Some(word),
            Data::StoreUnchanged { word, stores } => (found.stores == stores).then_some(word),
            Data::Cmpxchg { old, new } => (found.word == old).then_some(new),
            Data::Mask { and, or } => Some(found.word & and | or),
            Data::Add(word) => Some(found.word.wrapping_add(word)),
        }
    }
}

/// A word of host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// What it holds.
    pub word: u64,
    /// How often it was stored to.
    pub stores: u64,
}

/// What became of a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probed {
    /// It was made; the word as it was before.
    Done(Content),
    /// The guest's own tables forbid it; the level of the entry that says so, where there is one.
    GuestFault(Option<Level>),
    /// The second stage does.
    Fault(GuestFault),
}

/// Words of host memory that probes have stored to, or somebody before the run; all others are 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents(BTreeMap<Hpa, Content>);

impl Contents {
    fn access(&mut self, at: Hpa, data: Data) -> Content {
        let found = self.0.get(&at).copied().unwrap_or_default();
        if let Some(word) = data.stores(found) {
            self.0.insert(at, Content { word, stores: found.stores + 1 });
        }
        found
    }
}

/// A vCPU's probe.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Probing {
    /// To be made when the guest is entered.
    asked: Option<Probe>,
    /// Translated in this window.
    landed: Option<(Hpa, Data)>,
    /// What became of the last one.
    result: Option<Probed>,
}

impl Probing {
    pub(super) fn asked(&self) -> Option<Probe> {
        self.asked
    }
    pub(super) fn has_landed(&self) -> bool {
        self.landed.is_some()
    }
    pub(super) fn result(&self) -> Option<Probed> {
        self.result
    }
}

/// How walks of hardware write accessed and dirty flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FlagWrites {
    /// By compare-and-swap: nobody has written the entry since the walk read it.
    #[default]
    CompareAndSwap,
    /// By a plain store of the entry as the walk left it, behind the host's writes of the same window: a defect, to see who notices.
    LateStore,
}

impl<A: Arch> Vcpu<A> {
    /// A probe in place of other work.
    pub(super) fn give(&mut self, probe: Probe) {
        (self.tag.asid, self.tag.vmid) = (probe.asid, probe.vmid);
        self.probing = Probing { asked: Some(probe), ..Probing::default() };
    }

    /// Makes a probe and leaves the guest.
    pub(super) fn run_probe(&mut self, probe: Probe, view: View<'_>) {
        self.probing.asked = None;
        let access = GuestAccess { gva: probe.gva, kind: probe.data.access() };
        let reason = match self.access(&access, probe.privilege, view) {
            Outcome::Done(at) | Outcome::LogFull(at) => {
                self.stats.accesses += 1;
                self.probing.landed = Some((at, probe.data));
                ExitReason::Done
            }
            Outcome::GuestFault(level) => {
                self.stats.guest_faults += 1;
                self.probing.result = Some(Probed::GuestFault(level));
                ExitReason::Done
            }
            Outcome::Fault(fault) => {
                self.stats.faults += 1;
                self.probing.result = Some(Probed::Fault(fault));
                ExitReason::Fault(fault)
            }
        };
        self.leave(reason, view.costs);
    }

    /// An invalidation that hardware delivers at `at`, and not before: what is cached here may be used until then, even by a guest that
    /// has been left and entered again meanwhile.
    pub(super) fn receive_invalidation(&mut self, at: Cycles, what: Invalidate, tables: TableCaches) {
        if self.mode != Mode::Finished {
            self.queue(Request { at, what: What::Invalidate(what, tables), flight: None });
        }
    }
}

/// Makes the data accesses of the probes of a window, in the order of the vCPUs.
pub(super) fn access_data<A: Arch>(contents: &mut Contents, vcpus: &mut [Vcpu<A>]) {
    for vcpu in vcpus {
        if let Some((at, data)) = vcpu.probing.landed.take() {
            vcpu.probing.result = Some(Probed::Done(contents.access(at, data)));
        }
    }
}

impl<F: Copy> Host<F> {
    /// Enters the guest on a vCPU for one access, and returns what became of it. For the vCPU's own thread.
    pub async fn probe(&self, vcpu: VcpuId, probe: Probe) -> Probed {
        self.ask(vcpu, probe);
        loop {
            self.vcpu_run(vcpu).await;
            if let Some(probed) = self.probed(vcpu) {
                return probed;
            }
        }
    }

    /// Sends an invalidation as the guest's kernel or hypervisor would, to all processors or to the one of this vCPU's thread, and
    /// returns at once: by the moment that is returned all of them have done it, which is what a barrier (DSB) waits for.
    pub async fn invalidate(&self, what: Invalidate, tables: TableCaches, reach: Reach) -> Cycles {
        Cycles(self.op(Op::Upkeep(Upkeep::Tagged(Tagged::Invalidate(what, tables, reach)))).await.a)
    }
}

impl<A: Arch> Sim<A> {
    /// Gives a vCPU formats of its own, because processors may differ in who keeps the flags of entries, and first-stage tables that it
    /// shares with others: their root is at `root`, their words are host memory behind the second stage. Before the run; the
    /// formats have the geometries that the VM was built with.
    pub fn share_guest_tables(&mut self, vcpu: VcpuId, arch: A, root: Gpa) {
        if let Some(vcpu) = self.stage.borrow_mut().vcpus.get_mut(vcpu.0) {
            vcpu.arch = arch;
            vcpu.guest = Some(GuestTables::shared(*arch.one(), root));
        }
    }
    /// Writes a word of host memory that probes reach. Not while the simulation runs.
    pub fn set_content(&mut self, at: Hpa, word: u64) {
        self.stage.borrow_mut().world.contents.0.insert(at, Content { word, stores: 0 });
    }
    /// The word of host memory at an address, as probes see it.
    pub fn content(&self, at: Hpa) -> u64 {
        self.stage.borrow().world.contents.0.get(&at).map_or(0, |content| content.word)
    }
    /// Chooses how walks write flags.
    pub fn set_flag_writes(&mut self, how: FlagWrites) {
        self.flag_writes = how;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_accesses_are_what_they_say() {
        let mut contents = Contents::default();
        let at = Hpa::new(0x1000);
        let cases = [
            (Data::Load, 0, 0),
            (Data::Store(5), 5, 1),
            (Data::Nothing, 5, 1),
            (Data::Cmpxchg { old: 4, new: 9 }, 5, 1),
            (Data::Cmpxchg { old: 5, new: 9 }, 9, 2),
            (Data::StoreUnchanged { word: 1, stores: 1 }, 9, 2),
            (Data::StoreUnchanged { word: 1, stores: 2 }, 1, 3),
            (Data::Add(u64::MAX), 0, 4),
            (Data::Mask { and: 0, or: 6 }, 6, 5),
        ];
        let mut before = Content::default();
        for (data, word, stores) in cases {
            assert_eq!(contents.access(at, data), before, "{data:?}");
            before = Content { word, stores };
            assert_eq!(contents.access(at, Data::Load), before, "{data:?}");
        }
    }
}
