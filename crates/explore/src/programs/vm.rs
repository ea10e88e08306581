//! The VM of a program: what Linux keeps of one, as far as its acts need it, and how each act is done with that.
//!
//! | part | where |
//! | --- | --- |
//! | a list of roots, which vCPUs load and leave | x86; elsewhere one root |
//! | a nested guest's shadow tables, `gfn_to_pfn_cache`s, NX huge pages, hashed tables | where an act of the program is about them |
//! | locks of user space and of the primary MMU, which keep changes of one memslot and of one range apart | everywhere |

use std::cell::Cell;

use mmu_core::{AccessKind, Bytes, Cycles, Format, Gpa, GpaRange, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{Bed, Host, LockId, LockKind, LockMode, Memslot, SlotFlags, SlotId};
use mmu_sim::experiment::vm::GUEST_MEMORY;
use mmu_sim::explore::{Build, access, read, write};
use mmu_sim::protocols::aging::{AgingPolicy, clear_flush_young_in, clear_young_in};
use mmu_sim::protocols::collapse::{CollapsePolicy, collapse_range};
use mmu_sim::protocols::dirty_log::{DirtyLog, DirtyPolicy, LogKind, disable_in, enable_in, get_dirty_log_in};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::iter::Yield;
use mmu_sim::protocols::nested::{Shadow, ShadowPolicy};
use mmu_sim::protocols::notifier::{ChangePte, Notifier, NotifierPolicy};
use mmu_sim::protocols::nx::{Mitigation, NxPages, NxPolicy};
use mmu_sim::protocols::pfncache::{self, Gpc, GpcPolicy, Place};
use mmu_sim::protocols::primary::{collapse, copy_on_write, madvise_dontneed, migrate, oom_reap, reclaim};
use mmu_sim::protocols::protect::write_protect_range_in;
use mmu_sim::protocols::roots::{RootPolicy, Roots, UnmapRoots, VmRoots};
use mmu_sim::protocols::slots::{SlotPolicy, SlotUpdate, set_memory_region_in, zap_memslot};
use mmu_sim::protocols::split::{SplitPolicy, eager_split};
use mmu_sim::protocols::unmap::{UnmapPolicy, unmap_range};
use mmu_sim::protocols::zap::ZapPolicy;

use super::pages::PAGE;
use super::tables::Tables;
use super::thread::Thread;
use super::{Act, Pages, Program, Step};
use crate::museum::Architecture;

/// Rounds after which a refresh is given up; the kernel goes on for ever.
const GPC: GpcPolicy = GpcPolicy { max_rounds: 4, ..GpcPolicy::V5_19 };
/// Every page that was split is recovered at once.
const NX: NxPolicy = NxPolicy { ratio: 1, ..NxPolicy::v6_18(Cycles(1)) };
/// Where a memslot is moved to: guest memory ends before.
const ELSEWHERE: Gpa = Gpa::new(1 << 30);

/// A nested guest of which several vCPUs may run.
struct Nesting {
    shadow: Shadow,
    /// L1's own lock, under which it starts and ends its guest.
    lock: LockId,
    running: Cell<u32>,
}

/// The VM of a program.
pub(super) struct Vm<F: Format> {
    arch: Architecture,
    notifier: Notifier<F>,
    /// What keeps changes of the primary MMU apart, as its own locks do (`mmap_lock`, page locks).
    changes: LockId,
    /// What keeps user space's updates of a memslot apart.
    updates: LockId,
    pub(super) log: DirtyLog,
    dirty: DirtyPolicy,
    pub(super) fault: FaultPolicy,
    slots: SlotPolicy,
    /// The largest page that the host has.
    largest: PageSize,
    cache: Option<Gpc>,
    pub(super) nx: Option<NxPages>,
    nesting: Option<Nesting>,
    /// Tables of two kinds, where an act switches between them.
    pub(super) tables: Option<Tables<F>>,
}

/// `kvm_unmap_gfn_range_hv` of POWER goes from page to page without giving `mmu_lock` away; what looks for its tree once may rely on that.
fn notifier_policy(arch: Architecture) -> NotifierPolicy {
    let policy = NotifierPolicy::V6_8;
    match arch {
        Architecture::Power => NotifierPolicy { zap: ZapPolicy { yielding: Yield::Never, ..policy.zap }, ..policy },
        Architecture::X86 | Architecture::Arm64 => policy,
    }
}

const fn same(l2: Gpa) -> Gpa {
    l2
}

impl<F: Format> Vm<F> {
    /// The VM of a program, whose vCPUs have all been added.
    pub(super) fn new<A: Arch<Two = F>>(
        build: &mut Build<'_, A>,
        program: &Program,
        format: &F,
        memory: Bytes,
        largest: PageSize,
        tables: Option<Tables<F>>,
    ) -> Self {
        let slot = GpaRange::new(Gpa::new(0), memory);
        let log = DirtyLog::new(slot, build.new_var(0), PageSize::SIZE_4K, LogKind::Bitmap);
        let list = (program.arch == Architecture::X86).then(|| Roots::adopt(build, RootPolicy::R4, None));
        let nesting = program.has(Act::Nest).then(|| {
            let policy = if list.is_some() { ShadowPolicy::X86 } else { ShadowPolicy::RIGHT };
            let shadow = Shadow::new(build, format, Pages::ALL.gpas().bytes, 2 * u64::from(super::PAGES), same);
            Nesting { shadow: shadow.handled_by(policy), lock: build.new_lock(LockKind::Spin), running: Cell::new(0) }
        });
        let shadow = nesting.as_ref().map(|nesting| nesting.shadow);
        let roots = match (list, shadow) {
            (None, None) => VmRoots::Current,
            (Some(roots), None) => VmRoots::List(roots),
            (None, Some(shadow)) => VmRoots::Nested(shadow),
            (Some(roots), Some(shadow)) => VmRoots::ListAndNested(roots, shadow),
        };
        if let Some(list) = roots.list().cloned() {
            // Which there are in the end is what roots are about.
            build.keep_roots(move || list.snapshot().iter().map(|root| root.table).collect());
        }
        let notifier = Notifier::of(roots, notifier_policy(program.arch));
        Self {
            arch: program.arch,
            cache: program.has(Act::Cache).then(|| Gpc::create(build, &notifier.gpcs)),
            nx: program.has(Act::RecoverNx).then(|| NxPages::new(build, NX)),
            notifier,
            changes: build.new_lock(LockKind::Spin),
            updates: build.new_lock(LockKind::Spin),
            log,
            dirty: DirtyPolicy::linux_6_6(format),
            fault: FaultPolicy::linux_6_6(format, largest),
            slots: SlotPolicy::linux_6_6(format),
            largest,
            nesting,
            tables,
        }
    }

    pub(super) fn roots(&self) -> &VmRoots<F> {
        &self.notifier.roots
    }

    /// One act of an actor, which is the thread of a vCPU if one of its acts needs that.
    pub(super) async fn perform(&self, host: &Host<F>, step: Step, thread: Option<&mut Thread<F>>) {
        if step.act.is_change() {
            host.lock(self.changes, LockMode::Write).await;
            self.act(host, step, thread).await;
            host.unlock(self.changes).await;
        } else {
            self.act(host, step, thread).await;
        }
    }

    async fn act(&self, host: &Host<F>, Step { act, pages }: Step, thread: Option<&mut Thread<F>>) {
        let (notifier, roots) = (&self.notifier, self.roots());
        let (gpas, hvas) = (pages.gpas(), pages.hvas());
        match (act, thread) {
            // What the primary MMU does.
            (Act::Discard, _) => {
                madvise_dontneed(host, notifier, hvas).await;
            }
            (Act::Reap, _) => {
                oom_reap(host, notifier, hvas).await;
            }
            (Act::Migrate, _) => {
                migrate(host, notifier, hvas).await;
            }
            (Act::Collapse, _) => {
                collapse(host, notifier, hvas).await;
            }
            (Act::Copy, _) => copy_on_write(host, notifier, hvas.start, ChangePte::Ignore).await,
            (Act::Reclaim, _) => {
                reclaim(host, notifier, hvas, Bytes(32 * PAGE)).await;
            }
            // What any task does.
            (Act::Age, _) => {
                // POWER's faults free tables at once: nobody may be in them without the lock.
                let locked = self.arch == Architecture::Power;
                let policy = if locked { AgingPolicy::V6_13 } else { AgingPolicy::V6_15 };
                clear_young_in(host, roots, gpas, &policy).await;
            }
            (Act::AgeAndFlush, _) => {
                clear_flush_young_in(host, roots, gpas, &AgingPolicy::V6_12).await;
            }
            (Act::WriteProtect, _) => write_protect_range_in(host, roots, gpas).await,
            (Act::FlushSlot, _) => self.flush_slot(host).await,
            (Act::Log, _) => self.log(host).await,
            (Act::DeleteSlot, _) => {
                self.update_slot(host, |slot| [SlotUpdate::Delete(slot), SlotUpdate::Create(slot)]).await;
            }
            (Act::MoveSlot, _) => {
                let there = |slot: Memslot| Memslot { gpa: GpaRange::new(ELSEWHERE, slot.gpa.bytes), ..slot };
                let back = |slot: Memslot| SlotUpdate::Move(there(slot), slot.gpa.start);
                self.update_slot(host, |slot| [SlotUpdate::Move(slot, ELSEWHERE), back(slot)]).await;
            }
            (Act::Cache, _) => self.use_cache(host, pages).await,
            (Act::Split, _) => self.split(host).await,
            (Act::Recover, _) => self.recover(host).await,
            (Act::ZapRoots, _) => self.zap_roots(host).await,
            (Act::SwitchTables, _) => {
                if let Some(tables) = &self.tables {
                    tables.there_and_back(host).await;
                }
            }
            // What only the thread of a vCPU does.
            (Act::Nest, Some(thread)) => {
                thread.enter(host).await;
                self.nest(host, pages, thread).await;
                thread.exit(host).await;
            }
            (Act::Coalesce, Some(thread)) => {
                let first = pages.first().gpa().raw();
                let all = (0..pages.count()).map(|n| read(first + u64::from(n) * PAGE));
                thread.touch(host, all.collect()).await;
            }
            (Act::SwitchRoot, Some(thread)) => {
                let first = pages.first().gpa().raw();
                thread.touch(host, vec![read(first)]).await;
                thread.leave(host).await;
                thread.touch(host, vec![write(first)]).await;
            }
            (Act::RecoverNx, Some(thread)) => {
                thread.touch(host, vec![access(AccessKind::Execute, pages.first().gpa().raw())]).await;
                if let Some(nx) = &self.nx {
                    nx.recover_in(host, roots).await;
                }
            }
            (Act::Prefault, Some(thread)) => thread.pre_fault(host, pages).await,
            (Act::Nest | Act::Coalesce | Act::SwitchRoot | Act::RecoverNx | Act::Prefault, None) => {
                unreachable!("{act:?} needs the thread of a vCPU, which `Program` gives whoever does it")
            }
        }
    }

    async fn flush_slot(&self, host: &Host<F>) {
        if self.arch == Architecture::X86 {
            return zap_memslot(host, self.roots(), self.log.slot, &ZapPolicy::V6_9).await;
        }
        unmap_range(host, self.log.slot, UnmapPolicy::V6_6).await;
        if let Some(nesting) = &self.nesting {
            nesting.shadow.unmap(host, self.log.slot).await;
        }
    }

    /// Whoever finds logging on leaves it to him who switched it on.
    async fn log(&self, host: &Host<F>) {
        let Self { log, dirty, .. } = self;
        if enable_in(host, self.roots(), log, dirty).await.is_err() {
            return;
        }
        self.nx.iter().for_each(|nx| nx.start_logging(log.slot));
        let _ = get_dirty_log_in(host, self.roots(), log, dirty).await;
        self.nx.iter().for_each(|nx| nx.stop_logging(log.slot));
        let _ = disable_in(host, self.roots(), log, dirty, self.largest).await;
    }

    async fn update_slot(&self, host: &Host<F>, updates: impl FnOnce(Memslot) -> [SlotUpdate; 2]) {
        let slot = Memslot { id: SlotId(0), gpa: self.log.slot, hva: GUEST_MEMORY, flags: SlotFlags::empty() };
        host.lock(self.updates, LockMode::Write).await;
        for update in updates(slot) {
            // Its addresses are free: nobody else adds a memslot, and a list of roots needs no table.
            let _ = set_memory_region_in(host, self.roots(), update, &self.slots).await;
        }
        host.unlock(self.updates).await;
    }

    async fn use_cache(&self, host: &Host<F>, pages: Pages) {
        let Some(cache) = self.cache else { return };
        let place = Place::Guest(pages.first().gpa());
        // Whether it could be used is the user's affair; that it was used rightly is the checker's.
        let _ = pfncache::access(host, cache, place, &GPC).await;
        pfncache::use_for(host, cache, place, Cycles::ZERO).await;
    }

    /// `kvm_mmu_slot_try_split_huge_pages`, under `slots_lock`: no root becomes invalid meanwhile.
    async fn split(&self, host: &Host<F>) {
        let (roots, range) = (self.roots(), self.log.slot);
        let policy = if self.arch == Architecture::Arm64 { SplitPolicy::ARM64_6_5 } else { SplitPolicy::X86_5_18 };
        host.lock(LockId::SLOTS, LockMode::Write).await;
        host.lock(LockId::MMU, policy.lock.mode()).await;
        let mut next = roots.next_yield_safe(host, None, policy.roots, policy.lock).await;
        while let Some(root) = next {
            // What could not be split is left to faults.
            let _ = eager_split(host, root.table, range, PageSize::SIZE_4K, &policy).await;
            next = roots.next_yield_safe(host, next, policy.roots, policy.lock).await;
        }
        host.unlock(LockId::MMU).await;
        host.unlock(LockId::SLOTS).await;
    }

    /// `kvm_mmu_recover_huge_pages`, which is called when logging has ended, under `slots_lock`.
    async fn recover(&self, host: &Host<F>) {
        let (roots, range) = (self.roots(), self.log.slot);
        let mitigation = self.nx.as_ref().map_or(Mitigation::Off, NxPages::mitigation);
        let policy = CollapsePolicy { mitigation, ..CollapsePolicy::X86_6_13 };
        host.lock(LockId::SLOTS, LockMode::Write).await;
        if !self.log.is_on(host, range.start).await {
            host.lock(LockId::MMU, policy.lock.mode()).await;
            let mut next = roots.next_yield_safe(host, None, UnmapRoots::ValidOnly, policy.lock).await;
            while let Some(root) = next {
                let _ = collapse_range(host, root.table, range, self.largest, &policy).await;
                next = roots.next_yield_safe(host, next, UnmapRoots::ValidOnly, policy.lock).await;
            }
            host.unlock(LockId::MMU).await;
        }
        host.unlock(LockId::SLOTS).await;
    }

    async fn zap_roots(&self, host: &Host<F>) {
        let Some(roots) = self.roots().list() else { return };
        roots.zap_all_fast(host).await;
        if let Some(nesting) = &self.nesting {
            // `kvm_zap_obsolete_pages`
            nesting.shadow.unmap(host, self.log.slot).await;
        }
    }

    /// L1 starts its guest on a vCPU, which writes the first page and reads the last; whose guest ends last takes the tables down.
    async fn nest(&self, host: &Host<F>, pages: Pages, thread: &mut Thread<F>) {
        let Some(Nesting { shadow, lock, running }) = &self.nesting else { return };
        thread.leave(host).await;
        host.lock(*lock, LockMode::Write).await;
        running.set(running.get() + 1);
        let entered = shadow.enter(host, thread.vcpu, 1).await;
        host.unlock(*lock).await;
        if entered.is_ok() {
            let last = pages.gpas().end().raw() - PAGE;
            let work = vec![write(pages.first().gpa().raw()), read(last), write(last)];
            host.assign(thread.vcpu, mmu_sim::workload::GuestWork::List(work));
            // A run that failed is counted; what it left is checked all the same.
            let _ = shadow.run_logged(host, thread.vcpu, thread.logged()).await;
            thread.back_in_l1(host).await;
        }
        host.lock(*lock, LockMode::Write).await;
        running.set(running.get() - 1);
        if running.get() == 0 {
            shadow.release(host).await;
        }
        host.unlock(*lock).await;
    }
}
