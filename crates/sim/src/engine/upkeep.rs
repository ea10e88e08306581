//! Upkeep of guest memory and of tables: cache maintenance, references, break-before-make, teardown behind a grace period.
//!
//! Cache maintenance by address goes to where a line's owner is known. Several processors that clean the same block do it one after the other, as published runs show:
//! 20 and 40 vCPUs that each clean 20 GiB take 20 and 40 times as long as one (RFC of 8 February 2021, message
//! 20210208112250.163568-1-wangyanan55).
//!
//! A table frame has as many references as holders (one, when nobody does anything unusual) and counted entries; see [`Host::table_count`].

use mmu_core::tlb::{Invalidate, TableCaches};
use mmu_core::{BreakRule, Bytes, Cycles, Format, Gpa, GpaRange, Hpa, HpaRange, Level, Reach};

use super::actor::ActorState;
use super::cleanliness::{Cleanliness, GuestCaches};
use super::host::Host;
use super::lock::SharedLine;
use super::op::{Frames, Op, Reply, VcpuId};
use super::rcu::Subtree;
use super::vcpu::Vcpu;
use super::world::World;
use crate::arch::Arch;
use crate::checker::Violation;

/// An operation of upkeep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upkeep {
    /// Cleans host memory to the point of coherency.
    Clean(HpaRange),
    /// Invalidates the instruction cache for this much.
    InvalidateFetched(Bytes),
    /// The host's user space writes guest memory.
    HostWrites(GpaRange),
    /// The guest of a vCPU turns its data caches on or off.
    SetGuestCaches(VcpuId, GuestCaches),
    /// One reference more to a table; replies the new count of holders.
    GetTable(Hpa),
    /// One less; nothing is freed.
    PutTable(Hpa),
    /// Holders and counted entries of a table.
    TableCount(Hpa),
    /// A detached table and everything below it are walked and freed by a callback after a grace period.
    CallRcuSubtree(Hpa, Level),
    /// An entry was invalid for so long while it was being replaced.
    CountBreak(Cycles),
    /// A TLB conflict abort at this address that nobody can handle.
    UnhandledConflict(VcpuId, Gpa),
    /// One round trip to the user-space monitor.
    UserExit,
    /// The access that a vCPU faulted on has been emulated: the guest goes on behind it.
    Emulated(VcpuId),
    /// A run of a vCPU ended with an error to user space.
    RunFailed,
    /// The checker is told what holds from here on; nothing happens.
    Announce(Announced),
    /// A processor's tag of translations.
    Tagged(Tagged),
}

/// What a protocol promises at this moment. Explorations hold everybody to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Announced {
    /// Nobody writes this range any more without a fault, until somebody maps it writable again.
    WriteProtected(GpaRange),
    /// Nobody writes this range any more, and nobody maps it writable: its writes are emulated.
    WriteTracked(GpaRange),
    /// This root is given up: whoever still has it installs nothing below it.
    RootInvalid(Hpa),
}

/// Tags of translations (VMID, LPID), where several guests share a processor. For explorations: the timed engine runs one guest and does nothing, except for
/// [`Tagged::Invalidate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tagged {
    /// A processor, out of the guest, gets this root under this tag; nothing is flushed.
    Load(VcpuId, Hpa, u16),
    /// The guest that enters on a processor next is the one that owns this tag.
    Own(VcpuId, u16),
    /// All processors drop what they cached under this tag; waits until they have.
    Flush(u16),
    /// A processor, out of the guest, drops what it cached.
    FlushOwn(VcpuId, OwnCaches),
    /// One invalidation by the guest's or the hypervisor's own instruction, of all processors or of the one of the vCPU whose thread sends it;
    /// replies the moment by which it is done. In the timed engine too.
    Invalidate(Invalidate, TableCaches, Reach),
}

/// What a processor drops of what it cached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnCaches {
    /// Everything.
    All,
    /// Everything but the small cache in front (POWER's ERAT), whose translations stay.
    ButTheFirst,
}

/// What upkeep remembers.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct UpkeepState {
    /// Host pages that are clean.
    pub(super) pages: Cleanliness,
    /// References that tables have beyond one holder each.
    pub(super) extra_references: u64,
    /// Blocks that are being cleaned, each with when that ends.
    cleanings: Vec<(HpaRange, Cycles)>,
    /// Pages that are being cleared for who touched them first, each with when that ends.
    clearings: Vec<(HpaRange, Cycles)>,
    /// When the interconnect takes the next broadcast invalidation.
    pub(super) interconnect_free: Cycles,
    /// The line of the process's `mmap_lock`. Writers of it are not modelled, so that readers never wait for anything else.
    pub(super) mmap_lock: SharedLine,
    /// The line of `kvm->stat.pages`.
    pub(super) page_stats: SharedLine,
}

impl UpkeepState {
    /// A page is being cleared from `start` to `end`.
    pub(super) fn clears(&mut self, page: HpaRange, start: Cycles, end: Cycles) {
        // Operations come in the order of time: what has ended by now nobody waits for.
        self.clearings.retain(|&(_, end)| end > start);
        self.clearings.push((page, end));
    }

    /// When somebody who comes at `now` may have the page: others wait for who clears it (`hugetlb_fault_mutex_table`). Where the kernel lets each clear a page of
    /// its own and throws all but one away, it takes them as long.
    pub(super) fn cleared(&mut self, at: Hpa, now: Cycles) -> Cycles {
        if self.clearings.is_empty() {
            return now;
        }
        let page = self.clearings.iter().find(|(page, _)| page.start <= at && at < page.end());
        let end = page.map_or(now, |&(_, end)| end.max(now));
        self.clearings.retain(|&(_, end)| end > now);
        end
    }
}

impl<F: Copy> Host<F> {
    async fn keep_up(&self, upkeep: Upkeep) -> u64 {
        self.op(Op::Upkeep(upkeep)).await.a
    }

    /// Cleans host memory to the point of coherency (`dcache_clean_inval_poc`).
    pub async fn clean(&self, range: HpaRange) {
        self.keep_up(Upkeep::Clean(range)).await;
    }
    /// Invalidates the instruction cache for so much memory (`icache_inval_pou`).
    pub async fn invalidate_fetched(&self, bytes: Bytes) {
        self.keep_up(Upkeep::InvalidateFetched(bytes)).await;
    }
    /// The host's user space writes guest memory through its caches: the pages behind are not clean any more.
    pub async fn host_writes(&self, range: GpaRange) {
        self.keep_up(Upkeep::HostWrites(range)).await;
    }
    /// The guest of this vCPU turns its data caches on or off.
    pub async fn set_guest_caches(&self, vcpu: VcpuId, caches: GuestCaches) {
        self.keep_up(Upkeep::SetGuestCaches(vcpu, caches)).await;
    }
    /// Takes a reference to a table beyond those of its entries (`get_page`).
    pub async fn get_table(&self, table: Hpa) {
        self.keep_up(Upkeep::GetTable(table)).await;
    }
    /// Drops such a reference; nothing is freed.
    pub async fn put_table(&self, table: Hpa) {
        self.keep_up(Upkeep::PutTable(table)).await;
    }
    /// `page_count` of a table: one for its holder, one for each present entry, and what [`get_table`](Self::get_table) added. A table
    /// may be freed when it is 1.
    pub async fn table_count(&self, table: Hpa) -> u64 {
        self.keep_up(Upkeep::TableCount(table)).await
    }
    /// Frees a detached table and everything below it after a grace period; the walk through it is the callback's and takes none of
    /// the caller's time (c3119ae45dfb).
    pub async fn call_rcu_subtree(&self, table: Hpa, level: Level) {
        self.keep_up(Upkeep::CallRcuSubtree(table, level)).await;
    }
    /// Books a break: how long an entry mapped nothing while it was being replaced.
    pub async fn count_break(&self, window: Cycles) {
        self.keep_up(Upkeep::CountBreak(window)).await;
    }
    /// Reports a TLB conflict abort that this hypervisor cannot handle.
    pub async fn unhandled_conflict(&self, vcpu: VcpuId, gpa: Gpa) {
        self.keep_up(Upkeep::UnhandledConflict(vcpu, gpa)).await;
    }
    /// Spends a round trip to the user-space monitor.
    pub async fn user_exit(&self) {
        self.keep_up(Upkeep::UserExit).await;
    }
    /// The access that a vCPU faulted on has been emulated: the guest goes on behind it.
    pub async fn emulated(&self, vcpu: VcpuId) {
        self.keep_up(Upkeep::Emulated(vcpu)).await;
    }
    /// Tells the checker what holds from here on.
    pub async fn announce(&self, what: Announced) {
        self.keep_up(Upkeep::Announce(what)).await;
    }
    /// Does something about the tags of translations.
    pub async fn tagged(&self, what: Tagged) {
        self.keep_up(Upkeep::Tagged(what)).await;
    }
    /// Counts a run of a vCPU (`KVM_RUN`) that ended with an error.
    pub async fn count_failed_run(&self) {
        self.keep_up(Upkeep::RunFailed).await;
    }
}

impl<A: Arch> World<A> {
    /// The host pages that are clean to the point of coherency.
    pub fn clean_pages(&self) -> &Cleanliness {
        &self.upkeep.pages
    }

    /// Marks host pages as cleaned before the run.
    pub(crate) fn mark_clean(&mut self, range: HpaRange) {
        self.upkeep.pages.clean(range);
    }

    pub(super) fn keep_up(&mut self, upkeep: Upkeep, actor: &mut ActorState, vcpus: &mut [Vcpu<A>]) -> Reply {
        match upkeep {
            Upkeep::Clean(range) => self.clean(range, actor),
            Upkeep::InvalidateFetched(bytes) => {
                actor.now += self.costs.invalidate_fetched_4k.times(bytes.0.div_ceil(4096));
            }
            Upkeep::HostWrites(range) => self.host_writes(range),
            Upkeep::SetGuestCaches(vcpu, caches) => {
                if let Some(vcpu) = vcpus.get_mut(vcpu.0) {
                    vcpu.guest_caches = caches;
                }
            }
            Upkeep::GetTable(table) => return self.change_references(table, Change::Get, actor),
            Upkeep::PutTable(table) => return self.change_references(table, Change::Put, actor),
            Upkeep::TableCount(table) => return self.page_count(table, actor),
            Upkeep::CallRcuSubtree(table, level) => {
                self.disturbed = true;
                self.rcu.retire_subtree(Subtree { table, level }, actor.now, self.costs.rcu_grace);
            }
            Upkeep::CountBreak(window) => {
                self.counters.breaks += 1;
                self.counters.break_cycles += window;
                self.counters.longest_break = self.counters.longest_break.max(window);
            }
            Upkeep::UnhandledConflict(vcpu, gpa) => {
                self.checker.report(Violation::TlbConflict { vcpu: vcpu.0, gpa, moment: actor.now });
            }
            Upkeep::UserExit => actor.now += self.costs.user_exit,
            Upkeep::Emulated(vcpu) => {
                if let Some(vcpu) = vcpus.get_mut(vcpu.0) {
                    vcpu.skip_access();
                }
            }
            Upkeep::RunFailed => self.counters.failed_runs += 1,
            Upkeep::Tagged(Tagged::Invalidate(what, tables, reach)) => {
                return Reply::one(self.invalidate(what, tables, reach, actor, vcpus).0);
            }
            Upkeep::Announce(_) | Upkeep::Tagged(_) => {}
        }
        Reply::default()
    }

    fn clean(&mut self, range: HpaRange, actor: &mut ActorState) {
        let cleanings = &mut self.upkeep.cleanings;
        cleanings.retain(|&(_, until)| until > actor.now);
        let same = cleanings.iter().filter(|(block, _)| block.start < range.end() && range.start < block.end());
        let start = same.map(|&(_, until)| until).fold(actor.now, Cycles::max);
        actor.now = start + self.costs.clean_4k.times(range.bytes.0.div_ceil(4096));
        cleanings.push((range, actor.now));
        self.upkeep.pages.clean(range);
        self.counters.cleaned_bytes += range.bytes.0;
    }

    /// Dirties the pages behind a guest-physical range, stretch by stretch.
    fn host_writes(&mut self, range: GpaRange) {
        for written in self.guest_pages(range) {
            self.upkeep.pages.dirty(written);
        }
    }

    fn change_references(&mut self, table: Hpa, change: Change, actor: &mut ActorState) -> Reply {
        actor.now += self.costs.atomic;
        let outcome = match change {
            Change::Get => self.tables.get_ref(table),
            Change::Put => self.tables.put_ref(table),
        };
        match outcome {
            Ok(references) => {
                let extra = &mut self.upkeep.extra_references;
                *extra = if change == Change::Get { *extra + 1 } else { extra.saturating_sub(1) };
                Reply::one(u64::from(references))
            }
            Err(fault) => {
                self.checker.report(Violation::TableFree { at: table, fault });
                Reply::default()
            }
        }
    }

    fn page_count(&mut self, table: Hpa, actor: &mut ActorState) -> Reply {
        actor.now += self.costs.visit;
        match self.tables.frame(table) {
            Ok(frame) => Reply::one(u64::from(frame.refs) + frame.live),
            Err(fault) => {
                let (actor, moment) = (Some(actor.id), actor.now);
                self.checker.report(Violation::TableUse { at: table, fault, actor, moment });
                Reply::default()
            }
        }
    }

    /// Drops the last reference of each frame. One that somebody else holds is not freed.
    pub(super) fn put_tables(&mut self, frames: Frames) {
        for n in 0..frames.count {
            let table = frames.first + n * frames.bytes;
            let outcome = match self.tables.refs(table) {
                Ok(references) if references > 1 => {
                    self.upkeep.extra_references = self.upkeep.extra_references.saturating_sub(1);
                    self.tables.put_ref(table).map(|_| 0)
                }
                _ => self.tables.free(table).map(|()| 1),
            };
            match outcome {
                Ok(freed) => self.counters.tables_freed += freed,
                Err(fault) => self.checker.report(Violation::TableFree { at: table, fault }),
            }
        }
    }

    /// The callback of [`Host::call_rcu_subtree`]: children first, then the table itself.
    pub(super) fn free_subtree(&mut self, subtree: Subtree, now: Cycles) {
        let two = *self.arch.two();
        let Subtree { table, level } = subtree;
        let entries = two.geometry().entries(level) as u64;
        let mut index = 0;
        while index < entries && level > Level::LAST {
            let at = table + 8 * index;
            let run = match self.tables.run_at(at, entries - index) {
                Ok(run) => run,
                Err(fault) => {
                    return self.checker.report(Violation::TableUse { at, fault, actor: None, moment: now });
                }
            };
            let children = if two.is_mapped(run.first) && !two.is_leaf(level, run.first) { run.len } else { 0 };
            for n in 0..children {
                let word = run.first.wrapping_add(n.wrapping_mul(run.step));
                if let Some(level) = level.down() {
                    self.free_subtree(Subtree { table: two.next_table(level.up(), word), level }, now);
                }
            }
            index += run.len.max(1);
        }
        self.free(Frames { first: table, count: 1, level, bytes: two.geometry().table_bytes(level) });
    }

    /// B1: whether the word that is about to replace a live one may do so. Changes that keep kind and output are permissions and
    /// flags, which never need a break.
    pub(super) fn check_break(&mut self, at: Hpa, word: u64, actor: &ActorState) {
        let Ok(old) = self.tables.read(at) else { return };
        let two = self.arch.two();
        if old & two.present_mask() == 0 || old == word {
            return;
        }
        let Ok(level) = self.tables.level(at) else { return };
        if level > two.geometry().root() {
            // Words that are no entries.
            return;
        }
        let leaves = (two.is_leaf(level, old), two.is_leaf(level, word));
        if leaves == (true, true) && two.output(level, old) == two.output(level, word) {
            return;
        }
        if let BreakRule::Needed(why) = two.break_rule(level, old, word) {
            self.checker.report(Violation::MissingBreak { at, why, actor: actor.id, moment: actor.now });
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Get,
    Put,
}
